"""A real service under attack: its processes, its memory, and raw connections to it."""

import asyncio
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

PROJECT = Path(__file__).resolve().parents[2]
PATIENCE_S = 20.0
SETTINGS = {
    "TILEWISE_WORKERS": "2",
    "TILEWISE_HEAD_SECONDS": "2",
    "TILEWISE_BODY_SECONDS": "2",
    "TILEWISE_TURNOVER": "1000",
    "TILEWISE_REFUSED_RATE": "0",  # what is refused is what is tried
}


@dataclass(frozen=True)
class Heard:
    """An answer: its status (0: none came), head and body, and whether the connection can be used again."""

    status: int
    head: bytes = b""
    body: bytes = b""
    goes_on: bool = False

    @property
    def fault(self) -> str:
        """What must not be about it, or nothing."""
        if self.status == 503 and b"retry-after:" in self.head:
            return ""
        if self.status >= 500:
            return f"HTTP {self.status}"
        described = self.body.startswith(b'{"openapi"')  # its examples name all errors
        return "internal" if b'"error":{"code":"internal"' in self.body and not described else ""


async def ask(
    port: int,
    content: bytes,
    streams: "Streams | None" = None,
    address: str = "127.0.0.1",
    patience: float = PATIENCE_S,
) -> tuple[Heard, "Streams | None"]:
    """Send a request; return the answer and the connection, if it lives.

    Args:
        port: of the service.
        content: the bytes of the request.
        streams: the connection; None: a new one.
        address: that a new connection comes from; on Linux, any that begins with 127.
        patience: seconds that the answer may take.
    """
    try:
        async with asyncio.timeout(patience):
            streams = streams or await asyncio.open_connection(
                "127.0.0.1", port, limit=2**24, local_addr=(address, 0)
            )
            reader, writer = streams
            writer.write(content)
            with suppress(ConnectionError):  # it may answer before it has read all
                await writer.drain()
            heard = await _hear(reader, content.startswith(b"HEAD "))
    except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError, ValueError):
        heard = Heard(0)
    if heard.goes_on or streams is None:
        return heard, streams
    streams[1].close()
    return heard, None


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _hear(reader: asyncio.StreamReader, only_head: bool) -> Heard:
    head = b"HTTP/1.1 100 "
    while head.startswith(b"HTTP/1.1 100 "):
        head = await reader.readuntil(b"\r\n\r\n")
    low = head.lower()
    status = int(head.split(b" ", 2)[1])
    length = re.search(rb"content-length: (\d+)", low)
    body = b"" if only_head or not length else await reader.readexactly(int(length.group(1)))
    return Heard(status, low, body, bool(length) and b"connection: close" not in low)


class Workers:
    """The processes that serve, and their memory over time."""

    def __init__(self, parent: psutil.Process) -> None:
        self._parent = parent
        self.at_start = self.ids()
        self.history: list[float] = []

    def ids(self) -> set[int]:
        """Return the processes that listen and answer."""
        return {process.pid for process in self._processes()}

    def _processes(self) -> list[psutil.Process]:
        found = []
        for process in self._parent.children(recursive=True):
            with suppress(psutil.Error):
                if "_bentoml_impl.worker.service" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    @property
    def megabytes(self) -> float:
        """Memory of all, in MB: what each has for itself and a share of what they share."""
        total = 0.0
        for process in self._processes():
            with suppress(psutil.Error):
                total += process.memory_info().rss / 1e6
        return total

    @property
    def processor_seconds(self) -> float:
        """Seconds of processor that all have taken."""
        total = 0.0
        for process in self._processes():
            with suppress(psutil.Error):
                total += sum(process.cpu_times()[:2])
        return total

    def note(self) -> None:
        """Note their memory."""
        self.history.append(self.megabytes)


@contextmanager
def serving(
    model: Path,
    folder: Path,
    trace: Path | None = None,
    project: Path = PROJECT,
    settings: Mapping[str, str] = SETTINGS,
    max_file_bytes: int = resource.RLIM_INFINITY,
) -> Iterator[tuple[int, psutil.Process]]:
    """Serve `model` for the length of the block; give the port and the process that was started.

    Args:
        model: a model file.
        folder: for what BentoML keeps, and the log.
        trace: file into which strace writes which files and connections are opened.
        project: the checkout whose service is started.
        settings: environment variables TILEWISE_….
        max_file_bytes: the largest file that the service can write, as if the disk were full beyond it.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", str(port)]
    if trace:
        command = f"strace -f -qq -s 300 -e trace=openat,open,connect -o {trace}".split() + command
    paths = {"TILEWISE_MODEL": str(model.resolve()), "BENTOML_HOME": str(folder), "PYTHONPATH": str(project)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=project,
            env=os.environ | settings | paths,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_until_ready(port, process, folder / "log")
        started = psutil.Process(process.pid)
        for one in (started, *started.children(recursive=True)):
            resource.prlimit(one.pid, resource.RLIMIT_FSIZE, (max_file_bytes, resource.RLIM_INFINITY))
        yield port, started
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the processes of the service, and no other."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        with suppress(subprocess.TimeoutExpired):
            process.wait(15)
            return


def wait_until_ready(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the service answers, a minute and a half at most."""
    for _ in range(450):
        if process.poll() is not None:
            break
        with suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False, timeout=5).status_code == 200:
                time.sleep(2)  # the other process
                return
        time.sleep(0.2)
    sys.exit(f"the service did not become ready:\n{log.read_text(errors='replace')[-3000:]}")
