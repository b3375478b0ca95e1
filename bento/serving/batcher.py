"""Adaptive batching: what arrives while one batch is being worked on makes the next batch.

A lone job starts at once: nothing ever waits for a batch to fill. Under load the batches grow by themselves, since more
arrives while each is worked on. One thread does the work; the event loop only takes jobs in and hands results out. How
much may wait is bounded before it comes here, by `tilewise.bento.serving.admission`.

Work that has no hurry (scenes, explanations) comes between the batches, in short portions: at once where no job waits,
and else so seldom that it takes a small share of the time.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

_LOG = logging.getLogger("tilewise")

Job = TypeVar("Job")
Result = TypeVar("Result")
Value = TypeVar("Value")

_MAX_ASIDE = 0.25  # seconds that unhurried work may be kept from its turn while jobs wait


class ClosedError(Exception):
    """The batcher was closed before the job was done."""


@dataclass(slots=True, eq=False)
class _Order(Generic[Job, Result]):
    """The jobs of one caller, and the future that holds their results once all are done."""

    jobs: Sequence[Job]
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[list[Result]]"
    taken: int = 0
    results: list[Result] = field(default_factory=list)


class Batcher(Generic[Job, Result]):
    """Works on jobs of many callers together.

    Args:
        work: turns a list of jobs into as many results; called in the batcher's own thread. It answers a bad job with
            a result of its own and raises only where everything is lost: the callers of that batch get the exception.
        max_batch_size: jobs that are worked on together.
        observe: told the size of each batch, and the jobs still waiting, before it is worked on.
        after: called when the results of a batch have been handed out, before the next one is taken.
    """

    def __init__(
        self,
        work: Callable[[list[Job]], list[Result]],
        max_batch_size: int,
        observe: Callable[[int, int], None] | None = None,
        after: Callable[[], None] | None = None,
    ) -> None:
        self._work, self._max_batch_size = work, max_batch_size
        self._observe, self._after = observe, after
        self._orders: deque[_Order[Job, Result]] = deque()
        self._asides: deque[Callable[[], None]] = deque()
        self._turn_of_asides = 0.0
        self._waiting = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return self._waiting

    async def submit(self, jobs: Sequence[Job]) -> list[Result]:
        """Return the results of `jobs`, in order.

        Raises:
            ClosedError: the batcher is closed.
        """
        if not jobs:
            return []
        loop = asyncio.get_running_loop()
        order: _Order[Job, Result] = _Order(jobs, loop, loop.create_future())
        with self._changed:
            if self._closed:
                raise ClosedError
            self._orders.append(order)
            self._waiting += len(jobs)
            self._changed.notify()
        return await order.future

    def between(self, portion: Callable[[], Value]) -> Value:
        """Return what `portion` returns, having called it in the batcher's thread between two batches.

        For threads with work that has no hurry. Whoever comes meanwhile waits until it returns: keep it short.

        Raises:
            ClosedError: the batcher is closed.
        """
        future: Future[Value] = Future()

        def aside() -> None:
            try:
                if self._closed:
                    raise ClosedError
                future.set_result(portion())
            except BaseException as error:  # whatever it was: it belongs to the thread that waits
                future.set_exception(error)

        with self._changed:
            if self._closed:
                raise ClosedError
            self._asides.append(aside)
            self._changed.notify()
        return future.result()

    def close(self) -> None:
        """Finish the batch that is being worked on, fail what waits, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._orders and not self._asides and not self._closed:
                    self._changed.wait()
                if self._closed:
                    self._fail_all(ClosedError())
                    return
                aside = self._take_aside()
                batch = [] if aside else self._take()
            if aside:
                aside()
                self._turn_of_asides = time.monotonic()
            elif batch:
                self._work_on(batch)

    def _take_aside(self) -> Callable[[], None] | None:
        """Take a portion of unhurried work, if it is its turn."""
        overdue = time.monotonic() - self._turn_of_asides > _MAX_ASIDE
        return self._asides.popleft() if self._asides and (overdue or not self._orders) else None

    def _take(self) -> list[tuple[_Order[Job, Result], Sequence[Job]]]:
        """Take up to a batch of jobs, oldest first; a large order is worked on in several batches."""
        batch, room = [], self._max_batch_size
        while self._orders and room:
            order = self._orders[0]
            left = len(order.jobs) - order.taken
            if order.future.cancelled():  # the caller has gone
                self._orders.popleft()
                self._waiting -= left
                continue
            part = order.jobs[order.taken : order.taken + room]
            batch.append((order, part))
            order.taken += len(part)
            self._waiting -= len(part)
            room -= len(part)
            if order.taken == len(order.jobs):
                self._orders.popleft()
        return batch

    def _work_on(self, batch: list[tuple[_Order[Job, Result], Sequence[Job]]]) -> None:
        jobs = [job for _, part in batch for job in part]
        if self._observe:
            self._observe(len(jobs), self._waiting)
        try:
            results = self._work(jobs)
        except Exception as error:  # whatever it was: the callers must not wait for ever
            self._fail([order for order, _ in batch], error)
            return
        self._hand_out(batch, results)
        if self._after:
            self._look_on(self._after)

    def _look_on(self, after: Callable[[], None]) -> None:
        try:
            after()
        except Exception:  # whoever looks on must not stop the work
            _LOG.exception("what was to be done after a batch failed")

    def _hand_out(self, batch: list[tuple[_Order[Job, Result], Sequence[Job]]], results: list[Result]) -> None:
        start = 0
        done: dict[asyncio.AbstractEventLoop, list[_Order[Job, Result]]] = {}
        for order, part in batch:
            order.results += results[start : start + len(part)]
            start += len(part)
            if len(order.results) == len(order.jobs):
                done.setdefault(order.loop, []).append(order)
        for loop, orders in done.items():
            _call(loop, _resolve, orders)

    def _fail(self, orders: Sequence[_Order[Job, Result]], error: Exception) -> None:
        with self._changed:
            for order in orders:
                if order in self._orders:  # the rest of it would be worked on in vain
                    self._orders.remove(order)
                    self._waiting -= len(order.jobs) - order.taken
        for order in orders:
            _call(order.loop, _reject, order, error)

    def _fail_all(self, error: Exception) -> None:
        orders, self._waiting = list(self._orders), 0
        self._orders.clear()
        while self._asides:  # each finds the batcher closed
            self._asides.popleft()()
        for order in orders:
            _call(order.loop, _reject, order, error)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: object) -> None:
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:  # the loop has been closed: nobody waits any more
        return


def _resolve(orders: list[_Order[Job, Result]]) -> None:
    for order in orders:
        if not order.future.done():
            order.future.set_result(order.results)


def _reject(order: _Order[Job, Result], error: Exception) -> None:
    if not order.future.done():
        order.future.set_exception(error)
