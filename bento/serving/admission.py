"""Admission: bound what the requests of one process hold at once, and what those of one caller hold.

Bodies are charged as they arrive, not as they are announced. A body is read on only when there is room for
more of it; until then its connection waits, unread, so that TCP slows the sender down. Beyond a bounded
number of waiting requests, or a bounded wait, a request is rejected. So memory does not grow with the number
of clients, and one caller cannot take the room of all others.
"""

import asyncio
import ipaddress
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.requests import Request

_IPV6_NETWORK = 64  # bits


class OverloadedError(Exception):
    """There is no room for the request, and too many wait; retry in `retry_after` seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("no room for the request")
        self.retry_after = retry_after


def caller_of(request: Request) -> str:
    """Return whom a request is charged to: the name of its API key, else its address, of IPv6 the /64."""
    name: str | None = getattr(request.state, "caller", None)
    if name:
        return name
    return network_of(request.client.host if request.client else "")


def network_of(host: str) -> str:
    """Return an address as it is, of IPv6 its /64, which one customer of a network provider gets."""
    if ":" not in host:  # IPv4, or the name of a Unix socket
        return host
    try:
        return str(ipaddress.ip_network((host, _IPV6_NETWORK), strict=False))
    except ValueError:
        return host


@dataclass(slots=True, eq=False)
class Reservation:
    """What one request holds.

    Attributes:
        admission: that admitted it.
        caller: whom it is charged to.
        held: bytes, or whatever the admission counts.
    """

    admission: "Admission"
    caller: str
    held: int = 0

    async def grow(self, size: int) -> None:
        """Wait until there is room for `size` more, and hold it.

        Raises:
            OverloadedError: too many wait, or the wait was too long.
        """
        await self.admission.grow(self, size)


@dataclass(slots=True, eq=False)
class _Turn:
    """A reservation that waits to grow."""

    reservation: Reservation
    size: int
    admitted: asyncio.Future[None]


class Admission:
    """Let reservations grow in order of arrival, as they fit.

    The oldest reservation of all may always grow, and so may the oldest of each caller within `max_held`:
    else several could wait for one another for ever. So all together hold at most `max_held` and one whole
    request.

    Args:
        max_held: by all requests together: bytes, or whatever is counted.
        max_each: by the requests of one caller.
        max_waiting: requests that may wait; half of them of one caller.
        max_wait_seconds: that a request may wait.
        observe: called with the number of waiting requests whenever it changes.
    """

    def __init__(
        self,
        max_held: int,
        max_each: int,
        max_waiting: int,
        max_wait_seconds: float,
        observe: Callable[[int], None] = lambda waiting: None,
    ) -> None:
        self._observe = observe
        self._room, self._max_each = max_held, max_each
        self._max_waiting, self._max_wait_seconds = max_waiting, max_wait_seconds
        self._admitted: dict[Reservation, None] = {}  # the oldest first
        self._of_caller: dict[str, dict[Reservation, None]] = {}
        self._held_by: Counter[str] = Counter()
        self._queue: list[_Turn] = []

    @asynccontextmanager
    async def room(self, caller: str, size: int = 0) -> AsyncIterator[Reservation]:
        """Hold `size` for the length of the block, and whatever the reservation grows by.

        Raises:
            OverloadedError: as `Reservation.grow`.
        """
        reservation = Reservation(self, caller)
        self._admitted[reservation] = None
        self._of_caller.setdefault(caller, {})[reservation] = None
        try:
            await self.grow(reservation, size)
            yield reservation
        finally:
            self._release(reservation)

    async def grow(self, reservation: Reservation, size: int) -> None:
        """See `Reservation.grow`."""
        if not self._queue and self._fits(reservation, size):
            self._give(reservation, size)
            return
        waiting = Counter(turn.reservation.caller for turn in self._queue)
        if len(self._queue) >= self._max_waiting or (
            waiting[reservation.caller] >= max(1, self._max_waiting // 2)
        ):
            raise OverloadedError(self._max_wait_seconds)
        turn = _Turn(reservation, size, asyncio.get_running_loop().create_future())
        self._queue.append(turn)
        self._admit_waiting(changed=True)
        try:
            async with asyncio.timeout(self._max_wait_seconds):
                await turn.admitted
        except BaseException as error:
            turn.admitted.cancel()
            self._admit_waiting()
            if isinstance(error, TimeoutError):
                raise OverloadedError(self._max_wait_seconds) from None
            raise

    def _fits(self, reservation: Reservation, size: int) -> bool:
        of_caller = self._of_caller[reservation.caller]
        return (size <= self._room or reservation is next(iter(self._admitted))) and (
            self._held_by[reservation.caller] + size <= self._max_each or reservation is next(iter(of_caller))
        )

    def _give(self, reservation: Reservation, size: int) -> None:
        reservation.held += size
        self._held_by[reservation.caller] += size
        self._room -= size

    def _release(self, reservation: Reservation) -> None:
        self._give(reservation, -reservation.held)
        del self._admitted[reservation], self._of_caller[reservation.caller][reservation]
        if not self._of_caller[reservation.caller]:
            del self._of_caller[reservation.caller], self._held_by[reservation.caller]
        self._admit_waiting()

    def _admit_waiting(self, changed: bool = False) -> None:
        """Let those grow that fit; of those whose caller has its share, others need not wait for the end."""
        before, left = len(self._queue), list[_Turn]()
        blocked = False  # by the room of all: then nobody overtakes
        for turn in self._queue:
            if turn.admitted.done():
                continue
            oldest = turn.reservation is next(iter(self._admitted))
            if (not blocked or oldest) and self._fits(turn.reservation, turn.size):
                self._give(turn.reservation, turn.size)
                turn.admitted.set_result(None)
                continue
            blocked = blocked or turn.size > self._room
            left.append(turn)
        self._queue = left
        if changed or len(left) != before:
            self._observe(len(left))
