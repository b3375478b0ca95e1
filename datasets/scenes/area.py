"""An area of interest: polygons from a file or a rectangle, which limit what is read and classified.

Coordinates keep the coordinate reference system of their file until a scene's grid is known, so that an area
drawn on the scene's own grid is not moved by a detour through degrees. Edges are straight in the file's
system (RFC 7946, 3.1.1); they get points in between before they are reprojected.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.features import geometry_mask
from rasterio.warp import transform, transform_bounds
from rasterio.windows import Window
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from tilewise.datasets.core.errors import SceneError
from tilewise.datasets.core.tile import TILE_SIZE
from tilewise.datasets.scenes.ground import Grid

_LONGITUDE_LATITUDE = "OGC:CRS84"
_SUFFIXES = (".geojson", ".json", ".gpkg")
_MAX_BYTES = 256 * 2**20
_POLYGONS = ("Polygon", "MultiPolygon")
_STEP_DEGREES, _STEP_UNITS = 0.01, 1_000.0  # longest edge that is reprojected by its ends alone
_MARGIN = 0.1  # of a scene's extent, kept around it where an area is cut to it before reprojection


@dataclass(frozen=True, slots=True)
class Area:
    """Polygons that limit what is read of scenes.

    Attributes:
        wkb: their union, as well-known binary.
        crs: their coordinate reference system, as WKT or an authority's code.
        name: the file, or the option, in messages; it is not part of an area's identity.
    """

    wkb: bytes
    crs: str
    name: str = field(default="area", repr=False, compare=False)

    @property
    def geometry(self) -> BaseGeometry:
        """The union of the polygons, in `crs`."""
        return shapely.from_wkb(self.wkb)

    def in_degrees(self) -> BaseGeometry:
        """Return the polygons in longitude and latitude."""
        return _reproject(
            self.geometry, CRS.from_user_input(self.crs), CRS.from_user_input(_LONGITUDE_LATITUDE)
        )

    def on_grid(self, grid: Grid) -> BaseGeometry:
        """Return the part of the polygons near a grid, in the grid's coordinate reference system."""
        own, target = CRS.from_user_input(self.crs), grid.georeference.crs
        left, bottom, right, top = grid.georeference.bounds(grid.width, grid.height)
        margin = _MARGIN * max(right - left, top - bottom)
        bounds = transform_bounds(
            target, own, left - margin, bottom - margin, right + margin, top + margin, densify_pts=21
        )
        near = shapely.intersection(self.geometry, _box(bounds, own))
        return _reproject(near, own, target)


def area_of_bounds(west: float, south: float, east: float, north: float, name: str = "--bbox") -> Area:
    """Return a rectangle in longitude and latitude, in degrees, as an area.

    Raises:
        SceneError: it has no area, or is not on Earth.
    """
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        raise SceneError(
            f"{name} {west:g},{south:g},{east:g},{north:g}: it must be W,S,E,N in degrees with W below E and "
            "S below N; cut what crosses 180° in two"
        )
    return Area(shapely.to_wkb(shapely.box(west, south, east, north)), _LONGITUDE_LATITUDE, name)


def read_area(path: Path) -> Area:
    """Return the union of the polygons in a GeoJSON or a GeoPackage.

    The coordinate reference system is that of the file; a GeoJSON without the member `crs` is in longitude
    and latitude (RFC 7946).

    Raises:
        SceneError: it cannot be read, or has no polygon, or something that is no valid polygon.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise SceneError(f"{path.name}: an area is a GeoJSON (.geojson, .json) or a GeoPackage (.gpkg)")
    if not path.is_file():
        raise SceneError(f"{path}: there is no such file")
    is_geopackage = path.suffix.lower() == ".gpkg"
    features, crs = _of_geopackage(path) if is_geopackage else _of_geojson(path)
    checked = [_checked(geometry, f"{path.name}: feature {label}") for label, geometry in features]
    if not checked:
        raise SceneError(f"{path.name}: it has no feature; an area needs at least one polygon")
    return Area(shapely.to_wkb(shapely.union_all(checked)), crs, path.name)


def inside(geometry: BaseGeometry, grid: Grid, window: Window) -> npt.NDArray[np.bool_]:
    """Return bool (height, width): the pixels of a window whose middle is inside the polygons.

    Args:
        geometry: in the grid's coordinate reference system.
        grid: of the scene.
        window: within the grid.
    """
    size = (int(window.height), int(window.width))
    moved = grid.georeference.transform @ Affine.translation(window.col_off, window.row_off)
    corners = ((-1, -1), (size[1] + 1, -1), (size[1] + 1, size[0] + 1), (-1, size[0] + 1))
    near = shapely.intersection(geometry, shapely.Polygon([moved @ corner for corner in corners]))
    parts = [part for part in shapely.get_parts([near]) if part.geom_type == "Polygon" and not part.is_empty]
    if not parts:
        return np.zeros(size, bool)
    return np.asarray(geometry_mask(parts, size, moved, invert=True))


def window_around(geometry: BaseGeometry, grid: Grid) -> Window | None:
    """Return the part of a grid around the polygons; None where they do not overlap.

    It begins and ends at multiples of two tiles or at the scene's edge, at least a tile beyond the polygons:
    windows inside it lie as they would in the whole scene, and none that overlaps the polygons is missing.

    Args:
        geometry: in the grid's coordinate reference system.
        grid: of the scene.
    """
    if geometry.is_empty:
        return None
    left, bottom, right, top = geometry.bounds
    corners = [
        ~grid.georeference.transform @ corner
        for corner in ((left, bottom), (left, top), (right, bottom), (right, top))
    ]
    columns, rows = zip(*corners, strict=True)
    across, down = _around(min(columns), max(columns), grid.width), _around(min(rows), max(rows), grid.height)
    if across is None or down is None:
        return None
    return Window(across[0], down[0], across[1] - across[0], down[1] - down[0])


def _around(first: float, last: float, length: int) -> tuple[int, int] | None:
    """Return the pixels (begin, end) around `first` to `last` along an axis of `length` pixels."""
    if last <= 0 or first >= length:
        return None
    step = 2 * TILE_SIZE
    begin = max(math.floor((first - TILE_SIZE) / step) * step, 0)
    end = min(math.ceil((last + TILE_SIZE) / step) * step, length)
    return (begin if end - begin >= TILE_SIZE else max(begin - step, 0)), end


def _of_geojson(path: Path) -> tuple[Iterator[tuple[str, BaseGeometry]], str]:
    """Return (label, geometry) of each feature, and the coordinate reference system."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise SceneError(f"{path.name}: an area of more than {_MAX_BYTES // 2**20} MiB; simplify it")
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise SceneError(f"{path.name}: not valid JSON") from error
    except OSError as error:
        raise SceneError(f"{path.name}: it cannot be read: {error.strerror}") from error
    if not isinstance(content, dict) or "type" not in content:
        raise SceneError(f"{path.name}: not a GeoJSON, which is an object with a type")
    return _features_of(path.name, content), _crs_of_geojson(path.name, content)


def _features_of(name: str, content: dict[str, Any]) -> Iterator[tuple[str, BaseGeometry]]:
    """Yield (label, geometry) of a FeatureCollection, a Feature or a geometry."""
    if content["type"] == "FeatureCollection":
        features = content.get("features")
    else:
        features = [content if content["type"] == "Feature" else {"geometry": content}]
    for number, feature in enumerate(features if isinstance(features, list) else [], start=1):
        known = isinstance(feature, dict)
        label = f"{number} ({feature['id']})" if known and feature.get("id") is not None else str(number)
        try:
            geometry = shape(feature["geometry"])
        except (TypeError, KeyError, AttributeError, ValueError, shapely.errors.ShapelyError) as error:
            raise SceneError(f"{name}: feature {label} has no geometry that can be read") from error
        yield label, geometry


def _crs_of_geojson(name: str, content: dict[str, Any]) -> str:
    """Return the system that the member `crs` names (GeoJSON of 2008), else longitude and latitude."""
    if content.get("crs") is None:
        return _LONGITUDE_LATITUDE
    try:
        return _known_crs(str(content["crs"]["properties"]["name"]))
    except (CRSError, KeyError, TypeError) as error:
        raise SceneError(f"{name}: its member crs names no known coordinate reference system") from error


def _of_geopackage(path: Path) -> tuple[list[tuple[str, BaseGeometry]], str]:
    """Return (label, geometry) of each feature of the first layer, and the coordinate reference system."""
    try:
        from pyogrio import list_layers
        from pyogrio.errors import DataLayerError, DataSourceError
        from pyogrio.raw import read
    except ImportError as error:
        raise SceneError(
            f"{path.name}: a GeoPackage needs pyogrio; pip install 'tilewise[vector]', or give a GeoJSON"
        ) from error
    try:
        layers = [str(layer) for layer, kind in list_layers(path) if kind is not None]
        if len(layers) != 1:
            found = ", ".join(layers) or "none"
            raise SceneError(f"{path.name}: one layer of polygons is needed, and it has {found}")
        meta, numbers, geometries, _ = read(path, layer=layers[0], columns=[], return_fids=True)
        crs = _known_crs(str(meta["crs"]))
    except (DataSourceError, DataLayerError) as error:
        raise SceneError(f"{path.name}: not a GeoPackage that can be read") from error
    except CRSError as error:
        raise SceneError(f"{path.name}: it has no known coordinate reference system") from error
    return [(str(n), shapely.from_wkb(wkb)) for n, wkb in zip(numbers, geometries, strict=True)], crs


def _known_crs(text: str) -> str:
    """Return `text`, which names a coordinate reference system on Earth; raise CRSError for another."""
    CRS.from_user_input(text).to_wkt()
    return text


def _checked(geometry: BaseGeometry | None, label: str) -> BaseGeometry:
    """Return a polygon in two dimensions; raise SceneError for anything else."""
    if geometry is None or geometry.is_empty:
        raise SceneError(f"{label} is empty; remove it")
    if geometry.geom_type not in _POLYGONS:
        raise SceneError(f"{label} is a {geometry.geom_type}; an area is made of polygons")
    if not all(math.isfinite(edge) for edge in geometry.bounds):
        raise SceneError(f"{label} has coordinates that are not numbers")
    if not geometry.is_valid:
        raise SceneError(f"{label} is not a valid polygon ({shapely.is_valid_reason(geometry)}); mend it")
    return shapely.force_2d(geometry)


def _box(bounds: tuple[float, float, float, float], crs: CRS) -> BaseGeometry:
    """Return a rectangle; in degrees one whose left is larger than its right crosses 180°."""
    left, bottom, right, top = bounds
    if crs.is_geographic and left > right:
        return shapely.union(shapely.box(left, bottom, 180, top), shapely.box(-180, bottom, right, top))
    return shapely.box(left, bottom, right, top)


def _reproject(geometry: BaseGeometry, own: CRS, target: CRS) -> BaseGeometry:
    if own == target or geometry.is_empty:
        return geometry
    dense = shapely.segmentize(geometry, _STEP_DEGREES if own.is_geographic else _STEP_UNITS)

    def move(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.column_stack(transform(own, target, points[:, 0], points[:, 1]))

    return shapely.make_valid(shapely.transform(dense, move))
