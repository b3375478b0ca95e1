"""Requests are let in as their bytes fit, first come first served, and turned away rather than piled up."""

import asyncio

import pytest
from scenarios import run
from starlette.requests import Request

from tilewise.bento.serving.admission import Admission, OverloadedError, caller_of


class Guest:
    """A request that holds its room until it is told to leave."""

    def __init__(self, admission: Admission, size: int, caller: str = "somebody") -> None:
        self.inside, self._leave = False, asyncio.Event()
        self.task = asyncio.create_task(self._stay(admission, size, caller))

    async def _stay(self, admission: Admission, size: int, caller: str) -> None:
        async with admission.room(caller, size):
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
        assert waiting.task.cancelled()
        following = Guest(admission, 10)
        await settle()
        assert following.inside
        await following.leave()

    run(scenario)


def test_a_request_that_fails_gives_its_room_back() -> None:
    async def scenario() -> None:
        admission = Admission(max_held=10, max_each=10, max_waiting=5, max_wait_seconds=5)
        for _ in range(3):
            with pytest.raises(ValueError, match="bad"):
                async with admission.room("somebody", 10):
                    raise ValueError("bad")

    run(scenario)


def test_what_is_announced_and_never_comes_holds_no_room() -> None:
    async def scenario() -> None:
        admission = Admission(max_held=100, max_each=50, max_waiting=10, max_wait_seconds=5)
        silent = [Guest(admission, 0, "attacker") for _ in range(50)]
        await settle()
        async with asyncio.timeout(1), admission.room("somebody") as body:
            await body.grow(100)
        for guest in silent:
            assert guest.inside
            await guest.leave()

    run(scenario)


def test_one_caller_has_its_share_and_others_need_not_wait_for_it() -> None:
    async def scenario() -> None:
        admission = Admission(max_held=100, max_each=50, max_waiting=10, max_wait_seconds=5)
        first, second = Guest(admission, 40, "greedy"), Guest(admission, 40, "greedy")
        other = Guest(admission, 50, "other")
        await settle()
        assert (first.inside, second.inside, other.inside) == (True, False, True)
        await first.leave()
        await settle()
        assert second.inside
        await second.leave()
        await other.leave()

    run(scenario)


def test_one_caller_may_wait_in_half_of_the_places() -> None:
    async def scenario() -> None:
        admission = Admission(max_held=10, max_each=10, max_waiting=4, max_wait_seconds=5)
        guests = [Guest(admission, 10, "greedy") for _ in range(3)]
        await settle()
        with pytest.raises(OverloadedError):
            async with admission.room("greedy", 10):
                pass
        guests.append(Guest(admission, 10, "other"))
        for guest in guests:
            await guest.leave()
            await settle()

    run(scenario)


def test_bodies_that_need_more_room_than_there_is_do_not_wait_for_one_another() -> None:
    async def scenario() -> None:
        admission = Admission(max_held=100, max_each=60, max_waiting=10, max_wait_seconds=5)
        done: list[str] = []

        async def body(name: str, caller: str) -> None:
            async with admission.room(caller) as room:
                for _ in range(9):
                    await room.grow(10)
                    await asyncio.sleep(0)
                done.append(name)

        async with asyncio.timeout(2):
            await asyncio.gather(body("a1", "a"), body("a2", "a"), body("b1", "b"), body("b2", "b"))
        assert sorted(done) == ["a1", "a2", "b1", "b2"]
        async with asyncio.timeout(1), admission.room("c", 100):
            pass

    run(scenario)


@pytest.mark.parametrize(
    ("client", "caller"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("", ""),
        ("no:address", "no:address"),
    ],
)
def test_a_request_is_charged_to_its_address_and_in_ipv6_to_its_network(client: str, caller: str) -> None:
    scope = {"type": "http", "headers": [], "client": (client, 1), "state": {}}
    assert caller_of(Request(scope)) == caller


def test_a_request_with_a_key_is_charged_to_its_name() -> None:
    scope = {"type": "http", "headers": [], "client": ("192.0.2.7", 1), "state": {"caller": "alice"}}
    assert caller_of(Request(scope)) == "alice"


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


def test_one_caller_has_half_of_the_waiting_places_and_leaves_the_rest_to_others() -> None:
    async def scenario() -> None:
        admission = Admission(max_held=10, max_each=10, max_waiting=2, max_wait_seconds=5)
        inside, waiting = Guest(admission, 10), Guest(admission, 10, "many")
        await settle()
        with pytest.raises(OverloadedError):
            async with admission.room("many", 10):
                pass
        other = Guest(admission, 10, "other")
        await settle()
        assert not other.task.done()
        for guest in (inside, waiting, other):
            await guest.leave()
            await settle()
        assert other.inside

    run(scenario)


def test_all_room_comes_back_to_the_byte_however_many_were_here() -> None:
    async def scenario() -> None:
        admission = Admission(max_held=100, max_each=100, max_waiting=10, max_wait_seconds=5)
        for size in range(90):
            async with admission.room("somebody", size) as room:
                await room.grow(10)
        whole, none, more = Guest(admission, 100), Guest(admission, 0), Guest(admission, 1)
        await settle()
        assert (whole.inside, none.inside, more.inside) == (True, True, False)
        for guest in (whole, none, more):
            await guest.leave()

    run(scenario)


def test_as_many_wait_as_may_and_the_next_is_turned_away() -> None:
    async def scenario() -> None:
        admission = Admission(max_held=10, max_each=10, max_waiting=4, max_wait_seconds=5)
        first = Guest(admission, 10)
        await settle()
        waiting = [Guest(admission, 5, caller) for caller in ("a", "b", "c", "d")]
        await settle()
        with pytest.raises(OverloadedError):
            async with admission.room("e", 5):
                pass
        assert not any(guest.inside for guest in waiting)
        for guest in (first, *waiting):
            await guest.leave()

    run(scenario)


def test_a_request_without_an_address_is_charged_to_nobody() -> None:
    assert caller_of(Request({"type": "http", "headers": [], "state": {}})) == ""


@pytest.mark.parametrize(("size", "fits"), [(9, True), (10, True), (11, False)])
def test_the_requests_of_one_caller_hold_its_share_and_no_more(size: int, fits: bool) -> None:
    async def scenario() -> None:
        admission = Admission(max_held=100, max_each=50, max_waiting=10, max_wait_seconds=5)
        first, second = Guest(admission, 40), Guest(admission, size)
        await settle()
        assert second.inside == fits
        for guest in (first, second):
            await guest.leave()

    run(scenario)


def test_whoever_waits_for_its_share_does_not_hold_up_others_even_if_it_would_take_all_room() -> None:
    async def scenario() -> None:
        admission = Admission(max_held=100, max_each=60, max_waiting=10, max_wait_seconds=5)
        first, greedy = Guest(admission, 40, "greedy"), Guest(admission, 60, "greedy")
        other = Guest(admission, 10, "other")
        await settle()
        assert (greedy.inside, other.inside) == (False, True)
        for guest in (first, greedy, other):
            await guest.leave()

    run(scenario)


@pytest.mark.parametrize(("max_waiting", "of_one"), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)])
def test_one_caller_waits_in_half_of_the_places_rounded_down_and_in_one_at_least(
    max_waiting: int, of_one: int
) -> None:
    async def scenario() -> None:
        admission = Admission(max_held=10, max_each=10, max_waiting=max_waiting, max_wait_seconds=7)
        guests = [Guest(admission, 10, "inside")]
        await settle()
        guests += [Guest(admission, 10, "greedy") for _ in range(of_one)]
        await settle()
        with pytest.raises(OverloadedError) as refused:
            async with admission.room("greedy", 1):
                pass
        assert refused.value.retry_after == 7
        for guest in guests:
            await guest.leave()
            await settle()

    run(scenario)


def test_how_many_wait_is_told_at_each_change_and_only_then() -> None:
    told: list[int] = []

    async def scenario() -> None:
        admission = Admission(10, 10, max_waiting=8, max_wait_seconds=5, observe=told.append)
        first, second = Guest(admission, 10), Guest(admission, 6)
        third = Guest(admission, 6)
        await settle()
        for guest in (first, second, third):
            await guest.leave()
            await settle()
        async with admission.room("somebody") as room:
            assert room.held == 0
            await room.grow(3)
            await room.grow(4)
            assert room.held == 7

    run(scenario)
    assert told == [1, 2, 1, 0]


def test_a_wait_that_was_too_long_tells_when_to_retry_and_that_nobody_waits() -> None:
    told: list[int] = []

    async def scenario() -> None:
        admission = Admission(10, 10, max_waiting=8, max_wait_seconds=0.05, observe=told.append)
        inside = Guest(admission, 10)
        await settle()
        with pytest.raises(OverloadedError) as refused:
            async with admission.room("somebody", 10):
                pass
        assert refused.value.retry_after == 0.05
        await inside.leave()

    run(scenario)
    assert told == [1, 0]
