"""Request bodies: tiles within limits, from one of four media types.

- `multipart/form-data`: files in the field `tiles`; parameters in further fields.
- `image/tiff`, `image/jpeg`, `image/png`: one file; parameters in the query.
- `application/octet-stream`: a NumPy file (.npy) of one tile or several; parameters in the query.
- `application/json`: files in base64, or their addresses, and parameters, in one object.
"""

import base64
import binascii
import io
import json
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from python_multipart.multipart import parse_options_header
from starlette.datastructures import ImmutableMultiDict
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from tilewise.bento.api.forms import Form, FormFile, read_form
from tilewise.bento.api.schemas import NamedTileParameters, TileParameters
from tilewise.bento.inference.uploads import NPY_START, Upload, array_to_dn
from tilewise.bento.serving.fetching import Address, Fetcher
from tilewise.bento.settings import Settings
from tilewise.datasets.core.bands import BAND_NAMES, LEAVE_OUT
from tilewise.datasets.core.console import make_read_options
from tilewise.datasets.core.errors import FetchError, TilewiseError
from tilewise.datasets.core.radiometry import Level, ReadOptions
from tilewise.datasets.core.tile import TILE_SIZE, Tile, canonical_order, place_bands

FIELD = "tiles"
DEFAULT_COVERAGE = 0.9
_FORM_PARAMETERS = tuple(TileParameters.model_fields)
_FILE_PARAMETERS = tuple(NamedTileParameters.model_fields)
_FILE_TYPES = ("image/tiff", "image/jpeg", "image/png")
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAX_NPY_HEADER_BYTES = 4096  # the header of such an array has 128


@dataclass(frozen=True, slots=True)
class TileBatch:
    """The tiles of a request.

    Attributes:
        uploads: the tiles, in order, with the coverage of their prediction sets.
        single: whether the body is one tile and nothing else, so that its error is the error of the request.
    """

    uploads: list[Upload]
    single: bool


async def read_tiles(
    request: Request,
    settings: Settings,
    best_coverage: float,
    charge: Callable[[int], Awaitable[None]],
    fetcher: Fetcher,
) -> TileBatch:
    """Read the tiles of a request.

    Args:
        request: the request.
        settings: the limits of bytes and tiles.
        best_coverage: the highest coverage that the model is calibrated for (0-1); 0: it is not calibrated.
        charge: see `limit_body`.
        fetcher: of the files of which a body in JSON has the addresses.

    Raises:
        HTTPException: a body of another media type, too long, malformed, or with a parameter that is not
            valid.
        UnknownBandError: a band name that Sentinel-2 does not have.
    """
    kind = media_type_of(request)
    body = limit_body(request, settings.max_bytes, charge)
    if kind == "multipart/form-data":
        return await _read_multipart(body, settings, best_coverage)
    if kind in _FILE_TYPES:
        query = single_values(request.query_params)
        options, coverage = parse_parameters(query, _FILE_PARAMETERS, best_coverage)
        return TileBatch(
            [Upload(query.get("name", "tile"), await body.body(), options, coverage)], single=True
        )
    if kind in ("application/octet-stream", "application/x-npy"):
        query = single_values(request.query_params)
        options, coverage = parse_parameters(query, _FORM_PARAMETERS, best_coverage)
        tiles = parse_npy(await body.body(), options, settings.max_tiles)
        return TileBatch([Upload(tile.name, tile, options, coverage) for tile in tiles], single=False)
    if kind == "application/json":
        files, options, coverage = parse_json(await body.body(), settings.max_tiles, best_coverage, fetcher)
        contents = await _fetch(files, fetcher, charge)
        uploads = [
            Upload(name, content, options, coverage)
            for (name, _), content in zip(files, contents, strict=True)
        ]
        return TileBatch(uploads, single=False)
    raise HTTPException(
        415,
        f"a body of {kind or 'no type'}; send files as multipart/form-data (curl -F {FIELD}=@tile.tif), one "
        "file as image/tiff, image/jpeg or image/png, a .npy array as application/octet-stream, or files in "
        "base64 as application/json",
    )


def media_type_of(request: Request) -> str:
    """Return the media type of a body in lower case, without parameters; empty where it has none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


# Limits.


def announced_bytes(request: Request) -> int | None:
    """Return the Content-Length of a request; None where it has none that is a number."""
    length = request.headers.get("content-length", "")
    return int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None


def limit_body(request: Request, max_bytes: int, charge: Callable[[int], Awaitable[None]]) -> Request:
    """Return `request` with a body that cannot be read beyond `max_bytes`, even if it hides its length.

    Args:
        request: the request.
        max_bytes: of its body.
        charge: called with the length of each part of the body that has arrived; it may wait, and meanwhile
            no more is read.

    Raises:
        HTTPException: it announces more than `max_bytes`, or the charset of the form is not UTF-8.
    """
    announced = announced_bytes(request)
    if announced is not None and announced > max_bytes:
        raise HTTPException(413, f"a body of {announced:,} bytes; the limit is {max_bytes:,}")
    _check_charset(request)
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        size = len(message.get("body", b""))
        received += size
        if received > max_bytes:
            raise HTTPException(413, f"a body of more than {max_bytes:,} bytes, which is the limit")
        if size:
            await charge(size)
        return message

    return Request(request.scope, receive)


def _check_charset(request: Request) -> None:
    """Refuse a form in a charset other than UTF-8: Python has codecs that raise anything, or take minutes."""
    _, options = parse_options_header(request.headers.get("content-type"))
    if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8", b"us-ascii"):
        raise HTTPException(400, "the charset of the body is not UTF-8; omit the charset")


# Parameters.


def single_values(parameters: ImmutableMultiDict[str, Any]) -> dict[str, Any]:
    """Return the fields of a form, or the query, by name.

    Raises:
        HTTPException: a name is given twice: whichever value is taken, the other one was meant too.
    """
    twice = [name for name in parameters if len(parameters.getlist(name)) > 1]
    if twice:
        raise HTTPException(
            422, f"{twice[0]!r} is given {len(parameters.getlist(twice[0]))} times; give it once"
        )
    return dict(parameters)


def parse_parameters(
    parameters: Mapping[str, object], known: tuple[str, ...], best_coverage: float = 0.0
) -> tuple[ReadOptions, float]:
    """Return how to read a request's files, and the coverage (0-1) of their prediction sets.

    Args:
        parameters: the fields of a form, or the query.
        known: the names that the route accepts.
        best_coverage: the highest coverage that the model is calibrated for; 0: it is not calibrated.

    Raises:
        HTTPException: a name that is not `known` (ignoring it would silently change the results), or a value
            that is not valid.
    """
    for name, value in parameters.items():
        if not isinstance(value, str):
            raise HTTPException(
                422,
                f"a file in the field {name!r}; files go into the field {FIELD!r}: curl -F {FIELD}=@tile.tif",
            )
        if name not in known:
            raise HTTPException(422, f"unknown parameter {name!r}; there are {', '.join(known)}")
    level = _parse_text(parameters, "level")
    if level and level.upper() not in Level.__members__:
        raise HTTPException(422, f"level is L1C or L2A, not {level!r}")
    scale, offset = _parse_number(parameters, "scale"), _parse_number(parameters, "offset")
    options = make_read_options(_parse_text(parameters, "bands"), level, scale, offset)
    return options, _parse_coverage(parameters, best_coverage)


def _parse_text(parameters: Mapping[str, object], name: str) -> str | None:
    value = parameters.get(name)
    return value if isinstance(value, str) and value else None


def _parse_number(parameters: Mapping[str, object], name: str) -> float | None:
    text = _parse_text(parameters, name)
    try:
        number = float(text) if text else None
    except ValueError:
        number = math.nan
    if number is not None and not math.isfinite(number):
        raise HTTPException(422, f"{name} is a number, not {text!r}")
    return number


def _parse_coverage(parameters: Mapping[str, object], best: float) -> float:
    coverage = _parse_number(parameters, "coverage")
    if coverage is None:
        return min(DEFAULT_COVERAGE, best)
    if not 0.5 <= coverage <= best:
        raise HTTPException(422, f"coverage is a fraction from 0.5 to {best}, not {coverage}")
    return coverage


# Arrays.


def parse_npy(content: bytes, options: ReadOptions, max_tiles: int) -> list[Tile]:
    """Return the tiles in a .npy file.

    The array is (n, bands, 64, 64), (bands, 64, 64) or (64, 64, bands), of `options.bands` or all thirteen.
    Integers of 16 bits or more are DN unless the options give a scale; other numbers need one.

    Raises:
        HTTPException: the file is not such an array, or has more tiles than `max_tiles`.
        RadiometryUnknownError: see `array_to_dn`.
    """
    bands = options.bands or BAND_NAMES
    if LEAVE_OUT in bands:
        raise HTTPException(422, "an array cannot leave out bands; remove them before sending it")
    numbers = _load_npy(content)
    tiles = _stack_tiles(numbers, len(bands))
    if tiles is None or numbers.dtype.kind not in "uif":
        raise HTTPException(
            422,
            f"an array of {numbers.dtype} {numbers.shape}, not of numbers (n, {len(bands)}, {TILE_SIZE}, "
            f"{TILE_SIZE}), ({len(bands)}, {TILE_SIZE}, {TILE_SIZE}) or ({TILE_SIZE}, {TILE_SIZE}, "
            f"{len(bands)}); for other bands name them: ?bands=B02,B03,…",
        )
    if len(tiles) > max_tiles:
        raise HTTPException(413, f"{len(tiles)} tiles; the limit is {max_tiles}")
    dn = array_to_dn(tiles, options)
    order = canonical_order(bands)
    return [Tile(str(i), place_bands(tile, bands), order, options.level) for i, tile in enumerate(dn)]


def _stack_tiles(numbers: npt.NDArray[Any], count: int) -> npt.NDArray[Any] | None:
    """Return an array as (n, bands, height, width), or None where it is not of tiles of `count` bands."""
    side = (TILE_SIZE, TILE_SIZE)
    if numbers.ndim == 4 and numbers.shape[1:] == (count, *side):
        return numbers
    if numbers.shape == (count, *side):
        return numbers[None]
    if numbers.shape == (*side, count):
        return np.ascontiguousarray(numbers.transpose(2, 0, 1))[None]
    return None


def _load_npy(content: bytes) -> np.ndarray:
    """Return the array. Only its length is trusted: no pickle, short headers, no allocation by a header."""
    if content.startswith(_TIFF_STARTS):
        raise HTTPException(
            400,
            "a TIFF with the media type of an array; send it with 'Content-Type: image/tiff', or in a form: "
            f"curl -F {FIELD}=@tile.tif",
        )
    if not content.startswith(NPY_START):
        raise HTTPException(400, "not a .npy file; numpy.save writes one")
    try:
        stream = io.BytesIO(content)
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(stream, max_header_size=_MAX_NPY_HEADER_BYTES)
        start = stream.tell()
        if fortran or dtype.hasobject or math.prod(shape) * dtype.itemsize != len(content) - start:
            raise ValueError("its length does not match its header")
        return np.frombuffer(content, dtype, offset=start).reshape(shape)
    except Exception as error:  # numpy has Python's parser read the header, which raises any error
        raise HTTPException(400, "a broken .npy file; numpy.save writes valid ones") from error


# JSON.


_Files = list[tuple[str, bytes | Address]]


def parse_json(
    content: bytes, max_tiles: int, best_coverage: float, fetcher: Fetcher
) -> tuple[_Files, ReadOptions, float]:
    """Return what is in `{"tiles": [{"name": …, "content": BASE64}, {"url": …}, …], "bands": …, "level": …}`.

    Returns:
        the name and content of each file, how to read them, and the coverage of their prediction sets.

    Raises:
        HTTPException: it is not such an object, or has more tiles than `max_tiles`.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "the body is no JSON") from error
    files = body.pop(FIELD, None) if isinstance(body, dict) else None
    if not isinstance(files, list) or not files:
        raise HTTPException(
            400,
            f'a JSON body has a list {FIELD!r}: {{"{FIELD}": [{{"name": "tile.tif", "content": "BASE64"}}]}}',
        )
    if len(files) > max_tiles:
        raise HTTPException(413, f"{len(files)} tiles; the limit is {max_tiles}")
    given = {name: value for name, value in body.items() if value is not None}
    parameters = {
        name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()
    }
    options, coverage = parse_parameters(parameters, _FORM_PARAMETERS, best_coverage)
    return [_decode_file(file, index, fetcher) for index, file in enumerate(files)], options, coverage


def _decode_file(file: object, index: int, fetcher: Fetcher) -> tuple[str, bytes | Address]:
    """Return the name of a file in a JSON body, and its bytes or the address that may be fetched from."""
    known: dict[str, Any] = file if isinstance(file, dict) else {}
    content, url, name = known.get("content"), known.get("url"), known.get("name")
    if not isinstance(name, str | None) or not isinstance(content if url is None else url, str):
        raise HTTPException(
            422, f"{FIELD}[{index}] has no text 'content', the file's bytes in base64, and no 'url'"
        )
    if url is not None and content is not None:
        raise HTTPException(422, f"{FIELD}[{index}] has both a 'content' and a 'url'; send one of them")
    try:
        if url is not None:
            address = fetcher.admit(url)
            return address.name if name is None else name, address
        return str(index) if name is None else name, base64.b64decode(content or "", validate=True)
    except TilewiseError as error:
        raise HTTPException(422, f"{FIELD}[{index}]: {error}") from error
    except (binascii.Error, ValueError) as error:
        raise HTTPException(422, f"{FIELD}[{index}]: its content is not base64") from error


async def _fetch(
    files: _Files, fetcher: Fetcher, charge: Callable[[int], Awaitable[None]]
) -> list[bytes | FetchError]:
    """Return the content of each file, or why an address did not give it."""
    addresses = [content for _, content in files if isinstance(content, Address)]
    fetched = iter(await fetcher.fetch_all(addresses, charge) if addresses else ())
    return [next(fetched) if isinstance(content, Address) else content for _, content in files]


# Forms.


async def _read_multipart(body: Request, settings: Settings, best_coverage: float) -> TileBatch:
    form = await read_form(body, settings.max_tiles, max_fields=2 * len(_FORM_PARAMETERS))
    given = [(name, value) for name, value in form.multi_items() if name != FIELD]
    parameters = single_values(ImmutableMultiDict(given))
    options, coverage = parse_parameters(parameters, _FORM_PARAMETERS, best_coverage)
    uploads = [Upload(file.name or "tile", file.content, options, coverage) for file in files_of(form)]
    return TileBatch(uploads, single=False)


def files_of(form: Form) -> list[FormFile]:
    """Return the files in the field `tiles` of a form.

    Raises:
        HTTPException: it has none there, or something else.
    """
    parts = form.getlist(FIELD)
    files = [part for part in parts if isinstance(part, FormFile)]
    if not files or len(files) < len(parts):
        raise HTTPException(
            400, f"no file in the multipart field {FIELD!r}; curl -F {FIELD}=@tile.tif sends one"
        )
    return files
