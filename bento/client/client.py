"""A Python client of the service, with and without asyncio; it needs httpx and numpy only.

    with Client("http://localhost:3000") as client:
        for result in client.classify(["a.tif", "b.tif"]):
            print(result.name, result.class_name, result.error)

Large lists become several requests. A request that the service is too busy for, or that does not reach it, is repeated
after growing pauses. Everything that is asked here only reads, so that a repetition does no harm.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from tilewise.bento.api_version import API_VERSION, VERSION_HEADER
from tilewise.bento.client import exchange
from tilewise.bento.client.answers import (
    Model,
    Outlier,
    PredictionSet,
    Result,
    ServiceError,
    TileError,
    content_of,
    raise_for_errors,
)
from tilewise.bento.client.exchange import (
    GEOJSON,
    GEOTIFF,
    JSON,
    PNG,
    Call,
    Exchange,
    Heard,
    Patience,
    Pause,
    Portion,
    Said,
    Tiles,
)

__all__ = [
    "GEOJSON",
    "GEOTIFF",
    "JSON",
    "PNG",
    "AsyncClient",
    "Client",
    "Model",
    "Outlier",
    "PredictionSet",
    "Result",
    "ServiceError",
    "TileError",
    "raise_for_errors",
]

Value = TypeVar("Value")
_CHUNK = 2**20


class _Settings:
    """What both clients are made from.

    Args:
        url: of the service, e.g. `http://localhost:3000`.
        key: an API key, where the service asks for one.
        timeout: seconds for connecting, and between two parts of an answer; a request is not repeated after it.
        retries: of a request that the service is too busy for (429, 503), or that does not reach it.
        tiles_per_request, bytes_per_request: at which a list is cut; the service refuses larger ones than its settings
            say, and a list that it refuses is cut further.
        sticky_key: decides which model answers where a candidate is tried out; None: the caller's address does.
        options: further ones of `httpx.Client`, e.g. `verify`, `proxy`, `transport`.

    Raises:
        ServiceError: `url` is none.
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
        self._patience = Patience(retries)
        self._limit = max(tiles_per_request, 1), bytes_per_request
        overrides = {"Authorization": f"Bearer {key}" if key else None, "Tilewise-Key": sticky_key}
        headers = {VERSION_HEADER: API_VERSION} | {name: value for name, value in overrides.items() if value}
        self._options: dict[str, Any] = {"base_url": _parse_url(url), "headers": headers, "timeout": timeout} | options

    def _portions(self, tiles: Tiles) -> Iterator[Portion]:
        return exchange.portions(tiles, *self._limit)

    def _scene(
        self, path: str | Path, form: str, min_valid_fraction: float | None, wait: float, overrides: Said
    ) -> Exchange[httpx.Response]:
        query = {**overrides, "min_valid_fraction": min_valid_fraction}
        return exchange.send_file(Path(path), "/scene", query, form, wait, self._patience)

    def _explain(self, path: str | Path, form: str, asked: dict[str, Any], overrides: Said) -> Exchange[httpx.Response]:
        return exchange.send_file(Path(path), "/explain", {**overrides, **asked}, form, 0, self._patience)


class Client(_Settings):
    """The client without asyncio; safe to share between threads. See `_Settings` for its arguments."""

    def __init__(self, url: str, key: str | None = None, **settings: Any) -> None:
        super().__init__(url, key, **settings)
        self._http = httpx.Client(**self._options)

    def classify(self, tiles: Tiles, **overrides: Unpack[Said]) -> list[Result]:
        """Return one result for each tile, in order; a tile without an answer has its `error` (`raise_for_errors`).

        Args:
            tiles: see `exchange.Tiles`.
            said: see `exchange.Said`.

        Raises:
            ServiceError: a request was refused as a whole, or the service cannot be reached.
            OSError: a file cannot be read.
            TileShapeError: an array of another type or shape.
        """
        return list(self.stream(tiles, **overrides))

    def stream(self, tiles: Tiles, **overrides: Unpack[Said]) -> Iterator[Result]:
        """Yield the results of `classify` as they come; what has come is not lost if a later request fails."""
        for portion in self._portions(tiles):
            yield from self._run(exchange.classify(portion, overrides, self._patience))

    def scene(
        self,
        path: str | Path,
        accept: str = GEOJSON,
        *,
        min_valid_fraction: float | None = None,
        wait: float = 600.0,
        **overrides: Unpack[Said],
    ) -> Any:
        """Return a scene's windows as a GeoJSON object, or with `accept=GEOTIFF` its class map as a file's bytes.

        Args:
            path: a GeoTIFF larger than a tile, at about 10 m.
            accept: `GEOJSON` or `GEOTIFF`.
            min_valid_fraction: share (0-1) of valid pixels below which a window is skipped.
            wait: seconds for a scene so large that the service makes a task of it.
            said: see `exchange.Said`.

        Raises:
            ServiceError: as in `classify`; `timeout`: it is not done after `wait` seconds.
            OSError: the file cannot be read.
        """
        return _content(self._run(self._scene(path, accept, min_valid_fraction, wait, overrides)), accept)

    def explain(
        self,
        path: str | Path,
        accept: str = PNG,
        *,
        class_name: str | None = None,
        method: str | None = None,
        size: int | None = None,
        stride: int | None = None,
        **overrides: Unpack[Said],
    ) -> Any:
        """Return what a tile's class rests on: a heat map as a PNG's bytes, or with `accept=JSON` its numbers.

        Args:
            path: a GeoTIFF of one tile.
            accept: `PNG` or `JSON`.
            class_name: the class to explain; None: the likeliest.
            method: `occlusion` (what becomes of the class's probability) or `embedding`.
            size, stride: of the patches that are taken away, in pixels.
            said: see `exchange.Said`.

        Raises:
            ServiceError, OSError: as in `classify`.
        """
        asked = {"class": class_name, "method": method, "size": size, "stride": stride}
        return _content(self._run(self._explain(path, accept, asked, overrides)), accept)

    def model(self) -> dict[str, Any]:
        """Return what the model says of itself; raises ServiceError as `classify` does."""
        return self._run(exchange.describe_model(self._patience))

    def ready(self, wait: float = 0.0) -> bool:
        """Return whether the service is ready, having waited up to `wait` seconds for it."""
        return self._run(exchange.become_ready(wait))

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
        heard: Heard | None = None
        try:
            while True:
                step = steps.send(heard)
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    heard = None
                else:
                    heard = self._send(step)
        except StopIteration as end:
            value: Value = end.value
            return value

    def _send(self, call: Call) -> Heard:
        try:
            if call.file is None:
                return self._http.request(call.method, call.path, **call.options)
            with call.file.open("rb") as body:
                return self._http.request(call.method, call.path, content=body, **call.options)
        except httpx.RequestError as error:
            return error


class AsyncClient(_Settings):
    """The client for asyncio. See `_Settings` for its arguments, and `Client` for what its methods return and raise.

    Args:
        concurrency: requests that a list of tiles has on the way at once.
    """

    def __init__(self, url: str, key: str | None = None, *, concurrency: int = 4, **settings: Any) -> None:
        super().__init__(url, key, **settings)
        self._concurrency = max(concurrency, 1)
        self._http = httpx.AsyncClient(**self._options)

    async def classify(self, tiles: Tiles, **overrides: Unpack[Said]) -> list[Result]:
        """As `Client.classify`."""
        return [result async for result in self.stream(tiles, **overrides)]

    async def stream(self, tiles: Tiles, **overrides: Unpack[Said]) -> AsyncIterator[Result]:
        """As `Client.stream`, still in order; requests that follow are on the way while one is waited for."""
        portions = self._portions(tiles)
        running: deque[asyncio.Task[list[Result]]] = deque()
        try:
            while True:
                while len(running) < self._concurrency and (portion := await asyncio.to_thread(next, portions, None)):
                    steps = exchange.classify(portion, overrides, self._patience)
                    running.append(asyncio.create_task(self._run(steps)))
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
        **overrides: Unpack[Said],
    ) -> Any:
        """As `Client.scene`."""
        return _content(await self._run(self._scene(path, accept, min_valid_fraction, wait, overrides)), accept)

    async def explain(
        self,
        path: str | Path,
        accept: str = PNG,
        *,
        class_name: str | None = None,
        method: str | None = None,
        size: int | None = None,
        stride: int | None = None,
        **overrides: Unpack[Said],
    ) -> Any:
        """As `Client.explain`."""
        asked = {"class": class_name, "method": method, "size": size, "stride": stride}
        return _content(await self._run(self._explain(path, accept, asked, overrides)), accept)

    async def model(self) -> dict[str, Any]:
        """As `Client.model`."""
        return await self._run(exchange.describe_model(self._patience))

    async def ready(self, wait: float = 0.0) -> bool:
        """As `Client.ready`."""
        return await self._run(exchange.become_ready(wait))

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
        heard: Heard | None = None
        try:
            while True:
                step = steps.send(heard)
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    heard = None
                else:
                    heard = await self._send(step)
        except StopIteration as end:
            value: Value = end.value
            return value

    async def _send(self, call: Call) -> Heard:
        try:
            if call.file is None:
                return await self._http.request(call.method, call.path, **call.options)
            options = dict(call.options)
            length = {"Content-Length": str(call.file.stat().st_size)}
            options["headers"] = options.get("headers", {}) | length
            return await self._http.request(call.method, call.path, content=_chunks(call.file), **options)
        except httpx.RequestError as error:
            return error


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    """Yield a file's bytes, read beside the event loop."""
    with await asyncio.to_thread(path.open, "rb") as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK):
            yield chunk


async def _cancel(tasks: Sequence["asyncio.Task[Any]"] | deque["asyncio.Task[Any]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _content(response: httpx.Response, form: str) -> Any:
    return content_of(response) if form in (GEOJSON, JSON) else response.content


def _parse_url(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ServiceError("not_tilewise", f"{url!r} is no URL", "http://localhost:3000 is one") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ServiceError("not_tilewise", f"{url!r} is no URL of a service", "http://localhost:3000 is one")
    return parsed
