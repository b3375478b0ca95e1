"""What people write without a batch runner: the same network in torch over the windows of a scene.

    python benchmarks/peers/scene_loops.py rasterio_loop|torchgeo_grid SCENE NETWORK SIDE

prints windows a second over the upper left SIDE × SIDE pixels. It needs torch, and torchgeo 0.8 for
`torchgeo_grid`.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import rasterio
import torch
from rasterio.windows import Window

TILE, BATCH = 64, 64


def rasterio_loop(path: Path, side: int) -> Iterator[torch.Tensor]:
    """Read window by window with one handle, in reading order."""
    with rasterio.open(path) as dataset:
        batch = []
        for row in range(0, side, TILE):
            for column in range(0, side, TILE):
                batch.append(
                    torch.from_numpy(dataset.read(window=Window(column, row, TILE, TILE)).astype("float32"))
                )
                if len(batch) == BATCH:
                    yield torch.stack(batch)
                    batch = []
        if batch:
            yield torch.stack(batch)


def torchgeo_grid(path: Path, side: int) -> Iterator[torch.Tensor]:
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
        yield sample["image"].float()


def main() -> None:
    name, path, network, side = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    model = torch.jit.load(network).eval()
    windows = 0
    begun = time.perf_counter()
    with torch.inference_mode():
        for batch in {"rasterio_loop": rasterio_loop, "torchgeo_grid": torchgeo_grid}[name](path, side):
            logits, _ = model(batch)
            windows += len(logits.argmax(dim=1))
    print(windows / (time.perf_counter() - begun))


if __name__ == "__main__":
    main()
