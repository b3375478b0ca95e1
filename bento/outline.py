"""Where a raster lies in longitude and latitude, for files whose own account of it may be nonsense."""

from typing import Any

from datasets.tile import Georeference


def outline(place: Georeference, width: int, height: int) -> dict[str, Any] | None:
    """Return the outline of a `width` × `height` raster as GeoJSON in EPSG:4326.

    It is a MultiPolygon of two parts where it crosses the antimeridian. None where longitude and latitude
    cannot be told: with a local or a vertical CRS, or with coordinates outside the domain of the CRS.
    """
    try:
        geometry = place.footprint(width, height)
    except Exception:  # rasterio passes GDAL's errors on in private classes, and as SystemError
        return None
    inside = all(abs(x) <= 180 and abs(y) <= 90 for ring in rings_of(geometry) for x, y in ring)
    return geometry if inside else None


def rings_of(geometry: dict[str, Any]) -> list[list[tuple[float, float]]]:
    """Return the outer rings of a GeoJSON Polygon or MultiPolygon."""
    polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    return [polygon[0] for polygon in polygons]
