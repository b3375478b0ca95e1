"""What a client says to the service and makes of its answers, apart from any I/O but reading the files to send.

An exchange is a generator. It yields what is to be done next, a `Call` or a `Pause`, is sent what came of it, and
returns its result. `tilewise.bento.client.client` drives the same exchanges with and without asyncio.
"""

import io
import random
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import httpx
import numpy as np
import numpy.typing as npt

from tilewise.bento.client.answers import Result, ServiceError, accept, content_of, not_tilewise, parse_results
from tilewise.datasets.core.errors import TileShapeError, TilewiseError

Value = TypeVar("Value")
Tile = str | Path | bytes | npt.NDArray[np.uint16]
Tiles = Tile | Iterable[Tile]
"""GeoTIFFs by path or as bytes, or arrays of uint16 DN, (bands, 64, 64) or (n, bands, 64, 64); one or many."""

GEOJSON, GEOTIFF, PNG, JSON = "application/geo+json", "image/tiff", "image/png", "application/json"
_OVERLOADED = (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE)
_UNREACHABLE = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_FIRST_LOOK_S, _RAREST_LOOK_S = 0.2, 5.0


class Said(TypedDict, total=False):
    """What is said of files that do not say it themselves (`tilewise.datasets.core.radiometry.Statement`), and what is asked.

    Attributes:
        bands: names in the file's order, or one of `l1c`, `l2a`, `10m`, `rgb`, `eurosat`.
        level: `L1C` or `L2A`.
        scale: reflectance per unit of the file's numbers; not for arrays, which hold DN.
        offset: added to the file's numbers before scaling; not for arrays.
        coverage: share (0.5-1) of tiles whose prediction set shall hold the true class.
    """

    bands: str | Sequence[str] | None
    level: str | None
    scale: float | None
    offset: float | None
    coverage: float | None


@dataclass(frozen=True, slots=True)
class Call:
    """A request to send: `options` are those of `httpx.Client.request`; `file`, if any, is streamed as its body."""

    method: str
    path: str
    options: dict[str, Any] = field(default_factory=dict)
    file: Path | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """A time to wait."""

    seconds: float


Heard = httpx.Response | httpx.RequestError
Exchange = Generator[Call | Pause, Heard | None, Value]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client goes on trying where the service is overloaded or cannot be reached.

    Attributes:
        retries: attempts after the first one.
        first_pause: seconds before the second one; doubled before each further one.
        longest_pause: seconds before any, even where the service asks for more.
    """

    retries: int = 5
    first_pause: float = _FIRST_PAUSE_S
    longest_pause: float = _LONGEST_PAUSE_S


@dataclass(frozen=True, slots=True)
class Portion:
    """The tiles of one request, all of one kind.

    Attributes:
        names: by which the caller knows them.
        contents: a GeoTIFF's bytes each, or an array (bands, 64, 64) each.
    """

    names: tuple[str, ...]
    contents: tuple[bytes | npt.NDArray[np.uint16], ...]


def ask(call: Call, patience: Patience) -> Exchange[httpx.Response]:
    """Return the answer to `call`, which is repeated, more and more seldom, while the service cannot take it.

    Raises:
        ServiceError: the service refuses, or patience is at its end.
    """
    attempt = 0
    while True:
        heard = yield call
        assert heard is not None  # noqa: S101 - a driver answers a call
        if attempt >= patience.retries or not _is_passing(heard):
            return accept(heard)
        yield Pause(pause_before_retry(heard, attempt, patience))
        attempt += 1


def classify(portion: Portion, overrides: Said, patience: Patience) -> Exchange[list[Result]]:
    """Return one result for each tile, in order; a portion that the service finds too large is sent in halves."""
    try:
        response = yield from ask(_classification(portion, overrides), patience)
    except ServiceError as error:
        if error.status != httpx.codes.REQUEST_ENTITY_TOO_LARGE or len(portion.names) == 1:
            raise
        results = []
        for half in _halves(portion):
            results += yield from classify(half, overrides, patience)
        return results
    return parse_results(response, portion.names)


def portions(tiles: Tiles, max_tiles: int, max_bytes: int) -> Iterator[Portion]:
    """Cut `tiles` into requests of one kind of tile, of at most so many tiles and (unless it is one tile) bytes.

    Files are read as their request is made, so that a long list takes no more memory than a short one.

    Raises:
        OSError: a file cannot be read.
        TileShapeError: an array of another type or shape.
    """
    names: list[str] = []
    contents: list[bytes | npt.NDArray[np.uint16]] = []
    for name, content in _named(tiles):
        size = sum(map(_size, contents)) + _size(content)
        if contents and (size > max_bytes or _kind(content) != _kind(contents[0])):
            yield Portion(tuple(names), tuple(contents))
            names, contents = [], []
        names.append(name)
        contents.append(content)
        if len(contents) == max_tiles:
            yield Portion(tuple(names), tuple(contents))
            names, contents = [], []
    if contents:
        yield Portion(tuple(names), tuple(contents))


def describe_model(patience: Patience) -> Exchange[dict[str, Any]]:
    """Return what the model says of itself."""
    return content_of((yield from ask(Call("GET", "/model"), patience)))


def become_ready(wait: float) -> Exchange[bool]:
    """Return whether the service is ready, having waited up to `wait` seconds for it."""
    until = time.monotonic() + wait
    while True:
        heard = yield Call("GET", "/readyz")
        if isinstance(heard, httpx.Response) and heard.status_code == httpx.codes.OK:
            return True
        left = until - time.monotonic()
        if left <= 0:
            return False
        yield Pause(min(left, _FIRST_PAUSE_S))


def send_file(
    path: Path, place: str, query: dict[str, Any], form: str, wait: float, patience: Patience
) -> Exchange[httpx.Response]:
    """Return the answer, in the media type `form`, to a file sent to `place`.

    Args:
        wait: seconds for a file that the service makes a task of.

    Raises:
        ServiceError: the service refuses, the task failed, or (`timeout`) it is not done after `wait` seconds.
    """
    params = parameters({"name": path.name, **query})
    options = {"params": params, "headers": {"Accept": form, "Content-Type": GEOTIFF}}
    response = yield from ask(Call("POST", place, options, path), patience)
    if response.status_code != httpx.codes.ACCEPTED:
        return response
    return (yield from _wait_for_task(response, form, wait, patience))


def parameters(overrides: dict[str, Any] | Said) -> dict[str, str]:
    """Return what was said as fields of a form or of a query; None says nothing."""
    texts = {}
    for name, value in overrides.items():
        if value is not None:
            texts[name] = ",".join(value) if isinstance(value, list | tuple) else str(value)
    return texts


def pause_before_retry(heard: Heard, attempt: int, patience: Patience) -> float:
    """Return the seconds to wait: twice as long each time, or as long as the service asks, within bounds.

    A random part keeps clients that were turned away together from coming back together.
    """
    backoff = patience.first_pause * 2**attempt * random.uniform(0.5, 1)  # noqa: S311 - no secret
    asked = _retry_after(heard) * random.uniform(1, 1.25)  # noqa: S311
    return min(max(backoff, asked), patience.longest_pause)


def _is_passing(heard: Heard) -> bool:
    """Whether what was heard may be better the next time."""
    if isinstance(heard, httpx.Response):
        return heard.status_code in _OVERLOADED
    return isinstance(heard, _UNREACHABLE)


def _retry_after(heard: Heard) -> float:
    """Return the seconds that the service asks to wait (RFC 9110, section 10.2.3), 0 where it does not."""
    text = heard.headers.get("retry-after", "") if isinstance(heard, httpx.Response) else ""
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _classification(portion: Portion, overrides: Said) -> Call:
    fields = parameters(overrides)
    if isinstance(portion.contents[0], bytes):
        files = [("tiles", (Path(n).name, c, GEOTIFF)) for n, c in zip(portion.names, portion.contents, strict=True)]
        return Call("POST", "/classify", {"files": files, "data": fields})
    if fields.keys() & {"scale", "offset"}:
        raise TilewiseError("an array holds DN already; leave out scale and offset")
    stream = io.BytesIO()
    np.save(stream, np.stack(portion.contents), allow_pickle=False)
    headers = {"Content-Type": "application/octet-stream"}
    return Call("POST", "/classify", {"content": stream.getvalue(), "params": fields, "headers": headers})


def _halves(portion: Portion) -> tuple[Portion, Portion]:
    middle = len(portion.names) // 2
    return (
        replace(portion, names=portion.names[:middle], contents=portion.contents[:middle]),
        replace(portion, names=portion.names[middle:], contents=portion.contents[middle:]),
    )


def _named(tiles: Tiles) -> Iterator[tuple[str, bytes | npt.NDArray[np.uint16]]]:
    """Yield each tile's name and content: a file's path as it was given, else the tile's position."""
    position = 0
    for item in [tiles] if isinstance(tiles, str | Path | bytes | np.ndarray) else tiles:
        if isinstance(item, np.ndarray):
            for tile in _each(item):
                yield str(position), tile
                position += 1
            continue
        yield (str(position), item) if isinstance(item, bytes) else (str(item), Path(item).read_bytes())
        position += 1


def _each(array: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    """Return an array of one tile or several as one of several, (n, bands, 64, 64)."""
    if array.dtype != np.uint16 or array.ndim not in (3, 4):
        raise TileShapeError(
            f"an array of {array.dtype} {array.shape}; uint16 (n, bands, 64, 64) or (bands, 64, 64) in DN is wanted"
        )
    return array if array.ndim == 4 else array[None]


def _size(content: bytes | npt.NDArray[np.uint16]) -> int:
    return content.nbytes if isinstance(content, np.ndarray) else len(content)


def _kind(content: bytes | npt.NDArray[np.uint16]) -> tuple[int, ...]:
    """Return what tiles of one request have in common."""
    return content.shape if isinstance(content, np.ndarray) else ()


def _wait_for_task(accepted: httpx.Response, form: str, wait: float, patience: Patience) -> Exchange[httpx.Response]:
    """Look after a task until it is done; return its result."""
    # Only the path is taken: nobody else's address is followed, and the key goes nowhere else.
    path = httpx.URL(accepted.headers.get("location", "")).path
    if not path.startswith("/tasks/"):
        raise not_tilewise(accepted)
    until, pause = time.monotonic() + wait, _FIRST_LOOK_S
    while True:
        task = content_of((yield from ask(Call("GET", path), patience)))
        if task.get("status") not in ("waiting", "running"):  # of one that failed, the result is its error
            return (yield from ask(Call("GET", f"{path}/result", {"headers": {"Accept": form}}), patience))
        if time.monotonic() + pause > until:
            message = f"the scene's task is not done after {wait:g} s"
            raise ServiceError("timeout", message, f"wait longer, or ask later for {path}")
        yield Pause(pause)
        pause = min(pause * 1.5, _RAREST_LOOK_S)
