"""What reading a tile costs: the reader of plain files beside GDAL, from the bytes of a file to a tile.

    python benchmarks/reading.py [--archive ../shared/data/EuroSAT_MS.zip]

Prints CPU-milliseconds a tile (median over different tiles, footprints included) of both readers, by how the
file is written; synthetic tiles where there is no archive of EuroSAT.
"""

import argparse
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from rasterio.io import MemoryFile
from serve import make_files

from tilewise.datasets.core import tile
from tilewise.datasets.core.radiometry import Level, ReadOptions
from tilewise.datasets.readers.eurosat import MS_READ_OPTIONS
from tilewise.datasets.readers.geotiff import isolated_gdal, read_tile, read_tile_with_gdal

TILES = 100
FORMS: dict[str, dict[str, Any]] = {
    "uncompressed": {},
    "deflate": {"compress": "deflate"},
    "deflate, a strip for each band, predictor 2": {
        "compress": "deflate",
        "predictor": 2,
        "interleave": "band",
        "blockysize": 64,
    },
    "deflate, tiles of 64 × 64": {"compress": "deflate", "tiled": True, "blockxsize": 64, "blockysize": 64},
    "zstd": {"compress": "zstd"},
    "LZW (left to GDAL)": {"compress": "lzw"},
}


def rewrite(content: bytes, form: dict[str, Any]) -> bytes:
    """Return a GeoTIFF written anew."""
    with MemoryFile(content) as source, source.open() as dataset, MemoryFile() as target:
        profile = {key: value for key, value in dataset.profile.items() if not key.startswith("block")}
        with target.open(**{**profile, "compress": None, "tiled": False, **form}) as written:
            written.write(dataset.read())
            written.descriptions = dataset.descriptions
        return bytes(target.read())


def median_ms(read: Callable[[bytes], object], files: list[bytes]) -> float:
    """Return the median CPU-milliseconds of reading each of the files."""
    times = []
    for content in files:
        tile._footprint.cache_clear()
        began = time.process_time_ns()
        read(content)
        times.append(time.process_time_ns() - began)
    return float(np.median(times)) / 1e6


def load(archive: Path) -> tuple[list[bytes], ReadOptions]:
    """Return tiles, and how they are read."""
    if not archive.is_file():
        return [content for _, content in make_files(TILES)], ReadOptions(None, Level.L1C, 1e-4, 0.0)
    with zipfile.ZipFile(archive) as files:
        names = [name for name in files.namelist() if name.endswith(".tif")]
        return [files.read(name) for name in Random(0).sample(names, TILES)], MS_READ_OPTIONS  # noqa: S311


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archive", type=Path, default=Path("../shared/data/EuroSAT_MS.zip"))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    files, options = load(arguments.archive)
    print("| file | kB | GDAL | plain reader | ratio |\n|---|---:|---:|---:|---:|")
    for name, form in FORMS.items():
        written = [rewrite(content, form) for content in files]
        with isolated_gdal():
            by_gdal, plain = (
                min(median_ms(read, written) for _ in range(arguments.rounds))
                for read in (
                    lambda content: read_tile_with_gdal(content, options, "a.tif"),
                    lambda content: read_tile(content, options, "a.tif"),
                )
            )
        size = np.mean([len(content) for content in written]) / 1000
        print(f"| {name} | {size:.0f} | {by_gdal:.2f} | {plain:.2f} | {by_gdal / plain:.1f} |", flush=True)


if __name__ == "__main__":
    main()
