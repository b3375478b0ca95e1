"""Takes notices, has their scenes classified, sends results on; loses nothing, and takes no more than it can work on.

A notice is deleted only when its result is out. Whatever happens before, it comes back: to this consumer or to another.
"""

import collections
import logging
import shutil
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server

from tilewise.bento.batch.manifest import SceneOutcome, SceneState
from tilewise.bento.stream.allow_list import Places
from tilewise.bento.stream.leases import Lease, Leases, StopWork
from tilewise.bento.stream.notices import MAX_BYTES, Told, parse_notice, scene_of
from tilewise.bento.stream.queue import LONGEST_HIDDEN, Message, Queue
from tilewise.bento.stream.worker import SceneWorker
from tilewise.datasets.core.errors import FolderBusyError, NoticeError, QueueError, SceneTooLargeError, TilewiseError
from tilewise.datasets.scenes import SceneOptions


class Fate(StrEnum):
    """What became of a notice."""

    DONE = "done"
    KEPT = "kept"  # its results lay there already
    RETRIED = "retried"
    BURIED = "buried"  # among the dead letters
    RETURNED = "returned"  # since the consumer ended


REGISTRY = CollectorRegistry()
"""Of the consumer alone: the service's own metrics, which its modules bring, would stand at 0."""
NOTICES = Counter("tilewise_stream_notices_total", "Notices taken, by what became of them", ["fate"], registry=REGISTRY)
WINDOWS = Counter("tilewise_stream_windows_total", "Windows classified", registry=REGISTRY)
SCENE_SECONDS = Histogram(
    "tilewise_stream_scene_seconds",
    "Seconds from when a notice was taken until its result was out, for scenes that were done",
    buckets=(0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600),
    registry=REGISTRY,
)
BEHIND_SECONDS = Histogram(
    "tilewise_stream_behind_seconds",
    "Seconds from when a notice was sent until its result was out, for scenes that were done",
    buckets=(1, 5, 10, 30, 60, 300, 600, 1800, 3600, 6 * 3600, 24 * 3600),
    registry=REGISTRY,
)
IN_WORK = Gauge("tilewise_stream_in_work", "Notices in work", registry=REGISTRY)
PAUSED = Gauge("tilewise_stream_paused", "1 while no notice is taken for want of room on the disk", registry=REGISTRY)
QUEUE_FAILURES = Counter("tilewise_stream_queue_failures_total", "Times that a queue did not answer", registry=REGISTRY)
ProcessCollector(registry=REGISTRY)
for _fate in Fate:  # Prometheus sees no increase in a series that begins with 1
    NOTICES.labels(_fate.value)


def serve(address: str) -> None:
    """Answer Prometheus at `host:port`, by a thread, as long as this process lives.

    Raises:
        TilewiseError: it is no address of this machine, or taken.
    """
    host, _, port = address.rpartition(":")
    try:
        start_http_server(int(port), host.strip("[]") or "127.0.0.1", REGISTRY)
    except (OSError, ValueError, OverflowError) as error:
        raise TilewiseError(f"--metrics {address}: {error}; say HOST:PORT of this machine, such as :9105") from error


_LOG = logging.getLogger("tilewise")
_LOOK_SECONDS = 0.2
_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE = 60.0
_LONGEST_REASON = 1000  # in the log: a sender's own words may stand in it


@dataclass(frozen=True, slots=True)
class ConsumerOptions:
    """How notices are taken.

    Attributes:
        places: where they may lead.
        reading: what is said of scenes that say it neither themselves nor by their notices.
        in_flight: notices that are worked on at a time; no more are taken from the queue.
        lease: seconds that a notice in work is hidden from others, renewed while it is worked on.
        wait: seconds that one question for notices waits for an answer (0-20).
        receives: times that a notice may be received before it goes to the dead letters.
        retry_seconds: after which a scene that failed is tried again; doubled each time.
        max_seconds: that a scene may take.
        max_bytes: of a message.
        min_free: bytes of the disk without which no notice is taken.
        grace: seconds that scenes in work have when the consumer is told to end; then they are given back.
        idle: seconds without notices, after which the consumer ends; None: it never does.
    """

    places: Places
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
class Verdict:
    """What is to become of a notice, why, and what the log tells of its scene."""

    fate: Fate
    reason: str = ""
    told: dict[str, Any] = field(default_factory=dict)


class Consumer:
    """Works on the notices of a queue until it is told to stop.

    Args:
        queue: of notices.
        desk: where scenes are classified.
        out: the folder of results, whose disk is watched.
        options: how notices are taken.
    """

    def __init__(self, queue: Queue, worker: SceneWorker, out: Path, options: ConsumerOptions) -> None:
        self._queue, self._worker, self._out, self._options = queue, worker, out, options
        self._returning = threading.Event()
        self._stops = self._failures = 0
        self._paused = False  # for want of room on the disk
        self._leases = Leases(queue, options.lease, options.max_seconds, self._returning)
        self._running: set[Future[Fate]] = set()
        self._fates: collections.Counter[Fate] = collections.Counter()

    def stop(self) -> None:
        """Take no more notices and end; when called again, give back what is in work. It may be called by a signal."""
        self._stops += 1  # and nothing else: a lock might be held by what the signal came into

    def run(self) -> collections.Counter[Fate]:
        """Work until `stop`, or until nothing came for long; return what became of how many notices."""
        with self._leases, ThreadPoolExecutor(self._options.in_flight, "scene") as pool:
            quiet_since = time.monotonic()
            while not self._stops:
                if self._take_more(pool):
                    quiet_since = time.monotonic()
                elif self._options.idle is not None and time.monotonic() - quiet_since >= self._options.idle:
                    break
            self._finish()
        self._count()
        return self._fates

    def _take_more(self, pool: ThreadPoolExecutor) -> bool:
        """Take as many notices as there is room for; return whether any is in work."""
        self._count()
        room = self._options.in_flight - len(self._running)
        if not room:
            wait(self._running, _LOOK_SECONDS, FIRST_COMPLETED)
        elif self._has_disk():
            self._running |= {pool.submit(self._take, message) for message in self._receive(room)}
        else:
            self._pause(_PAUSE_SECONDS)
        return bool(self._running)

    def _count(self) -> None:
        ended = {future for future in self._running if future.done()}
        self._running -= ended
        self._fates.update(future.result() for future in ended)

    def _finish(self) -> None:
        """Let what is in work come to its end, and give the rest back."""
        until = time.monotonic() + self._options.grace
        while any(not future.done() for future in self._running) and time.monotonic() < until and self._stops < 2:
            wait(self._running, _LOOK_SECONDS)
        self._returning.set()

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
            _LOG.warning("notices wait while the disk of the results is nearly full", extra={"fields": fields})
        self._paused = paused
        PAUSED.set(paused)
        return not paused

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stops and time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)

    def _take(self, message: Message) -> Fate:
        """See one notice through to its end; it raises nothing, since nobody would hear of it."""
        began = time.monotonic()
        with IN_WORK.track_inprogress():
            with self._leases.hold(message) as lease:
                verdict = self._attempt(message, lease)
            verdict = self._conclude(message, verdict)
        self._tell(message, verdict, time.monotonic() - began)
        return verdict.fate

    def _attempt(self, message: Message, lease: Lease) -> Verdict:
        try:
            return self._work(message, lease)
        except StopWork:
            return Verdict(Fate.RETURNED)
        except (NoticeError, SceneTooLargeError) as error:  # it will be no better another time
            return Verdict(Fate.BURIED, str(error))
        except (TilewiseError, OSError) as error:
            return self._again(message, str(error))
        except Exception as error:  # one odd notice must not end the consumer
            _LOG.exception("a notice failed in an unforeseen way", extra={"fields": {"notice": message.id}})
            return self._again(message, f"it failed in an unforeseen way ({type(error).__name__}); please report it")

    def _work(self, message: Message, lease: Lease) -> Verdict:
        if self._stops:
            raise StopWork
        if message.receives > self._options.receives:
            raise NoticeError(f"it was received {message.receives} times, and no consumer lived to see its end")
        notice = parse_notice(message.body, self._options.max_bytes)
        told = scene_of(notice, self._options.places, self._options.reading)
        outcome = self._classified(told, lease)
        self._publish(self._worker.result(told, outcome, notice.id), lease)
        fate = Fate.KEPT if outcome.state is SceneState.KEPT else Fate.DONE
        shown = {"scene": told.place, "folder": told.folder, "windows": outcome.windows, "outliers": outcome.outliers}
        return Verdict(fate, told=shown)

    def _classified(self, told: Told, lease: Lease) -> SceneOutcome:
        """Classify a scene, or wait for whoever is at it: given back, its notice would be received too often."""
        while True:
            try:
                return self._worker.classify(told, lease.check)
            except FolderBusyError:
                self._wait(lease, self._options.retry_seconds)

    def _publish(self, result: dict[str, Any], lease: Lease) -> None:
        """Send a result on, however long that takes: whoever takes results may be away, and no notice be blamed."""
        failures = 0
        while error := self._failure_of(result):
            failures += 1
            lease.keep()
            self._wait(lease, _after_failure(error, failures))

    def _wait(self, lease: Lease, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            lease.check()
            time.sleep(_LOOK_SECONDS)

    def _failure_of(self, result: dict[str, Any]) -> QueueError | None:
        try:
            self._queue.publish(result)
        except QueueError as error:
            return error
        return None

    def _again(self, message: Message, reason: str) -> Verdict:
        return Verdict(Fate.RETRIED if message.receives < self._options.receives else Fate.BURIED, reason)

    def _conclude(self, message: Message, verdict: Verdict) -> Verdict:
        """Do with the message what the verdict says; where the queue does not answer, it comes back by itself."""
        try:
            if verdict.fate is Fate.BURIED:
                self._queue.bury(message, verdict.reason)
            elif verdict.fate is Fate.RETRIED:
                self._queue.hide(message, self._delay(message))
            elif verdict.fate is Fate.RETURNED:
                self._queue.hide(message, 0)
            else:
                self._queue.delete(message)
        except QueueError as error:
            _after_failure(error, 1)
            return Verdict(Fate.RETRIED, str(error), verdict.told)
        return verdict

    def _delay(self, message: Message) -> int:
        return int(min(self._options.retry_seconds * 2.0 ** (message.receives - 1), LONGEST_HIDDEN))

    def _tell(self, message: Message, verdict: Verdict, seconds: float) -> None:
        NOTICES.labels(verdict.fate.value).inc()
        if verdict.fate is Fate.DONE:
            WINDOWS.inc(verdict.told["windows"])
            SCENE_SECONDS.observe(seconds)
            BEHIND_SECONDS.observe(max(time.time() - message.sent, 0.0))
        fields = {"notice": message.id, "fate": verdict.fate.value, "receives": message.receives, **verdict.told}
        fields |= {
            "seconds": round(seconds, 3),
            **({"reason": verdict.reason[:_LONGEST_REASON]} if verdict.reason else {}),
        }
        level = logging.WARNING if verdict.fate in (Fate.BURIED, Fate.RETRIED) else logging.INFO
        _LOG.log(level, "notice", extra={"fields": fields})


def _after_failure(error: QueueError, failures: int) -> float:
    """Tell of a queue that did not answer, so many times in a row; return for how many seconds to leave it alone."""
    QUEUE_FAILURES.inc()
    _LOG.warning("a queue does not answer", extra={"fields": {"reason": str(error), "failures": failures}})
    return min(2.0 ** (failures - 1), _LONGEST_PAUSE)
