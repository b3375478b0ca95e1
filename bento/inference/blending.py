"""From the answers for windows to maps: hard where windows lie side by side, blended where they overlap.

Side by side, a pixel has the class of its window; where the last row or column, moved inwards, overlaps, the first
window in reading order that was not skipped decides. Overlapping windows are averaged, weighted by a raised cosine of
the distance from the window's middle, sin²(πt/T) for t from 0 to T along each axis, and normalised by the sum of the
weights: what a window says of its edge, which it sees without surroundings, counts least, and no seam is left.

Maps may be coarser than pixels: one value for a cell of `cell` × `cell`, that of the cell's middle, wherever at least
half of the cell's pixels are valid.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewise.bento.inference.window_grid import WindowGrid

NO_CLASS = 255  # in a class map: no data, or a window that was skipped

Floats = npt.NDArray[np.float32]
Classes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Places = npt.NDArray[np.intp]

_MAX_ROWS = 256
_MAX_VALUES = 2**24  # 64 MiB of float32


@dataclass(frozen=True, slots=True)
class StripAnswers:
    """What the network says of the windows of one strip.

    Attributes:
        rows: where they begin, down.
        probabilities: float32 (rows, columns, classes), 0 where a window was skipped.
        outlier: float32 (rows, columns), 0 where a window was skipped.
        kept: bool (rows, columns): not skipped.
        valid: bool (height, width): the pixels with data, of the rows that the strip decides.
    """

    rows: tuple[int, ...]
    probabilities: Floats
    outlier: Floats
    kept: Mask
    valid: Mask


@dataclass(frozen=True, slots=True)
class Maps:
    """Some rows of the maps of a scene.

    Attributes:
        row: the first one, in cells.
        class_map: uint8 (height, width), NO_CLASS where there is none.
        confidence: float32 (height, width), the probability of that class; NaN where there is none.
        outlier: float32 (height, width), the outlier score; NaN where there is none.
        probabilities: float32 (classes, height, width), NaN where there is none; None where nobody asked.
    """

    row: int
    class_map: Classes
    confidence: Floats
    outlier: Floats
    probabilities: Floats | None


class Painter:
    """Turns strips, one after another from the top, into maps; of earlier strips it keeps what still reaches down."""

    def __init__(self, window_grid: WindowGrid, cell: int = 1, *, keep_probabilities: bool = False) -> None:
        self._window_grid, self._cell, self._keep = window_grid, cell, keep_probabilities
        self._across = _middles(0, window_grid.width, cell, window_grid.width)
        self._blends = window_grid.stride < window_grid.tile
        self._above: list[tuple[int, Floats]] = []

    def add(self, strip: int, answers: StripAnswers) -> Iterator[Maps]:
        """Give the maps of the rows that a strip decides, from top to bottom."""
        top, bottom = self._window_grid.edges(strip)
        down = _middles(top, bottom, self._cell, self._window_grid.height)
        valid = _coarse(answers.valid, self._cell)
        if self._blends:
            self._spread(answers)
        paint = self._blended if self._blends else self._side_by_side
        step = self._rows_at_once(answers.probabilities.shape[2])
        for first in range(0, len(down), step):
            here = slice(first, first + step)
            yield _maps(top // self._cell + first, paint(down[here], answers), valid[here])

    def skip(self, answers: StripAnswers) -> None:
        """Take in a strip whose own rows nobody asked for."""
        if self._blends:
            self._spread(answers)

    def _rows_at_once(self, classes: int) -> int:
        """Return how many rows are painted at once, so that the planes of all classes take a bounded memory."""
        planes = classes + 2 if self._blends or self._keep else 3
        return max(1, min(_MAX_ROWS, _MAX_VALUES // (planes * len(self._across))))

    def _side_by_side(self, down: Floats, answers: StripAnswers) -> "_Values":
        """Return what the one window of each cell says."""
        window_grid = self._window_grid
        rows, later_rows = _owners(down, answers.rows, window_grid.tile)
        columns, later_columns = _owners(self._across, window_grid.columns, window_grid.tile)
        found = _Values.of_windows(answers, rows, columns, keep=self._keep)
        for these, those in ((rows, later_columns), (later_rows, columns), (later_rows, later_columns)):
            down_here, across_here = np.flatnonzero(these >= 0), np.flatnonzero(those >= 0)
            if len(down_here) and len(across_here):
                part = _Values.of_windows(answers, these[down_here], those[across_here], keep=self._keep)
                found.fill(np.ix_(down_here, across_here), part)
        return found

    def _spread(self, answers: StripAnswers) -> None:
        """Blend each row of windows along the row, and drop the rows that reach no further."""
        first = answers.rows[0]
        self._above = [(row, spread) for row, spread in self._above if row + self._window_grid.tile > first]
        overrides = np.concatenate(
            [answers.probabilities, answers.outlier[..., None], answers.kept[..., None].astype(np.float32)], axis=2
        )
        spread = np.zeros((len(answers.rows), overrides.shape[2], len(self._across)), np.float32)
        for column, start in enumerate(self._window_grid.columns):
            begin, end, weights = _weights(self._across, start, self._window_grid.tile)
            spread[:, :, begin:end] += overrides[:, column, :, None] * weights
        self._above += list(zip(answers.rows, spread, strict=True))

    def _blended(self, down: Floats, answers: StripAnswers) -> "_Values":
        """Return the weighted mean of all windows over each cell."""
        total = np.zeros((self._above[0][1].shape[0], len(down), len(self._across)), np.float32)
        for row, spread in self._above:
            begin, end, weights = _weights(down, row, self._window_grid.tile)
            for at, weight in zip(range(begin, end), weights, strict=True):
                total[:, at] += weight * spread
        weight = total[-1]
        sound = weight > 0
        np.divide(total, weight, out=total, where=sound)
        classes, confidence = _largest(total[:-2], sound)
        return _Values(classes, confidence, total[-2], total[:-2] if self._keep else None)


@dataclass(frozen=True, slots=True)
class _Values:
    """Classes, confidence and outlier scores, each (height, width); probabilities (classes, height, width) if asked."""

    classes: Classes
    confidence: Floats
    outlier: Floats
    probabilities: Floats | None

    @classmethod
    def of_windows(cls, answers: StripAnswers, rows: Places, columns: Places, *, keep: bool) -> "_Values":
        """Return what windows (rows, columns) say, each repeated as often as it stands there."""
        each = answers.probabilities.argmax(axis=2).astype(np.uint8)
        each[~answers.kept] = NO_CLASS

        def repeat(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
            # Along the row first: that is little, and whole rows are copied fast.
            return values.take(columns, axis=-1).take(rows, axis=-2)

        probabilities = repeat(answers.probabilities.transpose(2, 0, 1)) if keep else None
        return cls(repeat(each), repeat(answers.probabilities.max(axis=2)), repeat(answers.outlier), probabilities)

    def fill(self, where: tuple[Places, ...], part: "_Values") -> None:
        """Take `part` where nothing was said before."""
        free = self.classes[where] == NO_CLASS
        pairs: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = [
            (self.classes, part.classes),
            (self.confidence, part.confidence),
            (self.outlier, part.outlier),
        ]
        if self.probabilities is not None and part.probabilities is not None:
            pairs += list(zip(self.probabilities, part.probabilities, strict=True))
        for mine, other in pairs:
            mine[where] = np.where(free, other, mine[where])


def _maps(row: int, values: _Values, valid: Mask) -> Maps:
    known = valid & (values.classes != NO_CLASS)
    if known.all():  # most of most scenes
        return Maps(row, values.classes, values.confidence, values.outlier, values.probabilities)
    nan = np.float32(np.nan)
    return Maps(
        row,
        np.where(known, values.classes, np.uint8(NO_CLASS)),
        np.where(known, values.confidence, nan),
        np.where(known, values.outlier, nan),
        None if values.probabilities is None else np.where(known, values.probabilities, nan),
    )


def _largest(probabilities: Floats, sound: Mask) -> tuple[Classes, Floats]:
    """Return the position and the value of the largest of (classes, height, width).

    NumPy's own argmax along the first axis goes across memory, and takes several times as long.
    """
    best = probabilities[0].copy()
    found = np.zeros(best.shape, np.uint8)
    for index, values in enumerate(probabilities[1:], start=1):
        found[values > best] = index
        np.maximum(best, values, out=best)
    found[~sound] = NO_CLASS
    return found, best


def _middles(first: int, last: int, cell: int, length: int) -> Floats:
    """Return the middles of the cells that begin from `first` to before `last`, in pixels."""
    begin = np.arange(first, last, cell)
    return ((begin + np.minimum(begin + cell, length)) / 2).astype(np.float32)


def _weights(middles: Floats, start: int, tile: int) -> tuple[int, int, Floats]:
    """Return which cells (begin, end) a window that begins at `start` covers, and its weight for each."""
    begin, end = np.searchsorted(middles, [start, start + tile])
    within = (middles[begin:end] - start) / tile
    return int(begin), int(end), (np.sin(np.pi * within) ** 2).astype(np.float32)


def _owners(middles: Floats, begins: tuple[int, ...], tile: int) -> tuple[Places, Places]:
    """Return, for each cell, the first window over it, and the second or -1: windows overlap at the moved one alone."""
    places = np.asarray(begins)
    first = np.searchsorted(places + tile, middles, side="right")
    second = first + 1
    covers = (second < len(places)) & (places[np.minimum(second, len(places) - 1)] <= middles)
    return first, np.where(covers, second, -1)


def _coarse(valid: Mask, cell: int) -> Mask:
    """Return which cells have at least half of their pixels valid."""
    if cell == 1:
        return valid
    height, width = valid.shape
    down, across = np.arange(0, height, cell), np.arange(0, width, cell)
    counts = np.add.reduceat(np.add.reduceat(valid.astype(np.int32), down, axis=0), across, axis=1)
    sizes = np.minimum(cell, height - down)[:, None] * np.minimum(cell, width - across)
    return np.asarray(2 * counts >= sizes)
