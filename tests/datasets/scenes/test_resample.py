"""Bands on another grid: in place, on scale, no data kept apart, and the same however they are cut."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.warp import reproject, transform
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
    reads: list[Window] | None = None,
) -> npt.NDArray[np.uint16]:
    def read(part: Window) -> npt.NDArray[np.uint16]:
        if reads is not None:
            reads.append(part)
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


def finer(across: int, down: int) -> Grid:
    """The grid in degrees with more columns and rows."""
    georeference = Georeference(
        DEGREES.georeference.crs, DEGREES.georeference.transform @ Affine.scale(1 / across, 1 / down)
    )
    return Grid(georeference, DEGREES.height * down, DEGREES.width * across)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (coarse(20), TEN),
        (coarse(60), TEN),
        (DEGREES, utm_grid(DEGREES, "")),
        (finer(6, 1), utm_grid(DEGREES, "")),
        (finer(1, 6), utm_grid(DEGREES, "")),
    ],
)
@pytest.mark.parametrize("kernel", [Resampling.nearest, Resampling.cubic, Resampling.cubic_spline])
def test_a_pixel_does_not_depend_on_the_window_it_is_read_with(
    source: Grid, target: Grid, kernel: Resampling
) -> None:
    pixels = smooth(1, max(source.height, source.width, 400))[:, : source.height, : source.width]
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


@pytest.mark.parametrize(("x", "y"), [(0.1, -0.3), (-7.2, 11.4), (3.35, 0.2), (-0.45, -20.1), (8.0, -4.0)])
@pytest.mark.parametrize(("across", "down"), [(1.0, 1.0), (0.5, 0.25), (2.0, 3.0), (0.4, 1.5)])
def test_aligned_grids_give_each_pixel_what_lies_under_its_middle(
    x: float, y: float, across: float, down: float
) -> None:
    """The target begins at `x`, `y` of the source, in its pixels; one of its own is `across` × `down`."""
    width, height = 70, 60
    source = Grid(TEN.georeference, height, width)
    eastings, northings = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    pixels = (1000 + 100 * np.stack([eastings, northings])).astype(np.uint16)
    transform = source.georeference.transform @ Affine.translation(x, y) @ Affine.scale(across, down)
    target = Grid(Georeference(UTM, transform), 300, 260)
    for window in (Window(0, 0, 260, 300), Window(13, 5, 40, 31), Window(100, 90, 64, 64)):
        reads: list[Window] = []
        found = onto(target, source, pixels, window, Resampling.cubic, reads).astype(float)
        for part in reads:  # no more than the kernel needs
            assert part.width <= math.ceil(across * window.width) + 2 * math.ceil(4 * max(across, 1)) + 1
            assert part.height <= math.ceil(down * window.height) + 2 * math.ceil(4 * max(down, 1)) + 1
        left = x + across * (window.col_off + np.arange(window.width))
        top = y + down * (window.row_off + np.arange(window.height))
        held = [
            (begins > -1e-3) & (begins + step < size + 1e-3)
            for begins, step, size in ((top, down, height), (left, across, width))
        ]
        np.testing.assert_array_equal(found > 0, np.stack([np.logical_and.outer(*held)] * 2))
        inner = [
            (begins > 3 * max(step, 1)) & (begins + step < size - 3 * max(step, 1))
            for begins, step, size in ((top, down, height), (left, across, width))
        ]
        where = np.logical_and.outer(*inner)
        right = np.stack(np.broadcast_arrays(left + across / 2, (top + down / 2)[:, None]))
        np.testing.assert_allclose(found[:, where], (1000 + 100 * right)[:, where], atol=2)


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("kernel", [Resampling.nearest, Resampling.cubic])
def test_a_mirrored_grid_mirrors_pixels_and_changes_none(axis: int, kernel: Resampling) -> None:
    size = 200
    square = Grid(TEN.georeference, size, size)
    mirror = Affine(-1, 0, size, 0, 1, 0) if axis == 2 else Affine(1, 0, 0, 0, -1, size)
    mirrored = Grid(Georeference(UTM, square.georeference.transform @ mirror), size, size)
    pixels = noise(bands=2, size=size)
    inner = (slice(None), slice(4, -4), slice(4, -4))
    found = onto(mirrored, square, pixels, kernel=kernel)
    np.testing.assert_array_equal(found[inner], np.flip(pixels, axis)[inner])


@pytest.mark.parametrize("metres", [2.5, 5, 20])
@pytest.mark.parametrize("kernel", [Resampling.nearest, Resampling.cubic])
def test_a_turned_grid_takes_pixels_from_where_they_lie(metres: float, kernel: Resampling) -> None:
    """A grid turned by 30°, so that only the warper can read it, over a ramp of eastings and northings."""
    scale = metres / 10
    side = round(240 / scale)
    source = Grid(Georeference(UTM, TEN.georeference.transform @ Affine.scale(scale)), side, side)
    transform = TEN.georeference.transform @ Affine.translation(120, 20) @ Affine.rotation(30)
    target = Grid(Georeference(UTM, transform), 100, 130)
    reads: list[Window] = []
    found = onto(target, source, ramp(source), kernel=kernel, reads=reads).astype(float)
    step = 10 / metres
    for part in reads:  # a cell of 128 pixels, its corners, and what the kernel needs
        most = 128 * step * (math.cos(math.pi / 6) + 0.5) + 2 * math.ceil(4 * max(step, 1)) + 2
        assert max(part.width, part.height) <= most
    columns, rows = np.meshgrid(np.arange(130) + 0.5, np.arange(100) + 0.5)
    x, y = Affine.translation(120, 20) @ Affine.rotation(30) @ (columns, rows)
    assert (found > 0).all()
    near = metres / 2 * 1.01 if kernel is Resampling.nearest else 0.75
    np.testing.assert_allclose(found[0], 1000 + 10 * x, atol=near + 0.6)
    np.testing.assert_allclose(found[1], 1000 + 10 * y, atol=near + 0.6)


def test_a_band_counts_as_coarser_from_half_as_much_again_on() -> None:
    for metres, kernel in ((15.1, Resampling.cubic_spline), (15.0, Resampling.cubic), (5, Resampling.cubic)):
        transform = TEN.georeference.transform @ Affine.scale(metres / 10)
        assert kernel_for(Grid(Georeference(UTM, transform), 10, 10), TEN) is kernel


@pytest.mark.parametrize("turned", [0.9e-3, -0.9e-3, 1.1e-3, -1.1e-3])
@pytest.mark.parametrize("axis", ["rows", "columns"])
def test_grids_are_parallel_within_a_thousandth_of_a_pixel_over_the_scene(turned: float, axis: str) -> None:
    """Parallel ones are read at once, others cell by cell."""
    lean = (
        Affine(1, turned / TEN.height, 0, 0, 1, 0)
        if axis == "rows"
        else Affine(1, 0, 0, turned / TEN.width, 1, 0)
    )
    target = Grid(Georeference(UTM, TEN.georeference.transform @ lean), TEN.height, TEN.width)
    reads: list[Window] = []
    onto(target, TEN, ramp(TEN), kernel=Resampling.nearest, reads=reads)
    assert len(reads) == (1 if abs(turned) < 1e-3 else 2 * 3)  # cells of 128 × 128


@pytest.mark.parametrize(
    ("window", "cells"),
    [
        (Window(140, 130, 40, 40), 1),
        (Window(128, 256, 128, 128), 1),
        (Window(250, 120, 20, 20), 4),
        (Window(255, 383, 2, 1), 2),
        (Window(300, 400, 300, 200), 6),
    ],
)
def test_a_window_of_a_turned_grid_reads_the_cells_that_it_touches(window: Window, cells: int) -> None:
    source = Grid(TEN.georeference, 900, 900)
    turn = Affine.translation(450, 10) @ Affine.rotation(40)
    target = Grid(Georeference(UTM, source.georeference.transform @ turn), 600, 600)
    reads: list[Window] = []
    found = onto(target, source, ramp(source), window, Resampling.cubic, reads).astype(float)
    assert len(reads) == cells
    columns, rows = np.meshgrid(
        window.col_off + np.arange(window.width) + 0.5, window.row_off + np.arange(window.height) + 0.5
    )
    x, y = turn @ (columns, rows)
    inner = (np.minimum(x, y) > 3) & (np.maximum(x, y) < 897)
    np.testing.assert_allclose(found[0][inner], 1000 + 10 * x[inner], atol=2)
    np.testing.assert_allclose(found[1][inner], 1000 + 10 * y[inner], atol=2)


@pytest.mark.parametrize(("x_metres", "y_metres"), [(4, 10), (10, 4), (3, 5)])
def test_a_finer_source_is_averaged_over_the_step_in_the_middle_of_the_scene(
    x_metres: float, y_metres: float
) -> None:
    """As GDAL does that is told the scale of each axis; a kernel of another reach gives other noise."""
    longitude, latitude = 11.7, 45.1
    degree = 111_132.0
    georeference = Georeference(
        CRS.from_epsg(4326),
        Affine(
            x_metres / degree / math.cos(math.radians(latitude)),
            0,
            longitude,
            0,
            -y_metres / degree,
            latitude,
        ),
    )
    source = Grid(georeference, round(2400 / y_metres), round(2400 / x_metres))
    pixels = np.random.default_rng(5).integers(1000, 3000, (1, source.height, source.width), np.uint16)
    whole = utm_grid(source, "")
    target = Grid(whole.georeference, whole.height, whole.width)
    middle = target.georeference.transform @ (target.width / 2, target.height / 2)
    xs, ys = transform(
        target.georeference.crs,
        georeference.crs,
        [middle[0], middle[0] + 10, middle[0]],
        [middle[1], middle[1], middle[1] - 10],
    )
    columns, rows = ~georeference.transform @ (np.array(xs), np.array(ys))
    steps = [math.hypot(columns[n] - columns[0], rows[n] - rows[0]) for n in (1, 2)]
    right = np.zeros((1, target.height, target.width), np.uint16)
    reproject(
        pixels,
        right,
        src_transform=georeference.transform,
        src_crs=georeference.crs,
        src_nodata=0,
        dst_transform=target.georeference.transform,
        dst_crs=target.georeference.crs,
        dst_nodata=0,
        resampling=Resampling.cubic,
        XSCALE=1 / steps[0],
        YSCALE=1 / steps[1],
    )
    found = onto(target, source, pixels)
    both = (found > 0) & (right > 0)
    assert both.mean() > 0.8
    assert np.abs(found.astype(float) - right)[both].mean() < 0.01 * right[both].std()
