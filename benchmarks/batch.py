"""How fast a large scene is classified, and how near that is to what the machine can do.

    python benchmarks/batch.py [--side 10980] [--model fast] [--model accurate] [--peer-python PYTHON]

makes a scene of SIDE × SIDE pixels and 13 bands by mosaicking tiles (real ones of EuroSAT where they are at
hand, else synthetic ones), with deflate, with zstd and uncompressed, in blocks of 512. For each model, by
default the two that ship, in INT8 where that file is beside it, it prints, every figure from a process of its
own:

* bare reading: all blocks decoded by one thread a core, nothing done with them;
* bare inference: the network alone, on tiles in memory, all cores busy, by the faster of two ways to use
  them;
* the bound: the seconds of both together, since both keep all cores busy;
* what `tilewise.bento.inference.windows.classify` reaches, clouds and maps included, and its peak memory;
* on the upper left of the deflate scene, with the same model file in onnxruntime: a plain loop of rasterio,
  and torchgeo's GridGeoSampler where PYTHON has torchgeo (0.8) and onnxruntime;
* the time of 10,000 granules of 10,980 × 10,980 pixels, about a large country, by the cost of the deflate
  scene.

Files of the page cache are warm: the figures are of decoding and computing, not of a disk.
"""

import argparse
import json
import os
import queue
import resource
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.windows import Window

from tilewise.bento.inference.blending import NO_CLASS, OUT_OF_DISTRIBUTION
from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.window_grid import make_window_grid
from tilewise.bento.inference.windows import GridOptions, classify
from tilewise.datasets.acquire.synthetic import TAGS, render
from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.core.radiometry import ReadOptions
from tilewise.datasets.core.tile import DN
from tilewise.datasets.readers.eurosat import CLASSES, read_ms
from tilewise.datasets.scenes import SceneOptions, find_scenes, parse_clouds
from tilewise.datasets.scenes.rasters import open_raster, scene_gdal
from tilewise.models.model_file import find_model, int8_of, usable_cores

ROOT = Path(__file__).parents[1]
REAL = Path(os.environ.get("TILEWISE_REAL_DATA", ROOT.parent / "shared" / "data")) / "EuroSAT_MS.zip"
FORMS: dict[str, dict[str, Any]] = {
    "deflate": {"compress": "deflate", "predictor": 2, "zlevel": 6},
    "zstd": {"compress": "zstd", "predictor": 2},
    "uncompressed": {},
}
GRANULE, GRANULES, PEER_SIDE = 10_980, 10_000, 2_048
BLOCK = 512


# What is measured.


def some_tiles() -> tuple[DN, str]:
    """Return uint16 (n, 13, 64, 64), and where they come from."""
    if not REAL.is_file():
        return np.stack(
            [render(name, n, seed=1) for name in CLASSES for n in range(1, 13)]
        ), "synthetic tiles"
    with zipfile.ZipFile(REAL) as archive, tempfile.TemporaryDirectory() as folder:
        names = [name for name in archive.namelist() if name.endswith(".tif")]
        archive.extractall(folder, names)
        return np.stack(
            [read_ms(Path(folder) / name).pixels for name in names]
        ), f"{len(names)} real tiles of EuroSAT"


def write_scene(path: Path, tiles: DN, side: int, form: dict[str, Any]) -> None:
    """Write a mosaic of tiles in random order, in rows of blocks."""
    rng = np.random.default_rng(7)
    across = -(-side // 64)
    profile = {"count": 13, "height": side, "width": side, "dtype": "uint16", "crs": "EPSG:32632", **form}
    blocks = {
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        "interleave": "band",
        "num_threads": "all_cpus",
    }
    place = Affine(10, 0, 600_000, 0, -10, 5_000_000)
    with rasterio.open(
        path, "w", driver="GTiff", transform=place, bigtiff="if_safer", **profile, **blocks
    ) as dataset:
        dataset.descriptions = BAND_NAMES
        dataset.update_tags(**TAGS)
        for top in range(0, side, BLOCK):
            high = min(BLOCK, side - top)
            rows = [
                np.concatenate(list(tiles[rng.integers(len(tiles), size=across)]), axis=2)
                for _ in range(BLOCK // 64)
            ]
            dataset.write(np.concatenate(rows, axis=1)[:, :high, :side], window=Window(0, top, side, high))


def read_bare(path: Path, _: Path) -> dict[str, float]:
    """Decode all blocks by one thread a core."""
    with rasterio.open(path) as dataset:
        side = dataset.height
    window_grid = make_window_grid(side, side, 64, 64, (BLOCK, BLOCK))
    waiting: queue.SimpleQueue[Window] = queue.SimpleQueue()
    for strip in range(len(window_grid.strips)):
        for part in range(len(window_grid.parts)):
            (top, bottom), (left, right) = window_grid.edges(strip), window_grid.part_edges(part)
            waiting.put(Window(left, top, right - left, bottom - top))

    def work() -> None:
        with scene_gdal(), open_raster(path) as dataset:
            while not waiting.empty():
                try:
                    dataset.read(window=waiting.get_nowait())
                except queue.Empty:
                    return

    return cpu_of(lambda: all_cores(work)) | {"windows": len(window_grid.rows) * len(window_grid.columns)}


def infer_bare(path: Path, model: Path) -> dict[str, float]:
    """Run the network on tiles in memory by all cores: threads of their own, or one that parts each batch."""
    with scene_gdal(), open_raster(path) as dataset:
        n = min(dataset.height // 64, 32)
        pixels = dataset.read(window=Window(0, 0, 64 * n, 64 * n))
    tiles = pixels.reshape(13, n, 64, n, 64).transpose(1, 3, 0, 2, 4).reshape(-1, 13, 64, 64).copy()
    cores, rates, costs = usable_cores(), [], []
    for threads, workers, batch in ((1, cores, 64), (cores, 1, 64), (cores, 1, 256)):
        engine = Engine(model, threads)
        starts = range(0, len(tiles), batch)
        with ThreadPoolExecutor(workers) as pool:
            run = lambda: list(pool.map(lambda s: engine.classify(tiles[s : s + batch]), starts))  # noqa: B023, E731
            run()
            found = [cpu_of(run) for _ in range(3)]
            rates.append(len(tiles) / min(f["seconds"] for f in found))
            costs.append(min(f["cpu"] for f in found) / len(tiles))
    return {
        "cpu_of_one": min(costs),
        "rate": max(rates),
        "one_session_thread_a_core": rates[0],
        "all_cores_in_a_batch": max(rates[1:]),
    }


def classify_all(path: Path, model: Path, grid: GridOptions | None = None) -> dict[str, float]:
    """Classify the scene as a batch does, and look at every row of its maps."""
    engine = Engine(model, threads=1)
    (source,) = find_scenes([path])
    seen = {"windows": 0, "pixels": 0}

    def work() -> None:
        with source.open() as scene:
            for block in classify(engine, scene, grid).iter_blocks():
                seen["windows"] += sum(window.probabilities is not None for window in block.windows)
                seen["pixels"] += int((block.class_map != NO_CLASS).sum())

    return cpu_of(work) | seen


def overlap(path: Path, model: Path) -> dict[str, float]:
    """Classify with overlapping windows (stride 32), blended."""
    return classify_all(path, model, GridOptions(stride=32))


def dense(path: Path, model: Path) -> dict[str, float]:
    """Classify densely: stride 16, one value for 16 × 16 pixels."""
    return classify_all(path, model, GridOptions(stride=16, cell=16))


def exact(path: Path, model: Path) -> dict[str, float]:
    """Count the pixels whose class is not that of their tile, classified as a tile of its own.

    Pixels that are unlike the training data have no class. Clouds are left in: a tile keeps its own.
    """
    engine, wrong, cells = Engine(model, threads=1), 0, 0
    (source,) = find_scenes([path], SceneOptions(ReadOptions(), parse_clouds("none")))
    with source.open() as scene, rasterio.open(path) as dataset:
        blocks = iter(classify(engine, scene).iter_blocks())
        whole = np.concatenate([next(blocks).class_map for _ in range(2)])
        for row in range(0, len(whole) - 63, 64):
            strip = dataset.read(window=Window(0, row, dataset.width // 64 * 64, 64))
            tiles = strip.reshape(13, 64, -1, 64).transpose(2, 0, 1, 3).copy()
            for column, tile in enumerate(tiles):
                overrides = engine.classify(tile[None]).probabilities.argmax()
                here = whole[row : row + 64, 64 * column : 64 * column + 64]
                other = (here != overrides) & (here != OUT_OF_DISTRIBUTION)
                wrong, cells = wrong + int(other.sum()), cells + 1
    return {"cells": cells, "wrong": wrong}


# Helpers, and the children's side.


def timed(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def cpu_of(work: Callable[[], Any]) -> dict[str, float]:
    """Return wall seconds and CPU seconds of all threads: the latter bear a busy machine better."""
    before = time.process_time()
    seconds = timed(work)
    return {"seconds": seconds, "cpu": time.process_time() - before}


def all_cores(work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for _ in range(usable_cores())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def peak_mb() -> float:
    """Return the most memory that this process has held; getrusage would count the parent's, too."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


MEASUREMENTS = {work.__name__: work for work in (read_bare, infer_bare, classify_all, overlap, dense, exact)}


def measure(name: str, path: Path, model: Path) -> dict[str, float]:
    """Return what a measurement gives in a process of its own, with the peak of its memory in MB."""
    command = [sys.executable, __file__, "--measure", name, str(path), str(model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def peer(python: str, name: str, path: Path, model: Path, side: int) -> float | None:
    """Return a peer's windows a second over the upper left of a scene, or None where it cannot be run."""
    script = ROOT / "benchmarks" / "peers" / "scene_loops.py"
    command = [python, str(script), name, str(path), str(model), str(side)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)
    if done.returncode:
        print(f"  {name}: not run ({(done.stderr.splitlines() or ['?'])[-1][:100]})")
        return None
    return float(done.stdout.splitlines()[-1])


def write_scenes(folder: Path, side: int) -> str:
    """Write the scene in every form, and a smaller one; return what it is made of."""
    tiles, origin = some_tiles()
    for form, options in FORMS.items():
        write_scene(folder / f"{form}.tif", tiles, side, options)
    write_scene(folder / "small.tif", tiles, min(side, 4096), FORMS["deflate"])
    return f"{side:,} × {side:,} × 13, mosaic of {origin}; {usable_cores()} cores"


def report(folder: Path, model: Path, side: int, peer_python: str) -> Iterator[str]:
    """Yield the lines of one model; the scenes lie in `folder`."""
    bare = measure("infer_bare", folder / "deflate.tif", model)
    yield f"\n{model}"
    yield (
        f"bare inference {bare['rate']:,.0f} windows/s (one thread a core "
        f"{bare['one_session_thread_a_core']:,.0f}, all in a batch {bare['all_cores_in_a_batch']:,.0f})"
    )
    yield "form          MB   read s  infer s  bound s  ours s  of bound   by CPU  windows/s   MP/s  peak MB"
    ours = {}
    for form in FORMS:
        ours[form], line = _of_form(folder / f"{form}.tif", model, side, bare)
        yield line
    found = measure("exact", folder / "deflate.tif", model)
    yield f"aligned windows: {found['wrong']:.0f} pixels of {found['cells']:.0f} tiles have another class"
    yield from _others(folder, model, side, ours["deflate"], peer_python)
    hours = GRANULES * (GRANULE / 64) ** 2 / ours["deflate"] / 3600
    yield (
        f"{GRANULES:,} granules: {hours:,.0f} hours on this machine of {usable_cores()} cores, "
        f"{hours * usable_cores():,.0f} core hours; in a day by {max(1, -(-hours // 24)):,.0f} such machines"
    )


def _of_form(path: Path, model: Path, side: int, bare: dict[str, float]) -> tuple[float, str]:
    """Return windows a second on a scene, and its line of the table."""
    reads = [measure("read_bare", path, model) for _ in range(2)]
    read, read_cpu = (min(found[what] for found in reads) for what in ("seconds", "cpu"))
    best = min((measure("classify_all", path, model) for _ in range(2)), key=lambda found: found["seconds"])
    infer, seconds = best["windows"] / bare["rate"], best["seconds"]
    by_cpu = (read_cpu + bare["cpu_of_one"] * best["windows"]) / best["cpu"]
    line = (
        f"{path.stem:12} {path.stat().st_size / 1e6:5,.0f} {read:7.1f} {infer:8.1f} {read + infer:8.1f} "
        f"{seconds:7.1f} {(read + infer) / seconds:8.0%} {by_cpu:8.0%} {best['windows'] / seconds:10,.0f} "
        f"{side**2 / 1e6 / seconds:7.2f} {best['peak_mb']:7,.0f}"
    )
    return best["windows"] / seconds, line


def _others(folder: Path, model: Path, side: int, ours: float, peer_python: str) -> Iterator[str]:
    part = min(side, PEER_SIDE) // 64 * 64
    for python, name in ((sys.executable, "rasterio_loop"), (peer_python, "torchgeo_grid")):
        if found := peer(python, name, folder / "deflate.tif", model, part):
            yield f"{name} + onnxruntime: {found:,.0f} windows/s; ours {ours / found:.1f} times as fast"
    for name in ("classify_all", "overlap", "dense"):
        run = measure(name, folder / "small.tif", model)
        yield (
            f"{name:12} {run['windows'] / run['seconds']:10,.0f} windows/s {run['seconds']:7.1f} s "
            f"{run['peak_mb']:7,.0f} MB peak"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--side", type=int, default=GRANULE, help="pixels a side of the scene")
    parser.add_argument("--model", action="append", help="accurate, fast or a file; again for another")
    parser.add_argument("--peer-python", default=sys.executable, help="the Python that has torchgeo")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        name, path, model = asked.measure
        found = MEASUREMENTS[name](Path(path), Path(model))
        found["peak_mb"] = peak_mb()
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(write_scenes(Path(folder), asked.side), flush=True)
        for name in asked.model or ("fast", "accurate"):
            model = find_model(name)
            int8 = int8_of(model)
            for line in report(
                Path(folder), int8 if int8.is_file() else model, asked.side, asked.peer_python
            ):
                print(line, flush=True)


if __name__ == "__main__":
    main()
