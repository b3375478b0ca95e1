"""Consumer: receive notices, classify their scenes, publish results; lose none, take no more than it can do.

A notice is deleted only when its result is published. Whatever happens before, it returns to the queue, for
this consumer or another.
"""

import collections
import shutil
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    start_http_server,
)

from tilewise.bento.batch.manifest import SceneOutcome, SceneState
from tilewise.bento.monitoring.logs import get_logger
from tilewise.bento.stream.allow_list import AllowList
from tilewise.bento.stream.leases import Lease, Leases, StopWork
from tilewise.bento.stream.notices import MAX_BYTES, SceneJob, parse_notice, scene_of
from tilewise.bento.stream.queue import MAX_HIDDEN_S, Message, Queue
from tilewise.bento.stream.worker import SceneWorker
from tilewise.datasets.core.errors import (
    FolderBusyError,
    NoticeError,
    QueueError,
    SceneTooLargeError,
    TilewiseError,
)
from tilewise.datasets.scenes import SceneOptions


class NoticeStatus(StrEnum):
    """What became of a notice."""

    DONE = "done"
    UNCHANGED = "unchanged"  # its results were there already
    RETRIED = "retried"
    DEAD_LETTERED = "dead_lettered"
    RELEASED = "released"  # returned to the queue, since the consumer stopped


REGISTRY = CollectorRegistry()
"""Metrics of the consumer only: those of the service would all be 0."""
NOTICES = Counter(
    "tilewise_stream_notices_total", "Notices received, by status", ["status"], registry=REGISTRY
)
WINDOWS = Counter("tilewise_stream_windows_total", "Windows classified", registry=REGISTRY)
SCENE_SECONDS = Histogram(
    "tilewise_stream_scene_seconds",
    "Seconds from the receipt of a notice until its result was published, for scenes that were done",
    buckets=(0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600),
    registry=REGISTRY,
)
BEHIND_SECONDS = Histogram(
    "tilewise_stream_behind_seconds",
    "Seconds from the sending of a notice until its result was published, for scenes that were done",
    buckets=(1, 5, 10, 30, 60, 300, 600, 1800, 3600, 6 * 3600, 24 * 3600),
    registry=REGISTRY,
)
IN_WORK = Gauge("tilewise_stream_in_work", "Notices in work", registry=REGISTRY)
PAUSED = Gauge(
    "tilewise_stream_paused",
    "1 while no notice is received, since the disk is nearly full",
    registry=REGISTRY,
)
QUEUE_FAILURES = Counter(
    "tilewise_stream_queue_failures_total", "Times that a queue did not answer", registry=REGISTRY
)
ProcessCollector(registry=REGISTRY)
for _status in NoticeStatus:  # Prometheus sees no increase in a series that begins with 1
    NOTICES.labels(_status.value)


def serve(address: str) -> None:
    """Serve metrics to Prometheus at `host:port` in a thread, until this process ends.

    Raises:
        TilewiseError: it is not an address of this machine, or in use.
    """
    host, _, port = address.rpartition(":")
    try:
        start_http_server(int(port), host.strip("[]") or "127.0.0.1", REGISTRY)
    except (OSError, ValueError, OverflowError) as error:
        raise TilewiseError(
            f"--metrics {address}: {error}; give HOST:PORT of this machine, such as :9105"
        ) from error


_POLL_S = 0.2
_DISK_PAUSE_S = 1.0
_MAX_PAUSE_S = 60.0
_MAX_REASON = 1000  # characters in the log, since it may quote the sender


@dataclass(frozen=True, slots=True)
class ConsumerOptions:
    """How notices are received and retried.

    Attributes:
        allowed: where notices may lead to.
        reading: how to read scenes of which neither their files nor their notice say it.
        in_flight: notices in work at a time; no more are received.
        lease: seconds that a notice in work is hidden from others; renewed while it is in work.
        wait: seconds that one request for notices waits for an answer (0-20).
        receives: times that a notice may be received before it is dead-lettered.
        retry_seconds: after which a failed scene is tried again; doubled each time.
        max_seconds: that a scene may take.
        max_bytes: of a message.
        min_free: bytes of free disk without which no notice is received.
        grace: seconds that scenes in work get when the consumer is stopped; then they are released.
        idle: seconds without notices after which the consumer ends; None: it never does.
    """

    allowed: AllowList
    reading: SceneOptions = field(default_factory=SceneOptions)
    in_flight: int = 1
    lease: int = 120
    wait: int = 5
    receives: int = 5
    retry_seconds: int = 30
    max_seconds: float = 3600.0
    max_bytes: int = MAX_BYTES
    min_free: int = 2**30
    grace: float = 20.0
    idle: float | None = None


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What becomes of a notice, why, and what to log about its scene."""

    status: NoticeStatus
    reason: str = ""
    scene: dict[str, Any] = field(default_factory=dict)


class Consumer:
    """Process the notices of a queue until stopped.

    Args:
        queue: of notices.
        worker: classifies the scenes.
        out: the folder of results, whose free disk is watched.
        options: how notices are received and retried.
    """

    def __init__(self, queue: Queue, worker: SceneWorker, out: Path, options: ConsumerOptions) -> None:
        self._queue, self._worker, self._out, self._options = queue, worker, out, options
        self._releasing = threading.Event()
        self._stops = self._failures = 0
        self._paused = False  # since the disk is nearly full
        self._leases = Leases(queue, options.lease, options.max_seconds, self._releasing)
        self._running: set[Future[NoticeStatus]] = set()
        self._statuses: collections.Counter[NoticeStatus] = collections.Counter()

    def stop(self) -> None:
        """Receive no more notices and end; a second call releases those in work. Safe in signal handlers."""
        self._stops += 1  # nothing else: the interrupted code may hold a lock

    def run(self) -> collections.Counter[NoticeStatus]:
        """Work until `stop`, or until idle for too long; return the number of notices by status."""
        with self._leases, ThreadPoolExecutor(self._options.in_flight, "scene") as pool:
            quiet_since = time.monotonic()
            while not self._stops:
                if self._receive_more(pool):
                    quiet_since = time.monotonic()
                elif self._options.idle is not None and time.monotonic() - quiet_since >= self._options.idle:
                    break
            self._finish()
        self._count()
        return self._statuses

    def _receive_more(self, pool: ThreadPoolExecutor) -> bool:
        """Receive as many notices as may be in flight; return whether any is in work."""
        self._count()
        room = self._options.in_flight - len(self._running)
        if not room:
            wait(self._running, _POLL_S, FIRST_COMPLETED)
        elif self._has_disk():
            self._running |= {pool.submit(self._process, message) for message in self._receive(room)}
        else:
            self._pause(_DISK_PAUSE_S)
        return bool(self._running)

    def _count(self) -> None:
        ended = {future for future in self._running if future.done()}
        self._running -= ended
        self._statuses.update(future.result() for future in ended)

    def _finish(self) -> None:
        """Let the notices in work finish within the grace, then release the rest."""
        until = time.monotonic() + self._options.grace
        while (
            any(not future.done() for future in self._running)
            and time.monotonic() < until
            and self._stops < 2
        ):
            wait(self._running, _POLL_S)
        self._releasing.set()

    def _receive(self, room: int) -> list[Message]:
        try:
            messages = self._queue.receive(room, self._options.wait, self._options.lease)
        except QueueError as error:
            self._failures += 1
            self._pause(_after_failure(error, self._failures))
            return []
        self._failures = 0
        return messages

    def _has_disk(self) -> bool:
        free = shutil.disk_usage(self._out).free
        paused = free < self._options.min_free
        if paused != self._paused:
            fields = {"paused": paused, "free_bytes": free, "min_free_bytes": self._options.min_free}
            get_logger().warning("notices wait while the disk of the results is nearly full", **fields)
        self._paused = paused
        PAUSED.set(paused)
        return not paused

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stops and time.monotonic() < until:
            time.sleep(_POLL_S)

    def _process(self, message: Message) -> NoticeStatus:
        """Process one notice completely; raises nothing."""
        began = time.monotonic()
        with IN_WORK.track_inprogress():
            with self._leases.hold(message) as lease:
                conclusion = self._attempt(message, lease)
            conclusion = self._conclude(message, conclusion)
        self._record(message, conclusion, time.monotonic() - began)
        return conclusion.status

    def _attempt(self, message: Message, lease: Lease) -> Conclusion:
        try:
            return self._work(message, lease)
        except StopWork:
            return Conclusion(NoticeStatus.RELEASED)
        except (NoticeError, SceneTooLargeError) as error:  # a retry cannot help
            return Conclusion(NoticeStatus.DEAD_LETTERED, str(error))
        except (TilewiseError, OSError) as error:
            return self._retry(message, str(error))
        except Exception as error:  # one notice must not end the consumer
            get_logger().exception("a notice failed for an unexpected reason", notice=message.id)
            return self._retry(message, f"an unexpected {type(error).__name__}; please report it")

    def _work(self, message: Message, lease: Lease) -> Conclusion:
        if self._stops:
            raise StopWork
        if message.receives > self._options.receives:
            raise NoticeError(f"it was received {message.receives} times, and no consumer survived it")
        notice = parse_notice(message.body, self._options.max_bytes)
        job = scene_of(notice, self._options.allowed, self._options.reading)
        outcome = self._classify(job, lease)
        self._publish(self._worker.result(job, outcome, notice.id), lease)
        status = NoticeStatus.UNCHANGED if outcome.state is SceneState.KEPT else NoticeStatus.DONE
        scene = {
            "scene": job.location,
            "folder": job.folder,
            "windows": outcome.windows,
            "outliers": outcome.outliers,
        }
        return Conclusion(status, scene=scene)

    def _classify(self, job: SceneJob, lease: Lease) -> SceneOutcome:
        """Classify a scene. While another consumer works on it, wait: a release would count as a receive."""
        while True:
            try:
                return self._worker.classify(job, lease.check)
            except FolderBusyError:
                self._wait(lease, self._options.retry_seconds)

    def _publish(self, result: dict[str, Any], lease: Lease) -> None:
        """Publish a result, however long that takes: if the target is away, the notice is not at fault."""
        failures = 0
        while error := self._try_publish(result):
            failures += 1
            lease.keep()
            self._wait(lease, _after_failure(error, failures))

    def _wait(self, lease: Lease, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            lease.check()
            time.sleep(_POLL_S)

    def _try_publish(self, result: dict[str, Any]) -> QueueError | None:
        try:
            self._queue.publish(result)
        except QueueError as error:
            return error
        return None

    def _retry(self, message: Message, reason: str) -> Conclusion:
        return Conclusion(
            NoticeStatus.RETRIED if message.receives < self._options.receives else NoticeStatus.DEAD_LETTERED,
            reason,
        )

    def _conclude(self, message: Message, conclusion: Conclusion) -> Conclusion:
        """Deal with the message as concluded; if the queue does not answer, the message returns by itself."""
        try:
            if conclusion.status is NoticeStatus.DEAD_LETTERED:
                self._queue.dead_letter(message, conclusion.reason)
            elif conclusion.status is NoticeStatus.RETRIED:
                self._queue.hide(message, self._delay(message))
            elif conclusion.status is NoticeStatus.RELEASED:
                self._queue.hide(message, 0)
            else:
                self._queue.delete(message)
        except QueueError as error:
            _after_failure(error, 1)
            return Conclusion(NoticeStatus.RETRIED, str(error), conclusion.scene)
        return conclusion

    def _delay(self, message: Message) -> int:
        return int(min(self._options.retry_seconds * 2.0 ** (message.receives - 1), MAX_HIDDEN_S))

    def _record(self, message: Message, conclusion: Conclusion, seconds: float) -> None:
        NOTICES.labels(conclusion.status.value).inc()
        if conclusion.status is NoticeStatus.DONE:
            WINDOWS.inc(conclusion.scene["windows"])
            SCENE_SECONDS.observe(seconds)
            BEHIND_SECONDS.observe(max(time.time() - message.sent, 0.0))
        fields: dict[str, Any] = {"notice": message.id, "status": conclusion.status.value}
        fields |= {"receives": message.receives, **conclusion.scene, "seconds": round(seconds, 3)}
        if conclusion.reason:
            fields["reason"] = conclusion.reason[:_MAX_REASON]
        failed = conclusion.status in (NoticeStatus.DEAD_LETTERED, NoticeStatus.RETRIED)
        log = get_logger().warning if failed else get_logger().info
        log("notice", **fields)


def _after_failure(error: QueueError, failures: int) -> float:
    """Log that a queue did not answer, for the `failures`-th time in a row; return the seconds to pause."""
    QUEUE_FAILURES.inc()
    get_logger().warning("a queue does not answer", reason=str(error), failures=failures)
    return min(2.0 ** (failures - 1), _MAX_PAUSE_S)
