"""Whether overlapping windows should share what the network computes (docs/decisions/0006).

    python benchmarks/shared_windows.py CHECKPOINT

takes a network that `make demo` or `tilewise train` trained (the checkpoint, of ResidualCNN) and a synthetic
scene,
and classifies it densely twice in torch: window by window, as the model file does, and with one pass of the
network over the whole scene whose features are then averaged under each window. It prints how fast both are
and how often, and
by how much, they disagree: each window by itself has borders that the shared pass has not.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from torch.nn import functional

from tilewise.datasets.acquire.synthetic import synthesise_scene
from tilewise.datasets.core.bands import EUROSAT_MS_ORDER, positions
from tilewise.datasets.readers.eurosat import CLASSES
from tilewise.models.network.backbones import ResidualCNN
from tilewise.models.network.classifier import Classifier

CELLS = 8  # of 64 pixels a side
STRIDES = (64, 32, 16)


def scene() -> torch.Tensor:
    """Return DN float32 (13, 512, 512) of a synthetic scene."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.tif"
        synthesise_scene(path, 3, CELLS, CELLS)
        with rasterio.open(path) as dataset:
            pixels = np.zeros((13, dataset.height, dataset.width), np.float32)
            pixels[positions(EUROSAT_MS_ORDER)] = dataset.read()
    return torch.from_numpy(pixels)


def load(checkpoint: Path) -> Classifier:
    """Return the classifier whose weights a checkpoint holds."""
    weights = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    weights = {
        key.removeprefix("classifier."): value
        for key, value in weights.items()
        if key.startswith("classifier.")
    }
    stem = [
        value.shape[0]
        for key, value in weights.items()
        if key.startswith("backbone.stem") and value.ndim == 4
    ]
    blocks = [
        v.shape[0]
        for k, v in weights.items()
        if k.startswith("backbone.blocks") and k.endswith("first.0.weight")
    ]
    widths = tuple(dict.fromkeys(blocks))
    backbone = ResidualCNN(widths, [blocks.count(width) for width in widths], stem)
    classifier = Classifier(backbone, len(CLASSES), [0.0] * 13, [1.0] * 13)
    classifier.load_state_dict(weights, strict=False)
    return classifier.eval()


def by_window(classifier: Classifier, pixels: torch.Tensor, stride: int) -> torch.Tensor:
    """Return probabilities (rows, columns, classes), each window by itself."""
    tiles = pixels.unfold(1, 64, stride).unfold(2, 64, stride).permute(1, 2, 0, 3, 4)
    rows, columns = tiles.shape[:2]
    parts = [classifier(part)[0] for part in tiles.reshape(-1, 13, 64, 64).split(64)]
    return torch.cat(parts).softmax(1).view(rows, columns, -1)


def shared(classifier: Classifier, pixels: torch.Tensor, stride: int) -> torch.Tensor:
    """Return the same from one pass over all pixels and a mean of its features under each window."""
    normalised = classifier.preprocess(pixels[None]).contiguous(memory_format=torch.channels_last)
    backbone: Any = classifier.backbone
    grid = backbone.blocks(backbone.stem(normalised))
    step = pixels.shape[1] // grid.shape[2]
    pooled = functional.avg_pool2d(grid, 64 // step, stride // step)[0]
    return classifier.head(pooled.permute(1, 2, 0)).softmax(2)


def main() -> None:
    classifier, pixels = load(Path(sys.argv[1])), scene()
    print(
        "stride  window by window s  shared s  times as fast  other class  mean and largest difference of a "
        "probability"
    )
    with torch.inference_mode():
        for stride in STRIDES:
            seconds, found = [], []
            for work in (by_window, shared):
                begun = time.process_time()
                found.append(work(classifier, pixels, stride))
                seconds.append(time.process_time() - begun)
            other = (found[0].argmax(2) != found[1].argmax(2)).float().mean()
            away = (found[0] - found[1]).abs()
            print(
                f"{stride:6} {seconds[0]:19.2f} {seconds[1]:9.2f} {seconds[0] / seconds[1]:14.1f} "
                f"{other:12.1%} "
                f"{away.mean():10.3f} {away.max():6.3f}"
            )


if __name__ == "__main__":
    main()
