"""GeoJSON geometries as well-known binary (OGC 06-103r4), little-endian."""

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_POLYGON, _MULTIPOLYGON = 3, 6
Point = Sequence[float]


def to_wkb(geometry: Mapping[str, Any]) -> bytes:
    """Return a GeoJSON Polygon or MultiPolygon, holes included, as well-known binary."""
    if geometry["type"] == "Polygon":
        return _polygon(geometry["coordinates"])
    polygons = geometry["coordinates"]
    head = struct.pack("<BII", 1, _MULTIPOLYGON, len(polygons))
    return head + b"".join(_polygon(rings) for rings in polygons)


def quads_to_wkb(corners: npt.NDArray[np.float64]) -> list[bytes]:
    """Return (n, 4, 2) corners as n polygons of one ring."""
    rings = np.concatenate([corners, corners[:, :1]], axis=1)
    head = struct.pack("<BIII", 1, _POLYGON, 1, rings.shape[1])
    return [head + ring.tobytes() for ring in np.ascontiguousarray(rings, "<f8")]


def from_wkb(wkb: bytes) -> dict[str, Any]:
    """Return the GeoJSON geometry of what `to_wkb` made."""
    kind, count = struct.unpack_from("<II", wkb, 1)
    if kind == _POLYGON:
        return {"type": "Polygon", "coordinates": _rings(wkb, 0)[0]}
    polygons, at = [], 9
    for _ in range(count):
        rings, at = _rings(wkb, at)
        polygons.append(rings)
    return {"type": "MultiPolygon", "coordinates": polygons}


def _polygon(rings: Sequence[Sequence[Point]]) -> bytes:
    parts = [struct.pack("<BII", 1, _POLYGON, len(rings))]
    for ring in rings:
        parts += [struct.pack("<I", len(ring)), np.asarray(ring, "<f8").tobytes()]
    return b"".join(parts)


def _rings(wkb: bytes, at: int) -> tuple[list[list[list[float]]], int]:
    (count,) = struct.unpack_from("<I", wkb, at + 5)
    at += 9
    rings = []
    for _ in range(count):
        (points,) = struct.unpack_from("<I", wkb, at)
        rings.append(np.frombuffer(wkb, "<f8", 2 * points, at + 4).reshape(points, 2).tolist())
        at += 4 + 16 * points
    return rings, at
