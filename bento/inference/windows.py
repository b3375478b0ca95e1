"""Classify a scene window by window; maps and windows come out strip by strip, in bounded memory.

Several threads work at once, each on a part of its own: it reads the part with its own file handles, cuts the
tiles and runs the network on one core. While one thread reads, another computes.
"""

import math
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import islice
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.windows import Window

from tilewise.bento.inference.blending import NO_CLASS, Maps, Painter, StripAnswers, pool
from tilewise.bento.inference.engine import TileClassifier
from tilewise.bento.inference.thinning import shown, true_colour
from tilewise.bento.inference.window_grid import WindowGrid, make_window_grid
from tilewise.datasets.core.bands import RGB_BANDS
from tilewise.datasets.core.console import Report, silent
from tilewise.datasets.core.errors import SceneError, UnreadableImageError
from tilewise.datasets.core.tile import BAND_COUNT, DN, TILE_SIZE, Georeference, valid_mask
from tilewise.datasets.scenes.scene import ReadWindow
from tilewise.models.model_file import usable_cores

MIN_STRIDE = 4
FINE_TILE = TILE_SIZE // 2
_BATCH = 64  # tiles at a time in each thread: activations stay in reach, and few calls are made


class Detail(StrEnum):
    """Which windows make a map."""

    COARSE = "coarse"
    FINE = "fine"


class ReadableScene(Protocol):
    """What `classify` needs of a scene; `tilewise.datasets.scenes.Scene` has it."""

    name: str
    bands: tuple[str, ...]
    block: tuple[int, int]

    @property
    def georeference(self) -> Georeference:
        """CRS and transform of its pixels."""

    @property
    def height(self) -> int:
        """Rows."""

    @property
    def width(self) -> int:
        """Columns."""

    @property
    def broken(self) -> int:
        """Number of blocks that could not be decoded so far."""

    def readers(self) -> Sequence[ReadWindow]:
        """Return what reads each observation of the scene; answers are the mean over them.

        They return uint16 (13, height, width) of a window, 0 = no data, and are called by several threads.
        """

    def inside(self, window: Window) -> npt.NDArray[np.bool_] | None:
        """Return bool (height, width): the pixels that are wanted; None: all are."""


@dataclass(frozen=True, slots=True)
class GridOptions:
    """How windows are laid over a scene, and the resolution of the maps.

    Attributes:
        stride: pixels from one window to the next, MIN_STRIDE to the tile size; below the tile size windows
            overlap and are blended.
        min_valid_fraction: windows with a smaller fraction (0-1) of valid pixels are skipped.
        cell: pixels a side of one value of the maps; divides the stride. 1: maps on the scene's own grid.
        keep_probabilities: make maps of the probabilities of all classes, too.
        detail: `coarse`: windows of a tile's size. `fine`: also windows of half of it, enlarged twice; both
            are blended, then pooled.
    """

    stride: int = TILE_SIZE
    min_valid_fraction: float = 0.5
    cell: int = 1
    keep_probabilities: bool = False
    detail: Detail = Detail.COARSE

    def check(self, tile: int) -> None:
        """Check the options for tiles of `tile` pixels.

        Raises:
            SceneError: the stride is below MIN_STRIDE or above `tile` (a quarter of it for fine maps), the
                cell does not divide it, or the fraction is not within 0-1.
        """
        largest = tile // 4 if self.detail is Detail.FINE else tile
        if not MIN_STRIDE <= self.stride <= largest:
            raise SceneError(
                f"a stride of {self.stride} pixels with detail {self.detail}; "
                f"choose {MIN_STRIDE} to {largest}"
            )
        if self.cell < 1 or self.stride % self.cell:
            raise SceneError(f"a cell of {self.cell} pixels does not divide the stride of {self.stride}")
        if not 0 <= self.min_valid_fraction <= 1:
            raise SceneError(f"a minimum valid fraction of {self.min_valid_fraction:g}; choose 0 to 1")


@dataclass(frozen=True, slots=True)
class WindowAnswer:
    """The network's answer for one window.

    Attributes:
        row, column: of the window's upper left pixel in the scene.
        height, width: of the window's part inside the scene, in pixels.
        valid_fraction: fraction (0-1) of the window's pixels that hold data in every band of the scene.
        probabilities: float32 (classes,), calibrated; None where the window was skipped.
        outlier_score: larger for windows unlike the training data; None where the window was skipped.
    """

    row: int
    column: int
    height: int
    width: int
    valid_fraction: float
    probabilities: npt.NDArray[np.float32] | None
    outlier_score: float | None = None

    @property
    def class_index(self) -> int:
        """Index of the most probable class, NO_CLASS where the window was skipped."""
        return NO_CLASS if self.probabilities is None else int(self.probabilities.argmax())

    def footprint(self, georeference: Georeference) -> dict[str, Any] | None:
        """Return the window's outline as GeoJSON in EPSG:4326; None where it has no longitude and latitude.

        Args:
            georeference: of the scene.
        """
        offset = georeference.transform.translation(self.column, self.row)
        shifted = Georeference(georeference.crs, georeference.transform @ offset)
        return shifted.footprint(self.width, self.height)


@dataclass(frozen=True, slots=True)
class SceneBlock(Maps):
    """Some rows of the maps; the first rows of a strip come with the strip's windows.

    Attributes:
        windows: in reading order.
        colours: uint16 (3, rows, columns), red, green and blue of those pixels of the strip that a small
            picture of the scene shows, DN, 0 = no data; None: as `windows`, or a visible band is missing.
    """

    windows: tuple[WindowAnswer, ...] = ()
    colours: DN | None = None


@dataclass(frozen=True, slots=True)
class _Part:
    """The network's answers for the windows of one part of a strip; see StripAnswers.

    Attributes:
        valid_fractions: float32 (rows, columns).
        wanted: bool (rows, columns), False where a window has no pixel that is wanted.
        valid: uint8, eight pixels of a row a byte, because parts are held until their strip is complete.
        colours: uint16 (3, rows, columns), see SceneBlock.
    """

    probabilities: npt.NDArray[np.float32]
    outlier: npt.NDArray[np.float32]
    kept: npt.NDArray[np.bool_]
    valid_fractions: npt.NDArray[np.float32]
    wanted: npt.NDArray[np.bool_]
    valid: npt.NDArray[np.uint8]
    colours: DN


@dataclass(frozen=True, slots=True)
class _Observed:
    """The answers of one observation of a part, as in `_Part`; `valid` is bool (height, width)."""

    probabilities: npt.NDArray[np.float32]
    outlier: npt.NDArray[np.float32]
    kept: npt.NDArray[np.bool_]
    valid_fractions: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SceneClassification:
    """The classification of an open scene; `iter_blocks` does the work.

    Attributes:
        georeference: of the maps.
        height, width: of the maps.
        strips: indices of the strips that are classified.
    """

    georeference: Georeference
    height: int
    width: int
    strips: range
    _engine: TileClassifier
    _scene: ReadableScene
    _window_grid: WindowGrid
    _grid: GridOptions
    _workers: int
    _progress: Report
    _fine: "SceneClassification | None" = None

    @property
    def lineage(self) -> str:
        """How windows became maps, in a sentence."""
        sizes = f"{FINE_TILE} and {TILE_SIZE}" if self._fine else f"{self._window_grid.tile}"
        return f"Windows of {sizes} pixels, {self._grid.stride} pixels apart"

    def iter_blocks(self) -> Generator[SceneBlock, None, None]:
        """Yield the maps from top to bottom, each row once; threads work a strip ahead.

        Close the generator to stop before the last block: that ends the threads' work.

        Raises:
            UnreadableImageError: a file vanished, a server does not answer, or no block at all could be
                decoded.
        """
        if not self._fine:
            yield from self._iter_own_blocks()
            return
        with (
            closing(self._iter_own_blocks()) as blocks,
            closing(self._fine._iter_own_blocks()) as fine_blocks,
        ):
            rows = _RowReader(fine_blocks)
            for block in blocks:
                fine = rows.take(block.row, len(block.class_map))
                pooled = pool(block, fine, keep_probabilities=self._grid.keep_probabilities)
                yield SceneBlock(
                    *(pooled.row, pooled.class_map, pooled.probability, pooled.outlier, pooled.probabilities),
                    block.windows,
                    block.colours,
                )

    def _iter_own_blocks(self) -> Generator[SceneBlock, None, None]:
        """Yield the maps that the windows of one size make."""
        if not self.strips:
            return
        outliers = self._engine.metadata.outliers
        painter = Painter(
            self._window_grid,
            self._grid.cell,
            keep_probabilities=self._grid.keep_probabilities or self._grid.detail is Detail.FINE,
            threshold=outliers.threshold if outliers else math.inf,
        )
        answered = 0
        with closing(self._strips_of_parts()) as strips:
            for strip, parts in strips:
                answers = self._join(strip, parts)
                if strip not in self.strips:
                    painter.skip(answers)
                    continue
                answered += int(answers.kept.sum())
                windows, colours = tuple(self._windows(answers, parts)), self._colours(parts)
                for maps in painter.add(strip, answers):
                    yield SceneBlock(
                        *(maps.row, maps.class_map, maps.probability, maps.outlier, maps.probabilities),
                        windows,
                        colours,
                    )
                    windows, colours = (), None
        if not answered and self._scene.broken:
            raise UnreadableImageError(
                f"{self._scene.name}: none of its windows can be classified, and {self._scene.broken} blocks "
                "are truncated or corrupt; fetch the files again"
            )

    def _strips_of_parts(self) -> Generator[tuple[int, list[_Part]], None, None]:
        """Yield each strip with its parts, which threads prepare ahead."""
        columns = range(len(self._window_grid.parts))
        first = self._window_grid.first_needed(self.strips.start)
        tasks = ((strip, part) for strip in range(first, self.strips.stop) for part in columns)
        ahead: deque[Future[_Part]] = deque()
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="windows")
        try:
            for strip in range(first, self.strips.stop):
                # Enough parts are begun to keep all threads busy while this strip is painted and written.
                missing = 2 * len(columns) + 2 * self._workers - len(ahead)
                ahead.extend(pool.submit(self._answer, *task) for task in islice(tasks, missing))
                parts = []
                for _ in columns:
                    parts.append(ahead.popleft().result())
                    ahead.extend(pool.submit(self._answer, *task) for task in islice(tasks, 1))
                    self._report_progress(strip, len(parts))
                yield strip, parts
        finally:
            pool.shutdown(cancel_futures=True)

    def _report_progress(self, strip: int, parts: int) -> None:
        window_grid = self._window_grid
        rows = window_grid.strips[strip]
        across = len(window_grid.columns)
        before = rows.start - window_grid.strips[self.strips.start].start
        total = window_grid.strips[self.strips.stop - 1].stop - window_grid.strips[self.strips.start].start
        done = before * across + len(rows) * window_grid.parts[parts - 1].stop
        self._progress(self._scene.name, max(done, 0), total * across)

    def _answer(self, strip: int, part: int) -> _Part:
        """Read one part of a strip and classify its windows."""
        window_grid = self._window_grid
        rows = [window_grid.rows[index] for index in window_grid.strips[strip]]
        columns = [window_grid.columns[index] for index in window_grid.parts[part]]
        bottom, right = (
            min(rows[-1] + window_grid.tile, window_grid.height),
            min(columns[-1] + window_grid.tile, window_grid.width),
        )
        window = Window(columns[0], rows[0], right - columns[0], bottom - rows[0])
        down, across = [row - rows[0] for row in rows], [column - columns[0] for column in columns]
        inside = self._scene.inside(window)
        wanted = np.ones((len(down), len(across)), bool)
        if inside is not None:
            wanted = _valid_fractions(inside, down, across, window_grid.tile) > 0
        (top, end), (left, last) = window_grid.edges(strip), window_grid.part_edges(part)
        lines = self._shown(top, end, self._scene.height), self._shown(left, last, self._scene.width)
        seen, colours = [], np.zeros((3, len(lines[0]), len(lines[1])), np.uint16)
        for read in self._scene.readers():
            pixels = self._read(read, window, wanted, down, across)
            seen.append(self._observe(pixels, wanted, down, across))
            colours = np.where(colours, colours, true_colour(pixels, lines[0] - top, lines[1] - left))
        one = seen[0] if len(seen) == 1 else _mean(seen)
        valid = one.valid if inside is None else one.valid & inside
        painted = np.packbits(valid[: end - top, : last - left], axis=1)
        return _Part(one.probabilities, one.outlier, one.kept, one.valid_fractions, wanted, painted, colours)

    def _shown(self, begin: int, end: int, side: int) -> npt.NDArray[np.intp]:
        """Return the rows or columns from `begin` to `end` that a small picture of the scene shows."""
        cell = self._grid.cell
        cells = shown(-(-side // cell), max(self.height, self.width))
        lines = np.minimum(cells * cell + cell // 2, side - 1)
        return lines[(lines >= begin) & (lines < end)]

    def _observe(
        self, pixels: DN, wanted: npt.NDArray[np.bool_], down: list[int], across: list[int]
    ) -> _Observed:
        """Classify the windows of one observation of a part."""
        valid = valid_mask(pixels, self._scene.bands)
        fractions = _valid_fractions(valid, down, across, self._window_grid.tile)
        kept = wanted & (fractions >= self._grid.min_valid_fraction) & (fractions > 0)
        return _Observed(*self._classify(pixels, down, across, kept), kept, fractions, valid)

    def _read(
        self,
        read: ReadWindow,
        window: Window,
        wanted: npt.NDArray[np.bool_],
        down: list[int],
        across: list[int],
    ) -> DN:
        """Read the windows of a part that are wanted; what is around them is no data."""
        if wanted.all():
            return read(window)
        pixels = np.zeros((BAND_COUNT, int(window.height), int(window.width)), np.uint16)
        if wanted.any():
            tile = self._window_grid.tile
            rows, columns = np.flatnonzero(wanted.any(axis=1)), np.flatnonzero(wanted.any(axis=0))
            top, bottom = down[rows[0]], min(down[rows[-1]] + tile, int(window.height))
            left, right = across[columns[0]], min(across[columns[-1]] + tile, int(window.width))
            part = Window(window.col_off + left, window.row_off + top, right - left, bottom - top)
            pixels[:, top:bottom, left:right] = read(part)
        return pixels

    def _classify(
        self, pixels: DN, down: list[int], across: list[int], kept: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return probabilities (rows, columns, classes), outlier scores (rows, columns); 0 where skipped."""
        size = self._window_grid.tile
        probabilities = np.zeros((*kept.shape, len(self._engine.metadata.classes)), np.float32)
        outlier = np.zeros(kept.shape, np.float32)
        positions = np.argwhere(kept)
        for first in range(0, len(positions), _BATCH):
            batch = positions[first : first + _BATCH]
            tiles = np.zeros((len(batch), BAND_COUNT, size, size), np.uint16)
            for tile, (row, column) in zip(tiles, batch, strict=True):
                found = pixels[:, down[row] : down[row] + size, across[column] : across[column] + size]
                tile[:, : found.shape[1], : found.shape[2]] = found
            answers = self._engine.classify(
                tiles if size == self._engine.metadata.tile_size else twice(tiles)
            )
            probabilities[batch[:, 0], batch[:, 1]] = answers.probabilities
            outlier[batch[:, 0], batch[:, 1]] = answers.outlier_score
        return probabilities, outlier

    def _join(self, strip: int, parts: list[_Part]) -> StripAnswers:
        widths = [right - left for left, right in map(self._window_grid.part_edges, range(len(parts)))]
        valid = [
            np.unpackbits(p.valid, axis=1, count=w).view(bool) for p, w in zip(parts, widths, strict=True)
        ]
        return StripAnswers(
            tuple(self._window_grid.rows[index] for index in self._window_grid.strips[strip]),
            np.concatenate([part.probabilities for part in parts], axis=1),
            np.concatenate([part.outlier for part in parts], axis=1),
            np.concatenate([part.kept for part in parts], axis=1),
            np.concatenate(valid, axis=1),
        )

    def _colours(self, parts: list[_Part]) -> DN | None:
        visible = set(RGB_BANDS) <= set(self._scene.bands)
        return np.concatenate([part.colours for part in parts], axis=2) if visible else None

    def _windows(self, answers: StripAnswers, parts: list[_Part]) -> Iterator[WindowAnswer]:
        window_grid = self._window_grid
        fractions = np.concatenate([part.valid_fractions for part in parts], axis=1)
        wanted = np.concatenate([part.wanted for part in parts], axis=1)
        height, width = min(window_grid.tile, window_grid.height), min(window_grid.tile, window_grid.width)
        for row, top in enumerate(answers.rows):
            for column, left in enumerate(window_grid.columns):
                if not wanted[row, column]:
                    continue
                fraction = float(fractions[row, column])
                if answers.kept[row, column]:
                    answer = answers.probabilities[row, column], float(answers.outlier[row, column])
                    yield WindowAnswer(top, left, height, width, fraction, *answer)
                else:
                    yield WindowAnswer(top, left, height, width, fraction, None)


def classify(
    engine: TileClassifier,
    scene: ReadableScene,
    grid: GridOptions | None = None,
    progress: Report = silent,
    workers: int = 0,
    rows: tuple[int, int] | None = None,
) -> SceneClassification:
    """Prepare the classification of an open scene; nothing is read until its blocks are taken.

    Args:
        engine: the model; with one thread where there are several workers.
        scene: stays open until the blocks are taken.
        grid: how windows are laid.
        progress: called with the number of windows that are done.
        workers: threads that read and classify; 0: one for each core.
        rows: strips (begin, end) to classify, out of `strip_count`; None: all. The blocks of a strip do not
            depend on which other strips are classified.

    Raises:
        SceneError: the grid options are invalid.
    """
    grid = grid or GridOptions()
    tile = engine.metadata.tile_size
    window_grid = _window_grid_of(scene, grid, tile)
    strips = range(len(window_grid.strips))[slice(*rows) if rows else slice(None)]
    transform = scene.georeference.transform @ Affine.scale(grid.cell)
    coarse = SceneClassification(
        Georeference(scene.georeference.crs, transform),
        -(-scene.height // grid.cell),
        -(-scene.width // grid.cell),
        strips,
        engine,
        scene,
        window_grid,
        grid,
        workers or usable_cores(),
        progress,
    )
    if grid.detail is Detail.COARSE or not strips:
        return coarse
    fine_grid = make_window_grid(scene.height, scene.width, tile // 2, grid.stride, scene.block)
    top, bottom = window_grid.edges(strips[0])[0], window_grid.edges(strips[-1])[1]
    over = [n for n in range(len(fine_grid.strips)) if _overlap(fine_grid.edges(n), (top, bottom))]
    fine_strips = range(over[0], over[-1] + 1)
    fine = replace(coarse, strips=fine_strips, _window_grid=fine_grid, _progress=silent)
    return replace(coarse, _fine=fine)


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[1] and other[0] < one[1]


class _RowReader:
    """Take rows of probabilities in order out of blocks that are cut elsewhere."""

    def __init__(self, blocks: Iterator[SceneBlock]) -> None:
        self._blocks, self._first = blocks, 0
        self._held: npt.NDArray[np.float32] | None = None

    def take(self, row: int, count: int) -> npt.NDArray[np.float32]:
        """Return float32 (classes, count, width) from `row` on; rows before are dropped."""
        while self._held is None or self._first + self._held.shape[1] < row + count:
            block = next(self._blocks)
            assert block.probabilities is not None  # noqa: S101 - fine maps keep them
            if self._held is None:
                self._first, self._held = block.row, block.probabilities
            else:
                self._held = np.concatenate([self._held, block.probabilities], axis=1)
        skip = row - self._first
        taken, self._held = self._held[:, skip : skip + count], self._held[:, skip + count :]
        self._first = row + count
        return taken


def strip_count(scene: ReadableScene, grid: GridOptions, tile: int = TILE_SIZE) -> int:
    """Return how many strips a scene is classified in.

    Raises:
        SceneError: the grid options are invalid.
    """
    return len(_window_grid_of(scene, grid, tile).strips)


def _window_grid_of(scene: ReadableScene, grid: GridOptions, tile: int) -> WindowGrid:
    grid.check(tile)
    return make_window_grid(scene.height, scene.width, tile, grid.stride, scene.block)


def _mean(seen: Sequence[_Observed]) -> _Observed:
    """Return the mean over the observations in which a window is kept; a pixel is valid if it is in any."""
    kept = np.stack([one.kept for one in seen])
    count = np.maximum(kept.sum(axis=0), 1).astype(np.float32)
    # Where a window was skipped, its answers are 0.
    probabilities = sum(one.probabilities for one in seen[1:]) + seen[0].probabilities
    outlier = sum(one.outlier for one in seen[1:]) + seen[0].outlier
    fractions = np.max([one.valid_fractions for one in seen], axis=0)
    valid = np.any([one.valid for one in seen], axis=0)
    any_kept = np.asarray(kept.any(axis=0))
    return _Observed(probabilities / count[..., None], outlier / count, any_kept, fractions, valid)


def _valid_fractions(
    valid: npt.NDArray[np.bool_], down: list[int], across: list[int], tile: int
) -> npt.NDArray[np.float32]:
    """Return float32 (rows, columns): the valid fraction (0-1) of each window's pixels inside the scene."""
    possible = min(tile, valid.shape[0]) * min(tile, valid.shape[1])
    if valid.all():
        return np.ones((len(down), len(across)), np.float32)
    across_sums = _sums(valid, across, tile)  # (height, columns)
    return (_sums(across_sums.T, down, tile).T / possible).astype(np.float32)


def _sums(values: npt.NDArray[Any], starts: list[int], tile: int) -> npt.NDArray[np.int32]:
    """Return int32 (rows, starts): sums of `tile` values of each row from each start on, less at the end."""
    sums = np.zeros((values.shape[0], values.shape[1] + 1), np.int32)
    np.cumsum(values, axis=1, dtype=np.int32, out=sums[:, 1:])
    first = np.array(starts)
    return np.asarray(sums[:, np.minimum(first + tile, values.shape[1])] - sums[:, first], np.int32)


def twice(tiles: DN) -> DN:
    """Enlarge tiles twice by linear interpolation, as training's zoom does; no data spreads to what it
    touches.

    Args:
        tiles: uint16 (n, bands, height, width), DN, 0 = no data.

    Returns:
        uint16 (n, bands, 2 × height, 2 × width).
    """
    sixteenths = _doubled(_doubled(tiles.astype(np.uint32), 2), 3)
    found = ((sixteenths + 8) // 16).astype(np.uint16)
    if (tiles == 0).any():
        touched = _doubled(_doubled((tiles == 0).astype(np.uint32), 2), 3) > 0
        found[touched] = 0
    return found


def _doubled(values: npt.NDArray[np.uint32], axis: int) -> npt.NDArray[np.uint32]:
    """Return `values` at twice as many points along an axis, times four; the edge is repeated."""
    index = np.arange(values.shape[axis])
    before, after = (
        values.take(index.clip(*limits) + step, axis)
        for limits, step in (((1, None), -1), ((None, len(index) - 2), 1))
    )
    pairs = np.stack([3 * values + before, 3 * values + after], axis=axis + 1)
    shape = list(values.shape)
    shape[axis] *= 2
    return pairs.reshape(shape)
