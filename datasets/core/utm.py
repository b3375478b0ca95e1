"""Longitude and latitude of UTM coordinates, without the set-up of a general transformation.

GDAL needs a fifth of a millisecond to prepare one, for each footprint, and Sentinel-2 has one kind of CRS:
WGS 84 / UTM (EPSG 326zz in the north, 327zz in the south).
"""

import cmath
import math
from collections.abc import Sequence

_EQUATORIAL_RADIUS, _FLATTENING = 6_378_137.0, 1 / 298.257223563  # WGS 84
_SCALE, _FALSE_EASTING, _FALSE_NORTHING = 0.9996, 500_000.0, 10_000_000.0
_MAX_FROM_MERIDIAN_M = 600_000.0  # a zone of Sentinel-2 with its overlap ends before

# Krüger's series to the fourth order in the third flattening n; the next term is below 1e-11 degrees.
# Karney 2011, doi:10.1007/s00190-011-0445-3: A in equation 14, beta in 36; conformal to geographic latitude:
# Kawase 2011, Bulletin of the Geospatial Information Authority of Japan 59.
_N = _FLATTENING / (2 - _FLATTENING)
_RADIUS = _SCALE * _EQUATORIAL_RADIUS / (1 + _N) * (1 + _N**2 / 4 + _N**4 / 64)
_BETA = (
    _N / 2 - 2 / 3 * _N**2 + 37 / 96 * _N**3 - _N**4 / 360,
    _N**2 / 48 + _N**3 / 15 - 437 / 1440 * _N**4,
    17 / 480 * _N**3 - 37 / 840 * _N**4,
    4397 / 161280 * _N**4,
)
_DELTA = (
    2 * _N - 2 / 3 * _N**2 - 2 * _N**3 + 116 / 45 * _N**4,
    7 / 3 * _N**2 - 8 / 5 * _N**3 - 227 / 45 * _N**4,
    56 / 15 * _N**3 - 136 / 35 * _N**4,
    4279 / 630 * _N**4,
)


def from_utm(epsg: int, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]] | None:
    """Return (longitude, latitude) in degrees of (easting, northing) in metres.

    None where `epsg` is no zone of WGS 84 / UTM, or a point is far from its zone, or near the antimeridian or
    a pole.
    """
    hemisphere, zone = divmod(epsg, 100)
    if hemisphere not in (326, 327) or not 1 <= zone <= 60:
        return None
    if any(abs(x - _FALSE_EASTING) > _MAX_FROM_MERIDIAN_M or abs(y) > _FALSE_NORTHING for x, y in points):
        return None
    north = _FALSE_NORTHING if hemisphere == 327 else 0.0
    found = [_from_zone(6 * zone - 183, x - _FALSE_EASTING, y - north) for x, y in points]
    return found if all(abs(x) < 179 and abs(y) < 85 for x, y in found) else None


def _from_zone(meridian: float, east: float, north: float) -> tuple[float, float]:
    """Return (longitude, latitude) of metres from the central meridian and the equator."""
    zeta = complex(north, east) / _RADIUS
    zeta -= sum(beta * cmath.sin(2 * order * zeta) for order, beta in enumerate(_BETA, start=1))
    conformal = math.asin(math.sin(zeta.real) / math.cosh(zeta.imag))
    longitude = math.atan2(math.sinh(zeta.imag), math.cos(zeta.real))
    latitude = conformal + sum(
        delta * math.sin(2 * order * conformal) for order, delta in enumerate(_DELTA, start=1)
    )
    return meridian + math.degrees(longitude), math.degrees(latitude)
