"""Requests are let in as their bytes fit, first come first served, and turned away rather than piled up."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tilewise.bento.serving.admission import Admission, OverloadedError


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 10))  # type: ignore[arg-type]


class Guest:
    """A request that holds its room until it is told to leave."""

    def __init__(self, admission: Admission, size: int) -> None:
        self.inside, self._leave = False, asyncio.Event()
        self.task = asyncio.create_task(self._stay(admission, size))

    async def _stay(self, admission: Admission, size: int) -> None:
        async with admission.room("somebody", size):
            self.inside = True
            await self._leave.wait()

    async def leave(self) -> None:
        self._leave.set()
        await self.task


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_requests_wait_until_their_bytes_fit_and_then_come_in_in_order() -> None:
    async def scenario() -> None:
        admission = Admission(max_held=100, max_each=100, max_waiting=10, max_wait_seconds=5)
        first, second = Guest(admission, 60), Guest(admission, 60)
        third = Guest(admission, 10)
        await settle()
        assert (first.inside, second.inside, third.inside) == (True, False, False)  # nobody overtakes
        await first.leave()
        await settle()
        assert (second.inside, third.inside) == (True, True)
        await second.leave()
        await third.leave()

    run(scenario)


def test_a_request_larger_than_everything_comes_in_alone() -> None:
    async def scenario() -> None:
        admission = Admission(max_held=100, max_each=100, max_waiting=10, max_wait_seconds=5)
        small, huge = Guest(admission, 1), Guest(admission, 10_000)
        await settle()
        assert not huge.inside
        await small.leave()
        await settle()
        assert huge.inside
        await huge.leave()

    run(scenario)


def test_beyond_those_who_may_wait_a_request_is_turned_away_at_once() -> None:
    async def scenario() -> None:
        admission = Admission(max_held=10, max_each=10, max_waiting=1, max_wait_seconds=5)
        inside, waiting = Guest(admission, 10), Guest(admission, 10)
        await settle()
        with pytest.raises(OverloadedError) as refused:
            async with admission.room("somebody", 1):
                pass
        assert refused.value.retry_after == 5
        await inside.leave()
        await waiting.leave()

    run(scenario)


def test_waiting_too_long_ends_in_a_refusal_and_leaves_no_trace() -> None:
    async def scenario() -> None:
        admission = Admission(max_held=10, max_each=10, max_waiting=5, max_wait_seconds=0.05)
        inside = Guest(admission, 10)
        await settle()
        with pytest.raises(OverloadedError):
            async with admission.room("somebody", 10):
                pass
        await inside.leave()
        async with admission.room("somebody", 10):
            pass

    run(scenario)


def test_a_request_that_leaves_while_it_waits_makes_way_for_the_next() -> None:
    async def scenario() -> None:
        admission = Admission(max_held=10, max_each=10, max_waiting=5, max_wait_seconds=5)
        inside, large, small = Guest(admission, 6), Guest(admission, 8), Guest(admission, 4)
        await settle()
        assert not small.inside
        large.task.cancel()
        await settle()
        assert small.inside
        await inside.leave()
        await small.leave()

    run(scenario)


def test_a_request_cancelled_at_the_moment_it_is_let_in_gives_its_room_back() -> None:
    async def scenario() -> None:
        admission = Admission(max_held=10, max_each=10, max_waiting=5, max_wait_seconds=5)
        inside, waiting = Guest(admission, 10), Guest(admission, 10)
        await settle()
        inside._leave.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting.task.cancel()
        await asyncio.gather(inside.task, waiting.task, return_exceptions=True)
        async with asyncio.timeout(1), admission.room("somebody", 10):
            pass

    run(scenario)


def test_a_request_that_fails_gives_its_room_back() -> None:
    async def scenario() -> None:
        admission = Admission(max_held=10, max_each=10, max_waiting=5, max_wait_seconds=5)
        for _ in range(3):
            with pytest.raises(ValueError, match="bad"):
                async with admission.room("somebody", 10):
                    raise ValueError("bad")

    run(scenario)


def test_how_many_wait_is_told_as_they_come_and_go() -> None:
    told: list[int] = []

    async def scenario() -> None:
        admission = Admission(
            max_held=100, max_each=100, max_waiting=10, max_wait_seconds=5, observe=told.append
        )
        first, *others = Guest(admission, 100), Guest(admission, 50), Guest(admission, 50)
        await settle()
        await first.leave()
        await settle()
        for guest in others:
            await guest.leave()

    run(scenario)
    assert told[:2] == [1, 2]
    assert told[-1] == 0
