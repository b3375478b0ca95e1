"""Adaptive batching: what arrives while one batch is being worked on makes the next batch.

A lone job starts at once: nothing ever waits for a batch to fill. Under load the batches grow by themselves, since more
arrives while each is worked on. One thread does the work; the event loop only takes jobs in and hands results out. How
much may wait is bounded before it comes here, by `bento.admission`.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

_LOG = logging.getLogger("sentile")

Job = TypeVar("Job")
Result = TypeVar("Result")


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
        most_in_batch: jobs that are worked on together.
        observe: told the size of each batch, and the jobs still waiting, before it is worked on.
        after: called when the results of a batch have been handed out, before the next one is taken.
    """

    def __init__(
        self,
        work: Callable[[list[Job]], list[Result]],
        most_in_batch: int,
        observe: Callable[[int, int], None] | None = None,
        after: Callable[[], None] | None = None,
    ) -> None:
        self._work, self._most_in_batch = work, most_in_batch
        self._observe, self._after = observe, after
        self._orders: deque[_Order[Job, Result]] = deque()
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

    def close(self) -> None:
        """Finish the batch that is being worked on, fail what waits, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._orders and not self._closed:
                    self._changed.wait()
                if self._closed:
                    self._fail_all(ClosedError())
                    return
                batch = self._take()
            if batch:
                self._work_on(batch)

    def _take(self) -> list[tuple[_Order[Job, Result], Sequence[Job]]]:
        """Take up to a batch of jobs, oldest first; a large order is worked on in several batches."""
        batch, room = [], self._most_in_batch
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
