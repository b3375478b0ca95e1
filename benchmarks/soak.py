"""How the service bears a long load: failed requests and memory, in one run.

    python benchmarks/soak.py --model demo/run/model.onnx --minutes 10

Connections that never pause send single tiles as multipart, raw tiles, packed arrays, requests of 64 tiles
and, now and then, a broken tile. Every few seconds the memory of the service's processes (proportional set
size) is noted. Exits with 1 where a request failed, a process was restarted, or memory grew by more than 5 %
from the second fifth of the time to the last.
"""

import argparse
import asyncio
import io
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import uvloop
from load import Load, multipart, post
from load import run as send
from serve import batch_counts, cpu_seconds, free_port, make_files, running, servers

from tilewise.datasets.core.radiometry import ReadOptions
from tilewise.datasets.readers.geotiff import read_tile
from tilewise.models.model_file import usable_cores

MAX_GROWTH = 0.05
SAMPLE_SECONDS = 5


def requests_of(files: list[tuple[str, bytes]]) -> list[bytes]:
    """Return the requests that are sent in turn: of 20, 15 single tiles, and one of each further kind or
    so."""
    pixels = np.stack([read_tile(content, ReadOptions(), name).pixels for name, content in files[:16]])
    packed = io.BytesIO()
    np.save(packed, pixels)
    broken = ("broken.tif", files[0][1][: len(files[0][1]) // 2])
    requests = []
    for start in range(0, len(files), 20):
        requests += [multipart([file]) for file in files[start : start + 15]]
        requests += [post("/classify", b"image/tiff", files[start][1]) for _ in range(2)]
        requests.append(post("/classify", b"application/octet-stream", packed.getvalue()))
        requests.append(multipart([files[(start + i) % len(files)] for i in range(64)]))
        requests.append(multipart([files[start], broken]))
    return requests


def memory(parent: psutil.Process) -> float:
    """Return the proportional set size of a process and its children, in MB: shared pages count once."""
    total = 0.0
    for process in [parent, *parent.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total / 1e6


async def soak(
    port: int, requests: list[bytes], connections: int, seconds: float, parent: psutil.Process
) -> tuple[Load, list[tuple[float, float]]]:
    """Load the server for `seconds`; return what came of it, and (seconds, MB) pairs."""
    samples: list[tuple[float, float]] = []
    started = time.perf_counter()

    async def watch() -> None:
        while True:
            samples.append((time.perf_counter() - started, memory(parent)))
            await asyncio.sleep(SAMPLE_SECONDS)

    watcher = asyncio.create_task(watch())
    load = await send(port, requests, connections, seconds)
    watcher.cancel()
    return load, samples


def between(samples: list[tuple[float, float]], start: float, end: float) -> float:
    """Return the median memory between two moments."""
    return statistics.median(size for moment, size in samples if start <= moment <= end)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--connections", type=int, default=64)
    arguments = parser.parse_args()
    port, cores, seconds = free_port(), usable_cores(), arguments.minutes * 60
    requests = requests_of(make_files(200))
    with running(servers(port, cores)[0], port, arguments.model) as parent:
        pids = {child.pid for child in parent.children(recursive=True)}
        load, samples = uvloop.run(soak(port, requests, arguments.connections, seconds, parent))
        same = pids == {child.pid for child in parent.children(recursive=True)}
        cpu, (tiles, batches) = cpu_seconds(parent), batch_counts(port)
    # The first fifth warms allocators, caches and pools up.
    early, late = between(samples, seconds / 5, seconds * 2 / 5), between(samples, seconds * 4 / 5, seconds)
    growth, failed = late / early - 1, sum(load.errors.values())
    print(f"{time.strftime('%Y-%m-%d')}, {cores} cores of {platform.processor() or platform.machine()}\n")
    print("| figure | value |\n|---|---:|")
    print(f"| minutes, connections | {load.seconds / 60:.1f}, {arguments.connections} |")
    print(f"| requests answered with 200 | {len(load.latencies):,} |")
    print(f"| requests failed | {failed} {load.errors or ''} |")
    print(f"| tiles, tiles/s | {tiles:,.0f}, {tiles / load.seconds:.0f} |")
    print(f"| tiles a batch | {tiles / max(batches, 1):.1f} |")
    print(f"| CPU-ms a tile | {cpu / max(tiles, 1) * 1000:.2f} |")
    print(f"| p50, p99 ms | {load.percentile(50):.0f}, {load.percentile(99):.0f} |")
    print(
        f"| memory: second fifth, last fifth, highest | {early:.0f}, {late:.0f}, "
        f"{max(s for _, s in samples):.0f} MB |"
    )
    print(f"| growth | {growth:+.1%} |")
    print(f"| processes restarted | {'none' if same else 'some'} |")
    sys.exit(1 if failed or growth > MAX_GROWTH or not same else 0)


if __name__ == "__main__":
    main()
