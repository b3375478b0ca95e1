"""Logs: a request id for every answer, one line on stderr for every request, and errors with their traceback.

Nothing that a client sent is logged but its request id, the method, and a path that the service does not know: no file
names, keys, queries or bodies.
"""

import json
import logging
import re
import secrets
import sys
import time
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TextIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tilewise.bento import metrics
from tilewise.bento.errors import INTERNAL, error_body
from tilewise.bento.request_context import RequestContext, begin

HEADER = b"x-request-id"
_SOUND = re.compile(rb"[A-Za-z0-9._-]{1,128}")


def request_id_of(scope: Scope) -> str:
    """Return the id in the request's header `X-Request-ID`, or a new one of 32 hexadecimal digits."""
    for name, value in scope["headers"]:
        if name == HEADER and _SOUND.fullmatch(value):
            return str(value, "ascii")
    return secrets.token_hex(16)


QUIET_PATHS = frozenset({"/livez", "/readyz", "/healthz", "/metrics"})
"""Asked every few seconds by machines: logged only where they fail."""
OTHER = "other"
_LONGEST_PATH = 200
_GONE = 499  # nginx's status for a client that left before it was answered
_LOG = logging.getLogger("tilewise")


class LogStyle(StrEnum):
    """How requests are logged; what goes wrong is logged in any style."""

    JSON = "json"
    TEXT = "text"
    OFF = "off"


def style_of(overrides: str | None, stream: TextIO) -> LogStyle:
    """Return how to log where `said` is the setting: JSON, but to people at a terminal only what goes wrong."""
    if overrides:
        return LogStyle(overrides)
    return LogStyle.OFF if stream.isatty() else LogStyle.JSON


def configure(style: LogStyle) -> None:
    """Let all that the project's modules log go to stderr in `style`."""
    handler = logging.StreamHandler(sys.stderr)
    if style is LogStyle.JSON:
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(TextFormatter("%(asctime)s %(levelname)s %(message)s"))
    _LOG.handlers = [handler]
    _LOG.setLevel(logging.INFO)
    _LOG.propagate = False


class JsonFormatter(logging.Formatter):
    """Makes one line of JSON of a record; what stands in its `extra={"fields": {…}}` comes along."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {"time": timestamp(record.created), "level": record.levelname.lower(), "message": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """Makes a line for people of a record; what stands in its `extra={"fields": {…}}` comes behind it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line; a traceback comes after it."""
        fields = getattr(record, "fields", {})
        told = [
            f"{name}={json.dumps(value, default=str)}" for name, value in fields.items()
        ]  # a terminal's codes stay out
        return " ".join([super().formatMessage(record), *told])


class RequestLog:
    """ASGI middleware, the outermost of ours: gives a request its id and its line, and an error its form.

    Args:
        style: of the lines.
        stream: that they are written to; None: stderr.
    """

    def __init__(self, app: ASGIApp, style: LogStyle, stream: TextIO | None = None) -> None:
        self._app, self._style = app, style
        self._stream = stream or sys.stderr

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request_context = RequestContext(request_id_of(scope))
        begin(request_context)
        exchange = _Exchange(receive, send, request_context.request_id)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:  # whatever it was: the client gets the one form of an error, the log the rest
            await self._on_error(scope, exchange, request_context)
        finally:
            self._record(scope, exchange, request_context)

    async def _on_error(self, scope: Scope, exchange: "_Exchange", request_context: RequestContext) -> None:
        fields = {"request_id": request_context.request_id, "path": shown_path(scope)}
        _LOG.exception("a request failed (request id %s)", request_context.request_id, extra={"fields": fields})
        if not exchange.status:
            request_context.codes["internal"] += 1
            metrics.ERRORS.labels("internal").inc()
            await exchange.send_json(500, error_body(**INTERNAL))
        elif not exchange.whole:
            raise ConnectionAbortedError("the answer had begun; it cannot be mended")

    def _record(self, scope: Scope, exchange: "_Exchange", request_context: RequestContext) -> None:
        ended = time.perf_counter_ns()
        status = exchange.status or _GONE
        path = route_of(scope)
        if path in QUIET_PATHS and status < 500:
            return
        metrics.requests_of(path, status, request_context.model).inc()
        seconds = (ended - request_context.began) / 1e9
        metrics.request_seconds_of(path, request_context.model).observe(seconds)
        if request_context.answered and request_context.tiles:
            metrics.seconds_of("receive").observe(
                (request_context.submitted - request_context.began) / 1e9 / request_context.tiles
            )
            metrics.seconds_of("write").observe((ended - request_context.answered) / 1e9 / request_context.tiles)
        if self._style is LogStyle.OFF:
            return
        line = _line(scope, exchange, request_context, status, seconds)
        text = json.dumps(line) if self._style is LogStyle.JSON else _as_text(line)
        try:
            self._stream.write(text + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # nobody reads any more: no reason to refuse service
            self._style = LogStyle.OFF


class _Exchange:
    """What goes in and out of one request."""

    __slots__ = ("_id", "_receive", "_send", "status", "taken", "whole")

    def __init__(self, receive: Receive, send: Send, request_id: str) -> None:
        self._receive, self._send, self._id = receive, send, request_id.encode()
        self.taken = 0
        self.status = 0
        self.whole = False

    async def receive(self) -> Message:
        message = await self._receive()
        self.taken += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self._id)]
        elif message["type"] == "http.response.body":
            self.whole = not message.get("more_body", False)
        await self._send(message)

    async def send_json(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


def route_of(scope: Scope) -> str:
    """Return the path of the route that serves a request, without its parameters' values; `other` where none does."""
    path: str = getattr(scope.get("route"), "path", "")
    return OTHER if not path or ":path}" in path else path


def shown_path(scope: Scope) -> str:
    """Return the path as the log shows it: a task's id opens the task, so a known route shows its pattern."""
    path = route_of(scope)
    return str(scope["path"])[:_LONGEST_PATH] if path == OTHER else path


def timestamp(seconds: float) -> str:
    """Return seconds since 1970 as ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _line(
    scope: Scope, exchange: _Exchange, request_context: RequestContext, status: int, seconds: float
) -> dict[str, Any]:
    line = {
        "time": timestamp(time.time()),
        "level": _level(status),
        "message": "request",
        "request_id": request_context.request_id,
        "method": scope["method"],
        "path": shown_path(scope),
        "status": status,
        "seconds": round(seconds, 6),
        "bytes": exchange.taken,
        "tiles": request_context.tiles,
        "model": request_context.model,
        "errors": dict(request_context.codes),
    }
    if request_context.span is not None:
        line["trace_id"] = format(request_context.span.get_span_context().trace_id, "032x")
    return line


def _level(status: int) -> str:
    return "info" if status < 500 else "error" if status == 500 else "warning"


def _as_text(line: dict[str, Any]) -> str:
    errors = " ".join(f"{count}×{code}" for code, count in line["errors"].items())
    path = re.sub(r"[^!-~]", "?", line["path"])  # a line stays a line, and a terminal's codes stay out
    milliseconds = line["seconds"] * 1000
    return (
        f"{line['time']} {line['status']} {line['method']} {path} {line['tiles']} tiles {line['bytes']} bytes "
        f"{milliseconds:.1f} ms {line['request_id']} {errors}"
    ).rstrip()
