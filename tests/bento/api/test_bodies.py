"""Bodies: a small form is read as starlette reads it, or left to starlette."""

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

import httpx
import pytest
from hostile.requests import multipart, part
from starlette.exceptions import HTTPException
from starlette.requests import Request

from tilewise.bento.api import bodies
from tilewise.bento.settings import Settings
from tilewise.datasets.core.errors import TilewiseError

SETTINGS = Settings(max_tiles=4)
CONTENT = bytes(range(256)) * 9 + b"\r\n--x-\r\n-"


def read(content: bytes, kind: bytes = b"multipart/form-data; boundary=x") -> Any:
    """What is read of a form: name, content, options and coverage of each upload, or the error."""
    pieces = [content[start : start + 700] for start in range(0, len(content), 700)] or [b""]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(content))]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "query_string": b"",
        "headers": headers,
        "app": None,
    }
    try:
        batch = asyncio.run(bodies.read_tiles(Request(scope, receive), SETTINGS, 0.95))
    except (HTTPException, TilewiseError) as error:
        return type(error), str(error)
    return [(upload.name, upload.content, upload.overrides, upload.coverage) for upload in batch.uploads]


@pytest.fixture
def by_starlette(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Read a form by starlette's parser alone."""

    def slowly(content: bytes, *kind: bytes) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(bodies, "_MAX_SMALL_FORM_BYTES", -1)
            return read(content, *kind)

    return slowly


FORMS = {
    "one file": [part(b"tiles", CONTENT)],
    "four files": [part(b"tiles", CONTENT)] * 4,
    "five files": [part(b"tiles", CONTENT)] * 5,
    "fields": [part(b"tiles", CONTENT), part(b"bands", b"eurosat", None), part(b"level", b"L1C", None)],
    "fields twice": [part(b"level", b"L2A", None), part(b"tiles", b"x"), part(b"level", b"L1C", None)],
    "an empty field": [part(b"tiles", b"x"), part(b"bands", b"", None)],
    "an unknown field": [part(b"tiles", b"x"), part(b"band", b"rgb", None)],
    "no file": [part(b"level", b"L1C", None)],
    "a text for a file": [part(b"tiles", b"x", None)],
    "a file for a text": [part(b"tiles", b"x"), part(b"level", b"L1C")],
    "an empty file": [part(b"tiles", b"")],
    "a long field": [part(b"tiles", b"x"), part(b"bands", b"B" * 9000, None)],
    "many fields": [part(b"tiles", b"x"), *[part(b"level", b"L1C", None)] * 30],
    "not ASCII": [part(b"tiles", b"x"), part(b"bands", "é".encode(), None)],
    "no part": [],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_small_form_is_read_as_by_starlette(form: str, by_starlette: Callable[..., Any]) -> None:
    body = multipart(FORMS[form])
    assert read(body) == by_starlette(body)


def test_what_clients_send_is_read_without_starlettes_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_parse_form", None)
    request = httpx.Request(
        "POST",
        "http://x/classify",
        files=[("tiles", ("a (1).tif", CONTENT, "image/tiff")), ("tiles", ("b.tif", b"", "image/tiff"))],
        data={"level": "L2A", "offset": "-1000"},
    )
    found = read(request.read(), request.headers["content-type"].encode())
    assert [upload[:2] for upload in found] == [("a (1).tif", CONTENT), ("b.tif", b"")]
    assert (found[0][2].level, found[0][2].offset) == ("L2A", -1000)


def test_a_damaged_form_has_the_same_outcome_as_by_starlette(by_starlette: Callable[..., Any]) -> None:
    sound = multipart([part(b"tiles", b"II*\0 tile"), part(b"level", b"L1C", None)])
    random = Random(0)  # noqa: S311 - to be repeated
    pieces = (
        b"\r\n",
        b"--x",
        b"--",
        b'"',
        b";",
        b"\r\n\r\n",
        b"\0",
        b"\xff",
        b"name",
        b": ",
        b" ",
        b"\n",
        b"a",
    )
    for _ in range(3000):
        body = bytearray(sound)
        for _ in range(random.choice((1, 1, 2))):
            place, cut = random.randrange(len(body)), random.choice((0, 0, 1, 2, 8))
            body[place : place + cut] = random.choice((b"", *pieces))
        assert read(bytes(body)) == by_starlette(bytes(body)), bytes(body)
