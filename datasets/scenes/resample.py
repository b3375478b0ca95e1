"""Resample rasters onto the grid of a scene, window by window.

Resampling follows how the training data were made (docs/decisions/0009): bands coarser than the grid (20 and
60 m on 10 m) are upsampled by cubic spline, as EuroSAT's were; those of about the grid's pixel size, or
finer, are warped by cubic convolution; masks by nearest neighbour. Numbers become DN before they are
resampled, so that 0 is no data and is not mixed into neighbours. A pixel does not depend on the window that
it is read with, except where a sum that ends in exactly one half of a DN is rounded the other way.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.enums import Resampling
from rasterio.io import MemoryFile
from rasterio.warp import reproject, transform
from rasterio.windows import Window

from tilewise.datasets.core.tile import DN
from tilewise.datasets.scenes.ground import Grid

Floats = npt.NDArray[np.float64]
ReadSource = Callable[[Window], npt.NDArray[np.uint16]]
"""Returns uint16 (bands, height, width) of a window of the source raster, 0 = no data."""

_COARSER = 1.5  # times the grid's pixel: a band of lower resolution, not a scene on another grid
_MARGIN = 4  # source pixels beyond the window that the widest kernel uses, and one for rounding
_EDGE_POINTS = 5
_TOLERANCE = 1e-3  # of a pixel, over a whole scene
_CELL = 128  # pixels of the target a side


def kernel_for(source: Grid, target: Grid) -> Resampling:
    """Return the kernel that resamples `source` onto `target`."""
    return Resampling.cubic_spline if source.pixel_m > _COARSER * target.pixel_m else Resampling.cubic


def read_onto(
    target: Grid, window: Window, source: Grid, read: ReadSource, bands: int, kernel: Resampling
) -> DN:
    """Return uint16 (bands, height, width): `window` of `target`, resampled from a raster on `source`."""
    if _is_aligned(target, source):
        return _stretch(target, window, source, read, bands, kernel)
    return _warp_in_cells(target, window, source, read, bands, kernel)


def _is_aligned(target: Grid, source: Grid) -> bool:
    """Return whether the rows and columns of both grids are parallel."""
    between = ~source.georeference.transform @ target.georeference.transform
    turned = max(abs(between.b) * target.height, abs(between.d) * target.width)
    return (
        target.georeference.crs == source.georeference.crs
        and turned < _TOLERANCE
        and between.a > 0
        and between.e > 0
    )


def _stretch(
    target: Grid, window: Window, source: Grid, read: ReadSource, bands: int, kernel: Resampling
) -> DN:
    """Resample between aligned grids by GDAL's raster I/O, which is several times faster than its warper."""
    found = np.zeros((bands, int(window.height), int(window.width)), np.uint16)
    between = ~source.georeference.transform @ target.georeference.transform
    across = _within(window.col_off, window.width, between.a, between.c, source.width)
    down = _within(window.row_off, window.height, between.e, between.f, source.height)
    if across is None or down is None:
        return found
    part = Window(across.first, down.first, across.count, down.count)
    exact = Window(
        across.start - across.first, down.start - down.first, across.end - across.start, down.end - down.start
    )
    size = {"count": bands, "height": part.height, "width": part.width}
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", dtype="uint16", nodata=0, **size) as dataset:
            dataset.write(read(part))
        with memory.open() as dataset:
            shape = (bands, down.stop - down.begin, across.stop - across.begin)
            values = dataset.read(window=exact, out_shape=shape, resampling=kernel)
    found[:, down.begin : down.stop, across.begin : across.stop] = values
    return found


@dataclass(frozen=True, slots=True)
class _Span:
    """Along one axis: target pixels `begin` to `stop` of a window are in the source, from `start` to `end`.

    `first` and `count` are the source pixels to read, with a margin of the width of the kernel.
    """

    begin: int
    stop: int
    start: float
    end: float
    first: int
    count: int


def _within(offset: float, length: float, step: float, shift: float, size: int) -> _Span | None:
    begin = max(math.ceil((0 - shift) / step - offset - _TOLERANCE), 0)
    stop = min(math.floor((size - shift) / step - offset + _TOLERANCE), int(length))
    if stop <= begin:
        return None
    start = max(shift + step * (offset + begin), 0.0)
    end = min(shift + step * (offset + stop), float(size))
    margin = math.ceil(_MARGIN * max(step, 1))
    first = max(math.floor(start) - margin, 0)
    return _Span(begin, stop, start, end, first, min(math.ceil(end) + margin, size) - first)


def _warp_in_cells(
    target: Grid, window: Window, source: Grid, read: ReadSource, bands: int, kernel: Resampling
) -> DN:
    """Warp the cells of a fixed grid that `window` overlaps.

    GDAL approximates the transformation between two coordinate reference systems for each array that it
    warps; with fixed cells a pixel is the same whichever window it is read with.
    """
    top, left = int(window.row_off), int(window.col_off)
    bottom, right = top + int(window.height), left + int(window.width)
    found = np.zeros((bands, bottom - top, right - left), np.uint16)
    for row in range(top - top % _CELL, bottom, _CELL):
        for column in range(left - left % _CELL, right, _CELL):
            cell = _warp(target, row, column, source, read, bands, kernel)
            first, last = max(row, top), min(row + _CELL, bottom)
            begin, end = max(column, left), min(column + _CELL, right)
            part = cell[:, first - row : last - row, begin - column : end - column]
            found[:, first - top : last - top, begin - left : end - left] = part
    return found


def _warp(
    target: Grid, row: int, column: int, source: Grid, read: ReadSource, bands: int, kernel: Resampling
) -> DN:
    """Return uint16 (bands, _CELL, _CELL): one warped cell."""
    found = np.zeros((bands, _CELL, _CELL), np.uint16)
    steps = _steps(source, target)
    part = _window_of_source(target, Window(column, row, _CELL, _CELL), source, steps)
    if part is None:
        return found
    reproject(
        read(part),
        found,
        src_transform=source.georeference.transform @ Affine.translation(part.col_off, part.row_off),
        src_crs=source.georeference.crs,
        src_nodata=0,
        dst_transform=target.georeference.transform @ Affine.translation(column, row),
        dst_crs=target.georeference.crs,
        dst_nodata=0,
        resampling=kernel,
        XSCALE=1 / steps[0],  # the same for every cell; GDAL would choose them for each
        YSCALE=1 / steps[1],
        UNIFIED_SRC_NODATA="NO",
    )
    return found


@lru_cache(maxsize=64)
def _steps(source: Grid, target: Grid) -> tuple[float, float]:
    """Return how many source pixels a step of one target pixel spans, along a row and along a column."""
    x, y = target.width / 2, target.height / 2
    columns, rows = _in_source(source, target, np.array([x, x + 1, x]), np.array([y, y, y + 1]))
    across = float(np.hypot(columns[1] - columns[0], rows[1] - rows[0]))
    down = float(np.hypot(columns[2] - columns[0], rows[2] - rows[0]))
    usable = np.isfinite([across, down]).all() and min(across, down) > 0
    return (across, down) if usable else (1.0, 1.0)


def _window_of_source(
    target: Grid, window: Window, source: Grid, steps: tuple[float, float]
) -> Window | None:
    """Return the source pixels that `window` needs, or None where the source has none of them."""
    along = np.linspace(0, 1, _EDGE_POINTS)
    across, down = np.meshgrid(along, along)
    columns, rows = _in_source(
        source,
        target,
        window.col_off + across.ravel() * window.width,
        window.row_off + down.ravel() * window.height,
    )
    finite = np.isfinite(columns) & np.isfinite(rows)
    if not finite.any():
        return None
    margin = [int(np.ceil(_MARGIN * max(step, 1))) for step in steps]
    left = max(int(np.floor(columns[finite].min())) - margin[0], 0)
    top = max(int(np.floor(rows[finite].min())) - margin[1], 0)
    right = min(int(np.ceil(columns[finite].max())) + margin[0], source.width)
    bottom = min(int(np.ceil(rows[finite].max())) + margin[1], source.height)
    return Window(left, top, right - left, bottom - top) if right > left and bottom > top else None


def _in_source(source: Grid, target: Grid, columns: Floats, rows: Floats) -> tuple[Floats, Floats]:
    """Return the source pixel coordinates of points of the target grid."""
    xs, ys = _apply(target.georeference.transform, columns, rows)
    if target.georeference.crs != source.georeference.crs:
        xs, ys = (
            np.asarray(found) for found in transform(target.georeference.crs, source.georeference.crs, xs, ys)
        )
    return _apply(~source.georeference.transform, xs, ys)


def _apply(matrix: Affine, xs: Floats, ys: Floats) -> tuple[Floats, Floats]:
    return matrix.a * xs + matrix.b * ys + matrix.c, matrix.d * xs + matrix.e * ys + matrix.f
