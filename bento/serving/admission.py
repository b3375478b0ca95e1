"""Admission: bound the bytes of request bodies that one process holds at once.

A body is read only when there is memory for it. Until then its connection waits, unread, so that TCP slows
the sender down. Beyond a bounded number of waiting requests, or a bounded wait, a request is rejected before
its body is read. So memory cannot grow with the number of clients.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class OverloadedError(Exception):
    """There is no memory for the request, and too many wait; retry in `retry_after` seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("no room for the request")
        self.retry_after = retry_after


class Admission:
    """Admit requests in order of arrival, as their bytes fit into `max_bytes`.

    Args:
        max_bytes: of all bodies that are being read or processed.
        max_waiting: requests that may wait.
        max_wait_seconds: that a request may wait.
        observe: called with the number of waiting requests whenever it changes.
    """

    def __init__(
        self,
        max_bytes: int,
        max_waiting: int,
        max_wait_seconds: float,
        observe: Callable[[int], None] = lambda waiting: None,
    ) -> None:
        self._observe = observe
        self._room, self._max_bytes = max_bytes, max_bytes
        self._max_waiting, self._max_wait_seconds = max_waiting, max_wait_seconds
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def room(self, size: int) -> AsyncIterator[None]:
        """Reserve `size` bytes, or all `max_bytes` if that is less, for the length of the block.

        Raises:
            OverloadedError: too many wait, or the wait was too long.
        """
        size = min(size, self._max_bytes)
        await self._acquire(size)
        try:
            yield
        finally:
            self._room += size
            self._admit_waiting()

    async def _acquire(self, size: int) -> None:
        if not self._queue and size <= self._room:
            self._room -= size
            return
        if len(self._queue) >= self._max_waiting:
            raise OverloadedError(self._max_wait_seconds)
        turn = asyncio.get_running_loop().create_future()
        self._queue.append((size, turn))
        self._observe(len(self._queue))
        try:
            async with asyncio.timeout(self._max_wait_seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # it was admitted at the very moment that it left
                self._room += size
            turn.cancel()
            self._admit_waiting()
            if isinstance(error, TimeoutError):
                raise OverloadedError(self._max_wait_seconds) from None
            raise

    def _admit_waiting(self) -> None:
        waited = len(self._queue)
        self._pop_admitted()
        if len(self._queue) != waited:
            self._observe(len(self._queue))

    def _pop_admitted(self) -> None:
        while self._queue:
            size, turn = self._queue[0]
            if turn.done():
                self._queue.popleft()
            elif size <= self._room:
                self._queue.popleft()
                self._room -= size
                turn.set_result(None)
            else:
                return
