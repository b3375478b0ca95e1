"""How large the drift of ordinary tiles is by chance, and how large it is where something is wrong.

    python benchmarks/drift.py ../shared/data/EuroSAT_MS.zip

Takes two thirds of the tiles as training data and windows of the rest, at random, as what a service is sent.
"""

import argparse
import zipfile
from pathlib import Path

import numpy as np

from tilewise.bento.monitoring.drift import STRIDE, Reference, Window
from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.core.console import make_read_options
from tilewise.datasets.core.tile import DN
from tilewise.datasets.packs.statistics import EDGES
from tilewise.datasets.readers.geotiff import read_tile

DRAWS = 20
SAMPLE = slice(3, None, STRIDE)


def read(archive: Path, limit: int) -> tuple[DN, list[str]]:
    """Return a sample of the pixels of up to `most` tiles drawn at random, and their classes."""
    overrides = make_read_options("eurosat", "L1C", None, 0.0)
    with zipfile.ZipFile(archive) as files:
        names = [name for name in files.namelist() if name.endswith(".tif")]
        drawn = np.random.default_rng(0).permutation(names)[:limit]
        tiles = [read_tile(files.read(name), overrides, name, 64).pixels[:, SAMPLE, SAMPLE] for name in drawn]
    return np.stack(tiles), [name.split("/")[-2] for name in drawn]


def measure(reference: Reference, tiles: DN) -> dict[str, dict[str, float]]:
    """Return each band's measures."""
    window = Window(EDGES, len(tiles))
    window.add(tiles)
    return {
        band: reference.measure(band, sums[:-1]) for band, sums in zip(BAND_NAMES, window.sums(), strict=True)
    }


def extent(found: dict[str, dict[str, float]], measure: str) -> str:
    values = [one[measure] for one in found.values()]
    return f"{min(values):.3g} to {max(values):.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path, help="EuroSAT's 13 bands, as published.")
    parser.add_argument("--tiles", type=int, default=3000)
    arguments = parser.parse_args()
    tiles, classes = read(arguments.archive, arguments.tiles)
    training, later = np.split(tiles, [len(tiles) * 2 // 3])
    counts = [np.histogram(band[band > 0], EDGES)[0] for band in training.swapaxes(0, 1)]
    reference = Reference(EDGES, dict(zip(BAND_NAMES, counts, strict=True)))
    print(f"{len(training)} tiles of training data, windows of {len(later)} others; PSI of 13 bands\n")
    rng = np.random.default_rng(1)
    for size in (16, 64, 128, 256):
        windows = [measure(reference, rng.choice(later, size)) for _ in range(DRAWS)]
        largest = [max(one["psi"] for one in window.values()) for window in windows]
        print(
            f"{size} ordinary tiles: {np.median(largest):.3f} in the worst band, at most {max(largest):.3f}"
        )
    lifted = measure(reference, np.where(later > 0, later + 1000, 0).astype(np.uint16))
    print(f"offset of 1000 left in: {extent(lifted, 'psi')}, moved by {extent(lifted, 'wasserstein')} DN")
    for name in ("Forest", "SeaLake", "Industrial"):
        alone = measure(reference, tiles[[index for index, label in enumerate(classes) if label == name]])
        print(f"{name} alone: {extent(alone, 'psi')}")


if __name__ == "__main__":
    main()
