"""How the service compares: tilewise, BentoML's own batching, FastAPI and LitServe; one model, one run.

    python benchmarks/serve.py --model fast

Prints, for each server, connections and tiles a request: requests/s, tiles/s, p50 and p99, CPU-milliseconds a
tile (of the server's processes only), tiles a batch, and errors; beside them the floor, reading and inference
bare, in one process.
FastAPI and LitServe come from `pip install fastapi litserve`; a server that is not installed is left out, and
said. All use uvloop and httptools, two processes for two cores, networks of one thread each, and the INT8
file where there is one. FastAPI and LitServe are measured with the reader that their users would write with
rasterio, and with tilewise's.
"""

import argparse
import importlib.util
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import uvloop
from load import Load, multipart
from load import run as send

from tilewise.bento.inference.engine import Engine
from tilewise.datasets.acquire.synthetic import synthesise_tile, write_tile
from tilewise.datasets.core.radiometry import ReadOptions
from tilewise.datasets.readers.eurosat import CLASSES
from tilewise.datasets.readers.geotiff import read_tile
from tilewise.models.model_file import find_model, int8_of, usable_cores

PROJECT = Path(__file__).resolve().parent.parent
DIFFERENT_TILES = 200
START_SECONDS = 90


@dataclass(frozen=True)
class Server:
    """How to start a server, and where it says that it is ready."""

    name: str
    needs: str
    command: list[str]
    ready: str
    reader: str = "tilewise"


def servers(port: int, cores: int) -> list[Server]:
    """Return the servers that are compared, to be started on `port`."""
    uvicorn = [
        "uvicorn",
        "peers.plain_fastapi:app",
        "--port",
        str(port),
        "--workers",
        str(cores),
        "--no-access-log",
    ]
    litserve = [str(PROJECT / "benchmarks/peers/litserve_api.py"), str(port), str(cores)]
    bentoml = ["-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", str(port)]
    return [
        Server("tilewise", "bentoml", bentoml, "/readyz"),
        Server("BentoML batchable", "bentoml", [*bentoml, "peers.bentoml_batchable:Batchable"], "/readyz"),
        Server("FastAPI, rasterio", "fastapi", ["-m", *uvicorn], "/docs", "rasterio"),
        Server("FastAPI, our reader", "fastapi", ["-m", *uvicorn], "/docs"),
        Server("LitServe, rasterio", "litserve", litserve, "/health", "rasterio"),
        Server("LitServe, our reader", "litserve", litserve, "/health"),
    ]


@contextmanager
def running(server: Server, port: int, model: Path) -> Iterator[psutil.Process]:
    """Run a server for the length of the block."""
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {
            "TILEWISE_MODEL": str((model if server.name == "tilewise" else network_of(model)).resolve()),
            "TILEWISE_PRECISION": "int8",
            "PEER_READER": server.reader,
            "BENTOML_HOME": home,
            "BENTOML_DO_NOT_TRACK": "True",
            "PYTHONPATH": f"{PROJECT}{os.pathsep}{PROJECT / 'benchmarks'}",
        }
        with (Path(home) / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *server.command],
                cwd=PROJECT,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until_ready(f"http://127.0.0.1:{port}{server.ready}", process, Path(home) / "log")
            yield psutil.Process(process.pid)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def network_of(model: Path) -> Path:
    """Return the INT8 file beside a model file, or the model file where there is none."""
    return int8_of(model) if int8_of(model).is_file() else model


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until `url` answers, at most START_SECONDS."""
    for _ in range(START_SECONDS * 5):
        if process.poll() is not None:
            break
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    sys.exit(f"{url} never answered:\n{log.read_text(errors='replace')[-3000:]}")


def cpu_seconds(parent: psutil.Process) -> float:
    """Return the CPU seconds that a process and its children have used."""
    total = 0.0
    for process in [parent, *parent.children(recursive=True)]:
        try:
            times = process.cpu_times()
            total += times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return total


def batch_counts(port: int) -> tuple[float, float]:
    """Return (tiles, batches) that tilewise's metrics count so far; zeros for other servers."""
    try:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=5).text
    except httpx.TransportError:
        return 0.0, 0.0
    found = [
        re.search(rf"^tilewise_batch_tiles_{part} (\S+)", text, re.MULTILINE) for part in ("sum", "count")
    ]
    return tuple(float(match.group(1)) if match else 0.0 for match in found)  # type: ignore[return-value]


def make_files(count: int) -> list[tuple[str, bytes]]:
    """Return synthetic GeoTIFF tiles that say everything of themselves."""
    files = []
    with tempfile.TemporaryDirectory() as folder:
        for index in range(count):
            path = Path(folder) / f"tile-{index}.tif"
            write_tile(synthesise_tile(CLASSES[index % len(CLASSES)], index // len(CLASSES) + 1, 0), path)
            files.append((path.name, path.read_bytes()))
    return files


def floor(model: Path, files: list[tuple[str, bytes]], tiles: int, seconds: float) -> tuple[float, float]:
    """Return (tiles/s, CPU-ms a tile) of reading and inference alone, in one process with one thread."""
    engine = Engine(network_of(model), threads=1)
    done, turn = 0, 0
    started, used = time.perf_counter(), time.process_time()
    while time.perf_counter() - started < seconds:
        batch = [files[(turn + i) % len(files)] for i in range(tiles)]
        turn += tiles
        read = [read_tile(content, ReadOptions(), name) for name, content in batch]
        engine.classify(np.stack([tile.pixels for tile in read]))
        done += tiles
    elapsed, cpu = time.perf_counter() - started, time.process_time() - used
    return done / elapsed, cpu / done * 1000


def measure(
    server: Server,
    port: int,
    parent: psutil.Process,
    files: list[tuple[str, bytes]],
    cell: tuple[int, int],
    seconds: float,
) -> str:
    """Load the server, and return its row of the table."""
    connections, tiles = cell
    requests = [
        multipart([files[(start + i) % len(files)] for i in range(tiles)])
        for start in range(0, len(files), max(1, min(tiles, len(files) // 8)))
    ]
    uvloop.run(send(port, requests, connections, min(1.5, seconds / 2)))  # warm up
    cpu, batches = cpu_seconds(parent), batch_counts(port)
    load: Load = uvloop.run(send(port, requests, connections, seconds))
    used, after = cpu_seconds(parent) - cpu, batch_counts(port)
    answered = len(load.latencies)
    mean = (after[0] - batches[0]) / (after[1] - batches[1]) if after[1] > batches[1] else float("nan")
    batch = f"{mean:.1f}" if mean == mean else "–"
    per_tile = used / max(answered * tiles, 1) * 1000
    errors = ", ".join(f"{count} × {what}" for what, count in load.errors.items()) or "0"
    return (
        f"| {server.name} | {connections} | {tiles} | {answered / load.seconds:.0f} "
        f"| {answered * tiles / load.seconds:.0f} | {load.percentile(50):.1f} | {load.percentile(99):.1f} "
        f"| {per_tile:.2f} | {batch} | {errors} |"
    )


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=find_model, required=True)
    parser.add_argument("--connections", default="1,16,64")
    parser.add_argument("--tiles", default="1,16,64")
    parser.add_argument("--seconds", type=float, default=6.0, help="Of each measurement.")
    parser.add_argument("--rounds", type=int, default=1, help="How often everything is measured, in turn.")
    parser.add_argument("--only", help="Servers to measure, separated by `;`.")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    files = make_files(DIFFERENT_TILES)
    cores = usable_cores()
    print(
        f"{time.strftime('%Y-%m-%d')}, {cores} cores of {platform.processor() or platform.machine()}, Python "
        f"{platform.python_version()}, tiles of {np.mean([len(c) for _, c in files]) / 1000:.0f} kB\n"
    )
    print(
        "| server | connections | tiles/request | requests/s | tiles/s | p50 ms | p99 ms | CPU-ms/tile | "
        "tiles/batch "
        "| errors |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---|"
    )
    sizes = [int(n) for n in arguments.tiles.split(",")]
    for _ in range(arguments.rounds):
        for tiles in sizes:
            rate, cpu = floor(arguments.model, files, tiles, arguments.seconds / 2)
            print(
                f"| floor, one core | – | {tiles} | – | {rate:.0f} | – | – | {cpu:.2f} | {tiles} | – |",
                flush=True,
            )
        measure_all(arguments, files, cores, sizes)


def measure_all(
    arguments: argparse.Namespace, files: list[tuple[str, bytes]], cores: int, sizes: list[int]
) -> None:
    """Start the servers one after another and print a row for each cell."""
    port = free_port()
    wanted = arguments.only.split(";") if arguments.only else None
    for server in servers(port, cores):
        if wanted and server.name not in wanted:
            continue
        if importlib.util.find_spec(server.needs) is None:
            print(f"{server.name} is left out: pip install {server.needs}", file=sys.stderr)
            continue
        with running(server, port, arguments.model) as parent:
            for tiles in sizes:
                for connections in (int(n) for n in arguments.connections.split(",")):
                    row = measure(server, port, parent, files, (connections, tiles), arguments.seconds)
                    print(row, flush=True)


if __name__ == "__main__":
    main()
