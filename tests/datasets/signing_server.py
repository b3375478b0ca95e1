"""A stand-in for the Planetary Computer: it signs, and its storage refuses old signatures.

It is an HTTP proxy, so that addresses of the real storage's host lead to it. It is a process of its own: GDAL
holds Python's lock while it opens a file.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

VALID_S = 4.0  # how long the storage takes a signature
_TOLD_S = 61.0  # what the signer tells: the package renews it when less than a minute is left
_LOG = ".signed"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        if parts.path.startswith("/token/"):
            self._sign()
            return
        signed = float(parse_qs(parts.query).get("sig", ["0"])[0])
        path = self.folder / Path(parts.path).name
        if time.time() - signed > VALID_S:
            self._send(403, b"signature expired", {})
        elif not path.is_file():
            self._send(404, b"", {})
        else:
            self._send_file(path.read_bytes())

    def _sign(self) -> None:
        with (self.folder / _LOG).open("a") as log:
            log.write(f"{self.path}\n")
        until = datetime.now(UTC) + timedelta(seconds=_TOLD_S)
        token = f"st=a&se=b&sp=r&sig={time.time():.3f}"
        body = json.dumps({"msft:expiry": until.isoformat(), "token": token}).encode()
        self._send(200, body, {"Content-Type": "application/json"})

    def _send_file(self, content: bytes) -> None:
        wanted = self.headers.get("Range")
        if not wanted:
            self._send(200, content, {"Accept-Ranges": "bytes"})
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last) + 1 if last else None]
        told = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        self._send(206, part, {"Content-Range": told, "Accept-Ranges": "bytes"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            with suppress(ConnectionError):
                self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def signatures(folder: Path) -> int:
    """How many signatures were given."""
    return len((folder / _LOG).read_text().splitlines())


@contextmanager
def signing_storage(folder: Path) -> Iterator[str]:
    """Serve a folder as storage; yield the URL of the proxy, whose path /token is the signer."""
    with subprocess.Popen(
        [sys.executable, __file__, str(folder)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def main() -> None:
    handler = type("SigningHandler", (_Handler,), {"folder": Path(sys.argv[1])})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        print(httpd.server_address[1], flush=True)
        httpd.serve_forever()


if __name__ == "__main__":
    main()
