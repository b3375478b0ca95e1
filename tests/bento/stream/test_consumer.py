"""Notices through a real SQS and SNS server on loopback: none lost, none doubled, nothing read elsewhere."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import rasterio
from batch_runs import ROOT, environment

from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.windows import GridOptions
from tilewise.bento.results.writer import Output, OutputOptions
from tilewise.bento.stream.allow_list import AllowList
from tilewise.bento.stream.cli import receives_of
from tilewise.bento.stream.consumer import REGISTRY, Consumer, ConsumerOptions, NoticeStatus
from tilewise.bento.stream.queue import Message, Queue
from tilewise.bento.stream.worker import SceneWorker, SceneWorkerOptions
from tilewise.datasets.acquire.synthetic import synthesise_scene
from tilewise.datasets.core.errors import QueueError, TilewiseError
from tilewise.datasets.core.radiometry import ReadOptions
from tilewise.datasets.readers.geotiff import read_tile

boto3 = pytest.importorskip("boto3")
REGION = "eu-central-1"
RECEIVES = 3
MAPS = SceneWorkerOptions(
    GridOptions(), OutputOptions((Output.CLASSES, Output.STAC)), threads=1, max_pixels=10**6
)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of SQS, SNS and S3, which every program for AWS in this process finds."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    told = {"AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": REGION, "AWS_EC2_METADATA_DISABLED": "true"}
    told |= {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing"}
    with (tmp_path_factory.mktemp("broker") / "log").open("w") as log, pytest.MonkeyPatch.context() as patch:
        for name, value in told.items():
            patch.setenv(name, value)
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_until(lambda: answers(url))
            yield url
        finally:
            server.terminate()
            server.wait(20)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small scene, the same split into two bands, and a larger one."""
    folder = tmp_path_factory.mktemp("archive")
    synthesise_scene(folder / "small.tif", 1, 2, 2)
    synthesise_scene(folder / "large.tif", 2, 8, 8)
    synthesise_scene(folder / "tile.tif", 3, 1, 1)
    with rasterio.open(folder / "small.tif") as scene:
        for index, name in ((3, "B03"), (4, "B04")):
            with rasterio.open(folder / f"{name}.tif", "w", **scene.profile | {"count": 1}) as band:
                band.write(scene.read(index), 1)
    return folder


@dataclass(frozen=True)
class Desks:
    """Queues of one test, and a consumer of them."""

    name: str
    out: Path
    archive: Path
    engine: Engine
    sqs: Any

    def url(self, role: str) -> str:
        return str(self.sqs.get_queue_url(QueueName=f"{self.name}-{role}")["QueueUrl"])

    def send(self, *notices: object) -> None:
        for notice in notices:
            body = notice if isinstance(notice, str) else json.dumps(notice)
            self.sqs.send_message(QueueUrl=self.url("notices"), MessageBody=body)

    def drain(self, role: str) -> list[dict[str, Any]]:
        """Take all messages that others could take now."""
        found = []
        while messages := self.sqs.receive_message(
            QueueUrl=self.url(role), MaxNumberOfMessages=10, MessageAttributeNames=["All"]
        ).get("Messages"):
            for message in messages:
                self.sqs.delete_message(QueueUrl=self.url(role), ReceiptHandle=message["ReceiptHandle"])
            found += messages
        return found

    def results(self) -> list[dict[str, Any]]:
        return [json.loads(message["Body"]) for message in self.drain("results")]

    def buried(self) -> list[tuple[str, str]]:
        """Body and reason of each dead letter."""
        letters = self.drain("dead")
        return [(letter["Body"], letter["MessageAttributes"]["reason"]["StringValue"]) for letter in letters]

    def left(self, *names: str) -> int:
        """How many notices are in the queue, in work or not, or as `names` count them."""
        names = names or ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
        overrides = self.sqs.get_queue_attributes(QueueUrl=self.url("notices"), AttributeNames=list(names))[
            "Attributes"
        ]
        return sum(int(overrides[name]) for name in names)

    def consumer(self, worker: SceneWorkerOptions = MAPS, **options: Any) -> Consumer:
        allowed = options.pop("allowed", AllowList.parse([str(self.archive)]))
        usual = ConsumerOptions(allowed, wait=0, receives=RECEIVES, retry_seconds=0, min_free=0, idle=0)
        queue = Queue(self.url("notices"), results=options.pop("results", self.url("results")))
        return Consumer(
            queue, SceneWorker(self.out, self.engine, worker), self.out, replace(usual, **options)
        )

    def command(self, *more: object) -> list[str]:
        """The command line, on these queues."""
        overrides = ("--queue", f"{self.name}-notices", "--allow", self.archive, "--out", self.out)
        overrides += (
            "--results",
            f"{self.name}-results",
            "--model",
            self.engine.path,
            "--outputs",
            "classes",
        )
        more = ("--wait", 0, "--retry-seconds", 0, "--log", "json", *more)
        return [sys.executable, "-m", "tilewise", "stream", *map(str, overrides), *map(str, more)]

    @contextmanager
    def started(self, *more: object) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
        """Start the command, which is killed at the end of the block if it still runs."""
        log = self.out.with_suffix(".log")
        with log.open("ab") as file:
            process = subprocess.Popen(self.command(*more), cwd=ROOT, env=environment(), stderr=file)
            try:
                yield process, log
            finally:
                with suppress(ProcessLookupError):
                    process.kill()
                process.wait(30)


@pytest.fixture
def desks(broker: str, archive: Path, engine: Engine, tmp_path: Path) -> Desks:
    sqs = boto3.client("sqs")
    name = tmp_path.name.replace("_", "-")[:55]
    for role in ("dead", "results", "notices"):
        sqs.create_queue(QueueName=f"{name}-{role}")
    made = Desks(name, tmp_path / "out", archive, engine, sqs)
    arn = sqs.get_queue_attributes(QueueUrl=made.url("dead"), AttributeNames=["QueueArn"])["Attributes"][
        "QueueArn"
    ]
    policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 10})
    sqs.set_queue_attributes(QueueUrl=made.url("notices"), Attributes={"RedrivePolicy": policy})
    return made


def answers(url: str) -> bool:
    try:
        httpx.get(url, trust_env=False)
    except httpx.TransportError:
        return False
    return True


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]


def files_below(folder: Path) -> dict[str, bytes]:
    found = [path for path in folder.rglob("*") if path.is_file() and "manifest" not in path.name]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


# What comes of a notice.


def test_a_notice_becomes_maps_and_a_result(desks: Desks) -> None:
    desks.send({"scene": str(desks.archive / "small.tif"), "id": "job 7"})
    statuses = desks.consumer().run()
    assert statuses == {NoticeStatus.DONE: 1}
    (result,) = desks.results()
    assert (result["type"], result["notice"], result["windows"]) == ("tilewise.scene", "job 7", 4)
    assert result["model"]["sha256"] == desks.engine.sha256
    folder = desks.out / result["folder"]
    assert {file["name"] for file in result["files"]} == {
        "small.classes.tif",
        "small.classes.tif.aux.xml",
        "small.classes.qml",
        "small.stac.json",
    }
    assert all((folder / file["name"]).stat().st_size == file["size"] for file in result["files"])
    assert json.loads((folder / result["item"]).read_text())["type"] == "Feature"
    with rasterio.open(folder / "small.classes.tif") as classes:
        hectares = (classes.read(1) != 255).sum() / 100
    assert sum(result["area_ha"].values()) == pytest.approx(hectares)
    assert (desks.left(), desks.buried()) == (0, [])


def test_a_tile_is_answered_in_its_result(desks: Desks) -> None:
    desks.send({"scene": "tile.tif"})
    kinds = OutputOptions((Output.CLASSES, Output.WINDOWS))
    assert desks.consumer(replace(MAPS, outputs=kinds)).run() == {NoticeStatus.DONE: 1}
    (result,) = desks.results()
    answers = desks.engine.classify(read_tile(desks.archive / "tile.tif", ReadOptions()).pixels[None])
    shares = dict(zip(desks.engine.metadata.classes, answers.probabilities[0], strict=True))
    assert result["tile"]["probabilities"] == pytest.approx(shares, abs=1e-5)
    assert result["tile"]["class"] == max(shares, key=shares.__getitem__)
    assert list(result["area_ha"]) == [result["tile"]["class"]]


def fifo(desks: Desks) -> str:
    """Make a FIFO queue of results, with the role `once.fifo`; return its URL."""
    return str(
        desks.sqs.create_queue(QueueName=f"{desks.name}-once.fifo", Attributes={"FifoQueue": "true"})[
            "QueueUrl"
        ]
    )


def test_a_fifo_queue_of_results_gets_each_once(desks: Desks) -> None:
    results = fifo(desks)
    desks.send({"scene": "tile.tif"}, {"scene": "tile.tif"})
    assert desks.consumer(results=results).run() == {NoticeStatus.DONE: 1, NoticeStatus.UNCHANGED: 1}
    assert len(desks.drain("once.fifo")) == 1


def test_the_same_file_in_two_folders_gives_two_results_of_a_fifo_queue_too(desks: Desks) -> None:
    results = fifo(desks)
    (desks.archive / "copies").mkdir(exist_ok=True)
    (desks.archive / "copies" / "tile.tif").write_bytes((desks.archive / "tile.tif").read_bytes())
    desks.send({"scene": "tile.tif"}, {"scene": "copies/tile.tif"})
    assert desks.consumer(results=results).run() == {NoticeStatus.DONE: 2}
    published = [json.loads(message["Body"]) for message in desks.drain("once.fifo")]
    assert len({result["folder"] for result in published}) == 2
    assert {result["folder"] for result in published} == {path.name for path in desks.out.iterdir()}


def test_a_file_that_changes_gives_a_second_result_of_a_fifo_queue_too(desks: Desks, tmp_path: Path) -> None:
    results = fifo(desks)
    allowed = AllowList.parse([str(tmp_path)])
    for seed in (1, 2):
        synthesise_scene(tmp_path / "changing.tif", seed, 1, 1)
        desks.send({"scene": "changing.tif"})
        assert desks.consumer(results=results, allowed=allowed).run() == {NoticeStatus.DONE: 1}
    published = [json.loads(message["Body"]) for message in desks.drain("once.fifo")]
    assert len({result["id"] for result in published}) == 2
    assert len({result["folder"] for result in published}) == 1


def test_a_notice_that_comes_again_gives_the_same_one_output(desks: Desks) -> None:
    desks.send({"scene": "small.tif"}, {"scene": str(desks.archive / "small.tif")})
    assert desks.consumer().run() == {NoticeStatus.DONE: 1, NoticeStatus.UNCHANGED: 1}
    before = files_below(desks.out)
    desks.send({"scene": "small.tif"})
    assert desks.consumer().run() == {NoticeStatus.UNCHANGED: 1}
    assert files_below(desks.out) == before
    first, *others = desks.results()
    assert others == [first, first]
    assert len(list(desks.out.iterdir())) == 1


def test_two_consumers_at_the_same_scene_do_not_disturb_each_other(desks: Desks) -> None:
    desks.send(*[{"scene": "small.tif"}] * 3)
    consumer = desks.consumer(in_flight=3, receives=1, retry_seconds=1, idle=60)  # waiting is no second try
    publish, published = consumer._queue.publish, []

    def until_the_third(result: dict[str, Any]) -> None:
        publish(result)
        published.append(result)
        if len(published) == 3:
            consumer.stop()

    consumer._queue.publish = until_the_third  # type: ignore[method-assign,assignment]
    statuses = consumer.run()
    assert (
        statuses[NoticeStatus.DONE],
        statuses[NoticeStatus.UNCHANGED],
        statuses[NoticeStatus.DEAD_LETTERED],
    ) == (1, 2, 0)
    assert len({result["id"] for result in desks.results()}) == 1


def test_a_stac_item_through_sns_is_classified_and_its_result_published_by_sns(desks: Desks) -> None:
    sns = boto3.client("sns")
    topics = {
        role: sns.create_topic(Name=f"{desks.name}-{role}")["TopicArn"] for role in ("notices", "results")
    }
    for role, topic in topics.items():
        sns.subscribe(
            TopicArn=topic, Protocol="sqs", Endpoint=f"arn:aws:sqs:{REGION}:123456789012:{desks.name}-{role}"
        )
    assets = {band: {"href": str(desks.archive / f"{band}.tif")} for band in ("B03", "B04")}
    properties = {"processing:level": "L2A", "s2:processing_baseline": "03.01"}
    item = {"type": "Feature", "id": "S2A_31TCJ", "properties": properties, "assets": assets}
    sns.publish(TopicArn=topics["notices"], Message=json.dumps(item))
    assert desks.consumer(results=topics["results"]).run() == {NoticeStatus.DONE: 1}
    (handed_on,) = desks.results()
    result = json.loads(handed_on["Message"])
    assert (result["name"], result["scene"], result["windows"]) == ("S2A_31TCJ", "S2A_31TCJ", 4)
    assert (desks.out / result["folder"] / "S2A_31TCJ.classes.tif").is_file()


def test_an_item_in_a_bucket_is_read_as_the_operator_says(desks: Desks, broker: str) -> None:
    s3 = boto3.client("s3")
    s3.create_bucket(
        Bucket=desks.name, CreateBucketConfiguration={"LocationConstraint": REGION}, ACL="public-read"
    )
    for band in ("B03", "B04"):
        content = (desks.archive / f"{band}.tif").read_bytes()
        s3.put_object(Bucket=desks.name, Key=f"a/{band}.tif", Body=content, ACL="public-read")
    assets = {band: {"href": f"./{band}.tif"} for band in ("B03", "B04")}
    item = {"type": "Feature", "id": "far", "properties": {"processing:level": "L2A"}, "assets": assets}
    s3.put_object(Bucket=desks.name, Key="a/item.json", Body=json.dumps(item).encode(), ACL="public-read")
    allowed = AllowList.parse([f"s3://{desks.name}/={broker}/{desks.name}/"])
    desks.send({"scene": f"s3://{desks.name}/a/item.json", "scale": 0.0001, "offset": 0})
    assert desks.consumer(allowed=allowed).run() == {NoticeStatus.DONE: 1}
    (result,) = desks.results()
    assert (result["name"], result["windows"]) == ("far", 4)


# Notices that nobody can use.


def test_poison_goes_to_the_dead_letters_with_its_reason_and_harms_no_other(desks: Desks) -> None:
    hostile = [
        "{",
        {"scene": "/etc/passwd"},
        {"scene": "http://169.254.169.254/latest"},
        {"scene": "../x.tif"},
    ]
    desks.send(*hostile, {"scene": "small.tif"})
    assert desks.consumer().run() == {NoticeStatus.DEAD_LETTERED: 4, NoticeStatus.DONE: 1}
    reasons = dict(desks.buried())
    assert "not valid JSON" in reasons["{"]
    assert all(
        "not on the allow-list of this consumer" in reasons[json.dumps(notice)] for notice in hostile[1:]
    )
    assert desks.left() == 0
    assert not [path for path in desks.out.iterdir() if not path.name.startswith("small-")]


def test_a_scene_that_cannot_be_read_is_tried_several_times_and_then_buried(desks: Desks) -> None:
    (desks.archive / "torn.tif").write_bytes((desks.archive / "small.tif").read_bytes()[:200])
    desks.send({"scene": "torn.tif"}, {"scene": "late.tif"})
    statuses = desks.consumer().run()
    assert statuses == {NoticeStatus.RETRIED: 2 * (RECEIVES - 1), NoticeStatus.DEAD_LETTERED: 2}
    reasons = sorted(reason for _, reason in desks.buried())
    assert "late.tif: there is no such file" in reasons[0]
    assert "torn.tif" in reasons[1]


def test_too_large_a_scene_is_refused_at_once(desks: Desks) -> None:
    desks.send({"scene": "small.tif"})
    assert desks.consumer(replace(MAPS, max_pixels=1000)).run() == {NoticeStatus.DEAD_LETTERED: 1}
    ((_, reason),) = desks.buried()
    assert "16,384 pixels, more than 1,000" in reason


def test_a_notice_that_consumers_die_of_is_buried(desks: Desks) -> None:
    desks.send({"scene": "small.tif"})
    for _ in range(RECEIVES):  # received, and never heard of again
        assert desks.sqs.receive_message(QueueUrl=desks.url("notices"), VisibilityTimeout=0)["Messages"]
    assert desks.consumer().run() == {NoticeStatus.DEAD_LETTERED: 1}
    ((_, reason),) = desks.buried()
    assert f"received {RECEIVES + 1} times" in reason


def test_a_scene_that_takes_too_long_is_given_up(desks: Desks) -> None:
    desks.send({"scene": "large.tif"})
    statuses = desks.consumer(max_seconds=0.0).run()
    assert statuses == {NoticeStatus.RETRIED: RECEIVES - 1, NoticeStatus.DEAD_LETTERED: 1}
    ((_, reason),) = desks.buried()
    assert "allow more by --max-seconds" in reason


def test_odd_words_of_a_sender_hold_up_nobody(desks: Desks) -> None:
    odd = {"scene": "tile.tif", "id": "\ud800\x00\u202e" + "x" * 1000}
    desks.send(odd, {"scene": "\ud800"}, {"scene": "tile.tif", "bands": "B" * 100_000}, {"scene": "x" * 1000})
    assert desks.consumer().run() == {NoticeStatus.DONE: 1, NoticeStatus.DEAD_LETTERED: 3}
    (result,) = desks.results()
    assert result["notice"] == odd["id"][:256]
    assert all(0 < len(reason) <= 1000 for _, reason in desks.buried())


# Pace.


def test_no_more_notices_are_taken_than_are_worked_on(desks: Desks) -> None:
    desks.send(*[{"scene": "small.tif"}] * 4)
    queue = Queue(desks.url("notices"))
    requested: list[int] = []
    receive = queue.receive

    def count_requested(count: int, *rest: int) -> list[Message]:
        requested.append(count)
        return receive(count, *rest)

    queue.receive = count_requested  # type: ignore[method-assign,assignment]
    usual = ConsumerOptions(AllowList.parse([str(desks.archive)]), in_flight=1, wait=0, min_free=0, idle=0)
    statuses = Consumer(queue, SceneWorker(desks.out, desks.engine, MAPS), desks.out, usual).run()
    assert statuses.total() == 4
    assert set(requested) == {1}


def test_a_full_disk_stops_the_taking_and_loses_nothing(desks: Desks) -> None:
    desks.send({"scene": "small.tif"})
    assert desks.consumer(min_free=2**60, idle=0.1).run() == {}
    assert desks.left() == 1
    assert REGISTRY.get_sample_value("tilewise_stream_paused") == 1
    assert desks.consumer().run() == {NoticeStatus.DONE: 1}
    assert REGISTRY.get_sample_value("tilewise_stream_paused") == 0


def test_a_notice_in_work_stays_hidden_for_longer_than_its_lease(desks: Desks) -> None:
    desks.send({"scene": "small.tif"})
    consumer = desks.consumer(lease=1)
    seen: list[object] = []
    publish = consumer._queue.publish

    def slowly(result: dict[str, Any]) -> None:
        time.sleep(1.7)
        seen.append(desks.sqs.receive_message(QueueUrl=desks.url("notices")).get("Messages"))
        publish(result)

    consumer._queue.publish = slowly  # type: ignore[method-assign,assignment]
    assert consumer.run() == {NoticeStatus.DONE: 1}
    assert seen == [None]


def test_a_result_waits_for_who_takes_results(desks: Desks) -> None:
    desks.send({"scene": "small.tif"})
    consumer = desks.consumer()
    desks.sqs.delete_queue(QueueUrl=desks.url("results"))
    back = threading.Timer(0.7, desks.sqs.create_queue, kwargs={"QueueName": f"{desks.name}-results"})
    back.start()
    assert consumer.run() == {NoticeStatus.DONE: 1}
    back.join()
    assert len(desks.results()) == 1
    assert (desks.left(), desks.buried()) == (0, [])


def test_a_notice_stays_in_the_queue_until_its_result_is_published(desks: Desks) -> None:
    desks.send({"scene": "small.tif"})
    consumer = desks.consumer()
    publish, left = consumer._queue.publish, []

    def fail_once(result: dict[str, Any]) -> None:
        left.append(desks.left())
        if len(left) == 1:
            raise RuntimeError("a fault of the consumer, in the midst of it")
        publish(result)

    consumer._queue.publish = fail_once  # type: ignore[method-assign,assignment]
    assert consumer.run() == {NoticeStatus.RETRIED: 1, NoticeStatus.UNCHANGED: 1}
    assert left == [1, 1]
    assert (len(desks.results()), desks.left(), desks.buried()) == (1, 0, [])


# Ends.


def in_mid_scene(desks: Desks) -> bool:
    return any(desks.out.glob("large-*/.staging-*/scene-*/*"))


SLOWLY = ("--stride", 4, "--in-flight", 1, "--max-seconds", 600)


def test_after_kill_9_in_mid_scene_another_consumer_ends_the_work(desks: Desks) -> None:
    desks.send({"scene": "large.tif"})
    with desks.started("--lease", 3, *SLOWLY) as (process, log):
        wait_until(lambda: in_mid_scene(desks))
        process.kill()
        process.wait(30)
    assert [line for line in lines(log) if line["message"] == "notice"] == []
    assert (desks.results(), desks.left()) == ([], 1)
    wait_until(lambda: desks.left("ApproximateNumberOfMessages"))  # the lease of the killed one has run out
    assert desks.consumer().run() == {NoticeStatus.DONE: 1}
    (result,) = desks.results()
    assert result["windows"] == 64
    folder = desks.out / result["folder"]
    assert not list(folder.glob(".staging-*"))
    assert {file["name"] for file in result["files"]} < {path.name for path in folder.iterdir()}
    assert (desks.left(), desks.buried()) == (0, [])


def test_sigterm_gives_back_what_cannot_be_ended_in_time(desks: Desks) -> None:
    desks.send({"scene": "large.tif"})
    with desks.started("--grace", 0, "--metrics", "127.0.0.1:0", *SLOWLY) as (process, log):
        wait_until(lambda: in_mid_scene(desks))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    *_, notice, end = lines(log)
    assert (notice["message"], notice["status"], end["released"]) == ("notice", "released", 1)
    assert not in_mid_scene(desks)
    assert [message["Body"] for message in desks.drain("notices")] == [json.dumps({"scene": "large.tif"})]


def test_a_scene_that_can_be_ended_in_time_is_ended(desks: Desks) -> None:
    desks.send({"scene": "small.tif"}, {"scene": "small.tif"})
    consumer = desks.consumer(idle=60)
    publish = consumer._queue.publish

    def told_to_end_meanwhile(result: dict[str, Any]) -> None:
        consumer.stop()
        publish(result)

    consumer._queue.publish = told_to_end_meanwhile  # type: ignore[method-assign,assignment]
    assert consumer.run() == {NoticeStatus.DONE: 1}
    assert (len(desks.results()), desks.left()) == (1, 1)


def test_the_command_works_until_the_queue_is_empty_and_answers_prometheus(desks: Desks) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    desks.send({"scene": "small.tif"}, {"scene": "/etc/passwd"})
    with desks.started("--metrics", address, "--idle", 3) as (process, log):
        wait_until(lambda: log.exists() and log.read_text().count('"status"') == 2)
        told = httpx.get(f"http://{address}/metrics", trust_env=False).text
        assert process.wait(60) == 1, "a notice went to the dead letters"
    assert 'tilewise_stream_notices_total{status="done"} 1.0' in told
    assert 'tilewise_stream_notices_total{status="dead_lettered"} 1.0' in told
    begin, *notices, end = lines(log)
    assert begin["model"]["sha256"] == desks.engine.sha256
    assert {notice["status"] for notice in notices} == {"done", "dead_lettered"}
    assert (end["done"], end["dead_lettered"]) == (1, 1)


def test_a_queue_without_dead_letters_is_refused(desks: Desks) -> None:
    with pytest.raises(QueueError, match=r"no dead letters.*--dead-letters"):
        Queue(desks.url("results"))
    assert Queue(desks.url("results"), desks.url("dead")).dead_letters == desks.url("dead")
    with pytest.raises(QueueError, match=r"no-such-queue: .*; make it"):
        Queue("no-such-queue")


def test_notices_are_received_no_more_often_than_the_queue_itself_allows(desks: Desks) -> None:
    queue = Queue(desks.url("notices"))
    assert (receives_of(queue, None), receives_of(queue, 4)) == (10, 4)
    with pytest.raises(TilewiseError, match="takes notices away after 10 times"):
        receives_of(queue, 11)


def test_without_boto3_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(TilewiseError, match=r"pip install 'tilewise\[stream\]'"):
        Queue("scenes")
