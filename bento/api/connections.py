"""Limits of connections: their number, and the size and the time of a request's head.

uvicorn has none of these: a client that opens connections and sends nothing, or endless headers, would keep
them and their memory for ever (slowloris). A reverse proxy has such limits too, but the service must be safe
without one.
"""

import json
import resource
from asyncio import TimerHandle, Transport
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from tilewise.bento.api.middleware import ALWAYS, DEFAULTS
from tilewise.bento.errors import error_body
from tilewise.bento.serving.admission import network_of

_SPARE_FILES = 128  # the model, logs, metrics and the loop's own
_LINGER_SECONDS = 5.0
_DRAIN_SECONDS = 2.0  # an idle client may have sent a request that has not arrived
_PHRASES = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of connections.

    Attributes:
        max_connections: open at once in each process; half of them from one address (of IPv6, a /64).
        head_seconds: from when a request may begin until its head is complete.
        max_head_bytes: of a request's line and headers; the packet in which they begin is not counted.
    """

    max_connections: int = 1000
    head_seconds: float = 10.0
    max_head_bytes: int = 64 * 1024


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol within limits."""

    limits = ConnectionLimits()
    _open_from: ClassVar = Counter[str]()  # connections of this process by address

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: TimerHandle | None = None
        self._in_head, self._head_bytes, self._draining = True, 0, False
        self._cycles: list[RequestResponseCycle] = []  # requests in progress; several if they are pipelined

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Accept a connection, unless there are too many."""
        super().connection_made(transport)
        self._address = network_of(self.client[0] if self.client else "")
        self._open_from[self._address] += 1
        limit, mine = self.limits.max_connections, self._open_from[self._address]
        if len(self.connections) > limit or mine > max(limit // 2, 1):
            transport.abort()
        else:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up, and mark all requests of the connection as disconnected."""
        self._stop_timer()
        self._disconnect_requests()
        self._open_from[self._address] -= 1
        if not self._open_from[self._address]:
            del self._open_from[self._address]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse bytes."""
        if self.transport.is_closing():
            return
        was_in_head = self._in_head
        super().data_received(data)
        if was_in_head and self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.max_head_bytes:
                self._refuse(
                    431, "head_too_large", f"headers of more than {self.limits.max_head_bytes:,} bytes"
                )

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Begin to serve a request."""
        self._in_head = False
        self._stop_timer()
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts != 1 and self.parser.get_http_version() == "1.1":
            raise ValueError(
                "not one Host"
            )  # which the parser turns into `send_400_response` (RFC 9112, 3.2)
        super().on_headers_complete()
        if self._draining:
            self.cycle.keep_alive = False
        self._cycles = [cycle for cycle in self._cycles if not cycle.response_complete] + [self.cycle]

    def on_response_complete(self) -> None:
        """Wait for the next request; the rest of this one's body must arrive in that time, too."""
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self._wait_for_head()

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are not HTTP."""
        self._refuse(400, "bad_request", "this is not an HTTP/1.1 request with one Host")

    def shutdown(self) -> None:
        """Serve what is in progress and, on an idle connection, a request that is on its way; then close."""
        if self.cycle is not None and not self.cycle.response_complete:
            super().shutdown()
            return
        self._draining = True
        self._stop_timer()
        self.loop.call_later(_DRAIN_SECONDS, self._close_idle)

    def _close_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _should_upgrade_to_ws(self) -> bool:
        return False  # the service has no WebSockets

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: the request is served as if it had not asked for another protocol."""

    def _wait_for_head(self) -> None:
        self._stop_timer()
        self._head_timer = self.loop.call_later(self.limits.head_seconds, self._head_timed_out)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_timed_out(self) -> None:
        if self._head_bytes and self._in_head and (self.cycle is None or self.cycle.response_complete):
            self._refuse(408, "too_slow", f"no complete request within {self.limits.head_seconds:g} seconds")
        else:
            self._close()

    def _disconnect_requests(self) -> None:
        """Mark all requests in progress as disconnected; uvicorn marks only the last of pipelined ones."""
        for cycle in self._cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    def _refuse(self, status: int, code: str, message: str) -> None:
        responding = any(cycle.response_started and not cycle.response_complete for cycle in self._cycles)
        self._disconnect_requests()
        if not responding:  # else it would appear in the middle of another response
            self.transport.write(_refusal(status, code, message))
        self._close()

    def _close(self) -> None:
        self.transport.close()
        self.loop.call_later(_LINGER_SECONDS, self.transport.abort)  # where the client does not read the rest


def _refusal(status: int, code: str, message: str) -> bytes:
    """Return the bytes of an error response, with the headers of every response."""
    body = json.dumps(error_body(code, message)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
        *ALWAYS,
        *DEFAULTS,
    ]
    lines = b"".join(b"%b: %b\r\n" % pair for pair in headers)
    return b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (status, _PHRASES[status].encode(), lines, body)


def bound_connections(limit: int, head_seconds: float) -> None:
    """Make the uvicorn server of this process use `BoundedProtocol`.

    BentoML starts uvicorn without an option for its protocol; uvicorn looks up `auto` in this table when the
    server starts, which is after the service is imported.

    Args:
        limit: connections open at once; fewer where the limit of open files is low.
        head_seconds: from when a request may begin until its head is complete.
    """
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files != resource.RLIM_INFINITY:
        limit = min(limit, max(files - _SPARE_FILES, files // 2))
    BoundedProtocol.limits = ConnectionLimits(limit, head_seconds)
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedProtocol.__name__}"
