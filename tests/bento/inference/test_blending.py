"""Maps are what the sentences at the head of the module say, pixel by pixel, worked out here in loops."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from tilewise.bento.inference.blending import (
    COARSE_WEIGHT,
    FINE_WEIGHT,
    NO_CLASS,
    OUT_OF_DISTRIBUTION,
    Maps,
    Painter,
    StripAnswers,
    pool,
)
from tilewise.bento.inference.window_grid import WindowGrid, starts

TILE, HEIGHT, WIDTH, CLASSES = 8, 37, 30, 3
THRESHOLD = 0.8


@dataclass(frozen=True)
class Scene:
    """A grid of windows with answers drawn for them, some skipped, and pixels that are not valid."""

    grid: WindowGrid
    probabilities: npt.NDArray[np.float32]
    outlier: npt.NDArray[np.float32]
    kept: npt.NDArray[np.bool_]
    valid: npt.NDArray[np.bool_]

    def strip(self, number: int) -> StripAnswers:
        """Return the answers for a strip, as whoever reads the scene gives them."""
        rows = self.grid.strips[number]
        here = slice(rows.start, rows.stop)
        top, bottom = self.grid.edges(number)
        return StripAnswers(
            tuple(self.grid.rows[row] for row in rows),
            self.probabilities[here],
            self.outlier[here],
            self.kept[here],
            self.valid[top:bottom],
        )


def scene(stride: int, seed: int = 0, kept: float = 0.7, valid: float = 0.8) -> Scene:
    random = np.random.default_rng(seed)
    rows, columns = starts(HEIGHT, TILE, stride), starts(WIDTH, TILE, stride)
    strips = (range(2), range(2, 3), range(3, len(rows)))
    parts = (range(len(columns)),)
    grid = WindowGrid(TILE, stride, HEIGHT, WIDTH, tuple(rows), tuple(columns), strips, parts)
    shape = len(rows), len(columns)
    is_kept = random.random(shape) < kept
    probabilities = random.dirichlet(np.ones(CLASSES), shape).astype(np.float32) * is_kept[..., None]
    outlier = random.random(shape).astype(np.float32) * is_kept
    return Scene(grid, probabilities, outlier, is_kept, random.random((HEIGHT, WIDTH)) < valid)


def middles(length: int, cell: int) -> list[float]:
    return [(begin + min(begin + cell, length)) / 2 for begin in range(0, length, cell)]


def windows_over(scene: Scene, y: float, x: float) -> Iterator[tuple[int, int]]:
    """Give the windows over a place that were not skipped, in reading order."""
    for row, top in enumerate(scene.grid.rows):
        for column, left in enumerate(scene.grid.columns):
            if top <= y < top + TILE and left <= x < left + TILE and scene.kept[row, column]:
                yield row, column


def weight(scene: Scene, y: float, x: float, row: int, column: int) -> float:
    down, across = y - scene.grid.rows[row], x - scene.grid.columns[column]
    return math.sin(math.pi * down / TILE) ** 2 * math.sin(math.pi * across / TILE) ** 2


def value_at(scene: Scene, y: float, x: float) -> tuple[npt.NDArray[np.float64], float] | None:
    """Return probabilities and outlier score at a place; None: no window is over it."""
    over = list(windows_over(scene, y, x))
    if not over:
        return None
    if scene.grid.stride == TILE:
        return scene.probabilities[over[0]].astype(float), float(scene.outlier[over[0]])
    weights = np.array([weight(scene, y, x, *window) for window in over])
    probabilities = np.array([scene.probabilities[window] for window in over])
    outlier = np.array([scene.outlier[window] for window in over])
    return weights @ probabilities / weights.sum(), float(weights @ outlier / weights.sum())


def expected(scene: Scene, cell: int) -> Maps:
    down, across = middles(HEIGHT, cell), middles(WIDTH, cell)
    shape = len(down), len(across)
    classes = np.full(shape, NO_CLASS, np.uint8)
    probability, outlier = np.full(shape, np.nan), np.full(shape, np.nan)
    probabilities = np.full((CLASSES, *shape), np.nan)
    for i, y in enumerate(down):
        for j, x in enumerate(across):
            pixels = scene.valid[i * cell : (i + 1) * cell, j * cell : (j + 1) * cell]
            found = value_at(scene, y, x)
            if found is None or pixels.mean() < 0.5:
                continue
            probabilities[:, i, j], outlier[i, j] = found
            if outlier[i, j] > THRESHOLD:
                classes[i, j] = OUT_OF_DISTRIBUTION
            else:
                classes[i, j], probability[i, j] = found[0].argmax(), found[0].max()
    return Maps(0, classes, probability, outlier, probabilities)  # type: ignore[arg-type]


def painted(scene: Scene, cell: int, keep: bool, first: int = 0) -> list[Maps]:
    painter = Painter(scene.grid, cell, keep_probabilities=keep, threshold=THRESHOLD)
    for number in range(first):
        painter.skip(scene.strip(number))
    return [
        maps
        for number in range(first, len(scene.grid.strips))
        for maps in painter.add(number, scene.strip(number))
    ]


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(("stride", "cell"), [(8, 1), (8, 4), (8, 8), (4, 1), (4, 2), (4, 4), (6, 3), (2, 1)])
def test_maps_are_what_is_written_down(stride: int, cell: int, keep: bool) -> None:
    drawn = scene(stride, seed=stride + cell)
    blocks = painted(drawn, cell, keep)
    right = expected(drawn, cell)
    assert [block.row for block in blocks] == [0, *np.cumsum([len(b.class_map) for b in blocks])[:-1]]
    together = [np.concatenate([getattr(b, name) for b in blocks]) for name in ("class_map", "outlier")]
    np.testing.assert_array_equal(together[0], right.class_map)
    np.testing.assert_allclose(together[1], right.outlier, atol=2e-6)
    probability = np.concatenate([block.probability for block in blocks])
    np.testing.assert_allclose(probability, right.probability, atol=2e-6)
    if not keep:
        assert {block.probabilities for block in blocks} == {None}
        return
    assert right.probabilities is not None
    found = np.concatenate([block.probabilities for block in blocks], axis=1)
    np.testing.assert_allclose(found, right.probabilities, atol=2e-6)


@pytest.mark.parametrize("stride", [8, 4, 2])
def test_a_strip_whose_rows_are_not_needed_still_counts_below(stride: int) -> None:
    drawn = scene(stride, seed=9, kept=1.0, valid=1.0)
    top = drawn.grid.edges(2)[0]
    (rest,) = painted(drawn, 1, keep=False, first=2)
    right = expected(drawn, 1)
    assert rest.row == top
    np.testing.assert_array_equal(rest.class_map, right.class_map[top:])
    np.testing.assert_allclose(rest.probability, right.probability[top:], atol=2e-6)


def test_where_all_is_known_and_ordinary_nothing_is_left_out() -> None:
    drawn = scene(4, kept=1.0, valid=1.0)
    painter = Painter(drawn.grid, threshold=1.0)
    blocks = [maps for number in range(3) for maps in painter.add(number, drawn.strip(number))]
    assert all((block.class_map < CLASSES).all() for block in blocks)
    assert all(np.isfinite(block.probability).all() and np.isfinite(block.outlier).all() for block in blocks)


def test_a_cell_of_which_just_half_is_valid_has_a_class() -> None:
    drawn = scene(4, kept=1.0, valid=1.0)
    drawn.valid[:4, :4] = False
    drawn.valid[:2, :4] = True
    drawn.valid[:4, 4:8] = False
    drawn.valid[0, 4:8] = drawn.valid[1, 4:7] = True
    first = painted(drawn, 4, keep=False)[0].class_map
    assert first[0, 0] != NO_CLASS
    assert first[0, 1] == NO_CLASS


@pytest.mark.parametrize("keep", [True, False])
def test_two_sizes_of_windows_are_pooled_by_the_formula(keep: bool) -> None:
    random = np.random.default_rng(3)
    coarse = random.dirichlet(np.ones(4), (5, 6)).transpose(2, 0, 1).astype(np.float32)
    fine = random.dirichlet(np.ones(4), (5, 6)).transpose(2, 0, 1).astype(np.float32)
    coarse[:, 0, 0] = fine[:, 0, 1] = (1, 0, 0, 0)  # zeros count as 0.0001
    fine[:, 1, :2] = np.nan
    classes = coarse.argmax(axis=0).astype(np.uint8)
    classes[2, 0], classes[2, 1] = OUT_OF_DISTRIBUTION, NO_CLASS
    outlier = random.random((5, 6)).astype(np.float32)
    found = pool(Maps(7, classes, coarse.max(axis=0), outlier, coarse), fine, keep_probabilities=keep)
    weights = np.maximum(coarse, 1e-4).astype(float) ** COARSE_WEIGHT
    weights *= np.maximum(fine, 1e-4).astype(float) ** FINE_WEIGHT
    right = np.where(np.isnan(fine), coarse, weights / weights.sum(axis=0))
    known = classes < OUT_OF_DISTRIBUTION
    assert found.row == 7
    np.testing.assert_array_equal(found.class_map, np.where(known, right.argmax(axis=0), classes))
    np.testing.assert_allclose(found.probability, np.where(known, right.max(axis=0), np.nan), rtol=1e-5)
    np.testing.assert_array_equal(found.outlier, outlier)
    assert (found.probabilities is not None) is keep
    if found.probabilities is not None:
        np.testing.assert_allclose(found.probabilities, right, rtol=1e-5)
    assert (COARSE_WEIGHT, FINE_WEIGHT) == (0.2, 1.0)


@pytest.mark.parametrize(
    ("stride", "keep", "heights"),
    [
        (64, False, [42, 22]),
        (64, True, [10] * 6 + [4]),
        (32, False, [10] * 6 + [4]),
        (32, True, [10] * 6 + [4]),
    ],
)
def test_wide_scenes_are_painted_in_blocks_of_64_mib(stride: int, keep: bool, heights: list[int]) -> None:
    """2²⁴ numbers: three planes side by side, else one for each of ten classes and two more."""
    width = 2**17
    columns = tuple(starts(width, 64, stride))
    grid = WindowGrid(64, stride, 64, width, (0,), columns, (range(1),), (range(len(columns)),))
    answers = StripAnswers(
        (0,),
        np.full((1, len(columns), 10), 0.1, np.float32),
        np.zeros((1, len(columns)), np.float32),
        np.ones((1, len(columns)), bool),
        np.ones((64, width), bool),
    )
    blocks = [
        (maps.row, len(maps.class_map)) for maps in Painter(grid, keep_probabilities=keep).add(0, answers)
    ]
    assert [height for _, height in blocks] == heights
    assert [row for row, _ in blocks] == [sum(heights[:n]) for n in range(len(heights))]


@pytest.mark.parametrize("stride", [8, 4])
def test_tall_scenes_are_painted_in_blocks_of_256_rows(stride: int) -> None:
    height = 600
    rows = tuple(starts(height, 8, stride))
    strips = (range(40), range(40, len(rows)))
    grid = WindowGrid(8, stride, height, 8, rows, (0,), strips, (range(1),))
    painter, blocks = Painter(grid), list[tuple[int, int]]()
    for number, strip in enumerate(strips):
        top, bottom = grid.edges(number)
        answers = StripAnswers(
            tuple(rows[n] for n in strip),
            np.full((len(strip), 1, 2), 0.5, np.float32),
            np.zeros((len(strip), 1), np.float32),
            np.ones((len(strip), 1), bool),
            np.ones((bottom - top, 8), bool),
        )
        blocks += [(maps.row, len(maps.class_map)) for maps in painter.add(number, answers)]
    cut = 40 * stride
    first = [(0, cut)] if cut <= 256 else [(0, 256), (256, cut - 256)]
    rest = height - cut
    assert blocks == first + [(cut + n, min(256, rest - n)) for n in range(0, rest, 256)]
