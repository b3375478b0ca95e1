"""UTM coordinates become the longitude and latitude that GDAL gives."""

from random import Random

import pytest
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform, transform_geom

from tilewise.datasets.core.tile import Georeference
from tilewise.datasets.core.utm import from_utm

UTM = CRS.from_epsg(32630)


def test_every_zone_agrees_with_gdal_to_a_tenth_of_a_millimetre() -> None:
    random = Random(0)  # noqa: S311 - to be repeated
    for code in [*range(32601, 32661), *range(32701, 32761)]:
        points = [(random.uniform(2e5, 8e5), random.uniform(1e6, 9e6)) for _ in range(20)]
        found = from_utm(code, points)
        if found is None:  # near the antimeridian
            assert code % 100 in (1, 60)
            continue
        xs, ys = transform(CRS.from_epsg(code), "EPSG:4326", *zip(*points, strict=True))
        for (longitude, latitude), x, y in zip(found, xs, ys, strict=True):
            assert longitude == pytest.approx(x, abs=1e-9)
            assert latitude == pytest.approx(y, abs=1e-9)


@pytest.mark.parametrize("code", [0, 4326, 25832, 32600, 32661, 32700, 32761, 326300])
def test_another_crs_is_none_of_its_business(code: int) -> None:
    assert from_utm(code, [(5e5, 5e6)]) is None


@pytest.mark.parametrize(
    ("code", "point"),
    [
        (32630, (1.2e6, 5e6)),
        (32630, (float("nan"), 5e6)),
        (32630, (5e5, float("inf"))),
        (32630, (5e5, 9.9e6)),
        (32660, (7.6e5, 1e5)),
        (32601, (2.4e5, 1e5)),
    ],
)
def test_a_point_far_from_its_zone_or_near_an_edge_of_the_world_is_left_out(
    code: int, point: tuple[float, float]
) -> None:
    assert from_utm(code, [(5e5, 5e6), point]) is None


def test_a_footprint_is_the_outline_that_gdal_gives() -> None:
    random = Random(0)  # noqa: S311 - to be repeated
    for _ in range(200):
        corner = random.uniform(2e5, 8e5), random.uniform(1e6, 9e6)
        place = Affine(10, 0, corner[0], 0, -10, corner[1])
        ring = [place @ pixel for pixel in ((0, 0), (0, 64), (64, 64), (64, 0), (0, 0))]
        expected = transform_geom(UTM, "EPSG:4326", {"type": "Polygon", "coordinates": [ring]}, precision=7)
        found = Georeference(UTM, place).footprint(64, 64)
        assert found is not None
        assert found["type"] == expected["type"]
        for one, other in zip(found["coordinates"][0], expected["coordinates"][0], strict=True):
            assert one == pytest.approx(other, abs=1.01e-7)  # a half may be rounded up or down


@pytest.mark.parametrize("change", [("500000", "500001"), ("298.257223563", "298.25"), ("0.9996", "0.9997")])
def test_a_crs_that_is_almost_utm_is_left_to_gdal(change: tuple[str, str]) -> None:
    crs, place = CRS.from_wkt(UTM.to_wkt().replace(*change)), Affine(10, 0, 6e5, 0, -10, 5e6)
    ring = [place @ pixel for pixel in ((0, 0), (0, 64), (64, 64), (64, 0), (0, 0))]
    expected = transform_geom(crs, "EPSG:4326", {"type": "Polygon", "coordinates": [ring]}, precision=7)
    assert Georeference(crs, place).footprint(64, 64) == expected
    assert Georeference(UTM, place).footprint(64, 64) != expected


def test_a_tile_across_the_antimeridian_has_a_footprint_of_two_parts() -> None:
    place = Affine(10, 0, 833_700, 0, -10, 20_000)
    footprint = Georeference(CRS.from_epsg(32660), place).footprint(64, 64)
    assert footprint is not None
    assert footprint["type"] == "MultiPolygon"
