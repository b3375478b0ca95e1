"""Small rasters made in the test that needs them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine

from tilewise.datasets.core.bands import BAND_NAMES

L1C_TAGS = {"PROCESSING_LEVEL": "Level-1C", "QUANTIFICATION_VALUE": "10000", "RADIO_ADD_OFFSET": "0"}


def noise(seed: int = 0, bands: int = 13, size: int = 64) -> npt.NDArray[np.uint16]:
    """Random DN (bands, size, size), none of them 0; the same for the same seed."""
    return np.random.default_rng(seed).integers(1, 10_000, (bands, size, size), np.uint16)


def write_tiff(
    path: Path,
    pixels: npt.NDArray[Any],
    names: Sequence[str | None] = (),
    tags: Mapping[str, str] = L1C_TAGS,
    corner: tuple[float, float] | None = None,
    scaling: Sequence[tuple[float, float]] = (),
    **profile: Any,
) -> Path:
    """Write a GeoTIFF of `pixels` (bands, height, width).

    `names` describe the bands; `corner` (left, top in EPSG:32632) places it; `scaling` is each band's GDAL
    scale and offset.
    """
    if corner:
        profile = {"crs": "EPSG:32632", "transform": Affine(10, 0, corner[0], 0, -10, corner[1]), **profile}
    count, height, width = pixels.shape
    size = {"count": count, "height": height, "width": width}
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", driver="GTiff", dtype=pixels.dtype, **size, **profile) as dataset:
        dataset.write(pixels)
        dataset.update_tags(**tags)
        for index, name in enumerate(names, start=1):
            dataset.set_band_description(index, name or "")
        if scaling:
            dataset.scales, dataset.offsets = zip(*scaling, strict=True)
    return path


def write_l1c(path: Path, seed: int = 0, **options: Any) -> Path:
    """Write a 13-band Level-1C tile of noise that says everything about itself."""
    return write_tiff(path, noise(seed), BAND_NAMES, **options)


def write_jpeg(path: Path, rgb: npt.NDArray[np.uint8], driver: str = "JPEG") -> Path:
    """Write bytes (bands, height, width) as a JPEG of the highest quality, or as a PNG."""
    count, height, width = rgb.shape
    options: dict[str, Any] = {"quality": 100} if driver == "JPEG" else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    size = {"count": count, "height": height, "width": width}
    with rasterio.open(path, "w", driver=driver, dtype="uint8", **size, **options) as dataset:
        dataset.write(rgb)
    path.with_name(path.name + ".aux.xml").unlink(missing_ok=True)
    return path


def write_folder(root: Path, tiles: Mapping[str, int]) -> Path:
    """Write a labelled folder: `tiles` are {"Forest/Forest_1": seed of its noise}."""
    for path, seed in tiles.items():
        write_l1c(root / f"{path}.tif", seed)
    return root
