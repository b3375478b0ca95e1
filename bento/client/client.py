"""Clients of the service, synchronous and for asyncio; they need httpx, tenacity and numpy only.

    with Client("http://localhost:3000") as client:
        for result in client.classify(["a.tif", "b.tif"]):
            print(result.name, result.class_name, result.error)

Long lists are split into several requests. A request that the service is too busy for, or that does not reach
it, is repeated after growing pauses.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import httpx
import tenacity

from tilewise.bento.api_version import API_VERSION, VERSION_HEADER
from tilewise.bento.client import exchange
from tilewise.bento.client.answers import Result, ServiceError, parse_object
from tilewise.bento.client.exchange import (
    GEOJSON,
    JSON,
    PNG,
    Chunk,
    ClassifyOptions,
    Exchange,
    Request,
    Tiles,
    Value,
    Wait,
)

_CHUNK_BYTES = 2**20


class _BaseClient:
    """The settings of both clients.

    Args:
        url: of the service, e.g. `http://localhost:3000`.
        key: an API key, where the service requires one.
        timeout: seconds for connecting, and between two parts of a response; a request that times out is not
            repeated.
        retries: of a request that the service is too busy for (429, 503), or that does not reach it.
        tiles_per_request, bytes_per_request: at which a list is split; the service refuses requests above its
            own limits, and those are split further.
        sticky_key: chooses between champion and canary; None: the caller's address does.
        options: further ones of `httpx.Client`, e.g. `verify`, `proxy`, `transport`.

    Raises:
        ServiceError: `url` is not a URL.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout: float = 60.0,
        retries: int = 5,
        tiles_per_request: int = 64,
        bytes_per_request: int = 16 * 2**20,
        sticky_key: str | None = None,
        **options: Any,
    ) -> None:
        self._retry_policy = exchange.retry_policy(retries)
        self._limits = max(tiles_per_request, 1), bytes_per_request
        optional = {"Authorization": f"Bearer {key}" if key else None, "Tilewise-Key": sticky_key}
        headers = {VERSION_HEADER: API_VERSION} | {name: value for name, value in optional.items() if value}
        defaults = {"base_url": _parse_url(url), "headers": headers, "timeout": timeout}
        self._options: dict[str, Any] = defaults | options

    def _chunks(self, tiles: Tiles) -> Iterator[Chunk]:
        return exchange.iter_chunks(tiles, *self._limits)


class Client(_BaseClient):
    """The synchronous client; threads may share it. See `_BaseClient` for its arguments."""

    def __init__(self, url: str, key: str | None = None, **settings: Any) -> None:
        super().__init__(url, key, **settings)
        self._http = httpx.Client(**self._options)

    def classify(self, tiles: Tiles, **options: Unpack[ClassifyOptions]) -> list[Result]:
        """Return one result for each tile, in order; a tile that failed has its `error` (`raise_for_errors`).

        Args:
            tiles: see `exchange.Tiles`.
            options: see `exchange.ClassifyOptions`.

        Raises:
            ServiceError: a whole request was refused, or the service cannot be reached.
            OSError: a file cannot be read.
            TileShapeError: an array has another type or shape.
        """
        return list(self.stream(tiles, **options))

    def stream(self, tiles: Tiles, **options: Unpack[ClassifyOptions]) -> Iterator[Result]:
        """Yield the results of `classify` as they arrive; a request that fails loses no earlier ones."""
        for chunk in self._chunks(tiles):
            yield from self._run(exchange.classify(chunk, options))

    def scene(
        self,
        path: str | Path,
        accept: str = GEOJSON,
        *,
        min_valid_fraction: float | None = None,
        wait: float = 600.0,
        **options: Unpack[ClassifyOptions],
    ) -> Any:
        """Return a scene's windows as a GeoJSON object, or with `accept=GEOTIFF` its class map as a file's
        bytes.

        Args:
            path: a GeoTIFF larger than a tile, at about 10 m.
            accept: `GEOJSON` or `GEOTIFF`.
            min_valid_fraction: windows with a smaller fraction (0-1) of valid pixels are skipped.
            wait: seconds to wait for a scene that is large enough to become a task.
            options: see `exchange.ClassifyOptions`.

        Raises:
            ServiceError: as in `classify`; `timeout`: it is not done after `wait` seconds.
            OSError: the file cannot be read.
        """
        return self._run(_scene(Path(path), accept, min_valid_fraction, wait, options))

    def explain(
        self,
        path: str | Path,
        accept: str = PNG,
        *,
        class_name: str | None = None,
        method: str | None = None,
        size: int | None = None,
        stride: int | None = None,
        **options: Unpack[ClassifyOptions],
    ) -> Any:
        """Return which pixels a tile's class depends on: a heat map as PNG bytes, or with `accept=JSON` its
        numbers.

        Args:
            path: a GeoTIFF of one tile.
            accept: `PNG` or `JSON`.
            class_name: the class to explain; None: the most probable.
            method: `occlusion` (change of the class's probability) or `embedding`.
            size, stride: of the occluded patches, in pixels.
            options: see `exchange.ClassifyOptions`.

        Raises:
            ServiceError, OSError: as in `classify`.
        """
        return self._run(_explain(Path(path), accept, class_name, method, size, stride, options))

    def model(self) -> dict[str, Any]:
        """Return the metadata of the served model; raises ServiceError as `classify` does."""
        return self._run(exchange.describe_model())

    def ready(self, wait: float = 0.0) -> bool:
        """Return whether the service becomes ready within `wait` seconds."""
        return self._run(exchange.wait_until_ready(wait))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, steps: Exchange[Value]) -> Value:
        try:
            step = next(steps)
            while True:
                try:
                    response = self._do(step)
                except httpx.RequestError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(response)
        except StopIteration as end:
            value: Value = end.value
            return value

    def _do(self, step: Request | Wait) -> httpx.Response | None:
        if isinstance(step, Wait):
            time.sleep(step.seconds)
            return None
        return tenacity.Retrying(**self._retry_policy)(self._send, step) if step.retry else self._send(step)

    def _send(self, request: Request) -> httpx.Response:
        if request.file is None:
            return self._http.request(request.method, request.path, **request.options)
        with request.file.open("rb") as body:
            return self._http.request(request.method, request.path, content=body, **request.options)


class AsyncClient(_BaseClient):
    """The client for asyncio. See `_BaseClient` for its arguments, and `Client` for its methods.

    Args:
        concurrency: requests of one list of tiles that are in flight at once.
    """

    def __init__(self, url: str, key: str | None = None, *, concurrency: int = 4, **settings: Any) -> None:
        super().__init__(url, key, **settings)
        self._concurrency = max(concurrency, 1)
        self._http = httpx.AsyncClient(**self._options)

    async def classify(self, tiles: Tiles, **options: Unpack[ClassifyOptions]) -> list[Result]:
        """As `Client.classify`."""
        return [result async for result in self.stream(tiles, **options)]

    async def stream(self, tiles: Tiles, **options: Unpack[ClassifyOptions]) -> AsyncIterator[Result]:
        """As `Client.stream`, in order; the next requests are in flight while one is awaited."""
        chunks = self._chunks(tiles)
        running: deque[asyncio.Task[list[Result]]] = deque()
        try:
            while True:
                while len(running) < self._concurrency and (
                    chunk := await asyncio.to_thread(next, chunks, None)
                ):
                    running.append(asyncio.create_task(self._run(exchange.classify(chunk, options))))
                if not running:
                    return
                for result in await running[0]:
                    yield result
                running.popleft()
        finally:
            await _cancel(running)

    async def scene(
        self,
        path: str | Path,
        accept: str = GEOJSON,
        *,
        min_valid_fraction: float | None = None,
        wait: float = 600.0,
        **options: Unpack[ClassifyOptions],
    ) -> Any:
        """As `Client.scene`."""
        return await self._run(_scene(Path(path), accept, min_valid_fraction, wait, options))

    async def explain(
        self,
        path: str | Path,
        accept: str = PNG,
        *,
        class_name: str | None = None,
        method: str | None = None,
        size: int | None = None,
        stride: int | None = None,
        **options: Unpack[ClassifyOptions],
    ) -> Any:
        """As `Client.explain`."""
        return await self._run(_explain(Path(path), accept, class_name, method, size, stride, options))

    async def model(self) -> dict[str, Any]:
        """As `Client.model`."""
        return await self._run(exchange.describe_model())

    async def ready(self, wait: float = 0.0) -> bool:
        """As `Client.ready`."""
        return await self._run(exchange.wait_until_ready(wait))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, steps: Exchange[Value]) -> Value:
        try:
            step = next(steps)
            while True:
                try:
                    response = await self._do(step)
                except httpx.RequestError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(response)
        except StopIteration as end:
            value: Value = end.value
            return value

    async def _do(self, step: Request | Wait) -> httpx.Response | None:
        if isinstance(step, Wait):
            await asyncio.sleep(step.seconds)
            return None
        if not step.retry:
            return await self._send(step)
        return await tenacity.AsyncRetrying(**self._retry_policy)(self._send, step)

    async def _send(self, request: Request) -> httpx.Response:
        if request.file is None:
            return await self._http.request(request.method, request.path, **request.options)
        options = dict(request.options)
        length = {"Content-Length": str(request.file.stat().st_size)}
        options["headers"] = options.get("headers", {}) | length
        return await self._http.request(
            request.method, request.path, content=_iter_file(request.file), **options
        )


def _scene(
    path: Path, accept: str, min_valid_fraction: float | None, wait: float, options: ClassifyOptions
) -> Exchange[Any]:
    parameters = {**options, "min_valid_fraction": min_valid_fraction}
    return _parsed(exchange.send_file(path, "/scene", parameters, accept, wait), accept)


def _explain(
    path: Path,
    accept: str,
    class_name: str | None,
    method: str | None,
    size: int | None,
    stride: int | None,
    options: ClassifyOptions,
) -> Exchange[Any]:
    parameters = {**options, "class": class_name, "method": method, "size": size, "stride": stride}
    return _parsed(exchange.send_file(path, "/explain", parameters, accept, wait=0), accept)


def _parsed(steps: Exchange[httpx.Response], media_type: str) -> Exchange[Any]:
    """Return a response's JSON object, or the bytes of its body where `media_type` is not JSON."""
    response = yield from steps
    return parse_object(response) if media_type in (GEOJSON, JSON) else response.content


async def _iter_file(path: Path) -> AsyncIterator[bytes]:
    """Yield a file's bytes, read in a thread."""
    with await asyncio.to_thread(path.open, "rb") as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
            yield chunk


async def _cancel(tasks: Sequence["asyncio.Task[Any]"] | deque["asyncio.Task[Any]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _parse_url(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ServiceError("not_tilewise", f"{url!r} is not a URL", "http://localhost:3000 is one") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ServiceError(
            "not_tilewise", f"{url!r} is not the URL of a service", "http://localhost:3000 is one"
        )
    return parsed
