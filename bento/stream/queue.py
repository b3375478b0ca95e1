"""Queue: SQS and SNS as the consumer uses them: receive notices, dead-letter unusable ones, publish results.

A received message is hidden from other consumers for a time, the lease, and returns unless it is deleted. So
nothing is lost with the consumer that holds it. https://docs.aws.amazon.com/AWSSimpleQueueService
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tilewise.datasets.core.errors import QueueError, TilewiseError

MAX_HIDDEN_S = 12 * 3600
"""The most seconds that SQS hides a message, from when it was received."""
MAX_RECEIVED = 10
_MAX_REASON = 1000
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # characters that SQS refuses
_TIMEOUT_S = 20.0
_HINTS = {
    "NonExistentQueue": "; make it, or name another, in the region of the credentials",
    "QueueDoesNotExist": "; make it, or name another, in the region of the credentials",
    "AccessDenied": "; docs/streaming.md lists the rights that a consumer needs",
}


@dataclass(frozen=True, slots=True)
class Message:
    """A received message.

    Attributes:
        id: given by SQS.
        body: as it was sent.
        receipt: handle by which it is deleted or hidden.
        receives: number of times that it was received, this one included.
        sent: in seconds since 1970.
    """

    id: str
    body: str
    receipt: str
    receives: int
    sent: float


@dataclass(frozen=True, slots=True)
class Redrive:
    """Redrive policy of a queue: ARN of its dead-letter queue, and the receives that a message may have."""

    arn: str
    receives: int


class Queue:
    """A queue of notices. Its methods may be called from several threads.

    Args:
        name: URL or name of the queue.
        dead_letters: URL or name of its dead-letter queue; None: that of the queue's redrive policy.
        results: URL or name of a queue, or ARN of an SNS topic, to publish results to; None: they are not
            published.

    Raises:
        QueueError: it cannot be reached, does not exist, or has no dead-letter queue.
    """

    def __init__(self, name: str, dead_letters: str | None = None, results: str | None = None) -> None:
        self._sqs = _client("sqs", _region(name))
        self.url = self._find(name)
        self.redrive = self._policy()
        self.dead_letters = self._find(dead_letters) if dead_letters else self._find_by_policy()
        self._topic = results if results and results.startswith("arn:") else None
        self._results = self._find(results) if results and not self._topic else None
        self._sns = _client("sns", self._topic.split(":")[3] or None) if self._topic else None

    def receive(self, count: int, seconds: int, lease: int) -> list[Message]:
        """Wait up to `seconds` for at most `count` messages, hidden from others for `lease` seconds.

        Raises:
            QueueError: the queue does not answer.
        """
        with _explained(self.url):
            answer = self._sqs.receive_message(
                QueueUrl=self.url,
                MaxNumberOfMessages=min(count, MAX_RECEIVED),
                WaitTimeSeconds=seconds,
                VisibilityTimeout=lease,
                MessageSystemAttributeNames=["ApproximateReceiveCount", "SentTimestamp"],
            )
        return [_message(received) for received in answer.get("Messages", [])]

    def hide(self, message: Message, seconds: int) -> None:
        """Hide a message from other consumers for `seconds` from now; 0: release it at once.

        Raises:
            QueueError: the queue does not answer, or the message is not held any more.
        """
        with _explained(self.url):
            self._sqs.change_message_visibility(
                QueueUrl=self.url, ReceiptHandle=message.receipt, VisibilityTimeout=min(seconds, MAX_HIDDEN_S)
            )

    def delete(self, message: Message) -> None:
        """Delete a message from the queue: it is dealt with.

        Raises:
            QueueError: the queue does not answer.
        """
        with _explained(self.url):
            self._sqs.delete_message(QueueUrl=self.url, ReceiptHandle=message.receipt)

    def dead_letter(self, message: Message, reason: str) -> None:
        """Move a message, unchanged, to the dead-letter queue, with the reason as an attribute.

        Raises:
            QueueError: the queue does not answer; the message is not lost, and may be in both queues.
        """
        attributes = {
            "reason": _printable(reason),
            "queue": self.url,
            "receives": str(message.receives),
            "id": message.id,
        }
        with _explained(self.dead_letters):
            self._sqs.send_message(
                QueueUrl=self.dead_letters,
                MessageBody=message.body,
                MessageAttributes={key: _attribute(value) for key, value in attributes.items()},
                **_fifo(self.dead_letters, message.id, message.id),
            )
        self.delete(message)

    def publish(self, result: Mapping[str, Any]) -> None:
        """Publish a result, if there is a queue or topic of results.

        Raises:
            QueueError: that queue or topic does not answer.
        """
        text, kind = json.dumps(result), {"type": _attribute(str(result["type"]))}
        folder = str(result["folder"])
        # The same content in two folders has one id, and gives two results: both must arrive.
        once = hashlib.sha256(f"{folder}/{result['id']}".encode()).hexdigest()
        fifo = _fifo(self._topic or self._results or "", folder, once)
        if self._sns is not None:
            with _explained(str(self._topic)):
                self._sns.publish(TopicArn=self._topic, Message=text, MessageAttributes=kind, **fifo)
        elif self._results:
            with _explained(self._results):
                self._sqs.send_message(
                    QueueUrl=self._results, MessageBody=text, MessageAttributes=kind, **fifo
                )

    def _find(self, name: str) -> str:
        """Return the URL of a queue that exists."""
        with _explained(name):
            if "://" not in name:
                return str(self._sqs.get_queue_url(QueueName=name)["QueueUrl"])
            self._sqs.get_queue_attributes(QueueUrl=name, AttributeNames=["QueueArn"])
            return name

    def _policy(self) -> Redrive | None:
        with _explained(self.url):
            answer = self._sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=["RedrivePolicy"])
        text = answer.get("Attributes", {}).get("RedrivePolicy")
        policy = json.loads(text) if text else None
        return Redrive(policy["deadLetterTargetArn"], int(policy["maxReceiveCount"])) if policy else None

    def _find_by_policy(self) -> str:
        if self.redrive is None:
            raise QueueError(
                f"{self.url}: it has no dead letters, so an unusable notice would return for ever; "
                "give it a redrive policy, or name a queue by --dead-letters"
            )
        owner, name = self.redrive.arn.split(":")[-2:]
        with _explained(self.redrive.arn):
            return str(self._sqs.get_queue_url(QueueName=name, QueueOwnerAWSAccountId=owner)["QueueUrl"])


def _client(service: str, region: str | None) -> Any:
    """Return a client, configured by the environment or files as all programs for AWS are.

    Raises:
        TilewiseError: boto3 is not installed.
        QueueError: the region is not known.
    """
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise TilewiseError("queues are read by boto3; pip install 'tilewise[stream]'") from error
    retries: Any = {"mode": "standard", "total_max_attempts": 3}
    config = Config(
        retries=retries, connect_timeout=_TIMEOUT_S, read_timeout=2 * _TIMEOUT_S, max_pool_connections=32
    )
    with _explained(service):
        return boto3.client(service, region_name=region, config=config)


def _region(name: str) -> str | None:
    """Return the region in a queue's URL; None: the default of the environment."""
    found = re.fullmatch(r"sqs\.([a-z0-9-]+)\.amazonaws\.com(\.cn)?", urlsplit(name).hostname or "")
    return found[1] if found else None


@contextmanager
def _explained(subject: str) -> Iterator[None]:
    """Turn every error of AWS into a QueueError of one line about `subject`."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError

    try:
        yield
    except NoCredentialsError as error:
        raise QueueError(
            f"{subject}: no credentials; set AWS_ACCESS_KEY_ID and its like, or run `aws configure`"
        ) from error
    except NoRegionError as error:
        raise QueueError(f"{subject}: no region; set AWS_DEFAULT_REGION") from error
    except ClientError as error:
        raise QueueError(f"{subject}: {_refusal(error.response.get('Error', {}))}") from error
    except (BotoCoreError, ValueError) as error:
        raise QueueError(
            f"{subject}: {error}; is the network there, and AWS_ENDPOINT_URL right where it is set?"
        ) from error


def _refusal(error: Mapping[str, Any]) -> str:
    """Return the code and message of an error of AWS, with a hint for the usual ones."""
    code = str(error.get("Code", "refused"))
    hint = next((hint for word, hint in _HINTS.items() if word in code), "")
    return f"{code}: {error.get('Message', '')}{hint}"


def _message(received: Mapping[str, Any]) -> Message:
    attributes = received.get("Attributes", {})
    receives = int(attributes.get("ApproximateReceiveCount", 1))
    sent = int(attributes.get("SentTimestamp", 0)) / 1000
    return Message(received["MessageId"], received["Body"], received["ReceiptHandle"], receives, sent)


def _attribute(value: str) -> dict[str, str]:
    return {"DataType": "String", "StringValue": value}


def _printable(text: str) -> str:
    return _NOT_XML.sub("?", text)[:_MAX_REASON] or "?"


def _fifo(target: str, group: str, once: str) -> dict[str, str]:
    """Return the parameters that a FIFO queue or topic needs: group for the order, and deduplication ID."""
    if not target.endswith(".fifo"):
        return {}
    return {"MessageGroupId": group[:128], "MessageDeduplicationId": once[:128]}
