"""What stands before every route, BentoML's own included, from the outside in."""

import asyncio
import logging
import sys
from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tilewise.bento.api.auth import Keys, read_keys
from tilewise.bento.api.replies import refuse
from tilewise.bento.api_version import API_VERSION
from tilewise.bento.monitoring import logs
from tilewise.bento.monitoring.tracing import TraceRequests, traces_url
from tilewise.bento.settings import Settings
from tilewise.datasets.core.errors import TilewiseError

ALWAYS = (
    (b"tilewise-api-version", API_VERSION.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
)
UNLESS_SAID = (  # a route that knows better says so: the page, and its files
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"),
    (b"cache-control", b"no-store"),
)


class Headers:
    """ASGI middleware that adds the headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                overrides = list(message.get("headers", ()))
                names = {name.lower() for name, _ in overrides}
                more = [pair for pair in (*ALWAYS, *UNLESS_SAID) if pair[0] not in names]
                message["headers"] = overrides + more
            await send(message)

        await self._app(scope, receive, send_with_headers)


_CLOSE = {"Connection": "close"}  # the rest of the body is not worth waiting for


class _Alarm:
    """Cancels the task that made it when some seconds are over; `asyncio.timeout` does so at twice the cost."""

    __slots__ = ("_rang", "_task", "_timer")

    def __init__(self, seconds: float) -> None:
        self._task, self._rang = asyncio.current_task(), False
        self._timer = asyncio.get_running_loop().call_later(max(seconds, 0), self._ring)

    def _ring(self) -> None:
        assert self._task is not None  # noqa: S101 - made in a task
        self._rang = True
        self._task.cancel()

    def stop(self) -> bool:
        """Stop it, and return whether it rang, and nobody else cancelled the task; then the task goes on."""
        self._timer.cancel()
        if not self._rang or self._task is None:
            return False
        self._rang = False
        return self._task.uncancel() == 0


class Deadlines:
    """ASGI middleware that ends requests which take too long: 408 where the client is late, 504 where the service is.

    Args:
        grace: seconds that any body may take.
        min_rate: bytes per second at which a body must come beyond that.
        max_wait_seconds: for everything, until the last byte of the answer is taken.
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

        alarm = _Alarm(self._max_wait_seconds)
        try:
            await self._app(scope, self._hurried(receive), send_and_note)
        except asyncio.CancelledError:
            if not alarm.stop():
                raise
            if not started:  # else nothing can be said any more; the server closes the connection
                await self._refuse(scope, receive, send)
        finally:
            alarm.stop()

    def _hurried(self, receive: Receive) -> Receive:
        """Return `receive` with a bound on the time that it waits for the body, all its parts together."""
        loop = asyncio.get_running_loop()
        waited, taken, whole = 0.0, 0, False

        async def receive_in_time() -> Message:
            nonlocal waited, taken, whole
            if whole:  # who asks now wants to know when the client goes
                return await receive()
            began = loop.time()
            alarm = _Alarm(self._grace + taken / self._min_rate - waited)
            try:
                message = await receive()
            except asyncio.CancelledError:
                if alarm.stop():
                    raise self._too_slow() from None
                raise
            finally:
                alarm.stop()
            waited += loop.time() - began
            taken += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            return message

        return receive_in_time

    def _too_slow(self) -> HTTPException:
        detail = f"the body came too slowly; send {self._min_rate / 1024:g} KiB a second or more"
        return HTTPException(408, detail, _CLOSE)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = f"not done within {self._max_wait_seconds:g} seconds"
        await refuse(504, "timeout", message, "send fewer tiles at once, or try again later", **_CLOSE)(
            scope, receive, send
        )


_ASKED_WITH = (
    "Authorization",
    "X-API-Key",
    "Content-Type",
    "Tilewise-Key",
    "Tilewise-API-Version",
    "X-Request-ID",
    "Prefer",
)
_TOLD = ("X-Request-ID", "Retry-After", "Location", "Content-Disposition", "Tilewise-API-Version")


def guards(settings: Settings) -> list[tuple[type, dict[str, Any]]]:
    """Return ASGI middleware and its options.

    Raises:
        TilewiseError: keys, origins or the collector's URL are malformed.
    """
    style = logs.style_of(settings.log, sys.stderr)
    found: list[tuple[type, dict[str, Any]]] = [(logs.RequestLog, {"style": style})]
    if settings.trace:
        traces_url(settings.trace)
        found.append((TraceRequests, {"collector": settings.trace}))
    found.append((Headers, {}))
    if settings.cors_origins:  # before the keys: browsers ask without one whether they may ask
        found.append((CORSMiddleware, cors_options(settings.cors_origins)))
    limits = {
        "grace": settings.body_seconds,
        "min_rate": settings.body_rate,
        "max_wait_seconds": settings.request_seconds,
    }
    found.append((Deadlines, limits))
    keys = read_keys(settings.api_keys, settings.api_keys_file)
    if keys:
        found.append((Keys, {"keys": keys, "open_metrics": settings.open_metrics}))
    return found


def quieten() -> None:
    """Keep libraries from logging what is wrong with uploads: lines without end, with text of the uploader's choice.

    What is wrong is told in the answer, and counted.
    """
    for name in ("rasterio", "python_multipart"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("uvicorn.error").addFilter(lambda record: record.msg != "Invalid HTTP request received.")
    sys.unraisablehook = _tell_of_lost_error


def _tell_of_lost_error(lost: "sys.UnraisableHookArgs") -> None:
    """Do as Python does, but for messages of GDAL that hold bytes of a file which are no text."""
    if not isinstance(lost.exc_value, UnicodeDecodeError):
        sys.__unraisablehook__(lost)


def cors_options(origins: str) -> dict[str, Any]:
    """Return the options of starlette's CORS middleware for a list of origins, separated by commas.

    Credentials in the browser's own sense (cookies) are never allowed: keys travel in a header that the page sets.

    Raises:
        TilewiseError: one is no origin.
    """
    allowed = [origin.strip() for origin in origins.split(",") if origin.strip()]
    for origin in allowed:
        scheme, _, host = origin.partition("://")
        if origin != "*" and (scheme not in ("http", "https") or not host or set(host) & set("/?#@* ")):
            raise TilewiseError(
                f"TILEWISE_CORS_ORIGINS: {origin!r} is no origin; write https://host or https://host:port"
            )
    return {
        "allow_origins": allowed,
        "allow_methods": ["GET", "POST", "DELETE"],
        "allow_headers": list(_ASKED_WITH),
        "expose_headers": list(_TOLD),
        "allow_credentials": False,
    }
