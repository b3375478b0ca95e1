"""A real HTTP server on this machine that can misbehave as servers on the way do."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Server:
    """What the server sends, where it cuts, and what it was asked."""

    body: bytes
    url: str = ""
    ranges: bool = True
    cut_after: int | None = None  # bytes sent of each body before the connection is cut
    cuts: int = 0  # how many answers are cut
    statuses: list[int] = field(default_factory=list)  # answered first, one per request
    said_length: int | None = None
    says_length: bool = True
    shift: int = 0  # a lie about where a range starts
    redirect_to: str | None = None
    requests: list[str | None] = field(default_factory=list)  # the Range of each request
    paths: list[str] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    plan: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.plan.requests.append(wanted)
        self.plan.paths.append(self.path)
        if self.plan.redirect_to and self.path == "/redirect":
            self._head(302, {"Location": self.plan.redirect_to})
        elif self.plan.statuses:
            self._head(self.plan.statuses.pop(0), {"Content-Length": "0"})
        elif wanted and self.plan.ranges:
            self._send_range(int(wanted.removeprefix("bytes=").removesuffix("-")))
        else:
            self._send(200, self.plan.body, {})

    def _send_range(self, first: int) -> None:
        total = len(self.plan.body)
        if first >= total:
            self._head(416, {"Content-Range": f"bytes */{total}", "Content-Length": "0"})
            return
        first += self.plan.shift
        self._send(206, self.plan.body[first:], {"Content-Range": f"bytes {first}-{total - 1}/{total}"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        if self.plan.says_length:
            headers["Content-Length"] = str(self.plan.said_length or len(body))
        self._head(status, headers)
        if self.plan.cuts:
            self.plan.cuts -= 1
            body = body[: self.plan.cut_after]
        with suppress(ConnectionError):  # the client may have had enough
            self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(body: bytes) -> Iterator[Server]:
    """Serve `body` under every path for the length of the block."""
    plan = Server(body)
    handler = type("PlannedHandler", (_Handler,), {"plan": plan})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        plan.url = f"http://127.0.0.1:{httpd.server_address[1]}"
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield plan
        httpd.shutdown()
        thread.join()
