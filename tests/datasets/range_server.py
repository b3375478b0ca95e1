"""A real HTTP server that gives files by ranges, as object stores do, and notes what it was asked.

It is a process of its own: GDAL holds Python's lock while it opens a file, so a thread could not answer it.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_LOG = ".asked"
_DOWN = ".down"


@dataclass(frozen=True)
class FileServer:
    """What is served, and where."""

    folder: Path
    url: str

    @property
    def asked(self) -> list[tuple[str, str, str | None]]:
        """The verb, the path and the Range of each request."""
        return [tuple(json.loads(line)) for line in (self.folder / _LOG).read_text().splitlines()]

    def go_down(self) -> None:
        """Answer 503 from now on."""
        (self.folder / _DOWN).touch()


class RangesHandler(BaseHTTPRequestHandler):
    """Gives the files of a folder, whole or by ranges."""

    protocol_version = "HTTP/1.1"
    folder: Path

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        wanted = self.headers.get("Range")
        with (self.folder / _LOG).open("a") as log:
            log.write(json.dumps([self.command, self.path, wanted]) + "\n")
        path = self.folder / self.path.lstrip("/").partition("?")[0]
        if (self.folder / _DOWN).exists():
            self._send(503, b"", {})
        else:
            self._send_file(path)

    def _send_file(self, path: Path) -> None:
        if not path.is_file():
            self._send(404, b"", {})
            return
        wanted, content = self.headers.get("Range"), path.read_bytes()
        told = {"ETag": f'"{len(content)}-{sum(content)}"', "Accept-Ranges": "bytes"}
        if not wanted:
            self._send(200, content, told)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last) + 1 if last else None]
        told["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        self._send(206, part, told)

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


@contextmanager
def serving_files(folder: Path) -> Iterator[FileServer]:
    """Serve a folder for the length of the block."""
    (folder / _LOG).touch()
    with started(Path(__file__), folder) as url:
        yield FileServer(folder, url)


@contextmanager
def started(script: Path, folder: Path) -> Iterator[str]:
    """Run a script that calls `serve` for the length of the block; yield the server's URL."""
    command = [sys.executable, str(script), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def serve(kind: type[RangesHandler]) -> None:
    """Serve the folder that the command line names, for ever; print the port first."""
    handler = type("Handler", (kind,), {"folder": Path(sys.argv[1])})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        print(httpd.server_address[1], flush=True)
        httpd.serve_forever()


if __name__ == "__main__":
    serve(RangesHandler)
