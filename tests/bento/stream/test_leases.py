"""How long a notice may be held: as long as its scene may take, and longer where only its result waits."""

import threading
import time
from contextlib import ExitStack
from itertools import pairwise

import pytest

from tilewise.bento.stream.leases import Lease, Leases, StopWork
from tilewise.bento.stream.queue import MAX_HIDDEN_S, Message
from tilewise.datasets.core.errors import QueueError, TilewiseError

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
        self.times: list[float] = []
        self.seconds: list[int] = []

    def hide(self, message: Message, seconds: int) -> None:
        self.receipts.append(message.receipt)
        self.times.append(time.monotonic())
        self.seconds.append(seconds)


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


def test_a_lease_is_renewed_three_times_while_it_lasts_and_not_more_often() -> None:
    hidden = Hidden()
    with Leases(hidden, 1, 60, threading.Event()) as leases, leases.hold(NOTICE):
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "leases")
        assert thread.daemon, "a program that fails must not wait for it"
        until = time.monotonic() + 20
        while len(hidden.times) < 4 and time.monotonic() < until:
            time.sleep(0.05)
    gaps = sorted(after - before for before, after in pairwise(hidden.times))
    assert gaps[0] > 0.3
    assert gaps[1] < 1, "it ends after a second"


def test_a_lease_ends_when_its_time_is_over_and_never_later_than_sqs_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr("tilewise.bento.stream.leases.time.monotonic", lambda: now)
    leases = Leases(Hidden(), 30, 500, threading.Event())
    with leases.hold(NOTICE) as lease:
        now = 1500
        assert not lease.is_overdue
        now = 1501
        assert lease.is_overdue
        lease.keep()
        now = 1000 + MAX_HIDDEN_S - 31
        assert not lease.is_overdue
        now = 1000 + MAX_HIDDEN_S - 29
        assert lease.is_overdue


class Broken(Hidden):
    """Hides nothing, and lets whoever waits for that do something meanwhile."""

    def hide(self, message: Message, seconds: int) -> None:
        super().hide(message, seconds)
        raise QueueError("the queue is out of reach")


def test_a_lease_that_is_not_renewed_is_told_and_the_next_renewal_is_tried(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = Broken()
    leases = Leases(broken, 30, 60, threading.Event())
    with leases.hold(NOTICE):
        leases.renew()
        leases.renew()
    assert broken.receipts == ["receipt", "receipt"]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert all("a lease was not renewed; the scene may be done twice" in text for text in told)
    assert all("the queue is out of reach" in text for text in told)


def test_a_lease_that_ends_while_it_is_renewed_is_no_trouble(caplog: pytest.LogCaptureFixture) -> None:
    class Ending(Broken):
        def hide(self, message: Message, seconds: int) -> None:
            held.close()
            super().hide(message, seconds)

    leases, held = Leases(Ending(), 30, 60, threading.Event()), ExitStack()
    held.enter_context(leases.hold(NOTICE))
    leases.renew()
    assert not caplog.records


def test_a_lease_is_renewed_for_all_of_it_after_each_third() -> None:
    waits: list[float] = []

    class Ended(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0)
            return len(waits) > 2

    hidden = Hidden()
    leases = Leases(hidden, 30, 500, threading.Event())
    leases._ended = Ended()
    with leases.hold(NOTICE), leases:
        pass
    assert waits == [10, 10, 10]
    assert hidden.seconds == [30, 30]


@pytest.mark.parametrize(("max_seconds", "ends"), [(500.5, 500.5), (1e9, MAX_HIDDEN_S - 30)])
def test_work_that_took_too_long_is_stopped_with_the_seconds_that_it_had(
    monkeypatch: pytest.MonkeyPatch, max_seconds: float, ends: float
) -> None:
    now = 0.0
    monkeypatch.setattr("tilewise.bento.stream.leases.time.monotonic", lambda: now)
    with Leases(Hidden(), 30, max_seconds, threading.Event()).hold(NOTICE) as lease:
        now = ends
        lease.check()
        now = ends + 0.001
        with pytest.raises(TilewiseError, match=f"it took more than {ends:g} s; allow more"):
            lease.check()
