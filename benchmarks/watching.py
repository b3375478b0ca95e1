"""What watching costs: CPU a tile with the logs and the drift that are on by default, and without.

    python benchmarks/watching.py --model demo/run/model.onnx

Two services run side by side and are asked in turns of a second, so that what else the machine does meets
both alike.
Before that, what the two take by themselves, in this process: the log around an application that does
nothing, with its metrics, and the drift of tiles that come one at a time.
"""

import argparse
import asyncio
import io
import os
import statistics
import tempfile
import time
import timeit
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import uvloop
from load import multipart
from load import run as load_service
from serve import cpu_seconds, free_port, make_files, running, servers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

os.environ["PROMETHEUS_MULTIPROC_DIR"] = (
    tempfile.mkdtemp()
)  # before they are made: metrics as a service has them

from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.uploads import Batch
from tilewise.bento.monitoring.drift import Drift
from tilewise.bento.monitoring.logs import LogStyle, RequestLog
from tilewise.datasets.acquire.synthetic import synthesise_tile
from tilewise.models.model_file import usable_cores

OFF = {"TILEWISE_LOG": "off", "TILEWISE_DRIFT_WINDOW": "0"}


@contextmanager
def environment(settings: dict[str, str]) -> Iterator[None]:
    """Set variables for the processes that are started within the block."""
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in settings:
            del os.environ[name]


def bare_log(requests: int = 2000) -> float:
    """Return the CPU-microseconds a request of the log, its metrics included."""

    async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None: ...

    async def ask(app: ASGIApp) -> None:
        for _ in range(requests):
            await app({"type": "http", "method": "GET", "path": "/", "headers": []}, receive, send)

    def seconds(app: ASGIApp) -> float:
        return min(timeit.repeat(lambda: asyncio.run(ask(app)), time.process_time, repeat=7, number=1))

    return (seconds(RequestLog(nothing, LogStyle.JSON, io.StringIO())) - seconds(nothing)) / requests * 1e6


def bare_drift(model: Path, tiles: int = 2000) -> float:
    """Return the CPU-microseconds a tile of the drift."""
    engine = Engine(model, threads=1)
    drift = Drift(lambda: engine, 4096, 256)
    batch = Batch([], [synthesise_tile("Forest", 1, 1)], [])
    look = timeit.repeat(lambda: drift.observe(batch), time.process_time, repeat=7, number=tiles)
    return min(look) / tiles * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--turns", type=int, default=30, help="Of a second, for each of the two.")
    arguments = parser.parse_args()
    print(f"log: {bare_log():.0f} µs a request; drift: {bare_drift(arguments.model):.0f} µs a tile")
    requests = [multipart([file]) for file in make_files(60)]
    found: dict[str, list[float]] = {"on": [], "off": []}
    with ExitStack() as stack:
        services: dict[str, tuple[int, psutil.Process]] = {}
        for name, settings in (("on", {}), ("off", OFF)):
            port = free_port()
            with environment(settings):
                service = running(servers(port, usable_cores())[0], port, arguments.model)
                services[name] = port, stack.enter_context(service)
        for turn in range(arguments.turns + 1):  # the first one warms up
            for name, (port, process) in services.items():
                before = cpu_seconds(process)
                load = uvloop.run(load_service(port, requests, arguments.connections, 1.0))
                if turn:
                    found[name].append((cpu_seconds(process) - before) / len(load.latencies) * 1000)
    for name, values in found.items():
        print(
            f"{name}: {statistics.median(values):.3f} CPU-ms a tile, {min(values):.3f} to {max(values):.3f}"
        )


if __name__ == "__main__":
    main()
