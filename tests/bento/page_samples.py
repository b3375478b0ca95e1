"""Make the sample files of the page from EuroSAT's tiles (MIT, with modified Copernicus Sentinel data).

    python tests/bento/page_samples.py EuroSAT_MS.zip

`sample-tile.tif` is one tile as it is. `sample-patchwork.tif` is a scene of six tiles in their four bands of
10 m: they are of different places, so the scene as a whole is of none; it is put east of the tile.
All tiles are of the published validation split, which the shipped weights were not trained on.
"""

import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.io import MemoryFile

from tilewise.bento.api.page import FOLDER
from tilewise.datasets.core.bands import EUROSAT_MS_ORDER
from tilewise.datasets.core.tile import TILE_SIZE

TILE = "Forest_1096"
PATCHWORK = (
    ("Forest_1402", "Residential_1328", "Pasture_340"),
    ("AnnualCrop_168", "River_1281", "SeaLake_1121"),
)
BANDS = ("B02", "B03", "B04", "B08")
TAGS = {
    "PROCESSING_LEVEL": "Level-1C",
    "QUANTIFICATION_VALUE": "10000",
    "RADIO_ADD_OFFSET": "0",
    "LICENCE": "MIT: EuroSAT, Helber et al.; contains modified Copernicus Sentinel data",
}
PACKED: dict[str, Any] = {"driver": "GTiff", "compress": "deflate", "predictor": 2, "zlevel": 9}

Pixels = npt.NDArray[np.uint16]


def make_samples(archive: Path) -> dict[str, bytes]:
    """Return the sample files by name."""
    with zipfile.ZipFile(archive) as tiles:
        tile, place = read(tiles, TILE)
        chosen = [EUROSAT_MS_ORDER.index(band) for band in BANDS]
        rows = [np.concatenate([read(tiles, name)[0][chosen] for name in row], axis=2) for row in PATCHWORK]
    scene = np.concatenate(rows, axis=1)
    beside = place | {"transform": place["transform"] @ Affine.translation(2 * TILE_SIZE, 0)}
    return {
        "sample-tile.tif": write(tile, EUROSAT_MS_ORDER, place),
        "sample-patchwork.tif": write(scene, BANDS, beside),
    }


def read(tiles: zipfile.ZipFile, name: str) -> tuple[Pixels, dict[str, Any]]:
    """Return uint16 (13, 64, 64) of a tile, and its position."""
    content = tiles.read(f"EuroSAT_MS/{name.partition('_')[0]}/{name}.tif")
    with MemoryFile(content) as memory, memory.open() as dataset:
        return dataset.read(), {"crs": dataset.crs, "transform": dataset.transform}


def write(pixels: Pixels, bands: tuple[str, ...], place: dict[str, Any]) -> bytes:
    """Return a GeoTIFF whose bands have names."""
    count, height, width = pixels.shape
    with MemoryFile() as memory:
        shape = {"count": count, "height": height, "width": width, "dtype": "uint16"}
        with memory.open(**PACKED, **shape, **place) as dataset:
            dataset.write(pixels)
            dataset.descriptions = bands
            dataset.update_tags(**TAGS)
        return bytes(memory.read())


if __name__ == "__main__":
    for name, content in make_samples(Path(sys.argv[1])).items():
        (FOLDER / name).write_bytes(content)
        print(f"{name}: {len(content):,} bytes")
