"""Adaptive batching: jobs that arrive while one batch is processed make up the next batch.

A lone job starts at once; no job ever waits for a batch to fill. Under load, batches grow by themselves,
since more jobs arrive while each is processed. One thread does the work, and the event loop accepts jobs and
delivers results; a lone job may be done in the event loop itself, which costs less than to wake the
thread. `tilewise.bento.serving.admission` bounds how much may wait, before it comes here. Callers take turns,
job by job: nobody waits for the whole of another's large request.

Background work (scenes, explanations) runs between batches in short portions: at once if no job waits, and
otherwise so rarely that it takes a small fraction of the time.
"""

import asyncio
import logging
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

_LOG = logging.getLogger("tilewise")

Job = TypeVar("Job")
Result = TypeVar("Result")
Value = TypeVar("Value")

_MAX_BACKGROUND_WAIT_S = 0.25  # how long background work may wait while jobs wait too


class ClosedError(Exception):
    """The batcher was closed before the job was done."""


@dataclass(slots=True, eq=False)
class _Submission(Generic[Job, Result]):
    """The jobs of one request, and the future that gets their results when all are done."""

    jobs: Sequence[Job]
    caller: str
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[list[Result]]"
    taken: int = 0
    results: list[Result] = field(default_factory=list)


class Batcher(Generic[Job, Result]):
    """Process the jobs of many callers in batches.

    Args:
        work: turns a list of jobs into results, in the batcher's thread. For an invalid job it returns a
            result that says so; what it raises is raised to every caller with a job in the batch.
        max_batch_size: jobs in a batch.
        observe: called after the work on each batch with its size and the number of jobs that still wait.
        after: called when the results of a batch are delivered, before the next batch.
        lone_in_loop: do a job in the event loop where it is the only one: no job may be much work.

    What `observe` and `after` raise is logged and has no other effect.
    """

    def __init__(
        self,
        work: Callable[[list[Job]], list[Result]],
        max_batch_size: int,
        observe: Callable[[int, int], None] | None = None,
        after: Callable[[], None] | None = None,
        lone_in_loop: bool = False,
    ) -> None:
        self._work, self._max_batch_size = work, max_batch_size
        self._observe, self._after, self._lone_in_loop = observe, after, lone_in_loop
        self._turns: OrderedDict[str, deque[_Submission[Job, Result]]] = OrderedDict()  # whose turn is next
        self._background: deque[Callable[[], None]] = deque()
        self._last_background = 0.0  # when a portion last ran
        self._waiting = 0
        self._closed = False
        self._busy = False  # with a batch, in the thread or in the event loop
        self._starting = False  # `_start` is called soon, and decides which of the two takes what waits
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of jobs that wait."""
        return self._waiting

    async def submit(self, jobs: Sequence[Job], caller: str = "") -> list[Result]:
        """Return the results of `jobs`, in order.

        Args:
            jobs: of one request.
            caller: who takes turns with others.

        Raises:
            ClosedError: the batcher is closed.
            Exception: whatever `work` raises on a batch with one of the jobs.
        """
        if not jobs:
            return []
        loop = asyncio.get_running_loop()
        submission: _Submission[Job, Result] = _Submission(jobs, caller, loop, loop.create_future())
        with self._changed:
            if self._closed:
                raise ClosedError
            self._turns.setdefault(caller, deque()).append(submission)
            self._waiting += len(jobs)
            if not self._starting and not self._busy:
                self._starting = True
                loop.call_soon(self._start)
        return await submission.future

    def run_between(self, portion: Callable[[], Value]) -> Value:
        """Call `portion` in the batcher's thread between two batches, and return its result.

        For threads with background work. Jobs that arrive meanwhile wait until it returns: keep it short.

        Raises:
            ClosedError: the batcher is closed.
            BaseException: whatever `portion` raises.
        """
        future: Future[Value] = Future()

        def run() -> None:
            try:
                if self._closed:
                    raise ClosedError
                future.set_result(portion())
            except BaseException as error:  # it belongs to the waiting thread, whatever it is
                future.set_exception(error)

        with self._changed:
            if self._closed:
                raise ClosedError
            self._background.append(run)
            self._changed.notify()
        return future.result()

    def close(self) -> None:
        """Finish the batch in progress, fail all that waits, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=30)

    def _start(self) -> None:
        """Process a lone job in the event loop, where it may; leave all else to the thread."""
        with self._changed:
            self._starting = False
            is_lone = self._lone_in_loop and self._waiting == 1 and not self._background
            batch = self._take_batch() if is_lone and not self._busy and not self._closed else []
            if batch:
                self._busy = True
            else:
                self._changed.notify()
        if batch:
            self._process(batch)
            self._rest()

    def _rest(self) -> None:
        """Note the end of a batch, and wake the thread for what came meanwhile."""
        with self._changed:
            self._busy = False
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._has_work():
                    self._changed.wait()
                if self._closed:
                    self._fail_all(ClosedError())
                    return
                portion = self._take_portion()
                batch = [] if portion else self._take_batch()
                self._busy = True
            if portion:
                portion()
                self._last_background = time.monotonic()
            elif batch:
                self._process(batch)
            self._rest()

    def _has_work(self) -> bool:
        """Whether the thread has something to do."""
        waits = self._closed or bool(self._background) or (bool(self._turns) and not self._starting)
        return waits and not self._busy

    def _take_portion(self) -> Callable[[], None] | None:
        """Take a portion of background work if it is its turn."""
        overdue = time.monotonic() - self._last_background > _MAX_BACKGROUND_WAIT_S
        return self._background.popleft() if self._background and (overdue or not self._turns) else None

    def _take_batch(self) -> list[_Submission[Job, Result]]:
        """Take up to a batch of jobs, one after another of each caller and of each of its requests in turn.

        Returns:
            for each job, the submission whose next one it is.
        """
        batch: list[_Submission[Job, Result]] = []
        while self._turns and len(batch) < self._max_batch_size:
            caller, submissions = next(iter(self._turns.items()))
            submission = submissions.popleft()
            if submission.future.cancelled():  # the caller has gone
                self._waiting -= len(submission.jobs) - submission.taken
            else:
                submission.taken += 1
                self._waiting -= 1
                batch.append(submission)
                if submission.taken < len(submission.jobs):
                    submissions.append(submission)
            self._turns.move_to_end(caller)
            if not submissions:
                del self._turns[caller]
        return batch

    def _process(self, batch: list[_Submission[Job, Result]]) -> None:
        places = Counter[_Submission[Job, Result]]()
        jobs = []
        for submission in batch:
            jobs.append(submission.jobs[len(submission.results) + places[submission]])
            places[submission] += 1
        try:
            results = self._work(jobs)
            if len(results) != len(jobs):
                raise RuntimeError(f"{len(results)} results of {len(jobs)} jobs")
        except Exception as error:  # whatever it is: no caller may wait for ever
            self._fail(list(places), error)
            return
        if self._observe:
            _call_observer(self._observe, len(results), self._waiting)
        self._deliver(batch, results)
        if self._after:
            _call_observer(self._after)

    def _deliver(self, batch: list[_Submission[Job, Result]], results: list[Result]) -> None:
        done: dict[asyncio.AbstractEventLoop, list[_Submission[Job, Result]]] = {}
        for submission, result in zip(batch, results, strict=True):
            submission.results.append(result)
            if len(submission.results) == len(submission.jobs):
                done.setdefault(submission.loop, []).append(submission)
        for loop, submissions in done.items():
            _call_in_loop(loop, _resolve, submissions)

    def _fail(self, submissions: Sequence[_Submission[Job, Result]], error: Exception) -> None:
        with self._changed:
            for submission in submissions:
                left = len(submission.jobs) - submission.taken
                if left:  # the rest of it would be processed for nothing
                    self._turns[submission.caller].remove(submission)
                    self._waiting -= left
                    if not self._turns[submission.caller]:
                        del self._turns[submission.caller]
        for submission in submissions:
            _call_in_loop(submission.loop, _reject, submission, error)

    def _fail_all(self, error: Exception) -> None:
        waiting, self._waiting = [one for of_caller in self._turns.values() for one in of_caller], 0
        self._turns.clear()
        while self._background:  # each portion finds the batcher closed
            self._background.popleft()()
        for submission in waiting:
            _call_in_loop(submission.loop, _reject, submission, error)


def _call_observer(observer: Callable[..., None], *arguments: object) -> None:
    try:
        observer(*arguments)
    except Exception:  # an observer that fails must not end the thread
        _LOG.exception("an observer of a batch failed")


def _call_in_loop(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: object) -> None:
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:  # the loop is closed, and with it all callers are gone
        return


def _resolve(submissions: list[_Submission[Job, Result]]) -> None:
    for submission in submissions:
        if not submission.future.done():
            submission.future.set_result(submission.results)


def _reject(submission: _Submission[Job, Result], error: Exception) -> None:
    if not submission.future.done():
        submission.future.set_exception(error)
