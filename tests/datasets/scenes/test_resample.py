"""Bands on another grid: in place, on scale, no data kept apart, and the same however they are cut."""

import numpy as np
import numpy.typing as npt
import pytest
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.windows import Window
from rasters import noise
from scene_files import smooth

from tilewise.datasets.core.tile import Georeference
from tilewise.datasets.scenes.ground import Grid, utm_grid
from tilewise.datasets.scenes.resample import kernel_for, read_onto

UTM = CRS.from_epsg(32632)
TEN = Grid(Georeference(UTM, Affine(10, 0, 600_000, 0, -10, 5_000_000)), 240, 300)
DEGREES = Grid(Georeference(CRS.from_epsg(4326), Affine(0.000121, 0, 2.79, 0, -9e-5, 42.36)), 200, 220)


def coarse(metres: int, grid: Grid = TEN) -> Grid:
    step = metres // 10
    georeference = Georeference(UTM, grid.georeference.transform @ Affine.scale(step))
    return Grid(georeference, grid.height // step, grid.width // step)


def ramp(grid: Grid) -> npt.NDArray[np.uint16]:
    """DN that say where a pixel lies: its easting in the first band, its northing in the second."""
    x = grid.georeference.transform.a * (np.arange(grid.width) + 0.5)
    y = -grid.georeference.transform.e * (np.arange(grid.height) + 0.5)
    return np.stack(
        [np.tile(1000 + x, (grid.height, 1)), np.tile(1000 + y[:, None], (1, grid.width))]
    ).astype(np.uint16)


def onto(
    target: Grid,
    source: Grid,
    pixels: npt.NDArray[np.uint16],
    window: Window | None = None,
    kernel: Resampling | None = None,
) -> npt.NDArray[np.uint16]:
    def read(part: Window) -> npt.NDArray[np.uint16]:
        assert part.row_off >= 0
        assert part.col_off >= 0
        assert min(part.width, part.height) > 0
        rows, columns = part.toslices()
        return pixels[:, rows, columns]

    window = window or Window(0, 0, target.width, target.height)
    return read_onto(target, window, source, read, len(pixels), kernel or kernel_for(source, target))


@pytest.mark.parametrize("metres", [20, 60])
def test_coarser_bands_come_to_lie_where_they_belong(metres: int) -> None:
    found = onto(TEN, coarse(metres), ramp(coarse(metres)))
    inner = (
        slice(None),
        slice(2 * metres // 10, -2 * metres // 10),
        slice(2 * metres // 10, -2 * metres // 10),
    )
    assert np.abs(found[inner].astype(int) - ramp(TEN)[inner]).max() <= 1
    assert (found > 0).all()


def test_bands_of_lower_resolution_go_up_by_cubic_spline_and_others_are_warped_by_cubic() -> None:
    assert kernel_for(coarse(20), TEN) is Resampling.cubic_spline
    assert kernel_for(coarse(60), TEN) is Resampling.cubic_spline
    assert kernel_for(DEGREES, TEN) is Resampling.cubic
    impulse = np.full((1, 120, 150), 1000, np.uint16)
    impulse[0, 60, 75] = 2000
    # The uniform cubic B-spline at 1/4 of a step: (3·(1/4)³ − 6·(1/4)² + 4) / 6 along each axis.
    peak = (3 / 64 - 6 / 16 + 4) / 6
    assert onto(TEN, coarse(20), impulse).max() == round(1000 + 1000 * peak**2)


def test_no_data_spreads_into_no_neighbour_and_takes_none_away() -> None:
    pixels = np.full((2, 120, 150), 3000, np.uint16)
    pixels[0, 40:60, 50:80] = 0
    found = onto(TEN, coarse(20), pixels)
    assert set(np.unique(found[0])) == {0, 3000}
    assert (found[1] == 3000).all()
    hole = found[0] == 0
    assert hole[84:116, 104:156].all()
    assert not hole[:76].any()


@pytest.mark.parametrize(
    ("source", "target"), [(coarse(20), TEN), (coarse(60), TEN), (DEGREES, utm_grid(DEGREES, ""))]
)
@pytest.mark.parametrize("kernel", [Resampling.nearest, Resampling.cubic, Resampling.cubic_spline])
def test_a_pixel_does_not_depend_on_the_window_it_is_read_with(
    source: Grid, target: Grid, kernel: Resampling
) -> None:
    pixels = smooth(1, 400)[:, : source.height, : source.width]
    whole = onto(target, source, pixels, kernel=kernel)
    for row, column, height, width in ((0, 0, 70, 90), (33, 41, 64, 64), (100, 7, 51, 150)):
        part = onto(target, source, pixels, Window(column, row, width, height), kernel)
        np.testing.assert_allclose(part, whole[:, row : row + height, column : column + width], atol=1)
        assert (part != whole[:, row : row + height, column : column + width]).mean() < 1e-3


def test_beyond_the_source_there_is_no_data() -> None:
    wider = Grid(Georeference(UTM, TEN.georeference.transform @ Affine.translation(-50, -30)), 400, 500)
    found = onto(wider, coarse(20), np.full((1, 120, 150), 3000, np.uint16))
    expected = np.zeros((400, 500), np.uint16)
    expected[30:270, 50:350] = 3000
    np.testing.assert_array_equal(found[0], expected)
    far = Grid(Georeference(UTM, TEN.georeference.transform @ Affine.translation(5000, 5000)), 64, 64)
    assert not onto(far, coarse(20), np.full((1, 120, 150), 3000, np.uint16)).any()


def test_a_warped_scene_holds_all_that_the_one_in_degrees_held() -> None:
    target = utm_grid(DEGREES, "")
    assert target.georeference.crs == CRS.from_epsg(32631)
    assert target.georeference.transform.a == 10
    assert target.georeference.transform.c % 10 == 0
    pixels = smooth(2, 220)[:, :200, :220]
    found = onto(target, DEGREES, pixels)
    assert (found > 0).mean() > 0.85
    # About as many square metres, and about the same mean.
    assert (found[0] > 0).sum() * 100 == pytest.approx(200 * 220 * 9.97 * 10.0, rel=0.02)
    assert found[0][found[0] > 0].mean() == pytest.approx(pixels[0].mean(), rel=0.01)


@pytest.mark.parametrize("gap", range(8))
@pytest.mark.parametrize("turned", [False, True])
def test_a_grid_beside_the_source_has_no_data_and_reads_nothing_empty(gap: int, turned: bool) -> None:
    """Also where the reach of the kernel ends just at the edge of the source."""
    size = 128
    for shift in ((TEN.width + gap, 0), (-size - gap, 0), (0, TEN.height + gap), (0, -size - gap)):
        placed = TEN.georeference.transform @ Affine.translation(*shift)
        if turned:  # upside down, which the warper reads
            placed = placed @ Affine.translation(0, size) @ Affine.scale(1, -1)
        target = Grid(Georeference(UTM, placed), size, size)
        assert not onto(target, TEN, ramp(TEN), kernel=Resampling.nearest).any()


@pytest.mark.parametrize("kernel", [Resampling.nearest, Resampling.cubic])
def test_a_quarter_turn_moves_pixels_and_changes_none(kernel: Resampling) -> None:
    """A step along a row of the target is a step down a column of the source."""
    size = 240
    square = Grid(TEN.georeference, size, size)
    quarter = Affine(0, 1, 0, -1, 0, size)  # (column, row) of the target → (row, size - column) of the source
    turned = Grid(Georeference(UTM, square.georeference.transform @ quarter), size, size)
    pixels = noise(bands=3, size=size)
    found = onto(turned, square, pixels, kernel=kernel)
    expected = np.rot90(pixels, k=-1, axes=(1, 2))
    inner = (slice(None), slice(4, -4), slice(4, -4))
    np.testing.assert_array_equal(found[inner], expected[inner])
