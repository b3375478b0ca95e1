"""Generate synthetic Sentinel-2 tiles and scenes of EuroSAT's ten classes, for the demo and the tests.

No pixel made here is an observation of the Earth, and no score reached on such tiles says how well a model
does on real ones. Every file says so: a GeoTIFF by its tag `TILEWISE_SYNTHETIC`, a folder by its card
(`dataset.json`). What the tiles show, and where their spectra come from, is in
`tilewise.datasets.acquire.landscapes`.

The same seed, class and number give the same tile and the same bytes, however many are made and in which
order (on one version of NumPy and of GDAL).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.io import DatasetWriter
from rasterio.windows import Window

from tilewise.datasets.acquire.landscapes import PAINTERS, observe
from tilewise.datasets.core.bands import BAND_NAMES, EUROSAT_MS_ORDER, positions
from tilewise.datasets.core.console import Report, silent
from tilewise.datasets.core.errors import NoTilesError, TilewiseError
from tilewise.datasets.core.files import atomic_write
from tilewise.datasets.core.radiometry import QUANTIFICATION, Level
from tilewise.datasets.core.tile import BAND_COUNT, DN, TILE_SIZE, Georeference, Tile
from tilewise.datasets.readers.eurosat import CLASSES
from tilewise.datasets.readers.sources import DatasetCard, Format, find_source

Floats = npt.NDArray[np.float64]

SYNTHETIC_TAG = "TILEWISE_SYNTHETIC"
TAGS = {
    "PROCESSING_LEVEL": "Level-1C",
    "QUANTIFICATION_VALUE": str(QUANTIFICATION),
    "RADIO_ADD_OFFSET": "0",
    SYNTHETIC_TAG: "yes: computed by tilewise, no observation of the Earth",
}
NOTES = (
    "Synthetic, not real: computed from hand-set spectra and drawn patterns, no observation of the Earth. "
    "For demonstrations and tests; scores on it say nothing about real images."
)

# Tiles are in groups of 10 × 4, the groups on a grid of 20 km in each of five regions: no footprints
# overlap, and a group is one block for any split by blocks of 10 or 20 km. A region's corner: EPSG code,
# easting and northing in km.
_CORNERS = (
    (32631, 340, 5080),
    (32632, 400, 5360),
    (32633, 380, 5480),
    (32634, 340, 5160),
    (32630, 340, 4260),
)
_GROUP_ROWS = 4
_GROUPS_ABREAST = 16
_GROUPS_DEEP = 64
_SPACING_M = 20_000
_PIXEL_M = 10.0
_SCENE_CORNER = (32629, 540_000.0, 4_740_000.0)
MAX_TILES = len(_CORNERS) * _GROUPS_ABREAST * _GROUPS_DEEP * _GROUP_ROWS  # of one class

SCENE_BLOCK = 256
_CELLS_PER_BLOCK = SCENE_BLOCK // TILE_SIZE
_CELLS_PER_PATCH = 4
_SCENE_STREAM = len(CLASSES)  # the random stream of scenes stands beside those of the classes


def synthesise(out: Path, tiles_per_class: int, seed: int, progress: Report = silent) -> Path:
    """Write `out/<Class>/<Class>_<n>.tif` for every class, n from 1, and the card; return `out`.

    Args:
        out: the folder, made if it is missing; tiles of the same names are replaced.
        tiles_per_class: number of tiles of each class, 1 to MAX_TILES.
        seed: 0 or more.
        progress: called after each tile with the numbers of tiles written and in all.

    Raises:
        TilewiseError: a number is out of range, or `out` has tiles that this run would not write.
    """
    if not 1 <= tiles_per_class <= MAX_TILES:
        raise NoTilesError(f"1 to {MAX_TILES} tiles of each class can be made, not {tiles_per_class}")
    _refuse_negative(seed)
    numbers = range(1, tiles_per_class + 1)
    wanted = {out / label / f"{label}_{n}.tif": (label, n) for label in CLASSES for n in numbers}
    _refuse_other_tiles(out, set(wanted))
    # The card comes first: an unfinished folder must be marked as synthetic.
    _write_card(out, tiles_per_class, seed)
    for done, (path, (label, number)) in enumerate(wanted.items(), start=1):
        write_tile(synthesise_tile(label, number, seed), path)
        progress("tiles", done, len(wanted))
    return out


def synthesise_tile(label: str, index: int, seed: int) -> Tile:
    """Return tile number `index` (1 to MAX_TILES) of class `label`: uint16 (13, 64, 64), with a position.

    Raises:
        NoTilesError: there is no such class, or no such number.
        TilewiseError: the seed is negative.
    """
    if not 1 <= index <= MAX_TILES:
        raise NoTilesError(f"synthetic tiles of a class are numbered 1 to {MAX_TILES}, not {index}")
    pixels = render(label, index, seed)
    return Tile(f"{label}_{index}", pixels, BAND_NAMES, Level.L1C, _georeference(label, index))


def render(label: str, index: int, seed: int) -> DN:
    """Return uint16 (13, 64, 64) DN from 1 up: the pixels of one tile, in the canonical band order.

    Numbers above MAX_TILES are those of scenes, so that a scene repeats no tile of a data set.

    Raises:
        NoTilesError: there is no such class.
        TilewiseError: the seed or the number is negative.
    """
    if label not in PAINTERS:
        raise NoTilesError(f"no synthetic tiles of class {label!r}; the classes are {', '.join(CLASSES)}")
    return observe(label, _generator(seed, CLASSES.index(label), index))


def write_tile(tile: Tile, path: Path) -> None:
    """Write a synthetic tile as a GeoTIFF: EuroSAT's order (B8A last), bands named, whole or not at all."""
    height, width = tile.pixels.shape[1:]
    profile: dict[str, Any] = {"height": height, "width": width}
    if tile.georeference:
        profile |= {"crs": tile.georeference.crs, "transform": tile.georeference.transform}
    with _create(path, profile) as dataset:
        dataset.write(tile.pixels[positions(EUROSAT_MS_ORDER)])


def synthesise_scene(path: Path, seed: int, rows: int, columns: int) -> list[list[str]]:
    """Write a GeoTIFF of `rows` × `columns` cells of 64 × 64 pixels; return the class of each.

    Cells of a class come in patches of about four, and every class occurs where there are ten cells or more.
    The cell (row, column) holds `render(label, scene_index(row, column, columns), seed)`.

    Raises:
        TilewiseError: there is no cell, or the seed is negative.
    """
    if rows < 1 or columns < 1:
        raise NoTilesError(f"a scene of {rows} × {columns} cells has none; ask for 1 × 1 or more")
    labels = _scene_labels(seed, rows, columns)
    epsg, left, top = _SCENE_CORNER
    profile = {
        "height": rows * TILE_SIZE,
        "width": columns * TILE_SIZE,
        "crs": _crs(epsg),
        "transform": Affine(_PIXEL_M, 0, left, 0, -_PIXEL_M, top),
        "tiled": True,
        "blockxsize": SCENE_BLOCK,
        "blockysize": SCENE_BLOCK,
    }
    with _create(path, profile) as dataset:
        for first in range(0, rows, _CELLS_PER_BLOCK):
            _write_strip(dataset, labels, first, seed)
    return labels


def scene_index(row: int, column: int, columns: int) -> int:
    """Return the tile number that the cell (row, column) of a scene `columns` cells wide is rendered from."""
    return MAX_TILES + 1 + row * columns + column


def _write_strip(dataset: DatasetWriter, labels: list[list[str]], first: int, seed: int) -> None:
    """Write the cells of one row of blocks, from the row of cells `first`."""
    columns = len(labels[0])
    strip = []
    for row in range(first, min(first + _CELLS_PER_BLOCK, len(labels))):
        cells = [render(label, scene_index(row, at, columns), seed) for at, label in enumerate(labels[row])]
        strip.append(np.concatenate(cells, axis=2))
    pixels = np.concatenate(strip, axis=1)
    window = Window(0, first * TILE_SIZE, pixels.shape[2], pixels.shape[1])
    dataset.write(pixels[positions(EUROSAT_MS_ORDER)], window=window)


def _scene_labels(seed: int, rows: int, columns: int) -> list[list[str]]:
    """Return the class of each cell: that of the nearest of random sites, which take the classes in turn."""
    rng = _generator(seed, _SCENE_STREAM, 0)
    sites = max(min(len(CLASSES), rows * columns), rows * columns // _CELLS_PER_PATCH)
    site_row, site_column = np.divmod(rng.permutation(rows * columns)[:sites], columns)
    order = rng.permutation(len(CLASSES))
    labels = []
    for row in range(rows):  # not all rows at once: that would take cells × sites of memory
        distance = (row - site_row) ** 2 + (np.arange(columns)[:, None] - site_column) ** 2
        labels.append([CLASSES[order[site % len(CLASSES)]] for site in distance.argmin(axis=1)])
    return labels


def _generator(*numbers: int) -> np.random.Generator:
    _refuse_negative(*numbers)
    return np.random.default_rng(numbers)


def _refuse_negative(*numbers: int) -> None:
    if min(numbers) < 0:
        raise TilewiseError(f"a seed or tile number must be 0 or more, not {min(numbers)}")


@contextmanager
def _create(path: Path, profile: dict[str, Any]) -> Iterator[DatasetWriter]:
    """Open a GeoTIFF for writing, with tags and band names; it is written whole or not at all."""
    fixed = {"driver": "GTiff", "count": BAND_COUNT, "dtype": "uint16", "interleave": "band"}
    packed = {"compress": "deflate", "predictor": 2, "zlevel": 1}
    with (
        atomic_write(path, durable=False) as partial,
        rasterio.open(partial, "w", **fixed, **packed, **profile) as dataset,
    ):
        dataset.update_tags(**TAGS)
        dataset.descriptions = EUROSAT_MS_ORDER
        yield dataset


def _write_card(out: Path, tiles_per_class: int, seed: int) -> None:
    card = DatasetCard(
        name="tilewise-synthetic",
        format=Format.GEOTIFF,
        licence="CC0-1.0",
        origin="computed by tilewise.datasets.acquire.synthetic",
        synthetic=True,
        notes=NOTES,
        extra={"seed": seed, "tiles_per_class": tiles_per_class},
    )
    card.write(out)


def _refuse_other_tiles(out: Path, wanted: set[Path]) -> None:
    """Refuse to overwrite real tiles, or to mix with tiles that the card would not describe."""
    present = sorted(out.glob("*/*.tif"))
    synthetic = bool(present) and find_source(out).synthetic
    unknown_tiles = [path for path in present if not synthetic or path not in wanted]
    if unknown_tiles:
        raise TilewiseError(
            f"{out}: it has {len(unknown_tiles)} tiles of another data set, such as "
            f"{unknown_tiles[0].name}; empty the folder or choose another"
        )


def _georeference(label: str, index: int) -> Georeference:
    """Return a tile's georeference: four tiles of each class make one group, a rectangle of 10 × 4 tiles."""
    group, row = divmod(index - 1, _GROUP_ROWS)
    slot, region = divmod(group, len(_CORNERS))
    down, right = divmod(slot, _GROUPS_ABREAST)
    epsg, east_km, north_km = _CORNERS[region]
    side = TILE_SIZE * _PIXEL_M
    left = east_km * 1000 + right * _SPACING_M + CLASSES.index(label) * side
    top = north_km * 1000 + down * _SPACING_M + (_GROUP_ROWS - row) * side
    return Georeference(_crs(epsg), Affine(_PIXEL_M, 0, left, 0, -_PIXEL_M, top))


@lru_cache
def _crs(epsg: int) -> CRS:
    return CRS.from_epsg(epsg)
