"""SQS as this consumer uses it: notices in, notices that nobody can use to the dead letters, results out.

A message that was received is hidden from other consumers for a time, the lease, and comes back unless it is deleted.
So nothing is lost with the consumer that holds it. https://docs.aws.amazon.com/AWSSimpleQueueService
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tilewise.datasets.core.errors import QueueError, TilewiseError

LONGEST_HIDDEN = 12 * 3600
"""Seconds that SQS hides a message at the longest, from when it was received."""
MAX_AT_ONCE = 10
_LONGEST_REASON = 1000
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # which SQS refuses
_PATIENCE = 20.0
_WAYS_OUT = {
    "NonExistentQueue": "; make it, or name another, in the region of the credentials",
    "QueueDoesNotExist": "; make it, or name another, in the region of the credentials",
    "AccessDenied": "; docs/streaming.md lists the rights that a consumer needs",
}


@dataclass(frozen=True, slots=True)
class Message:
    """A message that was received.

    Attributes:
        id: SQS's own.
        body: what was sent.
        receipt: with which it is deleted or given back.
        receives: how often it was received, this time included.
        sent: when, in seconds since 1970.
    """

    id: str
    body: str
    receipt: str
    receives: int
    sent: float


@dataclass(frozen=True, slots=True)
class Redrive:
    """A queue's own policy: the ARN of its dead letters, and how often a message is received before."""

    arn: str
    receives: int


class Queue:
    """A queue of notices. Its methods may be called from several threads.

    Args:
        name: its URL or its name.
        dead_letters: URL or name of the queue for notices that nobody can use; None: the one of the queue's own policy.
        results: URL of a queue, or ARN of an SNS topic, that results are sent to; None: they are not.

    Raises:
        QueueError: it cannot be reached, does not exist, or has no dead letters.
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
        """Wait for messages, and return no more than `count`, which others do not see for `lease` seconds.

        Raises:
            QueueError: the queue does not answer.
        """
        with _explained(self.url):
            answer = self._sqs.receive_message(
                QueueUrl=self.url,
                MaxNumberOfMessages=min(count, MAX_AT_ONCE),
                WaitTimeSeconds=seconds,
                VisibilityTimeout=lease,
                MessageSystemAttributeNames=["ApproximateReceiveCount", "SentTimestamp"],
            )
        return [_message(overrides) for overrides in answer.get("Messages", [])]

    def hide(self, message: Message, seconds: int) -> None:
        """Let others not see a message for so long from now; 0: give it back at once.

        Raises:
            QueueError: the queue does not answer, or the message is not held any more.
        """
        with _explained(self.url):
            self._sqs.change_message_visibility(
                QueueUrl=self.url, ReceiptHandle=message.receipt, VisibilityTimeout=min(seconds, LONGEST_HIDDEN)
            )

    def delete(self, message: Message) -> None:
        """Take a message out of the queue: what it asked for is done.

        Raises:
            QueueError: the queue does not answer.
        """
        with _explained(self.url):
            self._sqs.delete_message(QueueUrl=self.url, ReceiptHandle=message.receipt)

    def bury(self, message: Message, reason: str) -> None:
        """Move a message, as it came, to the dead letters, with the reason.

        Raises:
            QueueError: the queue does not answer; the message is not lost, and may be in both queues.
        """
        told = {"reason": _printable(reason), "queue": self.url, "receives": str(message.receives), "id": message.id}
        with _explained(self.dead_letters):
            self._sqs.send_message(
                QueueUrl=self.dead_letters,
                MessageBody=message.body,
                MessageAttributes={key: _attribute(value) for key, value in told.items()},
                **_in_order(self.dead_letters, message.id, message.id),
            )
        self.delete(message)

    def publish(self, result: Mapping[str, Any]) -> None:
        """Send a result on, if there is anybody to send it to.

        Raises:
            QueueError: who takes the results does not answer.
        """
        text, kind = json.dumps(result), {"type": _attribute(str(result["type"]))}
        order = _in_order(self._topic or self._results or "", str(result["folder"]), str(result["id"]))
        if self._sns is not None:
            with _explained(str(self._topic)):
                self._sns.publish(TopicArn=self._topic, Message=text, MessageAttributes=kind, **order)
        elif self._results:
            with _explained(self._results):
                self._sqs.send_message(QueueUrl=self._results, MessageBody=text, MessageAttributes=kind, **order)

    def _find(self, name: str) -> str:
        """Return the URL of a queue that exists."""
        with _explained(name):
            if "://" not in name:
                return str(self._sqs.get_queue_url(QueueName=name)["QueueUrl"])
            self._sqs.get_queue_attributes(QueueUrl=name, AttributeNames=["QueueArn"])
            return name

    def _policy(self) -> Redrive | None:
        with _explained(self.url):
            overrides = self._sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=["RedrivePolicy"])
        text = overrides.get("Attributes", {}).get("RedrivePolicy")
        policy = json.loads(text) if text else None
        return Redrive(policy["deadLetterTargetArn"], int(policy["maxReceiveCount"])) if policy else None

    def _find_by_policy(self) -> str:
        if self.redrive is None:
            raise QueueError(
                f"{self.url}: it has no dead letters, so a notice that nobody can use would come back for ever; "
                "give it a redrive policy, or name a queue by --dead-letters"
            )
        owner, name = self.redrive.arn.split(":")[-2:]
        with _explained(self.redrive.arn):
            return str(self._sqs.get_queue_url(QueueName=name, QueueOwnerAWSAccountId=owner)["QueueUrl"])


def _client(service: str, region: str | None) -> Any:
    """Return a client that finds its credentials, and AWS_ENDPOINT_URL, as all programs for AWS do.

    Raises:
        TilewiseError: boto3 is not installed.
        QueueError: nothing says in which region the queue is.
    """
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise TilewiseError("queues are read by boto3; pip install 'tilewise[stream]'") from error
    retries: Any = {"mode": "standard", "total_max_attempts": 3}
    config = Config(retries=retries, connect_timeout=_PATIENCE, read_timeout=2 * _PATIENCE, max_pool_connections=32)
    with _explained(service):
        return boto3.client(service, region_name=region, config=config)


def _region(name: str) -> str | None:
    """Return the region in a queue's URL; None: what the environment says."""
    found = re.fullmatch(r"sqs\.([a-z0-9-]+)\.amazonaws\.com(\.cn)?", urlsplit(name).hostname or "")
    return found[1] if found else None


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn whatever goes wrong with AWS into one line."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError

    try:
        yield
    except NoCredentialsError as error:
        raise QueueError(
            f"{what}: no credentials; set AWS_ACCESS_KEY_ID and its like, or run `aws configure`"
        ) from error
    except NoRegionError as error:
        raise QueueError(f"{what}: no region; set AWS_DEFAULT_REGION") from error
    except ClientError as error:
        raise QueueError(f"{what}: {_refusal(error.response.get('Error', {}))}") from error
    except (BotoCoreError, ValueError) as error:
        raise QueueError(
            f"{what}: {error}; is the network there, and AWS_ENDPOINT_URL right where it is set?"
        ) from error


def _refusal(overrides: Mapping[str, Any]) -> str:
    """Return what AWS says of a refusal, and the way out of the usual ones."""
    code = str(overrides.get("Code", "refused"))
    way = next((way for word, way in _WAYS_OUT.items() if word in code), "")
    return f"{code}: {overrides.get('Message', '')}{way}"


def _message(overrides: Mapping[str, Any]) -> Message:
    told = overrides.get("Attributes", {})
    receives, sent = int(told.get("ApproximateReceiveCount", 1)), int(told.get("SentTimestamp", 0)) / 1000
    return Message(overrides["MessageId"], overrides["Body"], overrides["ReceiptHandle"], receives, sent)


def _attribute(value: str) -> dict[str, str]:
    return {"DataType": "String", "StringValue": value}


def _printable(text: str) -> str:
    return _NOT_XML.sub("?", text)[:_LONGEST_REASON] or "?"


def _in_order(target: str, group: str, once: str) -> dict[str, str]:
    """Return what a FIFO queue or topic wants of a message: what it is in order with, and what it is known by."""
    return {"MessageGroupId": group[:128], "MessageDeduplicationId": once[:128]} if target.endswith(".fifo") else {}
