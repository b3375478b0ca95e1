"""Background work of requests: bounded, stopped with its request, and never all of it one caller's."""

import asyncio
import threading
from collections.abc import Iterator

import pytest
from scenarios import run
from starlette.requests import Request
from starlette.types import Message

from tilewise.bento.serving.admission import OverloadedError
from tilewise.bento.serving.background import BackgroundPool, Check, ClientGoneError, WorkStoppedError

WAIT_S = 10


def request_from(address: str, gone: asyncio.Event | None = None) -> Request:
    """A request whose body was read, and whose client leaves when `gone` is set."""

    async def receive() -> Message:
        await (gone or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http", "headers": [], "client": (address, 1), "state": {}}, receive)


class Work:
    """Goes on until it may end or is told to stop."""

    def __init__(self) -> None:
        self.began, self.end, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.stopped = False

    def __call__(self, check: Check) -> str:
        self.began.set()
        try:
            while not self.end.wait(0.01):
                check()
        except WorkStoppedError:
            self.stopped = True
            raise
        finally:
            self.ended.set()
        return "done"


@pytest.fixture
def pool() -> Iterator[BackgroundPool]:
    made = BackgroundPool("test", 2, max_wait_seconds=0.2)
    yield made
    made.close()


async def begun(work: Work) -> None:
    assert await asyncio.to_thread(work.began.wait, WAIT_S)


def test_the_result_of_the_work_is_returned_and_so_is_its_error(pool: BackgroundPool) -> None:
    async def scenario() -> None:
        assert await pool.run(request_from("a"), lambda check: 42) == 42
        with pytest.raises(ZeroDivisionError):
            await pool.run(request_from("a"), lambda check: 1 / 0)

    run(scenario)


def test_work_whose_request_is_cancelled_has_ended_when_the_call_ends(
    pool: BackgroundPool,
) -> None:
    async def scenario() -> None:
        work = Work()
        call = asyncio.create_task(pool.run(request_from("a"), work))
        await begun(work)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert work.stopped
        assert work.ended.is_set()

    run(scenario)


def test_work_whose_client_has_gone_is_stopped(pool: BackgroundPool) -> None:
    async def scenario() -> None:
        work, gone = Work(), asyncio.Event()
        call = asyncio.create_task(pool.run(request_from("a", gone), work))
        await begun(work)
        gone.set()
        with pytest.raises(ClientGoneError):
            await call
        assert work.stopped

    run(scenario)


def test_one_caller_leaves_a_thread_to_others(pool: BackgroundPool) -> None:
    async def scenario() -> None:
        work = Work()
        call = asyncio.create_task(pool.run(request_from("a"), work))
        await begun(work)
        with pytest.raises(OverloadedError):
            await pool.run(request_from("a"), lambda check: 1)
        assert await pool.run(request_from("b"), lambda check: 2) == 2
        work.end.set()
        assert await call == "done"
        assert await pool.run(request_from("a"), lambda check: 3) == 3

    run(scenario)


def test_a_thread_is_not_free_before_its_work_has_ended(pool: BackgroundPool) -> None:
    """Work that does not heed the check keeps its place, so that it cannot pile up."""

    async def scenario() -> None:
        release, began = threading.Event(), threading.Event()

        def deaf(check: Check) -> None:
            began.set()
            release.wait(WAIT_S)

        call = asyncio.create_task(pool.run(request_from("a"), deaf))
        assert await asyncio.to_thread(began.wait, WAIT_S)
        call.cancel()
        await asyncio.sleep(0.05)
        with pytest.raises(OverloadedError):
            await pool.run(request_from("a"), lambda check: 1)
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await pool.run(request_from("a"), lambda check: 2) == 2

    run(scenario)
