"""Sound files of many forms, small, to be mutated."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.io import MemoryFile

from tilewise.datasets.acquire.synthetic import TAGS
from tilewise.datasets.core.bands import BAND_NAMES, RGB_BANDS

_FORMS: tuple[Mapping[str, Any], ...] = (
    {},
    {"compress": "deflate", "predictor": 2},
    {"compress": "lzw", "tiled": True, "blockxsize": 16, "blockysize": 16},
    {"compress": "zstd", "interleave": "pixel"},
    {"compress": "deflate", "BIGTIFF": "YES", "tiled": True, "blockxsize": 64, "blockysize": 64},
    {"compress": "packbits", "ENDIANNESS": "BIG"},
    {"compress": "lerc"},
    {"compress": "lzma"},
    {"compress": "deflate", "dtype": "float32", "predictor": 3},
    {"compress": "deflate", "count": 3, "nodata": 0, "tiled": True, "blockxsize": 512, "blockysize": 512},
    {"compress": "jpeg", "count": 3, "dtype": "uint8", "photometric": "ycbcr", "interleave": "pixel"},
    {"compress": "webp", "count": 3, "dtype": "uint8", "interleave": "pixel"},
)


def sound_files() -> list[bytes]:
    """Return tiles as GeoTIFFs in all forms that GDAL writes and people use; some name their bands, all are
    read."""
    return [_write({"dtype": "uint16", "count": 13, **form}) for form in _FORMS]


def _write(form: Mapping[str, Any]) -> bytes:
    count = form["count"]
    pixels = (np.arange(count * 4096).reshape(count, 64, 64) // 512 % 200 + 20).astype(form["dtype"])
    place = {"crs": CRS.from_epsg(32629), "transform": Affine(10, 0, 540_000, 0, -10, 4_740_000)}
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", height=64, width=64, **place, **form) as dataset:
            dataset.write(pixels)
            dataset.descriptions = BAND_NAMES if count == len(BAND_NAMES) else RGB_BANDS
            dataset.update_tags(**TAGS)
        return bytes(memory.read())
