"""Callers whose requests are refused are slowed down, and nobody else is."""

import asyncio
import time
from collections.abc import Sequence

import pytest
from prometheus_client import REGISTRY
from scenarios import run
from starlette.types import Message, Receive, Scope, Send

from tilewise.bento.api.refusals import SlowRefusals
from tilewise.bento.request_context import RequestContext, begin, note_code

RATE = 20.0
FREE = 40  # refusals: two seconds at that rate


async def never() -> Message:
    raise AssertionError("nobody reads")


async def ignore(message: Message) -> None:
    pass


class Refused:
    """An application with the limit, whose answer is the error codes that a request asks for."""

    def __init__(self, rate: float = RATE) -> None:
        self.app = SlowRefusals(self.answer, rate)
        self.asked = 0

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked += 1
        for code in scope["codes"]:
            note_code(code)

    async def ask(
        self, address: str, codes: Sequence[str] = (), caller: str = "", method: str = "POST"
    ) -> float:
        """Return the seconds that a request took."""
        began = time.monotonic()
        begin(RequestContext("id"))
        state = {"caller": caller} if caller else {}
        scope = {"type": "http", "method": method, "headers": [], "client": (address, 1), "state": state}
        scope["codes"] = codes
        await self.app(scope, never, ignore)
        return time.monotonic() - began

    async def refuse(self, address: str, times: int, caller: str = "") -> None:
        await self.ask(address, ["bad_request"] * times, caller)


def slowed() -> float:
    return REGISTRY.get_sample_value("tilewise_slowed_requests_total") or 0.0


def test_a_caller_with_too_many_refusals_waits_until_its_rate_has_paid_them_and_no_other_does() -> None:
    async def scenario() -> None:
        service = Refused()
        await service.refuse("192.0.2.1", FREE + 10)
        before = slowed()
        assert await service.ask("192.0.2.2") < 0.1
        assert slowed() == before
        assert 0.3 < await service.ask("192.0.2.1") < 2
        assert slowed() == before + 1
        assert await service.ask("192.0.2.1") < 0.1

    run(scenario)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_balancer_that_probes_from_the_address_does_not_wait(method: str) -> None:
    async def scenario() -> None:
        service = Refused()
        await service.refuse("192.0.2.1", 10 * FREE)
        assert await service.ask("192.0.2.1", method=method) < 0.1

    run(scenario)


def test_the_first_refusals_are_free() -> None:
    async def scenario() -> None:
        service = Refused()
        await service.refuse("192.0.2.1", FREE - 1)
        assert await service.ask("192.0.2.1") < 0.1

    run(scenario)


def test_requests_at_once_of_a_caller_in_debt_wait_one_after_another() -> None:
    async def scenario() -> None:
        service = Refused()
        await service.refuse("192.0.2.1", FREE + 1)
        began = time.monotonic()
        waiting = [asyncio.create_task(service.refuse("192.0.2.1", 1)) for _ in range(10)]
        await asyncio.sleep(0.2)
        assert service.asked < 8, "they do not come all at once"
        await asyncio.gather(*waiting)
        assert time.monotonic() - began > 9 / RATE

    run(scenario)


def test_what_waited_and_was_answered_well_is_no_refusal() -> None:
    async def scenario() -> None:
        service = Refused()
        await service.refuse("192.0.2.1", FREE + 1)
        await asyncio.gather(*(service.ask("192.0.2.1") for _ in range(20)))  # a second, which pays 20
        await service.refuse("192.0.2.1", 15)
        assert await service.ask("192.0.2.1") < 0.1

    run(scenario)


@pytest.mark.parametrize("code", ["no_data", "too_many_tasks", "overloaded", "internal", "timeout"])
def test_what_is_no_mistake_of_the_caller_does_not_count(code: str) -> None:
    async def scenario() -> None:
        service = Refused()
        await service.ask("192.0.2.1", [code] * 10 * FREE)
        assert await service.ask("192.0.2.1") < 0.1

    run(scenario)


def test_a_key_and_not_its_address_is_slowed_down() -> None:
    async def scenario() -> None:
        service = Refused()
        await service.refuse("192.0.2.1", FREE + 10, caller="alice")
        assert await service.ask("192.0.2.1", caller="bob") < 0.1
        assert await service.ask("192.0.2.9", caller="alice") > 0.3

    run(scenario)


def test_nobody_waits_longer_than_twenty_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def scenario() -> None:
        service = Refused()
        await service.refuse("192.0.2.1", 100 * FREE)
        monkeypatch.setattr(asyncio, "sleep", sleep)
        await service.ask("192.0.2.1")

    run(scenario)
    assert slept == [20]
