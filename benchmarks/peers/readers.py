"""The readers that other servers are measured with: what their users would write, and tilewise's own."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rasterio.io import MemoryFile
from rasterio.warp import transform_geom
from shapely.geometry import box, mapping

from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.core.radiometry import ReadOptions
from tilewise.datasets.readers.geotiff import read_tile


class Read(NamedTuple):
    """A tile that was read: its pixels uint16 (13, 64, 64), and its outline as GeoJSON."""

    pixels: npt.NDArray[np.uint16]
    footprint: dict[str, Any] | None


def read_with_rasterio(content: bytes, name: str) -> Read:
    """Read a tile with rasterio, as a tutorial would: bands by description, no checks of hostile files."""
    with MemoryFile(content) as memory, memory.open() as dataset:
        order = [dataset.descriptions.index(band) + 1 for band in BAND_NAMES]
        outline = transform_geom(dataset.crs, "EPSG:4326", mapping(box(*dataset.bounds)))
        return Read(dataset.read(order), outline)


def read_with_tilewise(content: bytes, name: str) -> Read:
    """Read a tile with tilewise's reader."""
    tile = read_tile(content, ReadOptions(), name)
    return Read(tile.pixels, tile.footprint)


READERS: dict[str, Callable[[bytes, str], Read]] = {
    "rasterio": read_with_rasterio,
    "tilewise": read_with_tilewise,
}
read = READERS[os.environ.get("PEER_READER", "tilewise")]
