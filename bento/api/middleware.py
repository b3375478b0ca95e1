"""ASGI middleware: response headers, deadlines, the API version, connection turnover, CORS, and their order.

`outer_middleware` wraps the whole service, BentoML's own paths included; `VersionCheck` and `Turnover` wrap
the routes of `tilewise.bento.api.app`.
"""

import asyncio
import logging
import random
import sys
from collections import OrderedDict
from contextlib import suppress
from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tilewise.bento.api.auth import KeyCheck, read_keys
from tilewise.bento.api.refusals import SlowRefusals
from tilewise.bento.api.replies import refuse
from tilewise.bento.api_version import API_VERSION, VERSION_HEADER
from tilewise.bento.monitoring import logs
from tilewise.bento.monitoring.tracing import TraceRequests, traces_url
from tilewise.bento.settings import Settings
from tilewise.datasets.core.errors import TilewiseError

_CLOSE = {"Connection": "close"}  # the rest of the body is not read


def outer_middleware(settings: Settings) -> list[tuple[type, dict[str, Any]]]:
    """Return the middleware of the service with its options, the outermost first.

    Raises:
        TilewiseError: the API keys, the CORS origins or the URL of the trace collector are malformed.
    """
    style = logs.style_of(settings.log, sys.stderr)
    found: list[tuple[type, dict[str, Any]]] = [(logs.RequestLog, {"style": style})]
    if settings.trace:
        traces_url(settings.trace)
        found.append((TraceRequests, {"collector": settings.trace}))
    found.append((ResponseHeaders, {}))
    if settings.cors_origins:  # before the keys: browsers send preflight requests without one
        found.append((CORSMiddleware, cors_options(settings.cors_origins)))
    limits = {
        "grace": settings.body_seconds,
        "min_rate": settings.body_rate,
        "max_wait_seconds": settings.request_seconds,
    }
    found += [(Deadlines, limits), (Linger, {})]
    keys = read_keys(settings.api_keys, settings.api_keys_file)
    if keys:
        found.append((KeyCheck, {"keys": keys, "open_metrics": settings.open_metrics}))
    if settings.refused_rate:
        found.append((SlowRefusals, {"rate": settings.refused_rate}))
    return found


# Headers of every response.

ALWAYS = (
    (VERSION_HEADER.lower().encode(), API_VERSION.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
)
DEFAULTS = (  # the web page sets its own
    (
        b"content-security-policy",
        b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
    (b"cache-control", b"no-store"),
)


class ResponseHeaders:
    """Add `ALWAYS` and `DEFAULTS` to every response that does not set them itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = list(message.get("headers", ()))
                names = {name.lower() for name, _ in present}
                message["headers"] = present + [pair for pair in (*ALWAYS, *DEFAULTS) if pair[0] not in names]
            await send(message)

        await self._app(scope, receive, send_with_headers)


# Deadlines.


class _Timer:
    """Cancels the task that made it after some seconds; `asyncio.timeout` does so at twice the cost."""

    __slots__ = ("_expired", "_handle", "_task")

    def __init__(self, seconds: float) -> None:
        self._task, self._expired = asyncio.current_task(), False
        self._handle = asyncio.get_running_loop().call_later(max(seconds, 0), self._expire)

    def _expire(self) -> None:
        assert self._task is not None  # noqa: S101 - made in a task
        self._expired = True
        self._task.cancel()

    def stop(self) -> bool:
        """Stop it; return whether it, and nothing else, cancelled the task, which then goes on."""
        self._handle.cancel()
        if not self._expired or self._task is None:
            return False
        self._expired = False
        return self._task.uncancel() == 0


class Deadlines:
    """End requests that take too long: 408 where the client is too slow, 504 where the service is.

    Args:
        app: the application inside.
        grace: seconds that any body may take.
        min_rate: bytes per second at which a body must arrive beyond that.
        max_wait_seconds: limit for the whole request, until the client has taken the last byte of the
            response.
    """

    def __init__(self, app: ASGIApp, grace: float, min_rate: float, max_wait_seconds: float) -> None:
        self._app = app
        self._grace, self._min_rate, self._max_wait_seconds = grace, min_rate, max_wait_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        timer = _Timer(self._max_wait_seconds)
        try:
            await self._app(scope, self._with_deadline(receive), send_and_note)
        except asyncio.CancelledError:
            if not timer.stop():
                raise
            if not started:  # else it is too late for another response; the server closes the connection
                await self._refuse(scope, receive, send)
        finally:
            timer.stop()

    def _with_deadline(self, receive: Receive) -> Receive:
        """Return `receive` with a limit on the time that it waits for the body, all its parts together."""
        loop = asyncio.get_running_loop()
        waited, received, complete = 0.0, 0, False

        async def receive_in_time() -> Message:
            nonlocal waited, received, complete
            if complete:  # the application waits for the client to disconnect
                return await receive()
            began = loop.time()
            timer = _Timer(self._grace + received / self._min_rate - waited)
            try:
                message = await receive()
            except asyncio.CancelledError:
                if timer.stop():
                    raise self._too_slow() from None
                raise
            finally:
                timer.stop()
            waited += loop.time() - began
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            return message

        return receive_in_time

    def _too_slow(self) -> HTTPException:
        detail = f"the body arrived too slowly; send {self._min_rate / 1024:g} KiB a second or more"
        return HTTPException(408, detail, _CLOSE)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = f"not done within {self._max_wait_seconds:g} seconds"
        refusal = refuse(504, "timeout", message, "send fewer tiles at once, or try again later", **_CLOSE)
        await refusal(scope, receive, send)


# Bodies that are not read to their end.

_LINGER_SECONDS = 2.0


class Linger:
    """Discard the rest of a body for a while before a response ends that was sent without reading it.

    Closing a connection on which bytes lie unread resets it, and the client never sees why it was refused.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http" or not _BODY_HEADERS & {name for name, _ in scope["headers"]}:
            return await self._app(scope, receive, send)
        unread = True

        async def receive_and_note() -> Message:
            nonlocal unread
            message = await receive()
            unread = bool(message.get("more_body", False))
            return message

        async def discard() -> None:
            with suppress(HTTPException, TimeoutError):  # the rest comes too slowly
                async with asyncio.timeout(_LINGER_SECONDS):
                    while unread:
                        await receive_and_note()

        async def send_and_linger(message: Message) -> None:
            if unread and message["type"] == "http.response.body" and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await discard()
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        return await self._app(scope, receive_and_note, send_and_linger)


_BODY_HEADERS = {b"content-length", b"transfer-encoding"}


# The API version.


class VersionCheck:
    """Respond with 400 to a request whose header names another version of the API."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http" or Request(scope).headers.get(VERSION_HEADER, API_VERSION) == API_VERSION:
            return await self._app(scope, receive, send)
        hint = (
            f"it speaks version {API_VERSION}: use its release's client, or omit the header {VERSION_HEADER}"
        )
        refusal = refuse(400, "api_version", "the service speaks another version of the API", hint, **_CLOSE)
        return await refusal(scope, receive, send)


# Turnover of connections, where several processes share them.

_BYTES_PER_REQUEST = 64 * 2**10  # about one tile
_MAX_CONNECTIONS = 10_000  # that are counted; beyond it, the oldest start again


class Turnover:
    """Close each connection with `Connection: close` after a random number of requests.

    A client that keeps a connection stays with one process. New connections spread over all of them.

    Args:
        app: the application inside.
        requests: the largest number of requests; a request of many tiles counts as many.
    """

    def __init__(self, app: ASGIApp, requests: int) -> None:
        self._app, self._requests = app, requests
        self._left: OrderedDict[tuple[str, int], int] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http" or not self._is_last(scope.get("client"), _weight(scope)):
            return await self._app(scope, receive, send)

        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        return await self._app(scope, receive, send_last)

    def _is_last(self, client: tuple[str, int] | None, weight: int) -> bool:
        if client is None:  # a Unix socket: a reverse proxy balances the load
            return False
        left = self._left.pop(client, None) or random.randint(1, self._requests)  # noqa: S311 - not a secret
        if left <= weight:
            return True
        self._left[client] = left - weight
        if len(self._left) > _MAX_CONNECTIONS:
            self._left.popitem(last=False)
        return False


def _weight(scope: Scope) -> int:
    """Return as how many requests one counts: 1, and 1 for each further tile by its Content-Length."""
    announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    return 1 + int(announced) // _BYTES_PER_REQUEST if announced.isdigit() else 1


# Other origins.

_REQUEST_HEADERS = (
    "Authorization",
    "X-API-Key",
    "Content-Type",
    "Tilewise-Key",
    VERSION_HEADER,
    "X-Request-ID",
    "Prefer",
)
_RESPONSE_HEADERS = ("X-Request-ID", "Retry-After", "Location", "Content-Disposition", VERSION_HEADER)


def cors_options(origins: str) -> dict[str, Any]:
    """Return the options of starlette's CORS middleware for a list of origins, separated by commas.

    Cookies are never allowed: API keys are sent in a header that the other page sets.

    Raises:
        TilewiseError: one is not an origin.
    """
    allowed = [origin.strip() for origin in origins.split(",") if origin.strip()]
    for origin in allowed:
        scheme, _, host = origin.partition("://")
        if origin != "*" and (scheme not in ("http", "https") or not host or set(host) & set("/?#@* ")):
            raise TilewiseError(
                f"TILEWISE_CORS_ORIGINS: {origin!r} is not an origin; write https://host or https://host:port"
            )
    return {
        "allow_origins": allowed,
        "allow_methods": ["GET", "POST", "DELETE"],
        "allow_headers": list(_REQUEST_HEADERS),
        "expose_headers": list(_RESPONSE_HEADERS),
        "allow_credentials": False,
    }


# Log lines of libraries.


def silence_libraries() -> None:
    """Keep libraries from logging what is wrong with uploads: endless lines, with text from the uploader.

    The response has what is wrong, and the metrics count it.
    """
    for name in ("rasterio", "python_multipart"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("uvicorn.error").addFilter(
        lambda record: record.msg != "Invalid HTTP request received."
    )
    sys.unraisablehook = _report_unraisable


def _report_unraisable(error: "sys.UnraisableHookArgs") -> None:
    """Report an error as Python does, except for GDAL's messages with bytes of a file that are not text."""
    if not isinstance(error.exc_value, UnicodeDecodeError):
        sys.__unraisablehook__(error)
