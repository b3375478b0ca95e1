"""Forms in memory: the parts that another reader of forms finds, however they arrive, and bounded."""

import asyncio
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from tilewise.bento.api.forms import Form, FormFile, read_form

BOUNDARY = b"----mark"
FILE = b'form-data; name="tiles"; filename="a.tif"'


def part(disposition: bytes, content: bytes) -> bytes:
    head = b"--" + BOUNDARY + b"\r\nContent-Disposition: " + disposition + b"\r\n\r\n"
    return head + content + b"\r\n"


def body(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--" + BOUNDARY + b"--\r\n"


def request(content: bytes, cuts: Sequence[int] = (), boundary: bytes = BOUNDARY) -> Request:
    """A request whose body arrives in pieces that end at `cuts`."""
    ends = sorted({min(cut, len(content)) for cut in cuts} | {len(content)})
    starts = [0, *ends[:-1]]
    pieces: Iterator[bytes] = iter([content[start:end] for start, end in zip(starts, ends, strict=True)])

    async def receive() -> Message:
        piece = next(pieces, None)
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    kind = b"multipart/form-data" + (b"; boundary=" + boundary if boundary else b"")
    return Request({"type": "http", "method": "POST", "headers": [(b"content-type", kind)]}, receive)


def read(content: bytes, cuts: Sequence[int] = (), files: int = 4, fields: int = 4) -> Form:
    return asyncio.run(read_form(request(content, cuts), files, fields))


async def read_by_starlette(content: bytes) -> list[tuple[str, object]]:
    async with request(content).form() as form:
        return [
            (name, (value.filename, await value.read()) if isinstance(value, UploadFile) else value)
            for name, value in form.multi_items()
        ]


NAMES = st.text(st.characters(exclude_characters='"\\\r\n;%', exclude_categories=("Cc", "Cs")), max_size=9)
PARTS = st.tuples(
    NAMES,
    st.none() | NAMES,
    st.binary(max_size=60) | st.just(b"\r\n--" + BOUNDARY[:-1]) | st.just(b"\r\n" * 9),
)


@given(st.lists(PARTS, max_size=4), st.lists(st.integers(0, 700), max_size=30))
@settings(max_examples=150, deadline=None)
def test_a_form_has_the_parts_that_another_reader_finds_however_it_is_cut(
    parts: list[tuple[str, str | None, bytes]], cuts: list[int]
) -> None:
    written = []
    for name, file, content in parts:
        disposition = f'form-data; name="{name}"' + (f'; filename="{file}"' if file is not None else "")
        written.append(part(disposition.encode(), content))
    content = body(*written)
    found = [
        (name, (value.name, value.content) if isinstance(value, FormFile) else value)
        for name, value in read(content, cuts).multi_items()
    ]
    assert found == asyncio.run(read_by_starlette(content))


def test_a_name_that_is_no_utf_8_is_latin_1() -> None:
    form = read(body(part(b'form-data; name="tiles"; filename="t\xe9l\xe9.tif"', b"\xff\x00")))
    assert form.getlist("tiles") == [FormFile("télé.tif", b"\xff\x00")]


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"nonsense", 400, "a broken form: "),
        (b"", 400, "a form that breaks off before its last boundary"),
        (part(FILE, b"whole") + part(FILE, b"half")[:-4], 400, "breaks off before its last boundary"),
        (body(*5 * [part(FILE, b"x")]), 413, "more than 4 files; send them in several requests"),
        (body(*5 * [part(b'form-data; name="a"', b"x")]), 400, "more than 4 fields that are not files"),
        (body(part(b'form-data; name="a"', bytes(8193))), 400, "the field 'a' has more than 8,192 bytes"),
        (body(part(b"form-data", b"x")), 400, "a part of the form without a name; curl -F NAME=@FILE"),
    ],
)
def test_a_form_that_is_broken_or_too_large_is_refused(content: bytes, status: int, message: str) -> None:
    with pytest.raises(HTTPException) as caught:
        read(content, range(0, len(content), 7))
    assert caught.value.status_code == status
    assert message in caught.value.detail


def test_a_form_without_a_boundary_is_refused() -> None:
    with pytest.raises(HTTPException, match="without a boundary in its Content-Type"):
        asyncio.run(read_form(request(body(part(FILE, b"x")), boundary=b""), 1, 1))


def test_fields_and_files_may_be_as_many_and_as_long_as_allowed() -> None:
    fields = [part(b'form-data; name="a"', bytes(8192))] * 4
    assert len(read(body(*fields, *[part(FILE, bytes(100_000))] * 4)).multi_items()) == 8
