"""Notices in work, whatever clocks, queue and consumer do: no two consumers have one, and none is lost."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import Event
from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tilewise.bento.stream.leases import Lease, Leases
from tilewise.bento.stream.queue import MAX_HIDDEN_S, Message
from tilewise.datasets.core.errors import QueueError

SECONDS, LONGEST = 30, 500
HALF_A_DAY = 3 * MAX_HIDDEN_S // SECONDS  # in thirds of a lease


@dataclass
class Held:
    """A notice in work, as the model knows it: when it was received, until when it may be in work."""

    message: Message
    block: AbstractContextManager[Lease]
    lease: Lease
    received: float
    until: float
    failures: int = 0


class Queue:
    """A queue that knows until when each message is hidden, as SQS does; it may be out of reach."""

    def __init__(self, clock: SimpleNamespace) -> None:
        self.clock, self.hidden_until, self.reachable = clock, dict[str, float](), True

    def hide(self, message: Message, seconds: int) -> None:
        if not self.reachable:
            raise QueueError("out of reach")
        self.hidden_until[message.receipt] = self.clock.now + seconds


def test_a_notice_in_work_stays_hidden_and_one_that_hangs_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0, wall=0.0)
    monkeypatch.setattr("tilewise.bento.stream.leases.time.monotonic", lambda: clock.now)
    monkeypatch.setattr("tilewise.bento.stream.leases.time.time", lambda: clock.wall)

    class Consumer(RuleBasedStateMachine):
        """Time passes in thirds of a lease, at whose ends the thread renews; the test takes its place."""

        def __init__(self) -> None:
            super().__init__()
            clock.now, clock.wall = 1000.0, 1e9
            self.queue = Queue(clock)
            self.leases = Leases(self.queue, SECONDS, LONGEST, Event())
            self.held: list[Held] = []
            self.count = 0

        @rule()
        def receive(self) -> None:
            self.count += 1
            message = Message(str(self.count), "{}", f"receipt {self.count}", 1, 0.0)
            self.queue.hidden_until[message.receipt] = clock.now + SECONDS
            block = self.leases.hold(message)
            lease = block.__enter__()
            self.held.append(Held(message, block, lease, clock.now, clock.now + LONGEST))

        @precondition(lambda self: self.held)
        @rule(data=st.data())
        def finish(self, data: st.DataObject) -> None:
            """A notice that is done is renewed no more."""
            done = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
            done.block.__exit__(None, None, None)
            before = self.queue.hidden_until[done.message.receipt]
            self.leases.renew()
            assert self.queue.hidden_until[done.message.receipt] == before

        @precondition(lambda self: self.held)
        @rule(data=st.data())
        def wait_for_the_result(self, data: st.DataObject) -> None:
            kept = self.held[data.draw(st.integers(0, len(self.held) - 1))]
            kept.lease.keep()
            kept.until = kept.received + MAX_HIDDEN_S - SECONDS

        @rule(thirds=st.integers(1, 30) | st.just(HALF_A_DAY), hours=st.integers(-48, 48))
        def pass_time(self, thirds: int, hours: int) -> None:
            """The wall clock may be set meanwhile."""
            clock.wall += hours * 3600
            for _ in range(thirds):
                clock.now += SECONDS / 3
                self.leases.renew()
                for each in self.held:
                    each.failures = 0 if self.queue.reachable else each.failures + 1

        @rule(reachable=st.booleans())
        def queue_comes_or_goes(self, reachable: bool) -> None:
            self.queue.reachable = reachable

        @invariant()
        def nobody_else_gets_what_is_in_work(self) -> None:
            for each in self.held:
                if clock.now <= each.until and each.failures < 3:
                    assert self.queue.hidden_until[each.message.receipt] >= clock.now

        @invariant()
        def what_hangs_comes_back(self) -> None:
            for each in self.held:
                hidden_until = self.queue.hidden_until[each.message.receipt]
                assert hidden_until <= each.until + SECONDS
                assert hidden_until <= each.received + MAX_HIDDEN_S, "SQS would refuse it"

    run_state_machine_as_test(
        Consumer, settings=settings(max_examples=100, stateful_step_count=20, deadline=None, derandomize=True)
    )
