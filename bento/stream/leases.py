"""Leases: hide messages in work from other consumers; a thread renews their visibility timeouts."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from tilewise.bento.monitoring.logs import get_logger
from tilewise.bento.stream.queue import MAX_HIDDEN_S, Message
from tilewise.datasets.core.errors import QueueError, TilewiseError

_RENEWALS = 3  # per lease, so that one or two may fail


class HidesMessages(Protocol):
    """The part of `Queue` that leases use."""

    def hide(self, message: Message, seconds: int) -> None:
        """See `Queue.hide`."""


class StopWork(BaseException):
    """The consumer stops, and the work must be released. Not an Exception, so that no handler swallows it."""


class Lease:
    """A message in work.

    Args:
        message: the message.
        max_seconds: that it may be in work.
        max_held: seconds that it may be held at all.
        stopping: set when all work must be released.
    """

    def __init__(
        self, message: Message, max_seconds: float, max_held: float, stopping: threading.Event
    ) -> None:
        self.message = message
        self._began, self._limit, self._max_held, self._stopping = (
            time.monotonic(),
            max_seconds,
            max_held,
            stopping,
        )

    @property
    def is_overdue(self) -> bool:
        """Whether it is in work for too long."""
        return time.monotonic() > self._began + self._limit

    def keep(self) -> None:
        """Hold it as long as SQS allows: its scene is done, and only its result is not sent yet."""
        self._limit = self._max_held

    def check(self) -> None:
        """Stop the work if it must not go on; called between strips of a scene.

        Raises:
            StopWork: the consumer stops.
            TilewiseError: the scene takes too long.
        """
        if self._stopping.is_set():
            raise StopWork
        if self.is_overdue:
            raise TilewiseError(f"it took more than {self._limit:g} s; allow more by --max-seconds")


class Leases:
    """The leases of all messages in work, which a thread renews for the length of the `with` block.

    Args:
        queue: of the messages.
        seconds: of a lease.
        max_seconds: that a message may be in work; at most what SQS allows.
        stopping: set when all work must be released.
    """

    def __init__(
        self, queue: HidesMessages, seconds: int, max_seconds: float, stopping: threading.Event
    ) -> None:
        self._queue, self._seconds, self._stopping = queue, seconds, stopping
        self._max_held = MAX_HIDDEN_S - seconds
        self._limit = min(max_seconds, self._max_held)
        self._held: dict[str, Lease] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_in_time, name="leases", daemon=True)

    def __enter__(self) -> "Leases":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @contextmanager
    def hold(self, message: Message) -> Iterator[Lease]:
        """Hold a message for the length of the block."""
        lease = self._held[message.receipt] = Lease(message, self._limit, self._max_held, self._stopping)
        try:
            yield lease
        finally:
            del self._held[message.receipt]

    def renew(self) -> None:
        """Renew every lease that is not overdue; one that hangs returns to the queue, for others."""
        for lease in list(self._held.values()):
            if not lease.is_overdue:
                self._renew_one(lease)

    def _renew_in_time(self) -> None:
        while not self._ended.wait(self._seconds / _RENEWALS):
            self.renew()

    def _renew_one(self, lease: Lease) -> None:
        try:
            self._queue.hide(lease.message, self._seconds)
        except QueueError as error:
            if lease.message.receipt in self._held:  # else it has just ended
                get_logger().warning(
                    "a lease was not renewed; the scene may be done twice",
                    notice=lease.message.id,
                    reason=str(error),
                )
