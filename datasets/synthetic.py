"""Synthetic Sentinel-2 tiles of EuroSAT's ten classes, for the demo and the tests: plausible, not real.

No pixel made here is an observation of the Earth, and no score reached on such tiles says how well a model
does on real ones. Every file says so: a GeoTIFF by its tag `SENTILE_SYNTHETIC`, a folder by its card
(`dataset.json`).

A tile is computed in four steps. A class is painted as shares of materials on a grid of 64 × 64 pixels of
10 m; the materials' reflectance spectra are mixed by those shares; a plain atmosphere (path reflectance that
falls with the fourth power of wavelength, absorption by water vapour in B09, an opaque B10) makes of that
something like Level-1C's top-of-atmosphere reflectance; the bands of 20 and 60 m are averaged to their own
grid and interpolated back to 10 m. DN = reflectance × 10 000 without the offset of −1000, uint16, never 0.

Origin of the spectra: the values in `SPECTRA` were set by hand at the band centres, to two or three decimals,
after the well-known shapes of vegetation, soil, roofs and water that published libraries show (USGS Spectral
Library Version 7, Kokaly et al. 2017, doi:10.3133/ds1035; ECOSTRESS library, Meerdink et al. 2019,
doi:10.1016/j.rse.2019.05.015). They are not measurements; no value is copied from those libraries, and none
is derived from EuroSAT.

The same seed, class and number give the same tile and the same bytes, however many are made and in which
order (on one version of NumPy and of GDAL).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.io import DatasetWriter
from rasterio.windows import Window

from datasets.bands import BAND_NAMES, BANDS, EUROSAT_MS_ORDER, positions
from datasets.errors import NoTilesError, SentileError
from datasets.eurosat import CLASSES
from datasets.progress import Report, silent
from datasets.radiometry import DN_MAX, QUANTIFICATION, Level
from datasets.sources import CARD_NAME, Card, Format, find_source
from datasets.tile import BAND_COUNT, DN, TILE_SIZE, Georeference, Tile

Floats = npt.NDArray[np.float64]

SYNTHETIC_TAG = "SENTILE_SYNTHETIC"
TAGS = {
    "PROCESSING_LEVEL": "Level-1C",
    "QUANTIFICATION_VALUE": str(QUANTIFICATION),
    "RADIO_ADD_OFFSET": "0",
    SYNTHETIC_TAG: "yes: computed by sentile, no observation of the Earth",
}
NOTES = (
    "Synthetic, not real: computed from hand-set spectra and drawn patterns, no observation of the Earth. "
    "For demonstrations and tests; scores on it say nothing about real images."
)

# Surface reflectance (0–1) at B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B10 B11 B12; B10 sees no ground.
SPECTRA: dict[str, tuple[float, ...]] = {
    "crop": (0.028, 0.033, 0.075, 0.040, 0.10, 0.32, 0.42, 0.45, 0.47, 0.47, 0.0, 0.22, 0.10),
    "straw": (0.075, 0.095, 0.14, 0.19, 0.22, 0.25, 0.275, 0.295, 0.31, 0.33, 0.0, 0.36, 0.26),
    "soil": (0.065, 0.085, 0.125, 0.175, 0.195, 0.21, 0.23, 0.25, 0.26, 0.275, 0.0, 0.33, 0.28),
    "dark_soil": (0.045, 0.055, 0.075, 0.10, 0.115, 0.125, 0.135, 0.145, 0.15, 0.16, 0.0, 0.22, 0.19),
    "grass": (0.030, 0.038, 0.082, 0.052, 0.12, 0.30, 0.37, 0.395, 0.41, 0.41, 0.0, 0.25, 0.13),
    "dry_grass": (0.048, 0.062, 0.098, 0.115, 0.155, 0.23, 0.265, 0.285, 0.30, 0.31, 0.0, 0.30, 0.19),
    "shrub": (0.028, 0.034, 0.058, 0.048, 0.085, 0.185, 0.23, 0.25, 0.26, 0.265, 0.0, 0.20, 0.11),
    "orchard": (0.027, 0.032, 0.062, 0.042, 0.085, 0.235, 0.30, 0.325, 0.34, 0.34, 0.0, 0.19, 0.09),
    "broadleaf": (0.018, 0.022, 0.045, 0.024, 0.062, 0.21, 0.28, 0.30, 0.315, 0.315, 0.0, 0.145, 0.062),
    "conifer": (0.014, 0.017, 0.031, 0.021, 0.042, 0.125, 0.165, 0.18, 0.19, 0.19, 0.0, 0.085, 0.038),
    "asphalt": (0.075, 0.082, 0.095, 0.105, 0.11, 0.115, 0.12, 0.125, 0.13, 0.135, 0.0, 0.16, 0.15),
    "concrete": (0.13, 0.155, 0.185, 0.21, 0.22, 0.225, 0.23, 0.235, 0.24, 0.25, 0.0, 0.28, 0.265),
    "metal_roof": (0.21, 0.225, 0.24, 0.245, 0.25, 0.25, 0.255, 0.255, 0.26, 0.265, 0.0, 0.27, 0.24),
    "clay_roof": (0.058, 0.070, 0.105, 0.195, 0.22, 0.24, 0.25, 0.26, 0.27, 0.28, 0.0, 0.36, 0.32),
    "clear_water": (0.030, 0.028, 0.019, 0.008, 0.006, 0.004, 0.004, 0.003, 0.003, 0.002, 0.0, 0.001, 0.001),
    "turbid_water": (0.042, 0.054, 0.082, 0.068, 0.060, 0.033, 0.032, 0.024, 0.021, 0.014, 0.0, 0.007, 0.005),
    "glint": (0.30, 0.30, 0.30, 0.30, 0.30, 0.30, 0.30, 0.30, 0.30, 0.30, 0.0, 0.28, 0.26),
}
MATERIALS = tuple(SPECTRA)

_PATH_AT_B01 = 0.10  # the path reflectance at 443 nm; elsewhere it falls with the fourth power of wavelength
_CIRRUS = 0.001  # B10 sees no ground: about 10 DN under a clear sky
_VAPOUR = 0.38  # share of B09 that water vapour lets through
_NOISE_DN = 9.0
_NOISE_SHARE = 0.006

# Tiles lie in groups of 10 × 4, the groups on a lattice of 20 km in each of five regions: no footprints
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
MOST_TILES = len(_CORNERS) * _GROUPS_ABREAST * _GROUPS_DEEP * _GROUP_ROWS  # of one class

SCENE_BLOCK = 256
_CELLS_PER_BLOCK = SCENE_BLOCK // TILE_SIZE
_CELLS_PER_PATCH = 4
_SCENE_STREAM = len(CLASSES)  # the random stream of scenes stands beside those of the classes

_ROWS, _COLUMNS = np.mgrid[0:TILE_SIZE, 0:TILE_SIZE] - (TILE_SIZE - 1) / 2


@dataclass(frozen=True, slots=True)
class Ground:
    """What a tile shows.

    Attributes:
        cover: (len(MATERIALS), 64, 64), shares of the materials, 0–1, that sum to 1.
        light: (64, 64), a factor on the reflectance, about 1.
    """

    cover: Floats
    light: Floats


@dataclass(frozen=True, slots=True)
class Plots:
    """Land cut into plots; each array is (64, 64), lengths are in pixels.

    Attributes:
        number: which plot a pixel lies in, below _MOST_PLOTS².
        edge: distance to the plot's edge.
        along: position on an axis parallel to two of the plot's sides.
        across: position on the axis at right angles to it.
    """

    number: npt.NDArray[np.intp]
    edge: Floats
    along: Floats
    across: Floats

    def draw(self, values: Floats) -> Floats:
        """Return (64, 64): for each pixel the value of its plot, of `values` (_MOST_PLOTS²,)."""
        return values[self.number]


Painter = Callable[[np.random.Generator], Ground]


def synthesise(out: Path, tiles_per_class: int, seed: int, progress: Report = silent) -> Path:
    """Write `out/<Class>/<Class>_<n>.tif` for every class, n from 1, and the card; return `out`.

    Args:
        out: the folder, made where it is missing; tiles of the same names are replaced.
        tiles_per_class: how many of each class, 1 to MOST_TILES.
        seed: 0 or more.
        progress: told after each tile how many are written, and how many there will be.

    Raises:
        SentileError: a number is out of range, or `out` holds tiles that this run would not write.
    """
    if not 1 <= tiles_per_class <= MOST_TILES:
        raise NoTilesError(f"1 to {MOST_TILES} tiles of each class can be made, not {tiles_per_class}")
    _refuse_negative(seed)
    numbers = range(1, tiles_per_class + 1)
    wanted = {out / label / f"{label}_{n}.tif": (label, n) for label in CLASSES for n in numbers}
    _refuse_strangers(out, set(wanted))
    # The card comes first: a folder left unfinished must say that it is synthetic.
    _write_card(out, tiles_per_class, seed)
    for done, (path, (label, number)) in enumerate(wanted.items(), start=1):
        write_tile(synthesise_tile(label, number, seed), path)
        progress("tiles", done, len(wanted))
    return out


def synthesise_tile(label: str, index: int, seed: int) -> Tile:
    """Return tile number `index` (1 to MOST_TILES) of class `label`: uint16 (13, 64, 64), with a position.

    Raises:
        NoTilesError: there is no such class, or no such number.
        SentileError: the seed is negative.
    """
    if not 1 <= index <= MOST_TILES:
        raise NoTilesError(f"synthetic tiles of a class are numbered 1 to {MOST_TILES}, not {index}")
    pixels = render(label, index, seed)
    return Tile(f"{label}_{index}", pixels, BAND_NAMES, Level.L1C, _place(label, index))


def render(label: str, index: int, seed: int) -> DN:
    """Return uint16 (13, 64, 64) DN from 1 up: the pixels of one tile, in the canonical band order.

    Numbers above MOST_TILES are those of scenes, so that a scene repeats no tile of a data set.

    Raises:
        NoTilesError: there is no such class.
        SentileError: the seed or the number is negative.
    """
    if label not in _PAINTERS:
        raise NoTilesError(f"no synthetic tiles of class {label!r}; the classes are {', '.join(CLASSES)}")
    rng = _generator(seed, CLASSES.index(label), index)
    ground = _PAINTERS[label](rng)
    return _observe(ground, rng)


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
        SentileError: there is no cell, or the seed is negative.
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
    return MOST_TILES + 1 + row * columns + column


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
        raise SentileError(f"a seed or tile number must be 0 or more, not {min(numbers)}")


# --- files --------------------------------------------------------------------------------------------------


@contextmanager
def _create(path: Path, profile: dict[str, Any]) -> Iterator[DatasetWriter]:
    """Open a GeoTIFF for writing, tags and band names set; it takes its name only once it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    fixed = {"driver": "GTiff", "count": BAND_COUNT, "dtype": "uint16", "interleave": "band"}
    packed = {"compress": "deflate", "predictor": 2, "zlevel": 1}
    try:
        with rasterio.open(part, "w", **fixed, **packed, **profile) as dataset:
            dataset.update_tags(**TAGS)
            dataset.descriptions = EUROSAT_MS_ORDER
            yield dataset
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write_card(out: Path, tiles_per_class: int, seed: int) -> None:
    card = Card(
        name="sentile-synthetic",
        format=Format.GEOTIFF,
        licence="CC0-1.0",
        origin="computed by datasets.synthetic",
        synthetic=True,
        notes=NOTES,
        extra={"seed": seed, "tiles_per_class": tiles_per_class},
    )
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out, prefix=".card-") as part:
        card.write(Path(part))
        (Path(part) / CARD_NAME).replace(out / CARD_NAME)


def _refuse_strangers(out: Path, wanted: set[Path]) -> None:
    """Refuse to overwrite real tiles, or to mix with tiles of which the card would not be true."""
    present = sorted(out.glob("*/*.tif"))
    synthetic = bool(present) and find_source(out).synthetic
    strangers = [path for path in present if not synthetic or path not in wanted]
    if strangers:
        raise SentileError(
            f"{out}: {len(strangers)} tiles of another data set lie there, such as {strangers[0].name}; "
            "empty the folder or choose another"
        )


def _place(label: str, index: int) -> Georeference:
    """Return where a tile lies: four tiles of each class make one group, a rectangle of 10 × 4 tiles."""
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


# --- from ground to DN --------------------------------------------------------------------------------------


def _observe(ground: Ground, rng: np.random.Generator) -> DN:
    """Return uint16 (13, 64, 64): the ground through the air and the instrument on this tile's day."""
    # Row by row: products too small for BLAS to spread over threads, which costs more than it gains here.
    rows = _spectra_of_the_day(rng).T @ ground.cover.transpose(1, 0, 2)
    surface = rows.transpose(1, 0, 2) * ground.light * np.exp(rng.normal(0, 0.08))
    haze = rng.uniform(0.85, 1.2)
    dn = QUANTIFICATION * (haze * _PATH[:, None, None] + _GAS[:, None, None] * surface)
    spread = _NOISE_SHARE * dn + _NOISE_DN * (_GAS[:, None, None] > 0)
    dn += spread * rng.standard_normal(dn.shape)
    dn = _SAMPLING @ dn @ _SAMPLING.transpose(0, 2, 1)
    dn[_B10] += rng.normal(0, 1.5, dn[_B10].shape)
    return np.clip(np.rint(dn), 1, DN_MAX).astype(np.uint16)


def _spectra_of_the_day(rng: np.random.Generator) -> Floats:
    """Return (len(MATERIALS), 13): the spectra, each a little brighter or darker, bluer or redder."""
    brighter = rng.normal(0, 0.07, (len(MATERIALS), 1))
    redder = rng.normal(0, 0.06, (len(MATERIALS), 1)) * np.linspace(-1, 1, BAND_COUNT)
    return _SPECTRA * np.exp(brighter + redder)


def _path_reflectance() -> Floats:
    """Return (13,): what the air itself scatters into the instrument, by Rayleigh's law."""
    wavelengths = np.array([band.centre_nm for band in BANDS])
    path = _PATH_AT_B01 * (wavelengths[0] / wavelengths) ** 4
    path[_B10] = _CIRRUS
    return path


def _transmission() -> Floats:
    """Return (13,): the share of the ground's reflectance that gets through the gases of the air."""
    through = np.ones(BAND_COUNT)
    through[positions(["B09", "B10"])] = _VAPOUR, 0
    return through


def _sampling(factor: int) -> Floats:
    """Return (64, 64): along one axis, blur, average `factor` pixels into one sample and interpolate back."""
    pixels = np.arange(TILE_SIZE)
    samples = np.arange(-(-TILE_SIZE // factor))
    blur = np.eye(TILE_SIZE) + 0.1 * (np.eye(TILE_SIZE, k=1) + np.eye(TILE_SIZE, k=-1))
    average = (pixels // factor == samples[:, None]).astype(float)
    place = np.clip((pixels + 0.5) / factor - 0.5, 0, samples[-1])
    interpolate = np.maximum(0.0, 1 - np.abs(place[:, None] - samples))
    return interpolate @ _rows_to_one(average) @ _rows_to_one(blur)


def _rows_to_one(matrix: Floats) -> Floats:
    return matrix / matrix.sum(axis=1, keepdims=True)


_B10 = positions(["B10"])[0]
_SPECTRA = np.array(list(SPECTRA.values()))
_PATH = _path_reflectance()
_GAS = _transmission()
_SAMPLING = np.stack([_sampling(band.resolution_m // 10) for band in BANDS])


# --- painting -----------------------------------------------------------------------------------------------


def _cover(**shares: Floats | float) -> Floats:
    """Return (len(MATERIALS), 64, 64): shares of the named materials, cut at 0 and brought to a sum of 1."""
    cover = np.zeros((len(MATERIALS), TILE_SIZE, TILE_SIZE))
    for material, share in shares.items():
        cover[MATERIALS.index(material)] = np.maximum(share, 0)
    return cover / cover.sum(axis=0)


def _lay(ground: Ground, mask: Floats, over: Floats) -> Ground:
    """Return the ground with `over` (shares) laid on it where `mask` (0–1) is, in even light."""
    return Ground(ground.cover * (1 - mask) + over * mask, ground.light * (1 - mask) + mask)


def _band(distance: Floats, width: Floats | float) -> Floats:
    """Return 0–1: the share of each pixel that a band of `width` px about distance 0 covers."""
    return np.clip(width / 2 - np.abs(distance) + 0.5, 0, 1)


def _ones(mask: npt.NDArray[np.bool_]) -> Floats:
    """Return 1 where `mask` is true and 0 elsewhere."""
    return mask.astype(np.float64)


def _sigmoid(values: Floats) -> Floats:
    return 1 / (1 + np.exp(-values))


def _noise(rng: np.random.Generator, scale: float) -> Floats:
    """Return (64, 64): normal noise of mean 0 and variance 1, correlated over about `scale` px."""
    weights = _noise_weights(scale)
    knots = weights.shape[1]
    return weights @ rng.standard_normal((knots, knots)) @ weights.T


@lru_cache
def _noise_weights(scale: float) -> Floats:
    """Return (64, knots): each pixel's Gaussian weights of knots `scale` px apart; squares sum to 1."""
    knots = np.arange(-2 * scale, TILE_SIZE + 2 * scale, scale)
    weights = np.exp(-(((np.arange(TILE_SIZE)[:, None] - knots) / (0.7 * scale)) ** 2) / 2)
    return weights / np.sqrt((weights**2).sum(axis=1, keepdims=True))


def _axes(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return (along, across), each (64, 64) px: two axes at right angles, turned and shifted at random."""
    angle = rng.uniform(0, 2 * np.pi)
    shift = rng.uniform(-10, 10, 2)
    along = _COLUMNS * np.cos(angle) + _ROWS * np.sin(angle) + shift[0]
    across = _ROWS * np.cos(angle) - _COLUMNS * np.sin(angle) + shift[1]
    return along, across


_MOST_PLOTS = 64  # in either direction, far more than a tile shows


def _plots(rng: np.random.Generator, least: float, most: float) -> Plots:
    """Cut the land into strips, and each strip into rectangles, of `least` to `most` px."""
    along, across = _axes(rng)
    reach = -2.0 * TILE_SIZE
    strips = reach + np.cumsum(rng.uniform(least, most, _MOST_PLOTS))
    strip = np.searchsorted(strips, across)
    cuts = reach + np.cumsum(rng.uniform(least, most, _MOST_PLOTS))
    shifted = along + rng.uniform(0, most, _MOST_PLOTS)[strip]
    piece = np.searchsorted(cuts, shifted)
    to_side = np.minimum(across - strips[strip - 1], strips[strip] - across)
    to_end = np.minimum(shifted - cuts[piece - 1], cuts[piece] - shifted)
    return Plots(strip * _MOST_PLOTS + piece, np.minimum(to_side, to_end), along, across)


def _cells(rng: np.random.Generator, along: Floats, across: Floats, pitch: float) -> Floats:
    """Return (64, 64): a random number 0–1 for each cell of a regular grid of `pitch` px."""
    table = rng.uniform(size=(TILE_SIZE, TILE_SIZE))
    row, column = (np.floor(axis / pitch).astype(int) % TILE_SIZE for axis in (along, across))
    return table[row, column]


def _per_plot(rng: np.random.Generator, low: float = 0, high: float = 1) -> Floats:
    return rng.uniform(low, high, _MOST_PLOTS**2)


def _annual_crop(rng: np.random.Generator) -> Ground:
    """Large fields, each at its own growth from bare to closed, with furrows."""
    plots = _plots(rng, 16, 46)
    growth = plots.draw(rng.beta(0.5, 0.6, _MOST_PLOTS**2)) ** rng.uniform(0.6, 1.8)
    furrows = np.cos(2 * np.pi * plots.across / rng.uniform(4, 9)) * rng.uniform(0.02, 0.1)
    growth = np.clip(growth + furrows + 0.07 * _noise(rng, 6), 0, 1)
    straw = plots.draw(_per_plot(rng, 0, 0.8))
    dark = rng.uniform(0, 0.6)
    bare = (1 - growth) * (1 - straw)
    cover = _cover(crop=growth, straw=(1 - growth) * straw, soil=bare * (1 - dark), dark_soil=bare * dark)
    ground = Ground(cover, 1 + furrows + 0.03 * _noise(rng, 2))
    return _lay(ground, 0.7 * _band(plots.edge, rng.uniform(0, 1)), _cover(dry_grass=1.0))


def _permanent_crop(rng: np.random.Generator) -> Ground:
    """Vineyards and orchards: plots of canopy in rows three to five pixels apart, over soil or grass."""
    plots = _plots(rng, 18, 44)
    turn = plots.draw(_per_plot(rng, 0, np.pi))
    period = plots.draw(_per_plot(rng, 3, 5))
    rows = np.cos(2 * np.pi * (plots.along * np.cos(turn) + plots.across * np.sin(turn)) / period)
    vigour = plots.draw(_per_plot(rng, 0.35, 0.75)) + 0.08 * _noise(rng, 4)
    canopy = np.clip(vigour * (1 + rng.uniform(0.25, 1) * rows), 0, 1)
    green, dry = rng.uniform(0, 0.5), rng.uniform(0, 0.5)
    between = 1 - canopy
    floor = {"grass": green, "dry_grass": dry, "soil": 1 - green - dry}
    cover = _cover(orchard=canopy, **{name: share * between for name, share in floor.items()})
    ground = Ground(cover, 1 - 0.08 * rows + 0.04 * _noise(rng, 2))
    return _lay(ground, 0.8 * _band(plots.edge, rng.uniform(0.5, 1.5)), _cover(soil=1.0))


def _pasture(rng: np.random.Generator) -> Ground:
    """Smooth green meadows between hedges, with a tree here and there."""
    plots = _plots(rng, 24, 60)
    dry = rng.uniform(0, 0.3) + plots.draw(_per_plot(rng, -0.12, 0.12)) + 0.06 * _noise(rng, 16)
    dry = np.clip(dry, 0, 1)
    ground = Ground(_cover(grass=1 - dry, dry_grass=dry), 1 + 0.03 * _noise(rng, 8))
    hedges = _band(plots.edge, rng.uniform(0.6, 2)) * (_noise(rng, 8) > -0.8)
    trees = _noise(rng, 2) > rng.uniform(2.3, 3.2)
    return _lay(ground, 0.9 * np.maximum(hedges, trees), _cover(broadleaf=0.7, shrub=0.3))


def _herbaceous(rng: np.random.Generator) -> Ground:
    """Heath and rough grass: soft patches of grass, dry grass and shrub, a little bare ground."""
    scale = (4, 6, 10)[rng.integers(3)]
    lean = rng.normal(0, 0.5, 4)
    heights = [1.3 * (_noise(rng, scale) + 0.5 * _noise(rng, 2)) + lean[i] for i in range(4)]
    grass, dry_grass, shrub, soil = (np.exp(height) for height in heights)
    cover = _cover(grass=grass, dry_grass=dry_grass, shrub=shrub, soil=0.25 * soil)
    return Ground(cover, 1 + 0.05 * _noise(rng, 2))


def _forest(rng: np.random.Generator) -> Ground:
    """Closed canopy of broadleaf and conifer stands, dark, with crowns and their shadows."""
    conifer = _sigmoid(2.5 * _noise(rng, 16) + rng.normal(0, 2))
    gaps = 0.15 * _sigmoid(6 * (_noise(rng, 4) - 1.6))
    cover = _cover(broadleaf=1 - conifer, conifer=conifer, shrub=gaps)
    crowns = rng.uniform(0.15, 0.3) * _noise(rng, 1.5) + 0.08 * _noise(rng, 8)
    return Ground(cover, np.exp(crowns))


def _industrial(rng: np.random.Generator) -> Ground:
    """Large halls, bright or dark, among yards of asphalt, with strips of green."""
    plots = _plots(rng, 8, 24)
    kind = plots.draw(_per_plot(rng))
    halls, green = rng.uniform(0.4, 0.7), rng.uniform(0.05, 0.2)
    roofs = _roofs(plots.draw(_per_plot(rng)))
    hall = _band(np.maximum(2 - plots.edge, 0), 3) * (kind < halls)
    yard = 0.3 * _sigmoid(2 * _noise(rng, 6))
    ground = Ground(_cover(asphalt=1 - yard, concrete=yard), 1 + 0.06 * _noise(rng, 2))
    park = _cover(grass=0.6, dry_grass=0.3, broadleaf=0.1)
    ground = _lay(ground, _ones(kind > 1 - green), park)
    return _lay(ground, hall, roofs)


def _roofs(kind: Floats) -> Floats:
    """Return the cover of roofs: metal, concrete, dark sheet or clay, by a number 0–1 for each pixel."""
    return _cover(
        metal_roof=_ones(kind < 0.3),
        concrete=0.8 * _ones((kind >= 0.3) & (kind < 0.65)),
        asphalt=0.6 * _ones(kind >= 0.3),
        clay_roof=0.4 * _ones(kind > 0.85),
    )


def _residential(rng: np.random.Generator) -> Ground:
    """Streets in a grid, small houses along them, gardens between."""
    along, across = _axes(rng)
    block = rng.uniform(6, 9.5)
    garden = _noise(rng, 2) + rng.uniform(-0.5, 0.8)
    trees, grass = _sigmoid(2 * garden), _sigmoid(-2 * garden)
    cover = _cover(broadleaf=0.8 * trees, grass=grass, dry_grass=0.3, soil=0.15)
    ground = Ground(cover, 1 + 0.1 * _noise(rng, 1.5))
    houses = _cells(rng, along, across, rng.uniform(1.6, 2.4)) < rng.uniform(0.3, 0.5)
    clay = rng.uniform(0.2, 0.9)
    roofs = _cover(clay_roof=clay, asphalt=0.9 - clay * 0.8, concrete=0.35 * _cells(rng, along, across, 2))
    ground = _lay(ground, 0.85 * _ones(houses), roofs)
    streets = np.maximum(_streets(across, block), _streets(along, block * rng.uniform(1.5, 2.5)))
    return _lay(ground, 0.85 * streets, _cover(asphalt=0.85, concrete=0.15))


def _streets(axis: Floats, spacing: float) -> Floats:
    """Return 0–1: streets a good pixel wide, `spacing` px apart."""
    return _band((axis + spacing / 2) % spacing - spacing / 2, 1.2)


def _highway(rng: np.random.Generator) -> Ground:
    """A road two to three pixels wide with its verges, or two abreast, through some other land."""
    ground = _any_of(rng, (_annual_crop, _annual_crop, _pasture, _herbaceous, _residential))
    along, across = _axes(rng)
    across = across + rng.uniform(-4, 4) * (along / TILE_SIZE * 2) ** 2
    twin = rng.uniform() < 0.4
    if rng.uniform() < 0.3:  # a smaller road joins or crosses
        ground = _lay(ground, 0.9 * _band(_axes(rng)[1], 1.6), _cover(asphalt=1.0))
    ground = _lay(ground, 0.8 * _band(across, 5 + 4 * twin), _cover(grass=0.4, dry_grass=0.5, shrub=0.1))
    road = _band(np.abs(across) - 2.4, 2) if twin else _band(across, rng.uniform(2, 3))
    return _lay(ground, road, _cover(asphalt=0.85, concrete=rng.uniform(0, 0.3)))


def _river(rng: np.random.Generator) -> Ground:
    """A bending band of turbid water, its banks wooded or bare, through some other land."""
    ground = _any_of(rng, (_annual_crop, _pasture, _herbaceous, _forest))
    along, across = _axes(rng)
    bend = rng.uniform(2, 9) * np.sin(2 * np.pi * along / rng.uniform(50, 110) + rng.uniform(0, 6))
    distance = across + bend + 0.6 * _noise(rng, 6)
    width = rng.uniform(5, 18)
    wooded = rng.uniform(0, 1)
    banks = _cover(broadleaf=wooded, shrub=0.3, soil=1 - wooded)
    ground = _lay(ground, 0.9 * _band(distance, width + rng.uniform(0, 6)), banks)
    turbid = np.clip(rng.uniform(0.2, 1) + 0.1 * _noise(rng, 10), 0, 1)
    return _lay(ground, _band(distance, width), _cover(clear_water=1 - turbid, turbid_water=turbid))


def _sea_lake(rng: np.random.Generator) -> Ground:
    """Open water: nearly even, a slight gradient of turbidity, here and there glint."""
    along, _ = _axes(rng)
    turbid = rng.uniform(0, 0.5) + rng.uniform(-0.15, 0.15) * along / TILE_SIZE + 0.03 * _noise(rng, 16)
    turbid = np.clip(turbid, 0, 1)
    glint = rng.uniform(0, 0.04) * (1 + 0.15 * _noise(rng, 10) + 0.1 * _noise(rng, 1.5))
    return Ground(_cover(clear_water=1 - turbid, turbid_water=turbid, glint=glint), 1 + 0.02 * _noise(rng, 8))


def _any_of(rng: np.random.Generator, painters: tuple[Painter, ...]) -> Ground:
    return painters[rng.integers(len(painters))](rng)


_PAINTERS: dict[str, Painter] = {
    "AnnualCrop": _annual_crop,
    "Forest": _forest,
    "HerbaceousVegetation": _herbaceous,
    "Highway": _highway,
    "Industrial": _industrial,
    "Pasture": _pasture,
    "PermanentCrop": _permanent_crop,
    "Residential": _residential,
    "River": _river,
    "SeaLake": _sea_lake,
}
