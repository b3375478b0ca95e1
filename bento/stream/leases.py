"""Messages in work stay hidden from other consumers: a thread renews their leases until they are let go."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from tilewise.bento.stream.queue import LONGEST_HIDDEN, Message
from tilewise.datasets.core.errors import QueueError, TilewiseError

_LOG = logging.getLogger("tilewise")
_RENEWALS = 3  # within a lease, so that one or two may fail


class Hides(Protocol):
    """A queue, as far as leases are concerned."""

    def hide(self, message: Message, seconds: int) -> None:
        """See `Queue.hide`."""


class StopWork(BaseException):
    """The scene in work is to be given back, since the consumer ends; no error, which whoever goes on would catch."""


class Lease:
    """A message that is held.

    Args:
        message: it.
        max_seconds: that it may be worked on.
        longest: seconds that it may be held at all.
        stopping: set when whatever is in work is to be given back.
    """

    def __init__(self, message: Message, max_seconds: float, longest: float, stopping: threading.Event) -> None:
        self.message = message
        self._began, self._limit, self._longest, self._stopping = time.monotonic(), max_seconds, longest, stopping

    @property
    def is_overdue(self) -> bool:
        """Whether it was held too long."""
        return time.monotonic() > self._began + self._limit

    def keep(self) -> None:
        """Hold it as long as SQS allows: its scene is done, and only its result waits to be taken."""
        self._limit = self._longest

    def check(self) -> None:
        """Go on only where the work may; called between strips of a scene.

        Raises:
            StopWork: the consumer ends.
            TilewiseError: the scene takes too long.
        """
        if self._stopping.is_set():
            raise StopWork
        if self.is_overdue:
            raise TilewiseError(f"it took more than {self._limit:g} s; allow more by --max-seconds")


class Leases:
    """All messages in work, renewed by a thread while the block lasts.

    Args:
        queue: that they came from.
        seconds: of a lease.
        max_seconds: that a message may be held; no more than SQS allows.
        stopping: set when whatever is in work is to be given back.
    """

    def __init__(self, queue: Hides, seconds: int, max_seconds: float, stopping: threading.Event) -> None:
        self._queue, self._seconds, self._stopping = queue, seconds, stopping
        self._longest = LONGEST_HIDDEN - seconds
        self._limit = min(max_seconds, self._longest)
        self._held: dict[str, Lease] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="leases", daemon=True)

    def __enter__(self) -> "Leases":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @contextmanager
    def hold(self, message: Message) -> Iterator[Lease]:
        """Hold a message for the length of the block."""
        lease = self._held[message.receipt] = Lease(message, self._limit, self._longest, self._stopping)
        try:
            yield lease
        finally:
            del self._held[message.receipt]

    def _renew(self) -> None:
        while not self._ended.wait(self._seconds / _RENEWALS):
            for lease in list(self._held.values()):
                if not lease.is_overdue:  # one that hangs comes back, to another consumer
                    self._renew_one(lease)

    def _renew_one(self, lease: Lease) -> None:
        try:
            self._queue.hide(lease.message, self._seconds)
        except QueueError as error:
            if lease.message.receipt in self._held:  # else it was just let go
                fields = {"notice": lease.message.id, "reason": str(error)}
                _LOG.warning("a lease was not renewed; the scene may be done twice", extra={"fields": fields})
