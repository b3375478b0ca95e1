"""Logs: an ID for every response, a line on stderr for every request, and errors with their traceback.

Of what a client sends, only the request ID, the method and an unknown path are logged: no file names, keys,
queries or bodies.
"""

import json
import logging
import random
import re
import sys
import time
from enum import StrEnum
from functools import cache
from typing import Any, TextIO

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.stdlib import BoundLogger, ProcessorFormatter
from structlog.typing import EventDict, Processor

from tilewise.bento import metrics
from tilewise.bento.errors import INTERNAL, error_body
from tilewise.bento.request_context import RequestContext, begin

QUIET_PATHS = frozenset({"/livez", "/readyz", "/healthz", "/metrics"})
"""Requested by machines every few seconds: logged only if they fail."""
OTHER = "other"
_MAX_PATH = 200  # characters
_CLIENT_GONE = 499  # nginx's status for a client that disconnected before the response
_NAME = "tilewise"


class LogStyle(StrEnum):
    """Format of the request log; errors are logged in any style."""

    JSON = "json"
    TEXT = "text"
    OFF = "off"


def style_of(setting: str | None, stream: TextIO) -> LogStyle:
    """Return the style that the setting names; by default JSON, but off if `stream` is a terminal."""
    if setting:
        return LogStyle(setting)
    return LogStyle.OFF if stream.isatty() else LogStyle.JSON


def configure(style: LogStyle) -> None:
    """Let everything that the package logs go to stderr in `style`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(style))
    log = logging.getLogger(_NAME)
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


@cache
def get_logger() -> BoundLogger:
    """Return the package's logger, with fields by keyword: `get_logger().info("message", key=value)`."""
    processors: list[Processor] = [
        structlog.stdlib.filter_by_level,
        structlog.processors.format_exc_info,  # here, where the exception is still being handled
        ProcessorFormatter.wrap_for_formatter,
    ]
    logger: BoundLogger = structlog.wrap_logger(
        logging.getLogger(_NAME), processors, wrapper_class=BoundLogger, cache_logger_on_first_use=True
    )
    return logger.bind()


def formatter(style: LogStyle) -> logging.Formatter:
    """Return the formatter of log records in `style`, for `get_logger` and the standard library's loggers."""
    render = [ProcessorFormatter.remove_processors_meta, *_renderers(style)]
    return ProcessorFormatter(processors=render, foreign_pre_chain=[structlog.processors.format_exc_info])


def _renderers(style: LogStyle) -> list[Processor]:
    """Return the processors that make a line of an event."""
    add_time = structlog.processors.TimeStamper(fmt="iso", utc=True, key="time")
    render: Processor = (
        structlog.processors.JSONRenderer(default=str) if style is LogStyle.JSON else _render_text
    )
    return [structlog.stdlib.add_log_level, add_time, _order_keys, render]


def _order_keys(_: Any, __: str, event: EventDict) -> EventDict:
    """Put time, level and message first, and call the traceback so."""
    line = {"time": event.pop("time"), "level": event.pop("level"), "message": event.pop("event")}
    traceback = event.pop("exception", None)
    return {**line, **event, **({"traceback": traceback} if traceback else {})}


def _render_text(_: Any, __: str, line: EventDict) -> str:
    """Return a line for people; JSON values keep control codes away from a terminal."""
    traceback = line.pop("traceback", None)
    start = f"{line.pop('time')} {line.pop('level').upper()} {line.pop('message')}"
    fields = [f"{name}={json.dumps(value, default=str)}" for name, value in line.items()]
    return " ".join([start, *fields]) + (f"\n{traceback}" if traceback else "")


# The log of requests.

HEADER = b"x-request-id"
_VALID_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_IDS = random.Random()  # noqa: S311 - no secrets, and `secrets` waits for the interpreter's lock at each one


def request_id_of(scope: Scope) -> str:
    """Return the ID in the header `X-Request-ID` if it is valid, else a new one of 32 hexadecimal digits."""
    for name, value in scope["headers"]:
        if name == HEADER and _VALID_ID.fullmatch(value):
            return str(value, "ascii")
    return f"{_IDS.getrandbits(128):032x}"


class RequestLog:
    """ASGI middleware, the outermost: give each request an ID and a log line, and exceptions a response.

    Args:
        app: the application inside.
        style: of the lines.
        stream: to write the lines to; None: stderr.
    """

    def __init__(self, app: ASGIApp, style: LogStyle, stream: TextIO | None = None) -> None:
        self._app, self._style = app, style
        self._log = _line_logger(style, stream or sys.stderr)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request_context = RequestContext(request_id_of(scope))
        begin(request_context)
        exchange = _Exchange(receive, send, request_context.request_id)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:  # whatever it is: the client gets an error body, the log gets the rest
            await self._on_error(scope, exchange, request_context)
        finally:
            self._record(scope, exchange, request_context)

    async def _on_error(self, scope: Scope, exchange: "_Exchange", request_context: RequestContext) -> None:
        request_id = request_context.request_id
        get_logger().exception("a request failed", request_id=request_id, path=shown_path(scope))
        if not exchange.status:
            request_context.codes["internal"] += 1
            metrics.ERRORS.labels("internal").inc()
            await exchange.send_json(500, error_body(**INTERNAL))
        elif not exchange.complete:
            raise ConnectionAbortedError("the response had begun; it cannot be completed")

    def _record(self, scope: Scope, exchange: "_Exchange", request_context: RequestContext) -> None:
        """Count the request in the metrics, and log it."""
        ended = time.perf_counter_ns()
        status, path = exchange.status or _CLIENT_GONE, route_of(scope)
        if path in QUIET_PATHS and status < 500:
            return
        seconds = (ended - request_context.began) / 1e9
        _observe(path, status, seconds, ended, request_context)
        if self._style is LogStyle.OFF:
            return
        fields = _fields(scope, exchange, request_context, status, seconds)
        try:
            getattr(self._log, _level(status))("request", **fields)
        except (OSError, ValueError):  # a closed stream is no reason to refuse service
            self._style = LogStyle.OFF


def _line_logger(style: LogStyle, stream: TextIO) -> Any:
    """Return a logger of requests that writes lines to `stream`; bound once, since every request uses it."""
    processors = _renderers(style) if style is LogStyle.JSON else [*_renderers(style)[:-1], _render_request]
    return structlog.wrap_logger(
        structlog.WriteLogger(stream),
        processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    ).bind()


def _render_request(_: Any, __: str, line: EventDict) -> str:
    """Return the line of a request for people."""
    errors = " ".join(f"{count}×{code}" for code, count in line["errors"].items())
    path = re.sub(r"[^!-~]", "?", line["path"])  # keeps line breaks and control codes out
    return (
        f"{line['time']} {line['status']} {line['method']} {path} {line['tiles']} tiles "
        f"{line['bytes']} bytes {line['seconds'] * 1000:.1f} ms {line['request_id']} {errors}"
    ).rstrip()


class _Exchange:
    """Counts what goes in and out of one request."""

    __slots__ = ("_id", "_receive", "_send", "complete", "received", "status")

    def __init__(self, receive: Receive, send: Send, request_id: str) -> None:
        self._receive, self._send, self._id = receive, send, request_id.encode()
        self.received = 0  # bytes
        self.status = 0
        self.complete = False

    async def receive(self) -> Message:
        message = await self._receive()
        self.received += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (HEADER, self._id)]
        elif message["type"] == "http.response.body":
            self.complete = not message.get("more_body", False)
        await self._send(message)

    async def send_json(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


def route_of(scope: Scope) -> str:
    """Return the path of the route of a request, with the names of its parameters; `other` if none."""
    path: str = getattr(scope.get("route"), "path", "")
    return OTHER if not path or ":path}" in path else path


def shown_path(scope: Scope) -> str:
    """Return the path to log: the route's (the ID of a task is secret), or that of an unknown route, cut."""
    path = route_of(scope)
    return str(scope["path"])[:_MAX_PATH] if path == OTHER else path


def _observe(path: str, status: int, seconds: float, ended: int, request_context: RequestContext) -> None:
    """Count a request in the metrics."""
    metrics.requests_of(path, status, request_context.model).inc()
    metrics.request_seconds_of(path, request_context.model).observe(seconds)
    if request_context.answered and request_context.tiles:
        receiving = request_context.submitted - request_context.began
        writing = ended - request_context.answered
        metrics.seconds_of("receive").observe(receiving / 1e9 / request_context.tiles)
        metrics.seconds_of("write").observe(writing / 1e9 / request_context.tiles)


def _fields(
    scope: Scope, exchange: _Exchange, request_context: RequestContext, status: int, seconds: float
) -> dict[str, Any]:
    """Return the fields of a request's log line."""
    fields = {
        "request_id": request_context.request_id,
        "method": scope["method"],
        "path": shown_path(scope),
        "status": status,
        "seconds": round(seconds, 6),
        "bytes": exchange.received,
        "tiles": request_context.tiles,
        "model": request_context.model,
        "errors": dict(request_context.codes),
    }
    if request_context.span is not None:
        fields["trace_id"] = format(request_context.span.get_span_context().trace_id, "032x")
    return fields


def _level(status: int) -> str:
    return "info" if status < 500 else "error" if status == 500 else "warning"
