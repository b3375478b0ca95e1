"""How long a notice may be held: as long as its scene may take, and longer where only its result waits."""

import threading
import time

import pytest

from tilewise.bento.stream.leases import Lease, Leases, StopWork
from tilewise.bento.stream.queue import Message
from tilewise.datasets.core.errors import TilewiseError

NOTICE = Message("1", "{}", "receipt", 1, 0.0)


def test_a_scene_that_is_done_is_not_given_up_while_its_result_waits() -> None:
    stopping = threading.Event()
    lease = Lease(NOTICE, -1.0, 3600.0, stopping)
    with pytest.raises(TilewiseError, match="allow more by --max-seconds"):
        lease.check()
    lease.keep()
    lease.check()
    assert not lease.is_overdue
    stopping.set()
    with pytest.raises(StopWork):
        lease.check()


class Hidden:
    """Notes which messages are hidden, and for how long."""

    def __init__(self) -> None:
        self.receipts: list[str] = []

    def hide(self, message: Message, seconds: int) -> None:
        self.receipts.append(message.receipt)


def test_a_lease_is_renewed_in_time_and_an_overdue_one_is_not() -> None:
    hidden = Hidden()
    with Leases(hidden, 1, 0.1, threading.Event()) as leases, leases.hold(NOTICE) as lease:
        time.sleep(0.2)
        assert lease.is_overdue
        time.sleep(1)
        assert hidden.receipts == [], "it returns to the queue, for another consumer"
        lease.keep()
        time.sleep(1)
        assert hidden.receipts.count("receipt") >= 1
