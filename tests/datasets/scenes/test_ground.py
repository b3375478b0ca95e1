"""Which grid a scene's windows lie on, and which scenes are refused."""

import pytest
from affine import Affine
from rasterio.crs import CRS

from tilewise.datasets.core.errors import SceneError, TileShapeError
from tilewise.datasets.core.tile import Georeference
from tilewise.datasets.scenes.ground import Grid, grid_for_windows, utm_grid


def grid(
    size: float, epsg: int = 32632, side: int = 100, left: float = 600_000, top: float = 5_000_000
) -> Grid:
    return Grid(Georeference(CRS.from_epsg(epsg), Affine(size, 0, left, 0, -size, top)), side, side)


def test_windows_lie_on_the_grid_of_the_finest_files() -> None:
    assert grid_for_windows([grid(60), grid(10), grid(20)], "scene", warp=False) == grid(10)
    assert grid_for_windows([grid(60), grid(10)], "scene", warp=True) == grid(10), "it needs no warping"


@pytest.mark.parametrize(
    ("found", "message"), [(grid(20), "measure 20 m"), (grid(1e-4, 4326, 100, 9, 45), "in degrees")]
)
def test_another_ground_size_is_refused_unless_warping_is_requested(found: Grid, message: str) -> None:
    with pytest.raises(TileShapeError) as caught:
        grid_for_windows([found], "scene", warp=False)
    assert message in str(caught.value)
    assert "; let it be warped on the fly (--warp), or " in str(caught.value)
    assert "gdalwarp" in str(caught.value)
    warped = grid_for_windows([found], "scene", warp=True)
    assert (warped.georeference.crs, warped.pixel_m) == (CRS.from_epsg(32632), 10)


def test_files_of_different_reference_systems_are_no_scene() -> None:
    with pytest.raises(SceneError, match="different coordinate reference systems"):
        grid_for_windows([grid(10), grid(20, 32633)], "scene", warp=True)


def test_south_of_the_equator_the_zone_is_a_southern_one() -> None:
    assert utm_grid(grid(1e-4, 4326, 100, 151, -33), "s").georeference.crs == CRS.from_epsg(32756)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (grid(1e-4, 4326, 100, 20, 88), "UTM has no zone"),
        (grid(100_000, 32632, 400, 0, 9_000_000), "cut it into parts|no zone"),
    ],
)
def test_what_utm_cannot_hold_is_refused(found: Grid, message: str) -> None:
    with pytest.raises(TileShapeError, match=message):
        utm_grid(found, "scene")
