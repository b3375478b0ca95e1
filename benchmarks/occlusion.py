"""What a patch of a tile is best replaced by, to find what an answer rests on (docs/decisions/0005).

    python benchmarks/occlusion.py --model artifacts/runs/eurosat/model.onnx --tiles data/raw/EuroSAT_MS \
        --names data/raw/splits/eurosat-spatial-val.txt

The fifth of a tile's pixels that is hottest is replaced by other pixels of the tile, shuffled, and compared
with the same shape moved elsewhere. A good map loses much more of the class's probability in the first case.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.occlusion import explain
from tilewise.datasets.core.console import make_read_options
from tilewise.datasets.core.tile import DN, Tile
from tilewise.datasets.readers.geotiff import read_tile
from tilewise.models import occlusion

FILLS = ("tile's mean", "no data", "black")
PATCHES = ((8, 4), (16, 4), (24, 8))
HOTTEST = 0.2


def fill_of(pixels: DN, kind: str) -> DN:
    """Return what stands in for a tile (13, h, w) that has no holes."""
    if kind == "tile's mean":
        return np.broadcast_to(np.rint(pixels.mean(axis=(1, 2), keepdims=True)), pixels.shape).astype(
            np.uint16
        )
    return np.full_like(pixels, 0 if kind == "no data" else 1)


def occluded(pixels: DN, filled: DN, starts: list[int], size: int) -> Iterator[DN]:
    """Yield a tile without each of its patches."""
    for row in starts:
        for column in starts:
            patch = np.s_[:, row : row + size, column : column + size]
            without = pixels.copy()
            without[patch] = filled[patch]
            yield without


def shuffled(pixels: DN, where: npt.NDArray[np.bool_], random: np.random.Generator) -> DN:
    """Return a tile whose pixels in `where` (h, w) are others of it."""
    changed = pixels.reshape(len(pixels), -1).copy()
    chosen = random.permutation(changed.shape[1])[: where.sum()]
    changed[:, where.ravel()] = pixels.reshape(len(pixels), -1)[:, chosen]
    return changed.reshape(pixels.shape)


def is_odd(engine: Engine, tiles: DN) -> npt.NDArray[np.bool_]:
    """Return bool (n,): which tiles the model flags as unlike its training data."""
    outliers = engine.metadata.outliers
    return engine.classify(tiles).outlier_score > (outliers.threshold if outliers else np.inf)


def measure(
    engine: Engine, tile: Tile, kind: str, size: int, stride: int, random: np.random.Generator
) -> list[float]:
    """Return the probability lost with the hottest pixels, and elsewhere, and the share of occluded
    tiles that are flagged as outliers, where the whole tile is not."""
    filled = fill_of(tile.pixels, kind)
    # The service has one fill; here it is exchanged.
    occlusion._without_patches = lambda pixels, starts, size: occluded(pixels, filled, starts, size)
    found = explain(engine, tile, size=size, stride=stride)
    hot = found.heat >= np.quantile(found.heat, 1 - HOTTEST)
    moved = np.roll(hot, random.integers(64, size=2), axis=(0, 1))
    judged = np.stack([shuffled(tile.pixels, where, random) for where in (hot, moved)])
    index = engine.metadata.classes.index(found.class_name)
    lost = found.probability - engine.classify(judged).probabilities[:, index]
    patches = np.stack(
        list(occluded(tile.pixels, filled, occlusion.patch_starts(64, size, stride), size))[::5]
    )
    odd = is_odd(engine, patches).mean() if not is_odd(engine, tile.pixels[None])[0] else np.nan
    return [*map(float, lost), float(odd)]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tiles", type=Path, required=True, help="Folder of EuroSAT MS tiles.")
    parser.add_argument(
        "--names", type=Path, required=True, help="List of the tiles that the network was not trained on."
    )
    parser.add_argument("--every", type=int, default=2, help="Take every n-th tile.")
    overrides = parser.parse_args()
    names = {Path(line).stem for line in overrides.names.read_text().split()}
    files = [path for path in sorted(overrides.tiles.rglob("*.tif")) if path.stem in names][
        :: overrides.every
    ]
    read_options = make_read_options("eurosat", "L1C", None, 0.0)
    tiles, engine = [read_tile(path, read_options) for path in files], Engine(overrides.model)
    print(
        f"{len(tiles)} tiles\n\n| patch | replaced by | lost, hottest | lost, elsewhere | odd |", flush=True
    )
    print("|---|---|---:|---:|---:|")
    for size, stride in PATCHES:
        for kind in FILLS:
            random = np.random.default_rng(0)
            mean = np.nanmean([measure(engine, tile, kind, size, stride, random) for tile in tiles], axis=0)
            print(
                f"| {size}, every {stride} | {kind} | {mean[0]:.3f} | {mean[1]:.3f} | {mean[2]:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
