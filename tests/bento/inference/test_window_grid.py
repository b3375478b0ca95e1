"""The window grid: every pixel is covered, and every window is in one strip and one part."""

from itertools import pairwise

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS

from tilewise.bento.inference.window_grid import SceneInfo, make_window_grid, starts
from tilewise.datasets.core.tile import Georeference


@pytest.mark.parametrize("stride", [4, 16, 24, 32, 48, 63, 64])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 100, 128, 129, 640, 641])
def test_windows_of_any_stride_cover_every_pixel_and_stay_inside(length: int, stride: int) -> None:
    found = starts(length, 64, stride)
    covered = np.zeros(length, bool)
    for start in found:
        covered[start : start + 64] = True
    assert covered.all()
    assert found == sorted(set(found))
    assert found[-1] + 64 <= max(length, 64)
    assert all(after - before <= stride for before, after in pairwise(found))


@pytest.mark.parametrize(
    "block", [(1, 1), (1, 3000), (8, 3000), (512, 512), (256, 256), (1024, 1024), (5000, 5000)]
)
@pytest.mark.parametrize("stride", [16, 24, 64])
@pytest.mark.parametrize(("height", "width"), [(2000, 3000), (1025, 70), (64, 64), (30, 3000)])
def test_strips_and_parts_hold_each_window_once_and_decide_each_pixel_once(
    height: int, width: int, stride: int, block: tuple[int, int]
) -> None:
    window_grid = make_window_grid(height, width, 64, stride, block)
    assert [row for strip in window_grid.strips for row in strip] == list(range(len(window_grid.rows)))
    assert [column for part in window_grid.parts for column in part] == list(range(len(window_grid.columns)))
    edges = [window_grid.edges(strip) for strip in range(len(window_grid.strips))]
    assert (edges[0][0], edges[-1][1]) == (0, height)
    assert all(before[1] == after[0] for before, after in pairwise(edges))
    for strip in range(len(window_grid.strips)):
        first = window_grid.first_needed(strip)
        above = [window_grid.rows[row] for rows in window_grid.strips[:first] for row in rows]
        assert all(row + 64 <= edges[strip][0] for row in above), "no window that reaches in is left out"
        lowest = window_grid.rows[window_grid.strips[first][-1]]
        assert first == strip or lowest + 64 > edges[strip][0], "and no strip is read for nothing"


def test_parts_follow_the_blocks_of_the_files_and_stay_small() -> None:
    window_grid = make_window_grid(10_980, 10_980, 64, 64, (512, 512))
    assert {edge % 512 for edge, _ in map(window_grid.edges, range(len(window_grid.strips)))} == {0}
    assert {edge % 512 for edge, _ in map(window_grid.part_edges, range(len(window_grid.parts)))} == {0}
    assert (
        max(len(rows) for rows in window_grid.strips) * max(len(columns) for columns in window_grid.parts)
        <= 300
    )
    strips = make_window_grid(10_980, 10_980, 64, 64, (1, 10_980))
    assert len(strips.parts) == 1, "rows that are stored whole are read whole"


@pytest.mark.parametrize("block", [(1, 1), (512, 512)])
def test_parts_paint_each_column_once_from_the_first_to_the_last(block: tuple[int, int]) -> None:
    window_grid = make_window_grid(500, 5000, 64, 64, block)
    edges = [window_grid.part_edges(part) for part in range(len(window_grid.parts))]
    assert len(edges) > 3
    assert (edges[0][0], edges[-1][1]) == (0, 5000)
    assert all(before[1] == after[0] for before, after in pairwise(edges))


@pytest.mark.parametrize(
    ("epsg", "side", "hectares"),
    [(32632, 10.0, 0.01), (32632, 60.0, 0.36), (2263, 1000.0, 9.29034116), (4326, 0.0001, float("nan"))],
)
@pytest.mark.parametrize("up", [1, -1])
def test_a_pixel_of_a_map_has_the_area_that_its_projection_says(
    epsg: int, side: float, hectares: float, up: int
) -> None:
    """EPSG:2263 is in US survey feet, of 1200 / 3937 m."""
    georeference = Georeference(CRS.from_epsg(epsg), Affine(side, 0, 0, 0, up * side, 0))
    assert SceneInfo("a", georeference, 1, 1).pixel_ha == pytest.approx(hectares, rel=1e-7, nan_ok=True)


@pytest.mark.parametrize(
    ("width", "stride", "block", "rows", "columns"),
    [
        (10_980, 64, (512, 512), 16, 16),  # 1024 × 1024 pixels
        (10_980, 32, (512, 512), 64, 32),  # twice as many where windows overlap
        (10_980, 64, (4096, 1024), 64, 16),  # one block, the largest that decides
        (10_980, 64, (4096, 1025), 16, 16),  # a larger one does not
        (500, 64, (512, 512), 32, 8),  # rows of the scene as a whole
        (1024, 64, (128, 1024), 16, 16),
        (10_980, 64, (256, 3000), 4, 46),  # never less than a block
        (40_000, 64, (8, 30_000), 1, 468),  # nor than a window
        (40, 16, (16, 16), 128, 1),
        (10_980, 64, (512, 600), 16, 18),  # two blocks across, nearer to 1024 than one
    ],
)
def test_what_is_read_at_once_is_about_a_million_pixels_in_whole_blocks(
    width: int, stride: int, block: tuple[int, int], rows: int, columns: int
) -> None:
    window_grid = make_window_grid(220_000, width, 64, stride, block)
    assert {len(strip) for strip in window_grid.strips[:-1]} == {rows}
    assert len(window_grid.parts[0]) == columns


def test_without_blocks_any_part_of_the_scene_may_be_read() -> None:
    assert make_window_grid(900, 5000, 64, 32) == make_window_grid(900, 5000, 64, 32, (1, 1))


@pytest.mark.parametrize(("windows", "strips"), [(1, [1]), (2, [2]), (16, [16]), (17, [17]), (18, [16, 2])])
def test_the_last_window_is_in_no_strip_of_its_own(windows: int, strips: list[int]) -> None:
    window_grid = make_window_grid(64 * windows, 10_980, 64, 64, (512, 512))
    assert [len(strip) for strip in window_grid.strips] == strips


@pytest.mark.parametrize(
    ("length", "stride", "found"),
    [
        (63, 64, [0]),
        (64, 64, [0]),
        (65, 64, [0, 1]),
        (128, 64, [0, 64]),
        (129, 64, [0, 64, 65]),
        (128, 32, [0, 32, 64]),
        (130, 32, [0, 32, 64, 66]),
        (130, None, [0, 64, 66]),
    ],
)
def test_windows_begin_every_stride_and_the_last_ends_where_the_scene_does(
    length: int, stride: int | None, found: list[int]
) -> None:
    assert starts(length, 64, stride) == found
