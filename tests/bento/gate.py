"""A small real HTTP server that stands before the service: it lets requests by, refuses some, hangs up on
some."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx


@dataclass
class Gate:
    """What passes the gate, and what does not.

    Attributes:
        url: where it listens.
        behind: the service's URL.
        refusals: what becomes of the next requests, one each: a status and headers, or None to hang up. With
            the header
            `Connection: close` a body is left unread, as a service does that has no room for it.
        meet: requests that must have come before any of them is let by.
        arrivals: when each request came, in seconds of a monotonic clock.
        lengths: of their bodies, in bytes.
        max_at_once: requests that were inside together.
    """

    url: str
    behind: str
    refusals: list[tuple[int, dict[str, str]] | None] = field(default_factory=list)
    meet: threading.Barrier | None = None
    arrivals: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    max_at_once: int = 0
    inside: int = 0
    lock: Any = field(default_factory=threading.Lock)


@contextmanager
def gate_before(behind: str) -> Iterator[Gate]:
    """Open a gate before the service at `behind` for the length of the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    gate = Gate(f"http://127.0.0.1:{server.server_address[1]}", behind)
    server.RequestHandlerClass = _handler(gate)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield gate
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(gate: Gate) -> Callable[..., BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            with gate.lock:
                refusal = gate.refusals.pop(0) if gate.refusals else ()
            unread = bool(refusal and "Connection" in refusal[1])
            body = b"" if unread else self.rfile.read(int(self.headers.get("content-length", 0)))
            with gate.lock:
                gate.arrivals.append(time.monotonic())
                gate.lengths.append(len(body))
                gate.inside += 1
                gate.max_at_once = max(gate.max_at_once, gate.inside)
            try:
                self._answer(body, refusal)
            finally:
                with gate.lock:
                    gate.inside -= 1

        do_GET = do_POST  # noqa: N815 - the base class calls it so

        def _answer(self, body: bytes, refusal: Any) -> None:
            if refusal is None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            elif refusal:
                self._send(
                    refusal[0], refusal[1], b'{"error": {"code": "overloaded", "message": "no", "hint": ""}}'
                )
            else:
                self._forward(body)

        def _forward(self, body: bytes) -> None:
            if gate.meet:
                gate.meet.wait(20)
            overrides = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            answer = httpx.request(
                self.command,
                gate.behind + self.path,
                content=body,
                headers=overrides,
                trust_env=False,
                timeout=30,
            )
            passed = {
                n: v for n, v in answer.headers.items() if n not in ("content-length", "date", "connection")
            }
            self._send(answer.status_code, passed, answer.content)

        def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
