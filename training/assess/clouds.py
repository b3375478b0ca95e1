"""Real cloudy tiles, cut from scenes that come with a cloud probability."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from datasets.errors import TrainingError
from datasets.geotiff import open_geotiff, plan_reading, read_dn
from datasets.radiometry import Level, Statement
from datasets.scenes.options import CloudKind
from datasets.scenes.stacked import is_mask_name
from datasets.tile import DN, TILE_SIZE
from training.assess.settings import AssessSettings

_SAID = Statement(level=Level.L1C, scale=1e-4, offset=0.0)


def cut_tiles(folder: Path, settings: AssessSettings) -> tuple[DN, npt.NDArray[np.float64]]:
    """Return tiles of all scenes below `folder`, uint16 (n, 13, 64, 64), and the share (0-1) of cloud in each, (n,).

    Scenes are GeoTIFFs of DN with named bands, one of them the cloud probability in percent. Ones smaller than a tile
    are mirrored to its size. Lines and columns at the edges without any data are left out.

    Raises:
        TrainingError: no scene with a cloud probability is there.
    """
    found = [part for path in sorted(folder.rglob("*.tif")) for part in [_cut(path, settings)] if part is not None]
    if not found:
        raise TrainingError(f"{folder}: no GeoTIFF with a band for the cloud probability; name another --clouds")
    tiles, shares = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return tiles, shares


def _cut(path: Path, settings: AssessSettings) -> tuple[DN, npt.NDArray[np.float64]] | None:
    with open_geotiff(path) as dataset:
        masks = [
            index
            for index, text in enumerate(dataset.descriptions, start=1)
            if text and is_mask_name(text, CloudKind.PROBABILITY)
        ]
        if not masks:
            return None
        pixels, percent = read_dn(dataset, plan_reading(dataset, path.name, _SAID)), dataset.read(masks[0])
    pixels, cloud = _trimmed(pixels, percent >= settings.cloud_percent)
    tall, wide = (max(0, TILE_SIZE - side) for side in cloud.shape)
    pixels = np.pad(pixels, ((0, 0), (0, tall), (0, wide)), mode="symmetric")
    cloud = np.pad(cloud, ((0, tall), (0, wide)), mode="symmetric")
    places = [
        (slice(top, top + TILE_SIZE), slice(left, left + TILE_SIZE))
        for top in range(0, cloud.shape[0] - TILE_SIZE + 1, settings.cloud_step)
        for left in range(0, cloud.shape[1] - TILE_SIZE + 1, settings.cloud_step)
    ]
    return np.stack([pixels[:, down, across] for down, across in places]), np.array([cloud[p].mean() for p in places])


def _trimmed(pixels: DN, cloud: npt.NDArray[np.bool_]) -> tuple[DN, npt.NDArray[np.bool_]]:
    """Leave out the lines and columns at the edges where some pixel has no data in any band."""
    valid = (pixels > 0).any(0)
    lines, columns = np.flatnonzero(valid.mean(1) > 0.5), np.flatnonzero(valid.mean(0) > 0.5)
    if not len(lines) or not len(columns):
        return pixels, cloud
    down, across = slice(lines[0], lines[-1] + 1), slice(columns[0], columns[-1] + 1)
    return pixels[:, down, across], cloud[down, across]
