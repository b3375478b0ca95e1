"""The tile: the array that every reader returns, and everything else starts from.

A tile is uint16 (13, height, width) in the canonical band order (`tilewise.datasets.core.bands.BAND_NAMES`).
Its numbers are DN = reflectance × 10 000; 0 is no data, and a band that is absent is all no data. Trained
networks take tiles of 64 × 64 pixels at about 10 m.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from tilewise.datasets.core.bands import BAND_NAMES, positions
from tilewise.datasets.core.radiometry import Level
from tilewise.datasets.core.utm import from_utm

if TYPE_CHECKING:  # a machine that only trains on packed tiles has no rasterio
    from affine import Affine
    from rasterio.crs import CRS

TILE_SIZE = 64
BAND_COUNT = len(BAND_NAMES)
NO_DATA = 0
_EPSG = re.compile(r'AUTHORITY\["EPSG","(32[67]\d\d)"\]\]$')

DN = npt.NDArray[np.uint16]
Values = TypeVar("Values")


@dataclass(frozen=True, slots=True)
class Georeference:
    """A raster's coordinate reference system and its pixel-to-CRS transform."""

    crs: CRS
    transform: Affine

    def bounds(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return (left, bottom, right, top) of a `width` × `height` raster, in CRS units."""
        corners = [self.transform @ corner for corner in ((0, 0), (width, 0), (width, height), (0, height))]
        xs, ys = zip(*corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    def footprint(self, width: int, height: int) -> dict[str, Any] | None:
        """Return the outline of a `width` × `height` raster as GeoJSON in EPSG:4326 (longitude, latitude).

        It is a MultiPolygon of two parts where it crosses the antimeridian, and None where longitude and
        latitude are
        unknown: with a local or a vertical CRS, or with coordinates outside the domain of the CRS.
        """
        return _footprint(_Same(self.crs), self.transform, width, height)


class _Same:
    """A CRS as a key of caches, equal to itself alone: to hash a CRS writes it as WKT, in 25 microseconds."""

    __slots__ = ("crs",)

    def __init__(self, crs: CRS) -> None:
        self.crs = crs

    def __hash__(self) -> int:
        return id(self.crs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.crs is other.crs


@lru_cache(maxsize=512)  # requested when a tile is read and when it is answered; each keeps a CRS of 40 kB
def _footprint(same: _Same, transform: Affine, width: int, height: int) -> dict[str, Any] | None:
    a, b, c, d, e, f = transform[:6]
    pixels = ((0, 0), (0, height), (width, height), (width, 0))
    corners = [(a * x + b * y + c, d * x + e * y + f) for x, y in pixels]
    points = from_utm(_utm_code(same), corners)
    if points is None:
        return _footprint_by_gdal(same.crs, [*corners, corners[0]])
    rounded = [[round(longitude, 7), round(latitude, 7)] for longitude, latitude in points]
    return {"type": "Polygon", "coordinates": [[*rounded, rounded[0]]]}


@lru_cache(maxsize=512)
def _utm_code(same: _Same) -> int:
    """Return the EPSG code of a CRS that says it is WGS 84 / UTM, and is; 0 of any other.

    GDAL would also find the code of one that does not say it, in up to 40 ms.
    """
    said = _EPSG.search(same.crs.to_wkt())
    code = int(said[1]) if said else 0
    return code if code and same.crs == type(same.crs).from_epsg(code) else 0


def _footprint_by_gdal(crs: CRS, ring: list[tuple[float, float]]) -> dict[str, Any] | None:
    from rasterio._err import CPLE_BaseError  # rasterio.warp raises it; rasterio.errors does not have it
    from rasterio.errors import RasterioError
    from rasterio.warp import transform_geom

    try:
        geometry = transform_geom(crs, "EPSG:4326", {"type": "Polygon", "coordinates": [ring]}, precision=7)
    except (CPLE_BaseError, RasterioError, SystemError, ValueError):  # GDAL's errors reach us in all of these
        return None
    inside = all(abs(x) <= 180 and abs(y) <= 90 for ring in rings_of(geometry) for x, y in ring)
    return dict(geometry) if inside else None


def rings_of(geometry: dict[str, Any]) -> list[list[tuple[float, float]]]:
    """Return the outer rings of a GeoJSON Polygon or MultiPolygon."""
    polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    return [polygon[0] for polygon in polygons]


@dataclass(frozen=True)
class Tile:
    """A tile's pixels with its name, bands, processing level and georeference.

    Attributes:
        name: a file's stem, or an upload's file name.
        pixels: uint16 (13, height, width), DN, 0 = no data.
        bands: canonical names of the bands that are present, in canonical order.
        level: processing level of the reflectances; None where it is unknown (of a bare array of DN).
        georeference: CRS and transform, or None if the file has none.
    """

    name: str
    pixels: DN
    bands: tuple[str, ...]
    level: Level | None
    georeference: Georeference | None = None

    @cached_property
    def valid_fraction(self) -> float:
        """Fraction of pixels (0–1) that hold data in every band that is present."""
        return float(valid_mask(self.pixels, self.bands).mean())

    @property
    def footprint(self) -> dict[str, Any] | None:
        """The tile's outline as GeoJSON in EPSG:4326, or None where the file has no georeference."""
        height, width = self.pixels.shape[1:]
        return self.georeference.footprint(width, height) if self.georeference else None


def has_data(values: Values) -> Values:
    """Return bool, the shape of `values`: where a number holds data.

    `values` are DN, as a NumPy array or as a torch tensor, of any shape.
    """
    return values != NO_DATA  # type: ignore[return-value]  # of arrays and tensors, a comparison is one again


def valid_mask(pixels: DN, bands: Sequence[str] = BAND_NAMES) -> npt.NDArray[np.bool_]:
    """Return bool (height, width): where every one of `bands` holds data in `pixels` (13, height, width)."""
    if not bands:
        return np.zeros(pixels.shape[1:], bool)
    present = pixels if len(bands) == BAND_COUNT else pixels[positions(bands)]
    return np.asarray(has_data(present.min(axis=0)))


def only_bands(tiles: DN, bands: Sequence[str]) -> DN:
    """Return `tiles`, uint16 (..., 13, height, width), with every band outside `bands` set to no data."""
    keep = np.zeros((BAND_COUNT, 1, 1), np.uint16)
    keep[positions(bands)] = 1
    return tiles * keep


def place_bands(values: npt.NDArray[Any], bands: tuple[str, ...]) -> DN:
    """Return uint16 (13, height, width) with `values` (len(bands), height, width) in the canonical order.

    Where they are DN of all bands in that order, they are the values themselves and no copy.
    """
    if bands == BAND_NAMES and values.dtype == np.uint16 and values.flags.c_contiguous:
        return values
    pixels = np.zeros((BAND_COUNT, *values.shape[1:]), np.uint16)
    pixels[positions(bands)] = values
    return pixels


def canonical_order(bands: tuple[str, ...]) -> tuple[str, ...]:
    """Return `bands` in the canonical order."""
    return tuple(name for name in BAND_NAMES if name in bands)
