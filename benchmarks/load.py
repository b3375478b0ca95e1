"""A load generator that costs little: keep-alive connections that send the same bytes and count the
answers."""

import asyncio
import socket
import time
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Load:
    """What a run of requests gave.

    Attributes:
        seconds: how long it ran.
        latencies: seconds of each request that was answered with 200.
        errors: how many were not, by what came instead.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)

    def percentile(self, share: float) -> float:
        """Return a percentile of the latencies, in milliseconds."""
        return float(np.percentile(self.latencies, share) * 1000) if self.latencies else float("nan")

    def note_error(self, what: str) -> None:
        """Count a request that was not answered with 200."""
        self.errors[what] = self.errors.get(what, 0) + 1


def multipart(files: list[tuple[str, bytes]], path: str = "/classify", host: str = "127.0.0.1") -> bytes:
    """Return the bytes of a POST with `files` in the field `tiles`."""
    mark = b"----tilewise-benchmark"
    body = b"".join(
        b'--%b\r\nContent-Disposition: form-data; name="tiles"; filename="%b"\r\n'
        b"Content-Type: image/tiff\r\n\r\n%b\r\n" % (mark, name.encode(), content)
        for name, content in files
    )
    return post(path, b"multipart/form-data; boundary=" + mark, body + b"--%b--\r\n" % mark, host)


def post(path: str, kind: bytes, body: bytes, host: str = "127.0.0.1") -> bytes:
    """Return the bytes of a POST of `body`."""
    head = b"POST %b HTTP/1.1\r\nHost: %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
    return head % (path.encode(), host.encode(), kind, len(body)) + body


async def run(
    port: int, requests: list[bytes], connections: int, seconds: float, limit: int | None = None
) -> Load:
    """Send `requests` in turn over `connections` connections for `seconds`, or until `most` were sent."""
    load = Load()
    started = time.perf_counter()
    left = [limit if limit is not None else 2**62]
    await asyncio.gather(
        *(_connection(port, requests, i, started + seconds, left, load) for i in range(connections))
    )
    load.seconds = time.perf_counter() - started
    return load


async def _connection(
    port: int, requests: list[bytes], start: int, until: float, left: list[int], load: Load
) -> None:
    streams = None
    turn = start
    while time.perf_counter() < until and left[0] > 0:
        left[0] -= 1
        request, turn = requests[turn % len(requests)], turn + 1
        began = time.perf_counter()
        try:
            if streams is None:
                streams = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
                streams[1].get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            status, keep = await asyncio.wait_for(_exchange(*streams, request), timeout=60)
        except (TimeoutError, OSError, EOFError, asyncio.LimitOverrunError) as error:
            load.note_error(type(error).__name__)
            status, keep = 0, False
        if status == 200:
            load.latencies.append(time.perf_counter() - began)
        elif status:
            load.note_error(f"HTTP {status}")
        if not keep and streams is not None:
            streams[1].close()
            streams = None
    if streams is not None:
        streams[1].close()


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> tuple[int, bool]:
    """Send a request, read the whole answer, and return its status and whether the connection stays open."""
    writer.write(request)
    await writer.drain()
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
    await reader.readexactly(length)
    return int(head.split(b" ", 2)[1]), b"connection: close" not in head
