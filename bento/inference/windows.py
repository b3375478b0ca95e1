"""Classifying a scene window by window: maps and windows come out strip by strip, in bounded memory.

Several threads work at once, each on a part of its own: it reads the part by its own handles, cuts the tiles and runs
the network on one core. So while one reads, another computes, and no core waits for another.
"""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.windows import Window

from tilewise.bento.inference.blending import NO_CLASS, Maps, Painter, StripAnswers
from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.window_grid import WindowGrid, make_window_grid
from tilewise.datasets.core.bands import positions
from tilewise.datasets.core.console import Report, silent
from tilewise.datasets.core.errors import SceneError, UnreadableImageError
from tilewise.datasets.core.tile import BAND_COUNT, DN, NO_DATA, TILE_SIZE, Georeference
from tilewise.models.model_file import usable_cores

MIN_STRIDE = 4
_BATCH = 64  # tiles at a time in each thread: activations stay in reach, and few calls are made


class ReadableScene(Protocol):
    """What is asked of a scene; `tilewise.datasets.scenes.Scene` is one."""

    name: str
    bands: tuple[str, ...]
    block: tuple[int, int]

    @property
    def georeference(self) -> Georeference:
        """Where its pixels lie."""

    @property
    def height(self) -> int:
        """Rows."""

    @property
    def width(self) -> int:
        """Columns."""

    @property
    def broken(self) -> int:
        """How many blocks could not be decoded until now."""

    def read(self, window: Window) -> DN:
        """Return uint16 (13, height, width), 0 = no data; called by several threads."""


@dataclass(frozen=True, slots=True)
class GridOptions:
    """How windows are laid over a scene, and what is made of them.

    Attributes:
        stride: pixels from one window to the next, MIN_STRIDE to the tile size; below the tile size windows overlap.
        min_valid_fraction: windows with a smaller share (0-1) of valid pixels are skipped.
        cell: pixels a side of one value of the maps; it divides the stride. 1: maps on the scene's own grid.
        keep_probabilities: give the probabilities of all classes as maps, too.
    """

    stride: int = TILE_SIZE
    min_valid_fraction: float = 0.5
    cell: int = 1
    keep_probabilities: bool = False

    def check(self, tile: int) -> None:
        """Refuse options that cannot be.

        Raises:
            SceneError: the stride is too small or larger than a tile, or the cell does not divide it.
        """
        if not MIN_STRIDE <= self.stride <= tile:
            raise SceneError(f"a stride of {self.stride} pixels; say {MIN_STRIDE} to {tile}")
        if self.cell < 1 or self.stride % self.cell:
            raise SceneError(f"a cell of {self.cell} pixels does not divide the stride of {self.stride}")
        if not 0 <= self.min_valid_fraction <= 1:
            raise SceneError(f"a least share of valid pixels of {self.min_valid_fraction:g}; say 0 to 1")


@dataclass(frozen=True, slots=True)
class WindowAnswer:
    """What the network says of one window.

    Attributes:
        row, column: of the window's upper left pixel in the scene.
        height, width: of the part of the window that lies in the scene.
        valid_fraction: share (0-1) of the window's pixels with data in every band of the scene.
        probabilities: float32 (classes,), or None where the window was skipped.
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
        """The most probable class, or NO_CLASS."""
        return NO_CLASS if self.probabilities is None else int(self.probabilities.argmax())

    def footprint(self, place: Georeference) -> dict[str, Any] | None:
        """Return the window's outline as GeoJSON in EPSG:4326; None where a part of a sound scene has none."""
        offset = place.transform.translation(self.column, self.row)
        return Georeference(place.crs, place.transform @ offset).footprint(self.width, self.height)


@dataclass(frozen=True, slots=True)
class Block(Maps):
    """Some rows of the maps, with the windows of a strip beside the strip's first rows.

    Attributes:
        windows: in reading order.
    """

    windows: tuple[WindowAnswer, ...] = ()


@dataclass(frozen=True, slots=True)
class _Part:
    """What the network says of the windows of one part of a strip; see StripAnswers.

    `valid` is bits, eight pixels of a row a byte: parts wait for their strip.
    """

    probabilities: npt.NDArray[np.float32]
    outlier: npt.NDArray[np.float32]
    kept: npt.NDArray[np.bool_]
    shares: npt.NDArray[np.float32]
    valid: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class SceneAnswer:
    """A scene that is about to be classified: `iter_blocks` does it.

    Attributes:
        place: where the maps lie: on the scene's grid, or on cells of several of its pixels.
        height, width: of the maps.
        strips: the strips that are classified.
    """

    place: Georeference
    height: int
    width: int
    strips: range
    _engine: Engine
    _scene: ReadableScene
    _window_grid: WindowGrid
    _grid: GridOptions
    _workers: int
    _progress: Report

    def iter_blocks(self) -> Generator[Block, None, None]:
        """Give the maps from top to bottom, each row once; work goes on for a strip ahead of what is taken.

        Whoever may stop before the last closes the generator, which ends that work.

        Raises:
            UnreadableImageError: a file vanished, a server does not answer, or no block at all could be decoded.
        """
        if not self.strips:
            return
        painter = Painter(self._window_grid, self._grid.cell, keep_probabilities=self._grid.keep_probabilities)
        answered = 0
        with closing(self._strips_of_parts()) as strips:
            for strip, parts in strips:
                answers = self._together(strip, parts)
                if strip not in self.strips:
                    painter.skip(answers)
                    continue
                answered += int(answers.kept.sum())
                windows = tuple(self._windows(answers, np.concatenate([part.shares for part in parts], axis=1)))
                for maps in painter.add(strip, answers):
                    yield Block(maps.row, maps.class_map, maps.confidence, maps.outlier, maps.probabilities, windows)
                    windows = ()
        if not answered and self._scene.broken:
            raise UnreadableImageError(
                f"{self._scene.name}: none of its windows can be classified, and {self._scene.broken} blocks are "
                "truncated or corrupt; fetch the files again"
            )

    def _strips_of_parts(self) -> Generator[tuple[int, list[_Part]], None, None]:
        """Give each strip with its parts, which threads prepare ahead."""
        columns = range(len(self._window_grid.parts))
        first = self._window_grid.first_needed(self.strips.start)
        tasks = ((strip, part) for strip in range(first, self.strips.stop) for part in columns)
        ahead: deque[Future[_Part]] = deque()
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="windows")
        try:
            for strip in range(first, self.strips.stop):
                # Enough is begun for all threads to stay busy while this strip is painted and written.
                missing = 2 * len(columns) + 2 * self._workers - len(ahead)
                ahead.extend(pool.submit(self._answer, *task) for task in islice(tasks, missing))
                parts = []
                for _ in columns:
                    parts.append(ahead.popleft().result())
                    ahead.extend(pool.submit(self._answer, *task) for task in islice(tasks, 1))
                    self._tell(strip, len(parts))
                yield strip, parts
        finally:
            pool.shutdown(cancel_futures=True)

    def _tell(self, strip: int, parts: int) -> None:
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
        pixels = self._scene.read(Window(columns[0], rows[0], right - columns[0], bottom - rows[0]))
        valid = valid_pixels(pixels, self._scene.bands)
        down, across = [row - rows[0] for row in rows], [column - columns[0] for column in columns]
        shares = _shares(valid, down, across, window_grid.tile)
        kept = (shares >= self._grid.min_valid_fraction) & (shares > 0)
        probabilities, outlier = self._classify(pixels, down, across, kept)
        (top, end), (left, last) = window_grid.edges(strip), window_grid.part_edges(part)
        return _Part(probabilities, outlier, kept, shares, np.packbits(valid[: end - top, : last - left], axis=1))

    def _classify(
        self, pixels: DN, down: list[int], across: list[int], kept: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return probabilities (rows, columns, classes) and outlier scores (rows, columns), 0 where skipped."""
        size = self._window_grid.tile
        probabilities = np.zeros((*kept.shape, len(self._engine.metadata.classes)), np.float32)
        outlier = np.zeros(kept.shape, np.float32)
        places = np.argwhere(kept)
        for first in range(0, len(places), _BATCH):
            batch = places[first : first + _BATCH]
            tiles = np.zeros((len(batch), BAND_COUNT, size, size), np.uint16)
            for tile, (row, column) in zip(tiles, batch, strict=True):
                found = pixels[:, down[row] : down[row] + size, across[column] : across[column] + size]
                tile[:, : found.shape[1], : found.shape[2]] = found
            answers = self._engine.classify(tiles)
            probabilities[batch[:, 0], batch[:, 1]] = answers.probabilities
            outlier[batch[:, 0], batch[:, 1]] = answers.outlier_score
        return probabilities, outlier

    def _together(self, strip: int, parts: list[_Part]) -> StripAnswers:
        widths = [right - left for left, right in map(self._window_grid.part_edges, range(len(parts)))]
        valid = [np.unpackbits(p.valid, axis=1, count=w).view(bool) for p, w in zip(parts, widths, strict=True)]
        return StripAnswers(
            tuple(self._window_grid.rows[index] for index in self._window_grid.strips[strip]),
            np.concatenate([part.probabilities for part in parts], axis=1),
            np.concatenate([part.outlier for part in parts], axis=1),
            np.concatenate([part.kept for part in parts], axis=1),
            np.concatenate(valid, axis=1),
        )

    def _windows(self, answers: StripAnswers, shares: npt.NDArray[np.float32]) -> Iterator[WindowAnswer]:
        window_grid = self._window_grid
        height, width = min(window_grid.tile, window_grid.height), min(window_grid.tile, window_grid.width)
        for row, top in enumerate(answers.rows):
            for column, left in enumerate(window_grid.columns):
                share = float(shares[row, column])
                if answers.kept[row, column]:
                    overrides = answers.probabilities[row, column], float(answers.outlier[row, column])
                    yield WindowAnswer(top, left, height, width, share, *overrides)
                else:
                    yield WindowAnswer(top, left, height, width, share, None)


def classify(
    engine: Engine,
    scene: ReadableScene,
    grid: GridOptions | None = None,
    progress: Report = silent,
    workers: int = 0,
    rows: tuple[int, int] | None = None,
) -> SceneAnswer:
    """Return the answer for an open scene; nothing is read until its blocks are taken.

    Args:
        engine: the model; of one thread where there are several workers.
        scene: stays open until the blocks are taken.
        grid: how windows are laid.
        progress: told how many windows are done.
        workers: threads that read and classify; 0: one for each core.
        rows: the strips (first, last and one) that are asked for, as `strip_count` counts them. What comes out for a
            strip is the same, whichever others are asked for.

    Raises:
        SceneError: the options cannot be.
    """
    grid = grid or GridOptions()
    window_grid = _window_grid_of(scene, grid, engine.metadata.tile_size)
    strips = range(len(window_grid.strips))[slice(*rows) if rows else slice(None)]
    transform = scene.georeference.transform @ Affine.scale(grid.cell)
    return SceneAnswer(
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


def strip_count(scene: ReadableScene, grid: GridOptions, tile: int = TILE_SIZE) -> int:
    """Return how many strips a scene is classified in.

    Raises:
        SceneError: the options cannot be.
    """
    return len(_window_grid_of(scene, grid, tile).strips)


def valid_pixels(pixels: DN, bands: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    """Return bool (height, width): where every one of `bands` holds data in `pixels` (13, height, width)."""
    valid = np.ones(pixels.shape[1:], bool) if bands else np.zeros(pixels.shape[1:], bool)
    for position in positions(bands):
        valid &= pixels[position] != NO_DATA
    return valid


def _window_grid_of(scene: ReadableScene, grid: GridOptions, tile: int) -> WindowGrid:
    grid.check(tile)
    return make_window_grid(scene.height, scene.width, tile, grid.stride, scene.block)


def _shares(valid: npt.NDArray[np.bool_], down: list[int], across: list[int], tile: int) -> npt.NDArray[np.float32]:
    """Return float32 (rows, columns): the share of valid pixels of each window that the scene can have.

    A scene smaller than a tile is judged by what it has, not by what it could never have.
    """
    possible = min(tile, valid.shape[0]) * min(tile, valid.shape[1])
    if valid.all():
        return np.ones((len(down), len(across)), np.float32)
    # Sums over rectangles from sums over all that lies up and left of a pixel.
    sums = np.zeros((valid.shape[0] + 1, valid.shape[1] + 1), np.int32)
    np.cumsum(np.cumsum(valid, axis=0, dtype=np.int32), axis=1, out=sums[1:, 1:])
    top, left = np.array(down), np.array(across)
    bottom, right = np.minimum(top + tile, valid.shape[0]), np.minimum(left + tile, valid.shape[1])
    inside = sums[np.ix_(bottom, right)] - sums[np.ix_(top, right)] - sums[np.ix_(bottom, left)]
    return ((inside + sums[np.ix_(top, left)]) / possible).astype(np.float32)
