"""Requests in another version of the API are refused before their body is read."""

import asyncio
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from tilewise.bento.api.middleware import VersionCheck


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("served")(scope, receive, send)


def ask(*headers: tuple[bytes, bytes]) -> list[dict[str, Any]]:
    """Send a request whose body must not be read; return what is answered."""
    answers: list[dict[str, Any]] = []

    async def receive() -> Message:
        raise AssertionError("the body was read")

    async def send(message: Message) -> None:
        answers.append(dict(message))

    scope = {"type": "http", "method": "POST", "path": "/classify", "headers": list(headers)}
    asyncio.run(VersionCheck(app)(scope, receive, send))
    return answers


@pytest.mark.parametrize("headers", [(), ((b"tilewise-api-version", b"1"),)], ids=["none said", "ours"])
def test_requests_that_say_no_version_or_ours_are_served(headers: tuple[tuple[bytes, bytes], ...]) -> None:
    assert ask(*headers)[1]["body"] == b"served"


@pytest.mark.parametrize("version", [b"2", b"0", b"", b"1.0", b"one"])
def test_requests_that_say_another_version_are_refused_unread(version: bytes) -> None:
    start, body = ask((b"tilewise-api-version", version))
    assert start["status"] == 400
    assert b'"code":"api_version"' in body["body"]
    assert b"version 1" in body["body"]
