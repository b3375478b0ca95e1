"""The grid of a scene: its georeference and pixel size, on which its windows are read.

A network recognises a class by its texture at one ground size, so a scene in degrees or far from 10 m is
refused, or warped to 10 m in the UTM zone of its centre, as the caller chooses.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from affine import Affine
from rasterio._err import CPLE_BaseError  # rasterio.warp raises it; rasterio.errors does not have it
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.warp import transform, transform_bounds
from rasterio.windows import Window

from tilewise.datasets.core.errors import SceneError, TileShapeError
from tilewise.datasets.core.tile import Georeference
from tilewise.datasets.readers.geotiff import georeference_of

NEAR_10_M = (8.0, 12.5)  # metres a pixel at which networks trained at 10 m still work
STEP_M = 10.0
MAX_SIDE = 200_000  # pixels; more is a broken transform, not a scene
_MAX_LATITUDE = 84.0  # degrees; the limit of UTM
_TOLERANCE = 1e-6  # of a pixel


@dataclass(frozen=True, slots=True)
class Grid:
    """A raster's georeference and its size in pixels."""

    georeference: Georeference
    height: int
    width: int

    @property
    def pixel_m(self) -> float:
        """Side in metres of a square pixel of the same area; approximate with a CRS in degrees."""
        side = abs(self.georeference.transform.determinant) ** 0.5
        crs = self.georeference.crs
        return side * (crs.linear_units_factor[1] if crs.is_projected else 111_320.0)

    def part(self, window: Window) -> "Grid":
        """Return the grid of a window of this one."""
        moved = self.georeference.transform @ Affine.translation(window.col_off, window.row_off)
        return Grid(Georeference(self.georeference.crs, moved), int(window.height), int(window.width))

    def is_same(self, other: "Grid") -> bool:
        """Return whether both have the same pixels."""
        if (self.height, self.width) != (
            other.height,
            other.width,
        ) or self.georeference.crs != other.georeference.crs:
            return False
        between = ~self.georeference.transform @ other.georeference.transform
        return between.almost_equals(Affine.identity(), _TOLERANCE)


class OnGrid:
    """What is read on a grid.

    Attributes:
        grid: of its windows.
    """

    grid: Grid

    @property
    def georeference(self) -> Georeference:
        """The grid's CRS and transform."""
        return self.grid.georeference

    @property
    def height(self) -> int:
        """Rows of the grid."""
        return self.grid.height

    @property
    def width(self) -> int:
        """Columns of the grid."""
        return self.grid.width


def grid_of(dataset: DatasetReader, name: str, crs: CRS | None = None) -> Grid:
    """Return the grid of an open raster; `crs`: from metadata beside it, where it has none itself.

    Raises:
        TileShapeError: it has no georeference.
    """
    return Grid(_require_georeference(dataset, name, crs), dataset.height, dataset.width)


def _require_georeference(dataset: DatasetReader, name: str, crs: CRS | None) -> Georeference:
    """Return the georeference of a raster.

    Raises:
        TileShapeError: it has none, or one without longitude and latitude.
    """
    if dataset.crs is None and crs is None:
        raise TileShapeError(
            f"{name}: it has no coordinate reference system; set one with gdal_edit.py -a_srs EPSG:…"
        )
    georeference = georeference_of(dataset, crs)
    if georeference is None:
        raise TileShapeError(
            f"{name}: its coordinates are missing or not on Earth; set them with gdal_edit.py -a_srs EPSG:… "
            f"-a_ullr …"
        )
    return georeference


def check_ground_size(grid: Grid, name: str, way: str = "") -> None:
    """Check that the pixels of a raster are about 10 m; `way` precedes the `gdalwarp` command in the message.

    Raises:
        TileShapeError: its CRS is not a map projection, or its pixels have another size.
    """
    crs = grid.georeference.crs
    if not crs.is_projected:
        raise TileShapeError(
            f"{name}: its pixels are measured in degrees, the model needs about 10 m; {way}warp it first: "
            f"gdalwarp -t_srs EPSG:{_utm_code(*_centre(grid))} -tr 10 10 -r cubic"
        )
    if not NEAR_10_M[0] <= grid.pixel_m <= NEAR_10_M[1]:
        step = f"{10 / crs.linear_units_factor[1]:.6g}"
        raise TileShapeError(
            f"{name}: its pixels measure {grid.pixel_m:.3g} m, the model needs about 10 m; "
            f"{way}resample it first: gdalwarp -tr {step} {step} -r cubic"
        )


def grid_for_windows(grids: Sequence[Grid], name: str, warp: bool) -> Grid:
    """Return the grid of a scene's windows: that of its finest raster, or 10 m in its UTM zone.

    Raises:
        SceneError: the rasters have different coordinate reference systems.
        TileShapeError: the finest pixels are not about 10 m, and `warp` is off.
    """
    if len({grid.georeference.crs for grid in grids}) > 1:
        raise SceneError(
            f"{name}: its files have different coordinate reference systems; warp them to one first"
        )
    finest = min(grids, key=lambda grid: grid.pixel_m)
    if warp and not _is_near_10_m(finest):
        return utm_grid(finest, name)
    check_ground_size(finest, name, "let it be warped on the fly (--warp), or ")
    return finest


def utm_grid(grid: Grid, name: str) -> Grid:
    """Return the grid of 10 m, at multiples of 10 m, that covers `grid`, in the UTM zone of its centre.

    Raises:
        TileShapeError: it is outside UTM, or larger than any scene.
    """
    longitude, latitude = _centre(grid)
    if abs(latitude) > _MAX_LATITUDE:
        raise TileShapeError(
            f"{name}: it is at latitude {latitude:.1f}, where UTM has no zone; warp it first"
        )
    crs = CRS.from_epsg(_utm_code(longitude, latitude))
    own_bounds = grid.georeference.bounds(grid.width, grid.height)
    bounds = transform_bounds(grid.georeference.crs, crs, *own_bounds, densify_pts=21)
    left, bottom = (math.floor(edge / STEP_M + 1e-6) * STEP_M for edge in bounds[:2])
    right, top = (math.ceil(edge / STEP_M - 1e-6) * STEP_M for edge in bounds[2:])
    width, height = round((right - left) / STEP_M), round((top - bottom) / STEP_M)
    if not 0 < max(width, height) <= MAX_SIDE:
        raise TileShapeError(
            f"{name}: at 10 m it would have {width:,} × {height:,} pixels; cut it into parts"
        )
    return Grid(Georeference(crs, Affine(STEP_M, 0, left, 0, -STEP_M, top)), height, width)


def _is_near_10_m(grid: Grid) -> bool:
    return grid.georeference.crs.is_projected and NEAR_10_M[0] <= grid.pixel_m <= NEAR_10_M[1]


def _centre(grid: Grid) -> tuple[float, float]:
    """Return the longitude and latitude of the centre of a grid, in degrees."""
    x, y = grid.georeference.transform @ (grid.width / 2, grid.height / 2)
    try:
        (longitude,), (latitude,) = transform(grid.georeference.crs, CRS.from_epsg(4326), [x], [y])
    except (CPLE_BaseError, RasterioError):
        return x, y
    return longitude, latitude


def _utm_code(longitude: float, latitude: float) -> int:
    zone = min(max(int((longitude + 180) // 6) + 1, 1), 60)
    return (32600 if latitude >= 0 else 32700) + zone
