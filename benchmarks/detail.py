"""Whether `--detail fine` draws finer maps, and the exponents of its pooling (docs/decisions/0037).

    python benchmarks/detail.py TILES SPLITS MODEL [--mosaics 4] [--stride 8]

takes a folder of EuroSAT's multispectral tiles, the folder of its published spatial split
(eurosat-spatial-train.txt, …) and a model file. It makes mosaics of 512 × 512 pixels whose every class is
known: of quarter tiles (320 m, each from another tile) and of whole tiles (640 m). On mosaics of the train
list it fits the exponents of `pool`, to both kinds alike, by the log-likelihood of cells of 160 m. On mosaics
of the validation list it prints, for maps of 160-m cells by coarse windows, by fine ones alone, and pooled
as the product does:

* accuracy: cells with the true class;
* log loss: of the true class, the smaller the better calibrated;
* edges found: true edges between cells with an edge of the map at most one cell away; edges right: the
  converse; and their harmonic mean, F1.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.crs import CRS
from rasterio.windows import Window
from scipy.ndimage import maximum_filter1d
from scipy.optimize import minimize

from tilewise.bento.inference import blending
from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.windows import Detail, GridOptions, classify
from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.core.tile import DN, Georeference
from tilewise.datasets.readers.eurosat import CLASSES, read_ms
from tilewise.models.model_file import usable_cores

SIDE, CELL = 512, 16
PATCHES = {"quarter tiles, 320 m": 32, "whole tiles, 640 m": 64}
Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.intp]
Case = tuple[Floats, Floats, Labels]
"""Coarse and fine probabilities (classes, mosaics, rows, columns); true classes (mosaics, rows, columns)."""


class Mosaic:
    """Pixels in memory as a scene that `classify` reads."""

    name, bands, block, broken = "mosaic", BAND_NAMES, (SIDE, SIDE), 0
    georeference = Georeference(CRS.from_epsg(32632), Affine(10, 0, 600_000, 0, -10, 5_000_000))
    height = width = SIDE

    def __init__(self, pixels: DN) -> None:
        self._pixels = pixels

    def read(self, window: Window) -> DN:
        rows, columns = window.toslices()
        return self._pixels[:, rows, columns]

    def readers(self) -> tuple[Callable[[Window], DN], ...]:
        return (self.read,)

    def inside(self, window: Window) -> None:
        """No area cuts it."""


def tiles_of(folder: Path, names: Path) -> tuple[DN, Labels]:
    """Return the tiles of a list that are at hand, uint16 (n, 13, 64, 64), and their classes."""
    wanted = {Path(line).stem for line in names.read_text().split()}
    paths = [path for path in sorted(folder.rglob("*.tif")) if path.stem in wanted]
    if not paths:
        raise SystemExit(f"{folder} holds no tile of {names}")
    labels = [CLASSES.index(path.stem.rpartition("_")[0]) for path in paths]
    return np.stack([read_ms(path).pixels for path in paths]), np.array(labels)


def mosaics(tiles: DN, labels: Labels, patch: int, count: int, seed: int) -> Iterator[tuple[DN, Labels]]:
    """Yield mosaics of patches in random order, (13, SIDE, SIDE), and the class of each 160-m cell."""
    rng = np.random.default_rng(seed)
    across = SIDE // patch
    for _ in range(count):
        chosen = np.concatenate([rng.permutation(len(tiles)) for _ in range(across**2 // len(tiles) + 1)])
        pixels = np.empty((13, SIDE, SIDE), np.uint16)
        for index, tile in enumerate(chosen[: across**2]):
            (row, column), corner = divmod(index, across), rng.integers(64 // patch, size=2) * patch
            part = tiles[tile][:, corner[0] : corner[0] + patch, corner[1] : corner[1] + patch]
            pixels[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = part
        truth = labels[chosen[: across**2]].reshape(across, across)
        yield pixels, truth.repeat(patch // CELL, axis=0).repeat(patch // CELL, axis=1)


def blended(engine: Engine, pixels: DN, grid: GridOptions, *, fine: bool) -> Floats:
    """Return what one size of windows makes of a mosaic: probabilities (classes, rows, columns)."""
    found = classify(engine, Mosaic(pixels), grid)
    part = found._fine if fine else found
    assert part is not None
    return np.concatenate(
        [b.probabilities for b in part._iter_own_blocks() if b.probabilities is not None], 1
    )


def answers(engine: Engine, made: Iterator[tuple[DN, Labels]], stride: int) -> Case:
    grid = GridOptions(stride, cell=min(stride, CELL), keep_probabilities=True, detail=Detail.FINE)
    step = CELL // grid.cell
    rows = []
    for pixels, truth in made:
        both = [blended(engine, pixels, grid, fine=fine) for fine in (False, True)]
        # the mean over a cell of 160 m of the map's own finer cells
        rows.append((*(p.reshape(len(p), SIDE // CELL, step, -1, step).mean((2, 4)) for p in both), truth))
    coarse, fine, truths = zip(*rows, strict=True)
    return np.stack(coarse, 1), np.stack(fine, 1), np.stack(truths)


def pooled(case: Case, exponents: Any) -> Floats:
    weighted = [e * np.log(np.maximum(p, blending._FLOOR)) for e, p in zip(exponents, case[:2], strict=True)]
    logs = np.sum(weighted, axis=0)
    found = np.exp(logs - logs.max(axis=0))
    return np.asarray(found / found.sum(axis=0))


def log_loss(probabilities: Floats, truth: Labels) -> float:
    return float(-np.log(np.take_along_axis(probabilities, truth[None], 0).clip(1e-9)).mean())


def edges(truth: Labels, found: Labels) -> tuple[float, float]:
    """Return the fractions of true edges that are found, and of found ones that are right, within a cell."""
    hits, counts = np.zeros(2), np.zeros(2)
    for axis in (1, 2):
        are = [np.diff(classes, axis=axis) != 0 for classes in (truth, found)]
        near = [maximum_filter1d(edge.astype(np.uint8), 3, axis=axis) > 0 for edge in are]
        hits += (are[0] & near[1]).sum(), (are[1] & near[0]).sum()
        counts += are[0].sum(), are[1].sum()
    return tuple(hits / np.maximum(counts, 1))


def line(name: str, probabilities: Floats, truth: Labels) -> str:
    found = probabilities.argmax(axis=0)
    recall, precision = edges(truth, found)
    f1 = 2 * recall * precision / max(recall + precision, 1e-9)
    return (
        f"  {name:34} {np.mean(found == truth):8.1%} {log_loss(probabilities, truth):8.3f} "
        f"{recall:11.1%} {precision:11.1%} {f1:6.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("tiles", type=Path)
    parser.add_argument("splits", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--mosaics", type=int, default=4, help="of each kind and list")
    parser.add_argument("--stride", type=int, default=8)
    asked = parser.parse_args()
    engine = Engine(asked.model, threads=1 if usable_cores() > 1 else 0)
    made = {}
    for seed, split in enumerate(("train", "val")):
        tiles = tiles_of(asked.tiles, asked.splits / f"eurosat-spatial-{split}.txt")
        for kind, patch in PATCHES.items():
            case = answers(engine, mosaics(*tiles, patch, asked.mosaics, seed), asked.stride)
            made[split, kind] = case

    def loss(exponents: Any) -> float:
        return sum(
            log_loss(pooled(made["train", kind], exponents), made["train", kind][2]) for kind in PATCHES
        )

    fitted = minimize(loss, (0.5, 0.5), method="Nelder-Mead").x
    print(
        f"{asked.model}, stride {asked.stride}; "
        f"fitted exponents: coarse {fitted[0]:.2f}, fine {fitted[1]:.2f}"
    )
    ours = blending.COARSE_WEIGHT, blending.FINE_WEIGHT
    for kind in PATCHES:
        case = made["val", kind]
        print(f"{kind:36} {'accuracy':>8} {'log loss':>8} {'edges found':>11} {'edges right':>11} {'F1':>6}")
        print(line("coarse", case[0], case[2]))
        print(line("windows of 320 m alone", case[1], case[2]))
        print(line(f"fine: pooled with {ours[0]:g} and {ours[1]:g}", pooled(case, ours), case[2]))
        print(line("pooled with the fitted exponents", pooled(case, fitted), case[2]))


if __name__ == "__main__":
    main()
