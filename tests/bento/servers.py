"""A real `bentoml serve` process on a free loopback port, with all that it writes in a folder of its own."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120
STOPPING_S = 10
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Server:
    """Where the service listens, and what it has said so far."""

    url: str
    log: Path


@contextmanager
def served(model: Path, home: Path, **settings: str) -> Iterator[Server]:
    """Serve `model` for the length of the block."""
    with served_by(".", home, TILEWISE_MODEL=str(model), **settings) as server:
        yield server


@contextmanager
def served_by(bento: str, home: Path, cwd: Path = ROOT, **settings: str) -> Iterator[Server]:
    """Serve a bento by its tag, or the project in `cwd` ("."), for the length of the block."""
    server = Server(f"http://127.0.0.1:{free_port()}", home / "log.txt")
    with server.log.open("w") as log:
        process = subprocess.Popen(
            command(server.url, bento),
            cwd=cwd,
            env=os.environ | _own(home) | settings,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_the_tests,
        )
    try:
        _wait_until_ready(server, process)
        yield server
    finally:
        _stop(process)


def command(url: str, bento: str = ".") -> list[str]:
    """Return the command that serves a bento at `url`."""
    port = url.rpartition(":")[2]
    return [sys.executable, "-m", "bentoml", "serve", bento, "--host", "127.0.0.1", "--port", port]


def environment(model: Path, home: Path, **settings: str) -> dict[str, str]:
    """Return the environment of a service whose BentoML keeps its files in `home`."""
    return os.environ | _own(home) | {"TILEWISE_MODEL": str(model)} | settings


def _own(home: Path) -> dict[str, str]:
    refused_rate = {"TILEWISE_REFUSED_RATE": "0"}  # tests are refused often, and do not wait for it
    return {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"} | refused_rate


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_with_the_tests() -> None:
    """Ask Linux to end this process once the tests are gone: when they are killed, they end nothing."""
    if _LIBC:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait_until_ready(server: Server, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(f"{server.url}/readyz", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"the service did not become ready; it said:\n{server.log.read_text()}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the service and the workers that it started, which lead process groups of their own."""
    with suppress(psutil.NoSuchProcess):
        service = psutil.Process(process.pid)
        started = [service, *service.children(recursive=True)]
        service.terminate()
        _, left = psutil.wait_procs(started, STOPPING_S)
        for one in left:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(left, STOPPING_S)
    process.wait()
