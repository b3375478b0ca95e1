"""The client's protocol without a network (sans I/O): the requests to send, and what their responses mean.

An exchange is a generator. It yields the next step, a `Request` or a `Wait`; it is sent the response (of a
wait, None) or has the `httpx.RequestError` thrown into it; it returns its result. Both clients in
`tilewise.bento.client.client` run the same exchanges, and repeat requests by the same retry policy.
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
import tenacity

from tilewise.bento.client.answers import (
    Result,
    ServiceError,
    check_response,
    no_response,
    not_tilewise,
    parse_object,
    parse_results,
)
from tilewise.datasets.core.errors import TileShapeError, TilewiseError

Value = TypeVar("Value")
Tile = str | Path | bytes | npt.NDArray[np.uint16]
Tiles = Tile | Iterable[Tile]
"""GeoTIFFs by path or as bytes, or arrays of uint16 DN, (bands, 64, 64) or (n, bands, 64, 64); one or
many."""

GEOJSON, GEOTIFF, PNG, JSON = "application/geo+json", "image/tiff", "image/png", "application/json"
_OVERLOADED = (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE)
_UNREACHABLE = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.5, 30.0
_FIRST_POLL_S, _MAX_POLL_S = 0.2, 5.0


class ClassifyOptions(TypedDict, total=False):
    """File settings that the files do not state themselves, and the coverage of prediction sets.

    Attributes:
        bands: names in the file's order, or one of `l1c`, `l2a`, `10m`, `rgb`, `eurosat`.
        level: `L1C` or `L2A`.
        scale: reflectance per unit of the file's numbers; not for arrays, which hold DN.
        offset: added to the file's numbers before scaling; not for arrays.
        coverage: probability (0.5-1) that a prediction set contains the true class.
    """

    bands: str | Sequence[str] | None
    level: str | None
    scale: float | None
    offset: float | None
    coverage: float | None


@dataclass(frozen=True, slots=True)
class Request:
    """A request to send.

    Attributes:
        method, path: of the request; the path starts at the service's URL.
        options: further arguments of `httpx.Client.request`.
        file: a file that is streamed as the body, or None.
        retry: whether the retry policy applies.
    """

    method: str
    path: str
    options: dict[str, Any] = field(default_factory=dict)
    file: Path | None = None
    retry: bool = True


@dataclass(frozen=True, slots=True)
class Wait:
    """A pause of some seconds before the next step."""

    seconds: float


Exchange = Generator[Request | Wait, httpx.Response | None, Value]


@dataclass(frozen=True, slots=True)
class Chunk:
    """The tiles of one request, all of one kind.

    Attributes:
        names: the caller's names of the tiles.
        contents: a GeoTIFF's bytes each, or an array (bands, 64, 64) each.
    """

    names: tuple[str, ...]
    contents: tuple[bytes | npt.NDArray[np.uint16], ...]


def retry_policy(retries: int) -> dict[str, Any]:
    """Return the arguments of `tenacity.Retrying` and `AsyncRetrying`.

    A request is repeated up to `retries` times while the service is overloaded or cannot be reached. All
    requests of this client only read, so repeating them is safe. After the last attempt, its response or
    error counts.
    """
    return {
        "stop": tenacity.stop_after_attempt(retries + 1),
        "wait": pause_before_retry,
        "retry": tenacity.retry_if_result(lambda response: response.status_code in _OVERLOADED)
        | tenacity.retry_if_exception_type(_UNREACHABLE),
        "retry_error_callback": _last_outcome,
    }


_backoff = tenacity.wait_exponential(multiplier=_FIRST_PAUSE_S, max=_MAX_PAUSE_S)


def pause_before_retry(state: tenacity.RetryCallState) -> float:
    """Return the seconds to wait: doubled each time, or as long as the service asks, 30 at most.

    The random part spreads out clients that were turned away at the same moment.
    """
    backoff = _backoff(state) * random.uniform(0.5, 1)  # noqa: S311 - not cryptographic
    requested = _retry_after(state) * random.uniform(1, 1.25)  # noqa: S311
    return min(max(backoff, requested), _MAX_PAUSE_S)


def fetch(request: Request) -> Exchange[httpx.Response]:
    """Return the response to `request`.

    Raises:
        ServiceError: the service refuses the request or cannot be reached, or the response is not from
            tilewise.
    """
    try:
        response = yield request
    except httpx.RequestError as error:
        raise no_response(error) from error
    assert response is not None  # noqa: S101 - a client sends a response for each request
    return check_response(response)


def classify(chunk: Chunk, options: ClassifyOptions) -> Exchange[list[Result]]:
    """Return one result for each tile, in order; a chunk that the service finds too large is sent in
    halves."""
    try:
        response = yield from fetch(_classify_request(chunk, options))
    except ServiceError as error:
        if error.status != httpx.codes.REQUEST_ENTITY_TOO_LARGE or len(chunk.names) == 1:
            raise
        results = []
        for half in _halves(chunk):
            results += yield from classify(half, options)
        return results
    return parse_results(response, chunk.names)


def iter_chunks(tiles: Tiles, max_tiles: int, max_bytes: int) -> Iterator[Chunk]:
    """Split `tiles` into requests of one kind of tile, of at most so many tiles and (unless it is one tile)
    bytes.

    Files are read when their request is made, so memory use does not grow with the length of the list.

    Raises:
        OSError: a file cannot be read.
        TileShapeError: an array has another type or shape.
    """
    names: list[str] = []
    contents: list[bytes | npt.NDArray[np.uint16]] = []
    for name, content in _iter_named(tiles):
        size = sum(map(_size, contents)) + _size(content)
        if contents and (size > max_bytes or _kind(content) != _kind(contents[0])):
            yield Chunk(tuple(names), tuple(contents))
            names, contents = [], []
        names.append(name)
        contents.append(content)
        if len(contents) == max_tiles:
            yield Chunk(tuple(names), tuple(contents))
            names, contents = [], []
    if contents:
        yield Chunk(tuple(names), tuple(contents))


def describe_model() -> Exchange[dict[str, Any]]:
    """Return the metadata of the model that the service serves."""
    return parse_object((yield from fetch(Request("GET", "/model"))))


def wait_until_ready(wait: float) -> Exchange[bool]:
    """Return whether the service becomes ready within `wait` seconds."""
    deadline = time.monotonic() + wait
    while True:
        try:
            response = yield Request("GET", "/readyz", retry=False)
        except httpx.RequestError:
            response = None
        if response is not None and response.status_code == httpx.codes.OK:
            return True
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        yield Wait(min(left, _FIRST_PAUSE_S))


def send_file(
    path: Path, endpoint: str, parameters: dict[str, Any], media_type: str, wait: float
) -> Exchange[httpx.Response]:
    """Return the response, in `media_type`, to a file sent to `endpoint`.

    Args:
        wait: seconds to wait for the task that a large file becomes.

    Raises:
        ServiceError: the service refuses, the task failed, or (`timeout`) it is not done after `wait`
            seconds.
    """
    headers = {"Accept": media_type, "Content-Type": GEOTIFF}
    options = {"params": form_fields({"name": path.name, **parameters}), "headers": headers}
    response = yield from fetch(Request("POST", endpoint, options, path))
    if response.status_code != httpx.codes.ACCEPTED:
        return response
    return (yield from _wait_for_task(response, media_type, wait))


def form_fields(values: dict[str, Any] | ClassifyOptions) -> dict[str, str]:
    """Return `values` as the texts of a form's fields or a URL's parameters, without those that are None."""
    texts = {}
    for name, value in values.items():
        if value is not None:
            texts[name] = ",".join(value) if isinstance(value, list | tuple) else str(value)
    return texts


def _last_outcome(state: tenacity.RetryCallState) -> httpx.Response:
    assert state.outcome is not None  # noqa: S101 - called after an attempt
    response: httpx.Response = state.outcome.result()
    return response


def _retry_after(state: tenacity.RetryCallState) -> float:
    """Return the seconds of the last response's Retry-After (RFC 9110, section 10.2.3), 0 without one."""
    if state.outcome is None or state.outcome.failed:
        return 0.0
    text = state.outcome.result().headers.get("retry-after", "")
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _classify_request(chunk: Chunk, options: ClassifyOptions) -> Request:
    fields = form_fields(options)
    if isinstance(chunk.contents[0], bytes):
        files = [
            ("tiles", (Path(n).name, c, GEOTIFF)) for n, c in zip(chunk.names, chunk.contents, strict=True)
        ]
        return Request("POST", "/classify", {"files": files, "data": fields})
    if fields.keys() & {"scale", "offset"}:
        raise TilewiseError("an array holds DN already; leave out scale and offset")
    stream = io.BytesIO()
    np.save(stream, np.stack(chunk.contents), allow_pickle=False)
    headers = {"Content-Type": "application/octet-stream"}
    return Request("POST", "/classify", {"content": stream.getvalue(), "params": fields, "headers": headers})


def _halves(chunk: Chunk) -> tuple[Chunk, Chunk]:
    middle = len(chunk.names) // 2
    return (
        replace(chunk, names=chunk.names[:middle], contents=chunk.contents[:middle]),
        replace(chunk, names=chunk.names[middle:], contents=chunk.contents[middle:]),
    )


def _iter_named(tiles: Tiles) -> Iterator[tuple[str, bytes | npt.NDArray[np.uint16]]]:
    """Yield each tile's name and content: a file's path as it was given, else the tile's position."""
    position = 0
    for item in [tiles] if isinstance(tiles, str | Path | bytes | np.ndarray) else tiles:
        if isinstance(item, np.ndarray):
            for tile in _as_batch(item):
                yield str(position), tile
                position += 1
            continue
        yield (str(position), item) if isinstance(item, bytes) else (str(item), read_file(Path(item)))
        position += 1


def read_file(path: Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        TilewiseError: it is a folder.
        OSError: it cannot be read.
    """
    if path.is_dir():
        raise TilewiseError(f"{path} is a folder; name its files: {path}/*.tif")
    return path.read_bytes()


def _as_batch(array: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    """Return an array of one or several tiles as (n, bands, 64, 64)."""
    if array.dtype != np.uint16 or array.ndim not in (3, 4):
        raise TileShapeError(
            f"an array of {array.dtype} {array.shape}; uint16 (n, bands, 64, 64) or (bands, 64, 64) in DN is "
            f"wanted"
        )
    return array if array.ndim == 4 else array[None]


def _size(content: bytes | npt.NDArray[np.uint16]) -> int:
    return content.nbytes if isinstance(content, np.ndarray) else len(content)


def _kind(content: bytes | npt.NDArray[np.uint16]) -> tuple[int, ...]:
    """Return what the tiles of one request have in common: an array's shape, nothing of files."""
    return content.shape if isinstance(content, np.ndarray) else ()


def _wait_for_task(accepted: httpx.Response, media_type: str, wait: float) -> Exchange[httpx.Response]:
    """Poll a task until it is done; return its result."""
    # Only the path is used: redirecting to another host would send the API key there.
    path = httpx.URL(accepted.headers.get("location", "")).path
    if not path.startswith("/tasks/"):
        raise not_tilewise(accepted)
    deadline, pause = time.monotonic() + wait, _FIRST_POLL_S
    while True:
        task = parse_object((yield from fetch(Request("GET", path))))
        if task.get("status") not in ("waiting", "running"):  # the result of a failed task is its error
            return (yield from fetch(Request("GET", f"{path}/result", {"headers": {"Accept": media_type}})))
        if time.monotonic() + pause > deadline:
            message = f"the scene's task is not done after {wait:g} s"
            raise ServiceError("timeout", message, f"wait longer, or fetch {path} later")
        yield Wait(pause)
        pause = min(pause * 1.5, _MAX_POLL_S)
