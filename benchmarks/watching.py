"""What watching costs: CPU a tile with the logs and the drift that are on by default, and without.

    python benchmarks/watching.py --model demo/run/model.onnx

Two services run side by side and are asked in turns of a second, so that what else the machine does meets both alike.
"""

import argparse
import os
import statistics
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import uvloop
from load import multipart
from load import run as send
from serve import cpu_seconds, free_port, make_files, running, servers

from bento.cores import usable_cores

OFF = {"SENTILE_LOG": "off", "SENTILE_DRIFT_WINDOW": "0"}


@contextmanager
def environment(settings: dict[str, str]) -> Iterator[None]:
    """Set variables for the processes that are started within the block."""
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in settings:
            del os.environ[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--turns", type=int, default=30, help="Of a second, for each of the two.")
    arguments = parser.parse_args()
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
                load = uvloop.run(send(port, requests, arguments.connections, 1.0))
                if turn:
                    found[name].append((cpu_seconds(process) - before) / len(load.latencies) * 1000)
    for name, values in found.items():
        print(f"{name}: {statistics.median(values):.3f} CPU-ms a tile, {min(values):.3f} to {max(values):.3f}")


if __name__ == "__main__":
    main()
