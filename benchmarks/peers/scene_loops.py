"""What people write without a batch runner: a model file in onnxruntime over the windows of a scene.

    python benchmarks/peers/scene_loops.py rasterio_loop|torchgeo_grid SCENE MODEL SIDE

prints windows a second over the upper left SIDE × SIDE pixels. `torchgeo_grid` needs torchgeo 0.8.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import rasterio
from rasterio.windows import Window

TILE, BATCH = 64, 64
Tiles = npt.NDArray[np.uint16]


def rasterio_loop(path: Path, side: int) -> Iterator[Tiles]:
    """Read window by window with one handle, in reading order."""
    with rasterio.open(path) as dataset:
        batch = []
        for row in range(0, side, TILE):
            for column in range(0, side, TILE):
                batch.append(dataset.read(window=Window(column, row, TILE, TILE)))
                if len(batch) == BATCH:
                    yield np.stack(batch)
                    batch = []
        if batch:
            yield np.stack(batch)


def torchgeo_grid(path: Path, side: int) -> Iterator[Tiles]:
    """Let torchgeo's grid sampler and two loader workers read, as its tutorials do."""
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import GridGeoSampler, Units

    class Scene(RasterDataset):
        filename_glob = path.name
        is_image = True

    scene = Scene(str(path.parent))
    west, north = 600_000, 5_000_000
    region = scene.bounds
    part = (slice(west, west + side * 10), slice(north - side * 10, north), region[2])
    from shapely.geometry import box

    try:
        sampler = GridGeoSampler(
            scene, TILE, TILE, toi=None, roi=box(west, north - side * 10, west + side * 10, north)
        )
    except TypeError:
        sampler = GridGeoSampler(scene, TILE, TILE, roi=part, units=Units.PIXELS)
    loader = DataLoader(scene, BATCH, sampler=sampler, num_workers=2, collate_fn=stack_samples)
    for sample in loader:
        yield sample["image"].numpy().astype(np.uint16)


def main() -> None:
    name, path, model, side = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    session = ort.InferenceSession(model)
    windows = 0
    begun = time.perf_counter()
    for batch in {"rasterio_loop": rasterio_loop, "torchgeo_grid": torchgeo_grid}[name](path, side):
        (probabilities,) = session.run(["probabilities"], {"tiles": batch})
        windows += len(probabilities.argmax(axis=1))
    print(windows / (time.perf_counter() - begun))


if __name__ == "__main__":
    main()
