"""Outlines in longitude and latitude, also of rasters that lie across the antimeridian or nowhere at all."""

import math
import sys

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform_bounds

from tilewise.datasets.core.bands import positions
from tilewise.datasets.core.tile import Georeference, only_bands, rings_of

UTM = CRS.from_epsg(32629)
CORNER = Affine(10, 0, 540_000, 0, -10, 4_740_000)
LOCAL = CRS.from_wkt('LOCAL_CS["a garden",UNIT["metre",1]]')


def test_the_outline_is_a_closed_ring_around_the_raster() -> None:
    geometry = Georeference(UTM, CORNER).footprint(64, 64)
    assert geometry is not None
    assert geometry["type"] == "Polygon"
    (ring,) = rings_of(geometry)
    assert len(ring) == 5
    assert ring[0] == ring[-1]
    xs, ys = zip(*ring, strict=True)
    bounds = transform_bounds(UTM, "EPSG:4326", 540_000, 4_739_360, 540_640, 4_740_000)
    assert (min(xs), min(ys), max(xs), max(ys)) == pytest.approx(bounds, abs=1e-5)


def test_a_raster_across_the_antimeridian_has_an_outline_of_two_parts() -> None:
    place = Georeference(CRS.from_epsg(32660), Affine(10, 0, 833_700, 0, -10, 0))
    geometry = place.footprint(64, 64)
    assert geometry is not None
    assert geometry["type"] == "MultiPolygon"
    west, east = sorted(rings_of(geometry))
    assert all(-180 <= x < -179.9 for x, _ in west)
    assert all(179.9 < x <= 180 for x, _ in east)


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        (LOCAL, CORNER),
        (CRS.from_epsg(5773), CORNER),  # heights
        (UTM, Affine(10, 0, 1e12, 0, -10, 1e12)),
        (UTM, Affine(10, 0, math.nan, 0, -10, math.nan)),
        (CRS.from_epsg(4326), Affine(0.1, 0, 400, 0, -0.1, 50)),
    ],
)
def test_a_place_that_is_nowhere_on_earth_has_no_outline(crs: CRS, transform: Affine) -> None:
    assert Georeference(crs, transform).footprint(64, 64) is None


def test_only_the_bands_that_are_named_are_left() -> None:
    tiles = np.arange(1, 2 * 13 * 2 * 2 + 1, dtype=np.uint16).reshape(2, 13, 2, 2)
    left = only_bands(tiles, ("B8A", "B02"))
    assert left.dtype == np.uint16
    kept = positions(("B02", "B8A"))
    assert np.array_equal(left[:, kept], tiles[:, kept])
    assert not np.delete(left, kept, axis=1).any()


def test_footprints_of_many_uploads_keep_few_of_their_crss() -> None:
    crss = [CRS.from_wkt(UTM.to_wkt()) for _ in range(1500)]  # of 40 kB each
    for crs in crss:
        assert Georeference(crs, CORNER).footprint(64, 64)
    unused = sys.getrefcount(CRS.from_wkt(UTM.to_wkt())) + 2  # in the list and by the loop
    assert sum(sys.getrefcount(crs) > unused for crs in crss) <= 520
