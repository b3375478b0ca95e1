"""How long a request may take: slow bodies, and work that does not end."""

import asyncio
from typing import Any

import pytest
from hardened import KEY, say
from servers import Server
from starlette.types import Message, Receive, Scope, Send

from tilewise.bento.api.middleware import Deadlines

POST = (
    b"POST /classify HTTP/1.1\r\nHost: x\r\nX-API-Key: " + KEY.encode() + b"\r\nContent-Type: image/tiff\r\n"
    b"Content-Length: 50000000\r\n\r\n"
)


def test_a_body_that_does_not_come_is_refused_with_408_and_gives_its_room_back(guarded: Server) -> None:
    for _ in range(3):  # more than the room for bodies, if each kept its own
        answer = say(guarded.url, POST, b"II*\0")
        assert answer.status == 408
        assert answer.error == {
            "code": "too_slow",
            "message": "the body arrived too slowly",
            "hint": "send 976.562 KiB a second or more",
        }
        assert answer.headers["connection"] == "close"


def test_a_body_that_trickles_is_refused_too(guarded: Server) -> None:
    answer = say(guarded.url, POST, *([b"x" * 1000] * 100), pause=0.05)
    assert answer.status in (0, 408)  # the answer may be lost to a client that goes on talking


def run(
    app: Any, max_wait_seconds: float = 5, grace: float = 5, receive: Receive | None = None
) -> list[Message]:
    """What `app` behind Deadlines sends."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def nothing() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope: Scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    guard = Deadlines(app, grace=grace, min_rate=1000, max_wait_seconds=max_wait_seconds)
    asyncio.run(asyncio.wait_for(guard(scope, receive or nothing, send), 20))
    return sent


def test_work_that_does_not_end_is_stopped_and_answered_with_504() -> None:
    stopped = []

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            stopped.append(True)
            raise

    start, body = run(endless, max_wait_seconds=0.1)
    assert start["status"] == 504
    assert b'"code":"timeout"' in body["body"]
    assert stopped


def test_an_answer_that_nobody_takes_ends_without_another() -> None:
    async def begins(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(60)

    assert [message["type"] for message in run(begins, max_wait_seconds=0.1)] == ["http.response.start"]


def test_a_timeout_of_the_work_itself_is_its_own() -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        raise TimeoutError("of a database")

    with pytest.raises(TimeoutError, match="of a database"):
        run(fails)


def test_who_waits_for_a_client_to_leave_is_not_hurried() -> None:
    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["more_body"] is False
        assert (await receive())["type"] == "http.disconnect"
        await send({"type": "http.response.start", "status": 200, "headers": []})

    turn = iter(({"type": "http.request", "body": b"", "more_body": False}, {"type": "http.disconnect"}))
    waits_for = iter((0.0, 0.3))

    async def slowly() -> Message:
        await asyncio.sleep(next(waits_for))
        return next(turn)

    assert run(waits, grace=0.1, receive=slowly)[0]["status"] == 200
