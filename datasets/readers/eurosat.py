"""Read the tiles of EuroSAT's two archives.

EuroSAT (Helber et al. 2019, doi:10.1109/JSTARS.2019.2918242) is Level-1C without the later +1000 offset. Its
multispectral files have B8A as the **last** of 13 bands and do not name their bands. Its RGB files are 8-bit
JPEGs of B04, B03, B02; the conversion of their bytes to DN was fitted on the tiles that are in both archives
(docs/decisions/0002-rgb-scale.md).
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader, MemoryFile

from tilewise.datasets.core.bands import RGB_BANDS
from tilewise.datasets.core.errors import BandsUnknownError, TileShapeError, UnreadableImageError
from tilewise.datasets.core.radiometry import PRESETS, RGB_DN_PER_STEP, RGB_ZERO, Level, ReadOptions
from tilewise.datasets.core.tile import TILE_SIZE, Tile, canonical_order, place_bands
from tilewise.datasets.readers.geotiff import isolated_gdal, read_tile

CLASSES = (
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
)

MS_READ_OPTIONS = PRESETS["eurosat"]
PICTURE_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
"""First bytes of a JPEG and of a PNG."""


def read_ms(path: Path) -> Tile:
    """Read one tile of EuroSAT MS (`EuroSAT_MS/<Class>/<Class>_<n>.tif`).

    Raises:
        TilewiseError: the file is unreadable, or not 64 × 64 with 13 bands.
    """
    tile = read_tile(path, MS_READ_OPTIONS)
    return Tile(path.stem, tile.pixels, tile.bands, tile.level, tile.georeference)


def read_rgb(path: Path) -> Tile:
    """Read one tile of EuroSAT RGB (`EuroSAT_RGB/<Class>/<Class>_<n>.jpg`) as DN.

    Raises:
        UnreadableImageError: it is not a JPEG, or is truncated.
        TileShapeError: it is not 64 × 64 with three bands.
    """
    try:
        with rasterio.open(path, driver="JPEG") as dataset:
            _check_rgb_shape(dataset, path.name)
            rgb = dataset.read()
    except RasterioError as error:
        raise UnreadableImageError(f"{path.name}: not a readable JPEG") from error
    return Tile(path.stem, place_bands(rgb_to_dn(rgb), RGB_BANDS), canonical_order(RGB_BANDS), Level.L1C)


def read_picture(content: bytes, options: ReadOptions, name: str, size: int = TILE_SIZE) -> Tile:
    """Read a tile from the bytes of a JPEG or PNG, as EuroSAT's RGB tiles are.

    Args:
        content: of the file.
        options: nothing, or what `eurosat-rgb` stands for.
        name: of the tile, for errors.
        size: pixels a side.

    Raises:
        BandsUnknownError: the options say that it is something else.
        UnreadableImageError: it is no picture of red, green and blue, or is broken.
        TileShapeError: it has another size.
    """
    if options not in (ReadOptions(), PRESETS["eurosat-rgb"]):
        raise BandsUnknownError(
            f"{name}: a JPEG or PNG is read as EuroSAT's RGB tiles are; leave bands, level, scale and offset "
            "out, or give bands=eurosat-rgb alone"
        )
    kind = "JPEG" if content.startswith(PICTURE_STARTS[0]) else "PNG"
    try:
        with isolated_gdal(), MemoryFile(content) as memory, memory.open(driver=kind) as dataset:
            if (dataset.height, dataset.width) != (size, size):
                raise TileShapeError(
                    f"{name}: {dataset.width} × {dataset.height} pixels, but a tile has {size} × {size}"
                )
            if dataset.dtypes != ("uint8",) * 3:
                raise UnreadableImageError(f"{name}: not a picture of 8-bit red, green and blue; convert it")
            rgb = dataset.read()
    except RasterioError as error:
        raise UnreadableImageError(f"{name}: not a readable JPEG or PNG") from error
    return Tile(name, place_bands(rgb_to_dn(rgb), RGB_BANDS), canonical_order(RGB_BANDS), Level.L1C)


def _check_rgb_shape(dataset: DatasetReader, name: str) -> None:
    if (dataset.count, dataset.height, dataset.width) != (3, TILE_SIZE, TILE_SIZE):
        raise TileShapeError(
            f"{name}: {dataset.width} × {dataset.height} pixels of {dataset.count} bands, "
            f"but EuroSAT RGB has {TILE_SIZE} × {TILE_SIZE} of 3"
        )


def rgb_to_dn(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
    """Return DN for EuroSAT's bytes (any shape): (byte − 1) × 2750 / 254, at least 1."""
    dn = np.rint((rgb.astype(np.float32) - RGB_ZERO) * RGB_DN_PER_STEP)
    return np.clip(dn, 1, None).astype(np.uint16)


def class_of(path: Path) -> str:
    """Return the class of a tile: the name of its folder."""
    return path.parent.name
