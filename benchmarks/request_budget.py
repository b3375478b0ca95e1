"""Where the CPU time of a request goes, from socket to socket.

    python benchmarks/request_budget.py --model fast

Each stage is timed alone, in one thread, by its CPU time (median over different tiles), and the whole in a
worker of the service under load. What remains is the HTTP protocol, the event loop, middleware, log and
switches between threads. Bodies of 64 tiles are measured as a whole, and by an application that only receives
them, per tile.
"""

import argparse
import asyncio
import io
import os
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import uvloop
from load import multipart, post
from load import run as send
from serve import Server, cpu_seconds, free_port, make_files, network_of, running
from starlette.requests import Request

from tilewise.bento.api.bodies import read_tiles
from tilewise.bento.api.replies import reply
from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.uploads import Upload, classify_batch, count, describe
from tilewise.bento.serving.fetching import Fetcher
from tilewise.bento.serving.runtime import BatchObservers, make_releases
from tilewise.bento.settings import Settings
from tilewise.datasets.core.radiometry import ReadOptions
from tilewise.datasets.readers.geotiff import read_tile, read_tile_with_gdal
from tilewise.models.model_file import find_model

TILES = 100
LARGE = 64
File = tuple[str, bytes]


def median_ms(work: Callable[[Any], object], items: list[Any]) -> float:
    """Return the median CPU-milliseconds of this thread for `work` on each item, the best of three rounds."""
    rounds = []
    for _ in range(3):
        times = []
        for item in items:
            began = time.thread_time_ns()
            work(item)
            times.append(time.thread_time_ns() - began)
        rounds.append(float(np.median(times)) / 1e6)
    return min(rounds)


def parse_body(request: bytes, settings: Settings) -> Coroutine[Any, Any, object]:
    """Return the parsing of a request's body."""
    head, _, body = request.partition(b"\r\n\r\n")
    lines = [line.split(b": ", 1) for line in head.split(b"\r\n")[1:]]
    target = head.split(b" ", 2)[1]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/classify",
        "query_string": target.partition(b"?")[2],
        "headers": [(name.lower(), value) for name, value in lines],
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def charge(_: int) -> None:
        """Charge no room: it is counted under `rest`."""

    return read_tiles(Request(scope, receive), settings, 0.9, charge, Fetcher({}, settings.max_bytes))


def stages(model: Path, files: list[File]) -> dict[str, float]:
    """Return the CPU-milliseconds of each stage of a request of one tile."""
    engine = Engine(network_of(model), threads=1)
    uploads = [Upload(name, content) for name, content in files]
    tiles = [read_tile(content, ReadOptions(), name) for name, content in files]
    answers = [engine.classify(tile.pixels[None]) for tile in tiles]
    results = [describe(engine, tile, answer, 0, 0.9) for tile, answer in zip(tiles, answers, strict=True)]
    batches = [classify_batch(engine, [upload]) for upload in uploads]
    settings = Settings(model=str(model))
    observers = BatchObservers.start(settings, make_releases(settings))
    loop = asyncio.new_event_loop()

    def parse(request: bytes) -> None:
        loop.run_until_complete(parse_body(request, settings))

    forms = [multipart([file]) for file in files]
    raw = [post("/classify?name=a.tif", b"image/tiff", content) for _, content in files]
    pairs = list(zip(tiles, answers, strict=True))
    found = {
        "parse a form": median_ms(parse, forms),
        "parse a form of 64 tiles, a tile": median_ms(parse, [multipart(files[:LARGE])] * 9) / LARGE,
        "parse a raw body": median_ms(parse, raw),
        "read": median_ms(lambda file: read_tile(file[1], ReadOptions(), file[0]), files),
        "(read by GDAL)": median_ms(lambda file: read_tile_with_gdal(file[1], ReadOptions(), file[0]), files),
        "infer, one tile": median_ms(lambda tile: engine.classify(tile.pixels[None]), tiles),
        "describe": median_ms(lambda pair: describe(engine, pair[0], pair[1], 0, 0.9), pairs),
        "count in the metrics": median_ms(lambda result: count(engine, result), results),
        "observe: waits, drift": median_ms(observers.observe, batches),
        "encode": median_ms(lambda result: reply({"model": engine.identity, "results": [result]}), results),
    }
    observers.close()
    loop.close()
    return found


def worker_of(parent: psutil.Process) -> psutil.Process:
    """Return the only process that serves."""
    (worker,) = (
        process
        for process in parent.children(recursive=True)
        if "_bentoml_impl.worker.service" in " ".join(process.cmdline())
    )
    return worker


def loaded_ms(
    process: psutil.Process, port: int, requests: list[bytes], connections: int, seconds: float
) -> float:
    """Return the CPU-milliseconds of a process for a request under load."""
    uvloop.run(send(port, requests, connections, 2.0))  # warm up
    began = cpu_seconds(process)
    load = uvloop.run(send(port, requests, connections, seconds))
    return (cpu_seconds(process) - began) * 1000 / max(len(load.latencies), 1)


def whole_ms(model: Path, files: list[File], seconds: float) -> dict[str, float]:
    """Return the CPU-milliseconds of a worker for a request of one tile, by connections and body."""
    port = free_port()
    bentoml = ["-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", str(port)]
    bodies = {
        "form": [multipart([file]) for file in files],
        "raw body": [post("/classify?name=a.tif", b"image/tiff", content) for _, content in files],
    }
    found = {}
    with running(Server("tilewise", "bentoml", bentoml, "/readyz"), port, model) as parent:
        worker = worker_of(parent)
        for connections in (1, 64):
            for kind, requests in bodies.items():
                used = loaded_ms(worker, port, requests, connections, seconds)
                found[f"whole, {kind}, {connections} connections"] = used
    return found


def large_ms(model: Path, files: list[File], seconds: float) -> dict[str, float]:
    """Return the CPU-milliseconds a tile of bodies of 64 tiles: received alone, and answered."""
    array = io.BytesIO()
    np.save(
        array, np.stack([read_tile(content, ReadOptions(), name).pixels for name, content in files[:LARGE]])
    )
    bodies = {
        "64 tiles in a form": multipart(files[:LARGE]),
        "an array of 64 tiles": post("/classify?level=L1C", b"application/octet-stream", array.getvalue()),
    }
    port, alone = free_port(), free_port()
    uvicorn = ["-m", "uvicorn", "peers.receiving:app", "--port", str(alone), "--no-access-log"]
    bentoml = ["-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", str(port)]
    found = {}
    for name, server, where in (
        ("received alone", Server("receiving", "uvicorn", uvicorn, "/"), alone),
        ("whole", Server("tilewise", "bentoml", bentoml, "/readyz"), port),
    ):
        with running(server, where, model) as parent:
            process = parent if server.name == "receiving" else worker_of(parent)
            for kind, body in bodies.items():
                found[f"{kind}, {name}, a tile"] = loaded_ms(process, where, [body], 8, seconds) / LARGE
    return found


def main() -> None:
    """Print the budget."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=find_model, required=True)
    parser.add_argument("--seconds", type=float, default=6.0, help="Of each load.")
    arguments = parser.parse_args()
    files = make_files(TILES)
    os.environ["TILEWISE_WORKERS"] = "1"  # whose CPU time is counted
    budget = stages(arguments.model, files)
    budget |= whole_ms(arguments.model, files, arguments.seconds)
    budget |= large_ms(arguments.model, files, arguments.seconds)
    print(f"{time.strftime('%Y-%m-%d')}\n\n| stage | CPU-ms |\n|---|---:|")
    for stage, milliseconds in budget.items():
        print(f"| {stage} | {milliseconds:.3f} |")


if __name__ == "__main__":
    main()
