"""What tiles wait while scenes are worked on: POST /classify alone, and beside one scene in each process.

    python benchmarks/scenes_beside_tiles.py --model demo/run/model.onnx

One GeoTIFF tile a request, as image/tiff; the scenes are 13 bands of 2560 × 2560 pixels, deflated, made by
script.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import rasterio
import uvloop
from affine import Affine
from load import Load, post
from load import run as send
from serve import free_port, make_files, running, servers

from tilewise.datasets.acquire.synthetic import TAGS, render
from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.readers.eurosat import CLASSES
from tilewise.models.model_file import usable_cores

SIDE = 40  # tiles
TIFF = b"image/tiff"


def make_scene() -> bytes:
    """Return a scene of 1,600 windows, 13 bands of uint16, tiled by 512, deflated."""
    tiles = [render(CLASSES[index % 10], index + 1, seed=4) for index in range(SIDE)]
    strips = [np.concatenate(tiles[row:] + tiles[:row], axis=2) for row in range(SIDE)]
    profile = {"driver": "GTiff", "count": 13, "height": 64 * SIDE, "width": 64 * SIDE, "dtype": "uint16"}
    blocks = {
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "deflate",
        "predictor": 2,
        "zlevel": 1,
    }
    place = {"crs": "EPSG:32629", "transform": Affine(10, 0, 540_000, 0, -10, 4_740_000)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.tif"
        with rasterio.open(path, "w", **profile, **blocks, **place) as dataset:
            dataset.write(np.concatenate(strips, axis=1))
            dataset.descriptions = BAND_NAMES
            dataset.update_tags(**TAGS)
        return path.read_bytes()


def submit(client: httpx.Client, scene: bytes, count: int) -> list[str]:
    """Make tasks of `count` scenes; return where they are told of when all are worked on."""
    headers = {"Content-Type": "image/tiff", "Prefer": "respond-async"}
    places = [client.post("/scene", content=scene, headers=headers).headers["location"] for _ in range(count)]
    while any(client.get(place).json()["status"] == "waiting" for place in places):
        time.sleep(0.05)
    return places


def windows_done(client: httpx.Client, places: list[str]) -> float:
    """Return how many windows of the tasks are done."""
    return sum(task["progress"] * task["windows"] for task in (client.get(place).json() for place in places))


def row(connections: int, beside: str, load: Load, windows: float) -> str:
    """Return a line of the table."""
    errors = sum(load.errors.values())
    return (
        f"| {connections} | {beside} | {len(load.latencies) / load.seconds:.0f} | {load.percentile(50):.1f} "
        f"| {load.percentile(99):.1f} | {windows / load.seconds:.0f} | {errors} |"
    )


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=5.0, help="Of each measurement.")
    parser.add_argument("--rounds", type=int, default=2)
    overrides = parser.parse_args()
    port, cores, scene = free_port(), usable_cores(), make_scene()
    requests = [post("/classify", TIFF, content) for _, content in make_files(100)]
    server = next(server for server in servers(port, cores) if server.name == "tilewise")
    with (
        running(server, port, overrides.model),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        time.sleep(2)  # the last of the processes
        uvloop.run(send(port, requests, 4, 2))
        print("| connections | beside | requests/s | p50 ms | p99 ms | windows/s | errors |", flush=True)
        print("|---:|---|---:|---:|---:|---:|---:|", flush=True)
        for _, connections in itertools.product(range(overrides.rounds), overrides.connections):
            print(
                row(
                    connections,
                    "nothing",
                    uvloop.run(send(port, requests, connections, overrides.seconds)),
                    0,
                ),
                flush=True,
            )
            places = submit(client, scene, cores)
            before = windows_done(client, places)
            load = uvloop.run(send(port, requests, connections, overrides.seconds))
            print(
                row(connections, f"{cores} scenes", load, windows_done(client, places) - before), flush=True
            )
            for place in places:
                client.delete(place)


if __name__ == "__main__":
    main()
