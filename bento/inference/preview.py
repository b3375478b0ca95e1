"""Preview of a GeoTIFF: a picture for people, and the fraction of pixels that are as bright as cloud.

Each band of the picture is stretched from its 2nd to its 98th percentile, so it needs no radiometry and does
not show absolute brightness. The cloud fraction needs reflectances, so it is given only where the radiometry
is known.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.enums import ColorInterp, Interleaving
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader, MemoryFile
from rasterio.warp import reproject

from tilewise.bento.inference.thinning import shown
from tilewise.datasets.core.bands import positions
from tilewise.datasets.core.errors import (
    MissingBandError,
    RadiometryUnknownError,
    SceneTooLargeError,
    UnreadableImageError,
)
from tilewise.datasets.core.radiometry import QUANTIFICATION, Level, ReadOptions
from tilewise.datasets.core.tile import DN, Georeference, place_bands, valid_mask
from tilewise.datasets.readers.geotiff import (
    ReadingPlan,
    block_bytes,
    isolated_gdal,
    open_geotiff,
    plan_reading,
)
from tilewise.datasets.scenes.ground import Grid, grid_for_windows, grid_of

LONGEST_SIDE = 512
MAX_BLOCK_BYTES = 256 * 2**20  # decoded, as of scenes
MAX_DECODED_BYTES = 2**30  # 4096 × 4096 pixels of 13 bands of float32 take 832 MiB
PERCENTILES = (2, 98)
# A band that varies less than this fraction of the most varying one is not stretched fully: that is noise.
MIN_CONTRAST = 0.4
_FLAT = 0.25  # of a band's brightest value: a picture that varies less is a flat surface, and looks like one

# Braaten, Cohen & Yang 2015, https://doi.org/10.1016/j.rse.2015.08.006, on reflectances of Sentinel-2: cloud
# is bright in green, and above 0.39 or not greener than red; snow and ice are as dark as 0.1 at 1.6 µm.
CLOUD_BANDS = ("B03", "B04", "B11")
_MAYBE_CLOUD, _SURELY_CLOUD, _DARK_AS_SNOW = 0.175, 0.39, 0.1

Values = npt.NDArray[np.float32]
Valid = npt.NDArray[np.bool_]


class View(StrEnum):
    """The bands that the picture shows."""

    TRUE = "true"
    FALSE = "false"


VIEW_BANDS: dict[View, tuple[str, str, str]] = {
    View.TRUE: ("B04", "B03", "B02"),
    View.FALSE: ("B08", "B04", "B03"),
}
"""Bands shown in red, green and blue: true colour, or false colour with vegetation in red."""


@dataclass(frozen=True, slots=True)
class Preview:
    """A picture of a file.

    Attributes:
        png: RGBA; no data is transparent.
        cloud_fraction: fraction (0-1) of the valid pixels that are as bright as cloud; None if the radiometry
            or a band is missing.
    """

    png: bytes
    cloud_fraction: float | None


def preview(
    content: bytes,
    overrides: ReadOptions,
    name: str,
    view: View,
    max_pixels: int,
    check: Callable[[], None] = lambda: None,
    *,
    warp: bool = False,
) -> Preview:
    """Return a picture of a GeoTIFF, at most LONGEST_SIDE pixels a side.

    Args:
        content: the bytes of the file.
        overrides: bands and radiometry, where the file itself does not declare them.
        name: of the file, for errors.
        max_pixels: more are refused.
        check: called before each block is decoded; whatever it raises ends the work.
        warp: draw it on the grid of the scene's maps, if the scene is warped for them.

    Raises:
        SceneTooLargeError: the file has more than `max_pixels`, or decodes to more than MAX_DECODED_BYTES.
        MissingBandError: the view needs a band that the file does not have.
        TilewiseError: as `tilewise.datasets.readers.geotiff.open_geotiff` and `plan_reading`; unknown
            radiometry is no error here.
    """
    with open_geotiff(content, name) as dataset:
        if dataset.width * dataset.height > max_pixels:
            raise SceneTooLargeError(
                f"{name}: {dataset.width} × {dataset.height} pixels; {max_pixels:,} are the most"
            )
        plan = plan_reading(dataset, name, _with_any_radiometry(overrides))
        _refuse_missing(plan, VIEW_BANDS[view])
        clouds = CLOUD_BANDS if set(CLOUD_BANDS) <= set(plan.bands) else ()
        small = _read(dataset, plan, tuple(dict.fromkeys(VIEW_BANDS[view] + clouds)), check)
        numbers, valid = small.select(VIEW_BANDS[view])
        cloud_fraction = _cloud_fraction(dataset, name, overrides, small) if clouds else None
        picture = np.concatenate([stretch(numbers, valid), 255 * valid[None].astype(np.uint8)])
        if warp:
            picture = _warped(picture, grid_of(dataset, name), name)
        return Preview(to_png(picture), cloud_fraction)


def stretch(numbers: Values, valid: Valid) -> npt.NDArray[np.uint8]:
    """Return uint8 (bands, height, width): each band stretched by its percentiles; noise is not amplified."""
    if not valid.any():
        return np.zeros(numbers.shape, np.uint8)
    low, high = np.percentile(numbers[:, valid], PERCENTILES, axis=1)
    span = high - low
    span = np.maximum(
        span, max(MIN_CONTRAST * span.max(), _FLAT * np.abs(high).max(), np.finfo(np.float32).tiny)
    )
    middle = (low + high) / 2
    bright = (numbers - middle[:, None, None]) / span[:, None, None] + 0.5
    return np.rint(255 * np.clip(np.where(valid, bright, 0), 0, 1)).astype(np.uint8)


def cloud_mask(pixels: DN) -> Valid:
    """Return bool (height, width): where DN (13, height, width) are as bright as cloud, by CLOUD_BANDS.

    Bright sand, roofs, and snow that is not dark at 1.6 µm are taken for cloud too.
    """
    green, red, infrared = pixels[positions(CLOUD_BANDS)].astype(np.float32) / QUANTIFICATION
    not_greener = (green > _MAYBE_CLOUD) & (green > red)
    return ((green > _SURELY_CLOUD) | not_greener) & (infrared > _DARK_AS_SNOW)


def to_png(picture: npt.NDArray[np.uint8]) -> bytes:
    """Return uint8 (4, height, width), red, green, blue and opacity, as a PNG."""
    _, height, width = picture.shape
    with isolated_gdal(), MemoryFile() as memory:
        with memory.open(driver="PNG", count=4, height=height, width=width, dtype="uint8") as dataset:
            dataset.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
            dataset.write(picture)
        return bytes(memory.read())


def _warped(picture: npt.NDArray[np.uint8], grid: Grid, name: str) -> npt.NDArray[np.uint8]:
    """Return a picture of a scene on `grid` as one on the grid of its maps, LONGEST_SIDE pixels at most."""
    target = grid_for_windows([grid], name, warp=True)
    if target.is_same(grid):
        return picture
    sides = target.height, target.width
    rows, columns = (len(shown(side, max(sides), LONGEST_SIDE)) for side in sides)
    warped = np.zeros((4, rows, columns), np.uint8)
    source, destination = _at_size(grid, *picture.shape[1:]), _at_size(target, rows, columns)
    with isolated_gdal():
        reproject(
            picture,
            warped,
            src_transform=source.transform,
            src_crs=source.crs,
            dst_transform=destination.transform,
            dst_crs=destination.crs,
        )
    return warped


def _at_size(grid: Grid, rows: int, columns: int) -> Georeference:
    """Return the georeference of a picture of the whole grid with `rows` × `columns` pixels."""
    scale = Affine.scale(grid.width / columns, grid.height / rows)
    return Georeference(grid.georeference.crs, grid.georeference.transform @ scale)


def _with_any_radiometry(overrides: ReadOptions) -> ReadOptions:
    """Return the options with any radiometry filled in: a stretched picture is the same with each."""
    return replace(
        overrides,
        level=overrides.level or Level.L1C,
        scale=overrides.scale if overrides.scale is not None else 1 / QUANTIFICATION,
        offset=overrides.offset if overrides.offset is not None else 0.0,
    )


@dataclass(frozen=True, slots=True)
class _Small:
    """A subsampled file.

    Attributes:
        bands: canonical names.
        numbers: float32 (bands, height, width), the file's numbers.
        valid: bool, of the same shape: where they hold data.
    """

    bands: tuple[str, ...]
    numbers: Values
    valid: Valid

    def select(self, bands: tuple[str, ...]) -> tuple[Values, Valid]:
        """Return the numbers of `bands`, and the pixels (height, width) that hold data in all of them."""
        indexes = [self.bands.index(band) for band in bands]
        valid: Valid = np.all(self.valid[indexes], axis=0)
        return self.numbers[indexes], valid


def _refuse_missing(plan: ReadingPlan, bands: tuple[str, ...]) -> None:
    missing = [band for band in bands if band not in plan.bands]
    if missing:
        raise MissingBandError(
            f"{plan.name}: it has no {', '.join(missing)}; this picture shows {', '.join(bands)} in red, "
            f"green and blue"
        )


def _read(
    dataset: DatasetReader, plan: ReadingPlan, bands: tuple[str, ...], check: Callable[[], None]
) -> _Small:
    indexes = [plan.indexes[plan.bands.index(band)] for band in bands]
    _refuse_much_decoding(dataset, plan.name, len(bands))
    numbers = _read_small(dataset, plan.name, indexes, check)
    valid = np.isfinite(numbers) & (numbers != 0)
    if plan.no_data is not None and np.isfinite(plan.no_data):
        valid &= numbers != plan.no_data
    return _Small(bands, np.nan_to_num(numbers.astype(np.float32), posinf=0, neginf=0), valid)


def _refuse_much_decoding(dataset: DatasetReader, name: str, bands: int) -> None:
    """Refuse a file of which a block, or all blocks that are read, take too much memory or time to decode."""
    height, width = dataset.block_shapes[0]
    size = block_bytes(dataset)
    blocks = math.ceil(dataset.height / height) * math.ceil(dataset.width / width)
    total = size * blocks * (1 if dataset.interleaving is Interleaving.pixel else bands)
    if size > MAX_BLOCK_BYTES or total > MAX_DECODED_BYTES:
        raise SceneTooLargeError(
            f"{name}: {total / 2**20:,.0f} MiB when decoded, in blocks of {size / 2**20:,.0f} MiB; a picture "
            f"is made of at most {MAX_DECODED_BYTES / 2**20:,.0f} MiB in blocks of "
            f"{MAX_BLOCK_BYTES / 2**20:,.0f} MiB: cut the file, or rewrite it with tiles of 512 × 512"
        )


def _read_small(
    dataset: DatasetReader, name: str, indexes: list[int], check: Callable[[], None]
) -> npt.NDArray[np.generic]:
    """Return raster bands subsampled to LONGEST_SIDE (not averaged: no data would bleed into neighbours).

    They are read block by block, so that the work can be stopped, and never from overviews, whose blocks
    nobody has checked.
    """
    rows, columns = (shown(side, max(dataset.shape), LONGEST_SIDE) for side in dataset.shape)
    small = np.zeros((len(indexes), len(rows), len(columns)), dataset.dtypes[0])
    for _, window in dataset.block_windows(1):
        check()
        down = slice(*np.searchsorted(rows, (window.row_off, window.row_off + window.height)))
        across = slice(*np.searchsorted(columns, (window.col_off, window.col_off + window.width)))
        if rows[down].size == 0 or columns[across].size == 0:
            continue
        try:
            block = dataset.read(indexes=indexes, window=window)
        except RasterioError as error:
            raise UnreadableImageError(
                f"{name}: truncated or corrupt, its pixels cannot be decoded"
            ) from error
        chosen = np.ix_(rows[down] - window.row_off, columns[across] - window.col_off)
        small[:, down, across] = block[:, chosen[0], chosen[1]]
    return small


def _cloud_fraction(dataset: DatasetReader, name: str, overrides: ReadOptions, small: _Small) -> float | None:
    try:
        plan = plan_reading(dataset, name, overrides)
    except RadiometryUnknownError:
        return None
    numbers, valid = small.select(CLOUD_BANDS)
    pixels = place_bands(plan.radiometry.to_dn(numbers, np.broadcast_to(valid, numbers.shape)), CLOUD_BANDS)
    counted = valid_mask(pixels, CLOUD_BANDS)
    return float(cloud_mask(pixels)[counted].mean()) if counted.any() else None
