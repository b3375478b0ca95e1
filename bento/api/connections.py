"""Connections, before there is a request: bounded in number, in the size of a request's head, and in its time.

uvicorn bounds none of these: a client that opens connections and says nothing, or headers without end, would keep them
and their memory for ever (slowloris). A reverse proxy does all that too, but the service must stand without one.
"""

import json
import resource
from asyncio import TimerHandle, Transport
from dataclasses import dataclass
from typing import Any

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from tilewise.bento.api.middleware import ALWAYS, UNLESS_SAID
from tilewise.bento.errors import error_body

_SPARE_FILES = 128  # the model, logs, metrics and the loop's own
_LINGER_SECONDS = 5.0
_PHRASES = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a connection may do.

    Attributes:
        max_connections: open at once in each process.
        head_seconds: from when a request may begin until its head is whole.
        head_bytes: of a request's line and headers; a piece in which they begin is not counted.
    """

    max_connections: int = 1000
    head_seconds: float = 10.0
    head_bytes: int = 64 * 1024


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with limits."""

    limits = Limits()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: TimerHandle | None = None
        self._in_head, self._head_bytes = True, 0
        self._cycles: list[RequestResponseCycle] = []  # requests that are not answered; more than one if pipelined

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Accept a connection, unless there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            transport.abort()
        else:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection, and tell all of its requests."""
        self._stop_waiting()
        self._abandon()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes in."""
        if self.transport.is_closing():
            return
        was_in_head = self._in_head
        super().data_received(data)
        if was_in_head and self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.head_bytes:
                self._refuse(431, "head_too_large", f"headers of more than {self.limits.head_bytes:,} bytes")

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Begin to serve a request."""
        self._in_head = False
        self._stop_waiting()
        super().on_headers_complete()
        self._cycles = [cycle for cycle in self._cycles if not cycle.response_complete] + [self.cycle]

    def on_response_complete(self) -> None:
        """Wait for the next request; what is left of this one's body must come in that time, too."""
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self._wait_for_head()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        self._refuse(400, "bad_request", "this is not an HTTP/1.1 request")

    def _should_upgrade_to_ws(self) -> bool:
        return False  # there are no WebSockets here

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: the request is answered as if it had not asked for another protocol."""

    def _wait_for_head(self) -> None:
        self._stop_waiting()
        self._head_timer = self.loop.call_later(self.limits.head_seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        if self._head_bytes and self._in_head and (self.cycle is None or self.cycle.response_complete):
            self._refuse(408, "too_slow", f"no whole request within {self.limits.head_seconds:g} seconds")
        else:
            self._close()

    def _abandon(self) -> None:
        """Let requests that are worked on know that nobody waits; uvicorn tells the last of pipelined ones alone."""
        for cycle in self._cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    def _refuse(self, status: int, code: str, message: str) -> None:
        begun = any(cycle.response_started and not cycle.response_complete for cycle in self._cycles)
        self._abandon()
        if not begun:  # else it would stand in the midst of another answer
            self.transport.write(_refusal(status, code, message))
        self._close()

    def _close(self) -> None:
        self.transport.close()
        self.loop.call_later(_LINGER_SECONDS, self.transport.abort)  # where the peer does not take what is left


def _refusal(status: int, code: str, message: str) -> bytes:
    """Return a whole answer, with the headers that all have."""
    body = json.dumps(error_body(code, message)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
        *ALWAYS,
        *UNLESS_SAID,
    ]
    lines = b"".join(b"%b: %b\r\n" % pair for pair in headers)
    return b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (status, _PHRASES[status].encode(), lines, body)


def bound_connections(limit: int, head_seconds: float) -> None:
    """Let the uvicorn server of this process serve connections within limits.

    BentoML starts uvicorn without a way to say its protocol; uvicorn looks the one named `auto` up in this table when
    the server starts, which is after the service is imported.
    """
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files != resource.RLIM_INFINITY:
        limit = min(limit, max(files - _SPARE_FILES, files // 2))
    BoundedProtocol.limits = Limits(limit, head_seconds)
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedProtocol.__name__}"
