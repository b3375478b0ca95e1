"""GeoTIFFs as bytes, as people have them: with and without names, places and tags."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.crs import CRS
from rasterio.io import MemoryFile

from tilewise.datasets.acquire.synthetic import TAGS
from tilewise.datasets.core.bands import BAND_NAMES, positions
from tilewise.datasets.core.tile import Tile

UTM = CRS.from_epsg(32629)
CORNER = Affine(10, 0, 540_000, 0, -10, 4_740_000)


def geotiff(
    pixels: npt.NDArray[Any],
    *,
    names: Sequence[str] | None = None,
    tags: Mapping[str, str] | None = None,
    crs: CRS | None = UTM,
    transform: Affine = CORNER,
    **profile: Any,
) -> bytes:
    """Return `pixels` (bands, height, width) as a GeoTIFF; bands have no names unless `names` are given."""
    count, height, width = pixels.shape
    shape = {"count": count, "height": height, "width": width, "dtype": pixels.dtype}
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", **shape, crs=crs, transform=transform, **profile) as dataset:
            dataset.write(pixels)
            dataset.update_tags(**(tags or {}))
            if names:
                dataset.descriptions = tuple(names)
        return bytes(memory.read())


def tile_file(tile: Tile, bands: Sequence[str] = BAND_NAMES, *, named: bool = True, **more: Any) -> bytes:
    """Return some bands of a tile as a GeoTIFF, which says all that a reader must know if it is `named`."""
    assert tile.georeference is not None
    overrides = {"names": bands, "tags": TAGS} if named else {}
    place = {"crs": tile.georeference.crs, "transform": tile.georeference.transform}
    return geotiff(tile.pixels[positions(bands)], **(overrides | place | more))


def jpeg(size: int = 64) -> bytes:
    """Return the first bytes of a real JPEG, which cannot be decoded."""
    with MemoryFile() as memory:
        with memory.open(driver="JPEG", count=3, height=size, width=size, dtype="uint8") as dataset:
            dataset.write(np.full((3, size, size), 90, np.uint8))
        return bytes(memory.read())[:200]
