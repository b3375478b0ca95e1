"""Which map of pixels finds what an answer rests on (docs/decisions/0012).

    python benchmarks/explanations.py --model artifacts/runs/eurosat/model.onnx --tiles data/raw/EuroSAT_MS \
        --names data/raw/splits/eurosat-spatial-val.txt

As in benchmarks/occlusion.py, the fifth of a tile's pixels that is hottest is replaced by other pixels of the
tile, shuffled, and compared with the same shape moved elsewhere. A good map loses much more in the first
case.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from occlusion import HOTTEST, shuffled
from scipy.ndimage import gaussian_filter

from tilewise.datasets.core.tile import Tile
from tilewise.datasets.readers.eurosat import read_ms
from tilewise.models.explain.attribution import integrate_gradients, occlude, session_forward, verified_graph
from tilewise.models.model_file import INPUT, ModelFile, open_model

SPREADS = (0.0, 1.0, 2.0, 3.0, 4.0)

Map = Callable[[ModelFile, Tile, int], npt.NDArray[np.float32]]


def gradients(model: ModelFile, tile: Tile, index: int) -> npt.NDArray[np.float32]:
    """Return integrated gradients, not smoothed."""
    return integrate_gradients(verified_graph(model, tile), model, tile, index)[0]


def lost(
    model: ModelFile, tile: Tile, index: int, hot: npt.NDArray[np.bool_], random: np.random.Generator
) -> list[float]:
    """Return the log-odds and the probability lost with the pixels in `hot`, and with as many elsewhere."""
    moved = np.roll(hot, random.integers(64, size=2), axis=(0, 1))
    tiles = np.stack([tile.pixels, *(shuffled(tile.pixels, where, random) for where in (hot, moved))])
    odds = session_forward(model, index)(torch.from_numpy(tiles.astype(np.float32))).numpy()
    answered = model.session.run(["probabilities"], {INPUT: tiles})[0][:, index]
    return [*(odds[0] - odds[1:]), *(answered[0] - answered[1:])]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tiles", type=Path, required=True, help="Folder of EuroSAT MS tiles.")
    parser.add_argument(
        "--names", type=Path, required=True, help="List of tiles that the network was not trained on."
    )
    parser.add_argument("--every", type=int, default=4, help="Take every n-th tile.")
    overrides = parser.parse_args()
    torch.set_num_threads(1)
    names = {Path(line).stem for line in overrides.names.read_text().split()}
    files = [path for path in sorted(overrides.tiles.rglob("*.tif")) if path.stem in names][
        :: overrides.every
    ]
    model, tiles = open_model(overrides.model), [read_ms(path) for path in files]
    answers = model.session.run(["probabilities"], {INPUT: np.stack([tile.pixels for tile in tiles])})[
        0
    ].argmax(1)
    print(
        f"{len(tiles)} tiles\n\n| map | smoothed | log-odds lost | elsewhere | p lost | elsewhere | s a tile "
        f"|"
    )
    print("|---|---:|---:|---:|---:|---:|---:|", flush=True)
    for name, found in {"integrated gradients": gradients, "occlusion": occlude}.items():
        began = time.perf_counter()
        heats = [found(model, tile, int(index)) for tile, index in zip(tiles, answers, strict=True)]
        seconds = (time.perf_counter() - began) / len(tiles)
        for spread in SPREADS if name != "occlusion" else (0.0,):
            random, rows = np.random.default_rng(0), []
            for heat, tile, index in zip(heats, tiles, answers, strict=True):
                smoothed = gaussian_filter(heat, spread) if spread else heat
                rows.append(
                    lost(model, tile, int(index), smoothed >= np.quantile(smoothed, 1 - HOTTEST), random)
                )
            mean = np.mean(rows, axis=0)
            figures = f"{mean[0]:.2f} | {mean[1]:.2f} | {mean[2]:.3f} | {mean[3]:.3f} | {seconds:.2f}"
            print(f"| {name} | {spread:g} px | {figures} |", flush=True)


if __name__ == "__main__":
    main()
