"""Turn the answers for windows into maps: one class a window side by side, blended where windows overlap.

Side by side: a pixel has the class of its window. The last row and column of windows are moved inwards and
overlap others; there the first window in reading order that was not skipped counts.

Overlapping (stride below the tile size): windows are averaged with the weights sin²(πt/T), t from 0 to T
along each axis, normalised by their sum. A window's edge, which the network sees without surroundings, counts
least, and no seam is left.

Pixels whose outlier score, blended likewise, is above the model's threshold have no class: they are
OUT_OF_DISTRIBUTION.

Maps may be coarser than pixels: a cell of `cell` × `cell` pixels has the value at its middle if at least half
of its pixels are valid.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewise.bento.inference.window_grid import WindowGrid

NO_CLASS = 255  # in a class map: no data, or a window that was skipped
OUT_OF_DISTRIBUTION = 254  # in a class map: unlike the training data, so that no class is claimed

Floats = npt.NDArray[np.float32]
Classes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]

COARSE_WEIGHT, FINE_WEIGHT = 0.2, 1.0
"""Exponents of the probabilities of windows of 64 and of 32 pixels in `pool`, rounded.

`python benchmarks/detail.py` fits them on mosaics of EuroSAT's train list, for the weights that ship.
"""

_MAX_ROWS = 256
_FLOOR = 1e-4  # probabilities below it count as it, since a logarithm of 0 would overrule everything
_MAX_VALUES = 2**24  # 64 MiB of float32


@dataclass(frozen=True, slots=True)
class StripAnswers:
    """The network's answers for the windows of one strip.

    Attributes:
        rows: pixel rows at which the windows begin.
        probabilities: float32 (rows, columns, classes), 0 where a window was skipped.
        outlier: float32 (rows, columns), outlier scores, 0 where a window was skipped.
        kept: bool (rows, columns), False where a window was skipped.
        valid: bool (height, width), valid pixels of the rows that the strip paints.
    """

    rows: tuple[int, ...]
    probabilities: Floats
    outlier: Floats
    kept: Mask
    valid: Mask


@dataclass(frozen=True, slots=True)
class Maps:
    """Some rows of a scene's maps.

    Attributes:
        row: the first of them, in cells.
        class_map: uint8 (height, width), class index, OUT_OF_DISTRIBUTION or NO_CLASS where there is none.
        probability: float32 (height, width), 0-1, of that class; NaN where there is none.
        outlier: float32 (height, width), outlier score; NaN where there is none.
        probabilities: float32 (classes, height, width), 0-1, NaN where there are none; None if not requested.
    """

    row: int
    class_map: Classes
    probability: Floats
    outlier: Floats
    probabilities: Floats | None


def pool(coarse: Maps, fine: Floats, *, keep_probabilities: bool = False) -> Maps:
    """Pool the probabilities of two sizes of windows by their logarithms: p ∝ coarse^w fine^v.

    The exponents calibrate, too (logarithmic opinion pool: Genest and Zidek 1986, Combining probability
    distributions, doi:10.1214/ss/1177013825). Where there is no fine answer the coarse one stays. What has no
    class, or is unlike the training data, is what it is in `coarse`.

    Args:
        coarse: with probabilities.
        fine: float32 (classes, height, width), 0-1, NaN where there are none.
        keep_probabilities: return maps of the probabilities of all classes, too.
    """
    assert coarse.probabilities is not None  # noqa: S101 - fine maps keep them
    logs = COARSE_WEIGHT * np.log(np.maximum(coarse.probabilities, _FLOOR))
    logs += FINE_WEIGHT * np.log(np.maximum(fine, _FLOOR))
    pooled = np.exp(logs)  # of -12 at least
    pooled /= pooled.sum(axis=0)
    pooled = np.where(np.isfinite(fine[0]), pooled, coarse.probabilities)
    has_class = coarse.class_map < OUT_OF_DISTRIBUTION
    classes, probability = _largest(pooled, has_class)
    return Maps(
        coarse.row,
        np.where(has_class, classes, coarse.class_map),
        np.where(has_class, probability, np.float32(np.nan)),
        coarse.outlier,
        pooled if keep_probabilities else None,
    )


class Painter:
    """Turn strips into maps from the top down; keep of earlier strips what reaches further down.

    Args:
        window_grid: the windows.
        cell: pixels a side of one value of the maps.
        keep_probabilities: make maps of the probabilities of all classes, too.
        threshold: pixels with a larger outlier score are OUT_OF_DISTRIBUTION.
    """

    def __init__(
        self,
        window_grid: WindowGrid,
        cell: int = 1,
        *,
        keep_probabilities: bool = False,
        threshold: float = math.inf,
    ) -> None:
        self._window_grid, self._cell, self._keep = window_grid, cell, keep_probabilities
        self._threshold = threshold
        self._across = _middles(0, window_grid.width, cell, window_grid.width)
        self._blends = window_grid.stride < window_grid.tile
        self._above: list[tuple[int, Floats]] = []

    def add(self, strip: int, answers: StripAnswers) -> Iterator[Maps]:
        """Yield the maps of the rows that a strip paints, from top to bottom."""
        top, bottom = self._window_grid.edges(strip)
        down = _middles(top, bottom, self._cell, self._window_grid.height)
        valid = _coarse(answers.valid, self._cell)
        if self._blends:
            self._spread(answers)
        paint = self._blended if self._blends else self._side_by_side
        step = self._rows_at_once(answers.probabilities.shape[2])
        for first in range(0, len(down), step):
            here = slice(first, first + step)
            yield _maps(top // self._cell + first, paint(down[here], answers), valid[here], self._threshold)

    def skip(self, answers: StripAnswers) -> None:
        """Take in a strip whose own rows are not needed, for the blend of the rows below."""
        if self._blends:
            self._spread(answers)

    def _rows_at_once(self, classes: int) -> int:
        """Return how many rows to paint at once, so that the planes of all classes take bounded memory."""
        planes = classes + 2 if self._blends or self._keep else 3
        return max(1, min(_MAX_ROWS, _MAX_VALUES // (planes * len(self._across))))

    def _side_by_side(self, down: Floats, answers: StripAnswers) -> "_Values":
        """Return the values of each cell from its one window."""
        window_grid = self._window_grid
        rows, later_rows = _windows_over(down, answers.rows, window_grid.tile)
        columns, later_columns = _windows_over(self._across, window_grid.columns, window_grid.tile)
        found = _Values.of_windows(answers, rows, columns, keep=self._keep)
        further = ((rows, later_columns), (later_rows, columns), (later_rows, later_columns))
        for further_rows, further_columns in further:
            covered_down, covered_across = (
                np.flatnonzero(further_rows >= 0),
                np.flatnonzero(further_columns >= 0),
            )
            if len(covered_down) and len(covered_across):
                windows = further_rows[covered_down], further_columns[covered_across]
                part = _Values.of_windows(answers, *windows, keep=self._keep)
                found.fill(np.ix_(covered_down, covered_across), part)
        return found

    def _spread(self, answers: StripAnswers) -> None:
        """Blend each row of windows along the row; drop the rows above that reach no further down."""
        first = answers.rows[0]
        self._above = [(row, spread) for row, spread in self._above if row + self._window_grid.tile > first]
        planes = [
            answers.probabilities,
            answers.outlier[..., None],
            answers.kept[..., None].astype(np.float32),
        ]
        values = np.concatenate(planes, axis=2)
        spread = np.zeros((len(answers.rows), values.shape[2], len(self._across)), np.float32)
        for column, start in enumerate(self._window_grid.columns):
            begin, end, weights = _weights(self._across, start, self._window_grid.tile)
            spread[:, :, begin:end] += values[:, column, :, None] * weights
        self._above += list(zip(answers.rows, spread, strict=True))

    def _blended(self, down: Floats, answers: StripAnswers) -> "_Values":
        """Return the weighted mean of all windows over each cell."""
        total = np.zeros((self._above[0][1].shape[0], len(down), len(self._across)), np.float32)
        for row, spread in self._above:
            begin, end, weights = _weights(down, row, self._window_grid.tile)
            for at, weight in zip(range(begin, end), weights, strict=True):
                total[:, at] += weight * spread
        weight = total[-1]
        known = weight > 0
        np.divide(total, weight, out=total, where=known)
        classes, probability = _largest(total[:-2], known)
        return _Values(classes, probability, total[-2], total[:-2] if self._keep else None)


@dataclass(frozen=True, slots=True)
class _Values:
    """Class, its probability, outlier score (height, width); all probabilities (classes, height, width)."""

    classes: Classes
    probability: Floats
    outlier: Floats
    probabilities: Floats | None

    @classmethod
    def of_windows(cls, answers: StripAnswers, rows: Indices, columns: Indices, *, keep: bool) -> "_Values":
        """Return the values of the windows at `rows` × `columns`, indices that may repeat."""
        each = answers.probabilities.argmax(axis=2).astype(np.uint8)
        each[~answers.kept] = NO_CLASS

        def repeat(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
            # Along the row first: that copies little, and whole rows are copied fast.
            return values.take(columns, axis=-1).take(rows, axis=-2)

        probabilities = repeat(answers.probabilities.transpose(2, 0, 1)) if keep else None
        return cls(
            repeat(each), repeat(answers.probabilities.max(axis=2)), repeat(answers.outlier), probabilities
        )

    def fill(self, where: tuple[Indices, ...], part: "_Values") -> None:
        """Take `part` at the positions `where` that have no class yet."""
        free = self.classes[where] == NO_CLASS
        pairs: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = [
            (self.classes, part.classes),
            (self.probability, part.probability),
            (self.outlier, part.outlier),
        ]
        if self.probabilities is not None and part.probabilities is not None:
            pairs += list(zip(self.probabilities, part.probabilities, strict=True))
        for mine, other in pairs:
            mine[where] = np.where(free, other, mine[where])


def _maps(row: int, values: _Values, valid: Mask, threshold: float) -> Maps:
    known = valid & (values.classes != NO_CLASS)
    unlike = known & (values.outlier > threshold)
    if known.all() and not unlike.any():  # most of most scenes
        return Maps(row, values.classes, values.probability, values.outlier, values.probabilities)
    nan = np.float32(np.nan)
    classes = np.where(unlike, np.uint8(OUT_OF_DISTRIBUTION), values.classes)
    return Maps(
        row,
        np.where(known, classes, np.uint8(NO_CLASS)),
        np.where(known & ~unlike, values.probability, nan),
        np.where(known, values.outlier, nan),
        None if values.probabilities is None else np.where(known, values.probabilities, nan),
    )


def _largest(probabilities: Floats, known: Mask) -> tuple[Classes, Floats]:
    """Return index and value of the largest of (classes, height, width), NO_CLASS where not `known`.

    NumPy's argmax along the first axis strides across memory and takes several times as long.
    """
    best = probabilities[0].copy()
    found = np.zeros(best.shape, np.uint8)
    for index, values in enumerate(probabilities[1:], start=1):
        found[values > best] = index
        np.maximum(best, values, out=best)
    found[~known] = NO_CLASS
    return found, best


def _middles(first: int, last: int, cell: int, length: int) -> Floats:
    """Return the middles, in pixels, of the cells that begin from `first` to before `last`."""
    begin = np.arange(first, last, cell)
    return ((begin + np.minimum(begin + cell, length)) / 2).astype(np.float32)


def _weights(middles: Floats, start: int, tile: int) -> tuple[int, int, Floats]:
    """Return the cells (begin, end) that a window beginning at `start` covers, and its weight for each."""
    begin, end = np.searchsorted(middles, [start, start + tile])
    within = (middles[begin:end] - start) / tile
    return int(begin), int(end), (np.sin(np.pi * within) ** 2).astype(np.float32)


def _windows_over(middles: Floats, begins: tuple[int, ...], tile: int) -> tuple[Indices, Indices]:
    """Return the first window over each cell, and the second or -1 (only the moved window overlaps)."""
    starts = np.asarray(begins)
    first = np.searchsorted(starts + tile, middles, side="right")
    second = first + 1
    covers = (second < len(starts)) & (starts[np.minimum(second, len(starts) - 1)] <= middles)
    return first, np.where(covers, second, -1)


def _coarse(valid: Mask, cell: int) -> Mask:
    """Return bool (rows, columns) of cells: at least half of their pixels are valid."""
    if cell == 1:
        return valid
    height, width = valid.shape
    down, across = np.arange(0, height, cell), np.arange(0, width, cell)
    counts = np.add.reduceat(np.add.reduceat(valid.astype(np.int32), down, axis=0), across, axis=1)
    sizes = np.minimum(cell, height - down)[:, None] * np.minimum(cell, width - across)
    return np.asarray(2 * counts >= sizes)
