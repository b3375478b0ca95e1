"""Whatever callers do, in any order: all who wait get their own results, or the error of their batch."""

import asyncio
import threading

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tilewise.bento.serving.batcher import Batcher, ClosedError

LIMIT = 4
POISON = 666
WAIT_S = 10


class Callers(RuleBasedStateMachine):
    """Callers of a batcher whose work is held back until it is let go, so that requests pile up and mix.

    A lone number is worked on in the event loop, which is not held back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.loop = asyncio.new_event_loop()
        self.batcher = Batcher(self.work, LIMIT, lone_in_loop=True)
        self.waiting: list[tuple[list[int], asyncio.Task[list[int]]]] = []

    def work(self, jobs: list[int]) -> list[int]:
        if threading.current_thread() is not threading.main_thread():  # else it is done in the event loop
            self.go.wait(WAIT_S)
        self.batches.append(jobs)
        if POISON in jobs:
            raise ValueError("a poisoned batch")
        return [2 * job for job in jobs]

    @rule(jobs=st.lists(st.integers(0, 99) | st.just(POISON), max_size=7), caller=st.sampled_from("abc"))
    def ask(self, jobs: list[int], caller: str) -> None:
        self.waiting.append((jobs, self.loop.create_task(self.batcher.submit(jobs, caller))))
        self.loop.run_until_complete(asyncio.sleep(0))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        _, task = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        task.cancel()
        self.loop.run_until_complete(asyncio.wait([task], timeout=WAIT_S))

    @rule()
    def let_go(self) -> None:
        """Work goes on until nobody waits."""
        self.go.set()
        for jobs, task in self.waiting:
            self.loop.run_until_complete(asyncio.wait([task], timeout=WAIT_S))
            assert task.done(), "a caller waits for ever"
            if error := task.exception():
                assert isinstance(error, ValueError)
                assert any(POISON in batch and set(batch) & set(jobs) for batch in self.batches)
            else:
                assert task.result() == [2 * job for job in jobs]
                assert POISON not in jobs
        self.waiting.clear()
        self.go.clear()

    @invariant()
    def batches_are_small(self) -> None:
        assert all(0 < len(batch) <= LIMIT for batch in self.batches)

    def teardown(self) -> None:
        closing = threading.Thread(target=self.batcher.close)
        closing.start()
        self.go.set()
        closing.join(WAIT_S)
        assert not closing.is_alive()
        for jobs, task in self.waiting:
            self.loop.run_until_complete(asyncio.wait([task], timeout=WAIT_S))
            error = task.exception()
            assert isinstance(error, (ClosedError, ValueError)) or task.result() == [2 * job for job in jobs]
        assert self.batcher.waiting == 0
        self.loop.close()


def test_nobody_waits_for_ever_and_nobody_gets_another_s_results() -> None:
    run_state_machine_as_test(
        Callers, settings=settings(max_examples=40, stateful_step_count=20, deadline=None, derandomize=True)
    )
