"""Request bodies: from bytes on the wire to tiles that wait to be read, within limits, in three forms.

- `multipart/form-data`: GeoTIFFs in the field `tiles`; what is said of them in further fields.
- `image/tiff`: one GeoTIFF; what is said of it in the query.
- `application/octet-stream`: a NumPy array file (.npy) of uint16 (n, bands, 64, 64) in DN; `bands` in the query.
"""

import io
import math
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from tilewise.bento.inference.uploads import Upload
from tilewise.bento.settings import Settings
from tilewise.datasets.core.bands import BAND_NAMES, LEAVE_OUT
from tilewise.datasets.core.console import make_read_options
from tilewise.datasets.core.radiometry import Level, ReadOptions
from tilewise.datasets.core.tile import TILE_SIZE, Tile, canonical_order, place_bands

FIELD = "tiles"
SAID = ("bands", "level", "scale", "offset")
DEFAULT_COVERAGE = 0.9
_NPY_MAGIC = b"\x93NUMPY"
_MAX_FIELD = 8192  # bytes of a field that is no file
_NPY_HEADER = 4096  # bytes; the header of such an array takes 128


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks: tiles, and the coverage of their prediction sets (0-1).

    Attributes:
        uploads: the tiles, in order.
        single: whether the body is one tile and nothing else, so that its error is the request's error.
    """

    uploads: list[Upload]
    single: bool


async def read_tiles(request: Request, settings: Settings, best_coverage: float) -> Asked:
    """Return what the request asks.

    Args:
        best_coverage: the highest that the model is calibrated for; 0: none.

    Raises:
        HTTPException: a body of another form, too long, malformed, or with parameters that make no sense.
        UnknownBandError: a band name that Sentinel-2 does not have.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = limited(request, settings.max_bytes)
    if kind == "multipart/form-data":
        return await _read_multipart(body, settings, best_coverage)
    if kind == "image/tiff":
        overrides, coverage = parameters(request.query_params, (*SAID, "name", "coverage"), best_coverage)
        name = request.query_params.get("name", "tile")
        return Asked([Upload(name, await body.body(), overrides, coverage)], single=True)
    if kind in ("application/octet-stream", "application/x-npy"):
        overrides, coverage = parameters(request.query_params, ("bands", "level", "coverage"), best_coverage)
        tiles = parse_npy(await body.body(), overrides, settings.max_tiles)
        return Asked([Upload(tile.name, tile, overrides, coverage) for tile in tiles], single=False)
    raise HTTPException(
        415,
        f"a body of {kind or 'no type'}; send files as multipart/form-data (curl -F {FIELD}=@tile.tif), one file as "
        "image/tiff, or a .npy array as application/octet-stream",
    )


def parameters(
    overrides: Mapping[str, object], known: tuple[str, ...], best_coverage: float = 0.0
) -> tuple[ReadOptions, float]:
    """Return what `said`, a form's fields or a query, says of all tiles, and the coverage it asks.

    Raises:
        HTTPException: a name that is not `known` (left unread, it would change the answers in silence), or a value that
            makes no sense.
    """
    for name in overrides:
        if name not in known:
            raise HTTPException(422, f"there is no parameter {name!r}; there are {', '.join(known)}")
    level = _text(overrides, "level")
    if level and level.upper() not in Level.__members__:
        raise HTTPException(422, f"level is L1C or L2A, not {level!r}")
    read_options = make_read_options(
        _text(overrides, "bands"), level, _number(overrides, "scale"), _number(overrides, "offset")
    )
    return read_options, _coverage(overrides, best_coverage)


def announced_bytes(request: Request, max_bytes: int) -> int:
    """Return how long the body says it is, or `max_bytes` where it does not say.

    Raises:
        HTTPException: it is longer than `max_bytes`.
    """
    length = request.headers.get("content-length", "")
    if not re.fullmatch(r"[0-9]{1,18}", length):
        return max_bytes
    if int(length) > max_bytes:
        raise HTTPException(413, f"a body of {int(length):,} bytes; {max_bytes:,} is the most")
    return int(length)


def limited(request: Request, max_bytes: int) -> Request:
    """Return `request` with a body that cannot be read beyond `max_bytes`, even if it hides its length.

    Raises:
        HTTPException: the names in the form are said to be in another code than UTF-8.
    """
    _refuse_charset(request)
    taken = 0

    async def receive() -> Message:
        nonlocal taken
        message = await request.receive()
        taken += len(message.get("body", b""))
        if taken > max_bytes:
            raise HTTPException(413, f"a body of more than {max_bytes:,} bytes, which is the most")
        return message

    return Request(request.scope, receive)


def _refuse_charset(request: Request) -> None:
    """Refuse a form in another code than UTF-8: Python has codecs that raise anything, or take minutes."""
    _, options = parse_options_header(request.headers.get("content-type"))
    if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8", b"us-ascii"):
        raise HTTPException(400, "the body has another charset than UTF-8; leave the charset out")


def parse_npy(content: bytes, overrides: ReadOptions, max_tiles: int) -> list[Tile]:
    """Return the tiles in a .npy file: uint16 (n, bands, 64, 64), DN, the bands said or all thirteen.

    Raises:
        HTTPException: it is no such file, or its shape, type or length is another.
    """
    bands = overrides.bands or BAND_NAMES
    if LEAVE_OUT in bands:
        raise HTTPException(422, "an array holds only bands; leave out what is none before sending it")
    numbers = _load_npy(content)
    if numbers.dtype != np.uint16 or numbers.ndim != 4 or numbers.shape[1:] != (len(bands), TILE_SIZE, TILE_SIZE):
        raise HTTPException(
            422,
            f"an array of {numbers.dtype} {numbers.shape}; uint16 (n, {len(bands)}, {TILE_SIZE}, {TILE_SIZE}) is "
            "wanted, or say its bands: ?bands=B02,B03,…",
        )
    if len(numbers) > max_tiles:
        raise HTTPException(413, f"{len(numbers)} tiles; {max_tiles} is the most")
    order = canonical_order(bands)
    return [Tile(str(i), place_bands(tile, bands), order, overrides.level) for i, tile in enumerate(numbers)]


def _load_npy(content: bytes) -> np.ndarray:
    """Return the array, having trusted nothing but its length: no pickle, a short header, no allocation by header."""
    if not content.startswith(_NPY_MAGIC):
        raise HTTPException(400, "not a .npy file; numpy.save writes one")
    try:
        stream = io.BytesIO(content)
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream, max_header_size=_NPY_HEADER)
        rest = content[stream.tell() :]
        if fortran or dtype.hasobject or math.prod(shape) * dtype.itemsize != len(rest):
            raise ValueError("its length is not that of its header")
        return np.frombuffer(rest, dtype).reshape(shape)
    except Exception as error:  # numpy lets Python's parser and its own dtypes read the header: they fail in all ways
        raise HTTPException(400, "a broken .npy file; numpy.save writes sound ones") from error


async def _read_multipart(body: Request, settings: Settings, best_coverage: float) -> Asked:
    async with _form(body, settings.max_tiles, max_fields=len(SAID) + 1) as form:
        fields = {name: value for name, value in form.multi_items() if name != FIELD}
        overrides, coverage = parameters(fields, (*SAID, "coverage"), best_coverage)
        files = await _files(form)
    return Asked([Upload(name, content, overrides, coverage) for name, content in files], single=False)


@asynccontextmanager
async def _form(body: Request, max_files: int, max_fields: int) -> AsyncIterator[FormData]:
    """Parse a form, which is closed after the block; one of too many files is too large, rather than malformed."""
    try:
        form = await body.form(max_files=max_files, max_fields=max_fields, max_part_size=_MAX_FIELD)
    except HTTPException as error:
        if error.detail.startswith("Too many files"):
            raise HTTPException(413, f"more than {max_files} files; send them in several requests") from error
        raise
    try:
        yield form
    finally:
        await form.close()


async def _files(form: FormData) -> list[tuple[str, bytes]]:
    parts = form.getlist(FIELD)
    if not parts or not all(isinstance(part, UploadFile) for part in parts):
        raise HTTPException(400, f"no file in the multipart field {FIELD!r}; curl -F {FIELD}=@tile.tif sends one")
    return [(part.filename or "tile", await part.read()) for part in parts if isinstance(part, UploadFile)]


def _text(overrides: Mapping[str, object], name: str) -> str | None:
    value = overrides.get(name)
    return value if isinstance(value, str) and value else None


def _number(overrides: Mapping[str, object], name: str) -> float | None:
    text = _text(overrides, name)
    try:
        number = float(text) if text else None
    except ValueError:
        number = math.nan
    if number is not None and not math.isfinite(number):
        raise HTTPException(422, f"{name} is a number, not {text!r}")
    return number


def _coverage(overrides: Mapping[str, object], best: float) -> float:
    coverage = _number(overrides, "coverage")
    if coverage is None:
        return min(DEFAULT_COVERAGE, best)
    if not 0.5 <= coverage <= best:
        raise HTTPException(422, f"coverage is a share from 0.5 to {best}, not {coverage}; ask for one within")
    return coverage
