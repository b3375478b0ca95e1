"""Drift: how far the pixel values of recent tiles are from those of the training data, band by band.

The model file holds a histogram of each band's DN over the training data. Each process keeps histograms of
the latest tiles that it classified, over a sample of their pixels, and writes their sums to a folder that the
processes of the service share. Histograms can be added and distances cannot, so every process adds all of
them up before it measures, and the figure of any process is that of the service. Several machines stay apart
in Prometheus: use their maximum.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tilewise.bento import metrics
from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.uploads import Batch
from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.core.files import atomic_write
from tilewise.datasets.core.tile import BAND_COUNT, DN, Tile
from tilewise.datasets.packs.statistics import Counts, distances
from tilewise.models.model_file import ModelMetadata

STRIDE = (
    8  # every eighth row and column of a tile: 64 of its pixels, at an offset that moves on with each batch
)
MAX_BLOCKS = 16  # a window drops its oldest tiles a sixteenth at a time
TILES_TOGETHER = 32  # tiles to count at once; counting them one by one takes five times as long
PUBLISH_S = 2.0
_VALUES = 65_536  # that a DN can take


@dataclass(frozen=True, slots=True)
class Reference:
    """Distribution of the training data: edges in DN, and the counts between them of each band present."""

    edges: tuple[int, ...]
    counts: dict[str, Counts]

    @classmethod
    def of(cls, metadata: ModelMetadata) -> "Reference":
        """Return the reference in a model file; it has no bands if the file has no histograms."""
        found = {item.band: np.asarray(item.counts, np.int64) for item in metadata.histograms}
        bins = len(metadata.histogram_edges) - 1
        valid = {band: counts for band, counts in found.items() if len(counts) == bins and counts.any()}
        return cls(metadata.histogram_edges, valid if bins > 1 else {})

    def measure(self, band: str, counts: Counts) -> dict[str, float]:
        """Return the distance of `counts` (same edges) from the reference of `band`, by each measure."""
        return distances(counts, self.counts[band], self.edges)


class Window:
    """Histograms of each band's DN over its latest tiles, which are kept in blocks.

    Args:
        edges: of the bins, in DN.
        tiles: the most tiles to look back on, in each band. When they are exceeded, the oldest block is
            dropped, so that a window of many holds up to a sixteenth fewer.
    """

    def __init__(self, edges: Sequence[int], tiles: int) -> None:
        bins = len(edges) - 1
        self._block = -(-tiles // MAX_BLOCKS)  # tiles in a block
        self._blocks = tiles // self._block
        self._now = np.zeros(BAND_COUNT, np.intp)  # each band's current block
        self._tiles = np.zeros((BAND_COUNT, self._blocks), np.int64)
        self._counts = np.zeros((BAND_COUNT, self._blocks, bins), np.int64)
        self._bands = np.arange(BAND_COUNT)
        bin_of = np.searchsorted(edges, np.arange(_VALUES), "right") - 1
        bin_of[(bin_of < 0) | (bin_of >= bins)] = bins  # no data, and DN beyond the edges, are not counted
        self._bin_of = bin_of
        self._offsets = (self._bands * (bins + 1))[:, None, None]

    def add(self, pixels: DN) -> None:
        """Count uint16 (n, 13, height, width), however many."""
        start = 0
        while start < len(pixels):
            self._drop_oldest()
            room = self._block - int(self._tiles[self._bands, self._now].max())
            self._count(pixels[start : start + room])
            start += room

    def _drop_oldest(self) -> None:
        """In each band whose current block is full, clear the oldest block and make it the current one."""
        full = np.flatnonzero(self._tiles[self._bands, self._now] >= self._block)
        self._now[full] = (self._now[full] + 1) % self._blocks
        self._tiles[full, self._now[full]] = 0
        self._counts[full, self._now[full]] = 0

    def _count(self, pixels: DN) -> None:
        """Count tiles, for which every band has room in its current block."""
        bins = self._counts.shape[2]
        indices = (self._bin_of[pixels] + self._offsets).ravel()
        counted = np.bincount(indices, minlength=BAND_COUNT * (bins + 1)).reshape(BAND_COUNT, bins + 1)
        self._counts[self._bands, self._now] += counted[:, :bins]
        self._tiles[self._bands, self._now] += pixels.any(axis=(2, 3)).sum(axis=0)

    def sums(self) -> Counts:
        """Return int64 (13, bins + 1): the counts in each bin, then the number of tiles."""
        return np.concatenate([self._counts.sum(axis=1), self._tiles.sum(axis=1)[:, None]], axis=1)


class Drift:
    """Measure the drift of the tiles that are classified, and publish it as the metrics `tilewise_drift`.

    Args:
        champion: returns the model whose reference is compared with.
        window: latest tiles of each band, in all processes together.
        minimum: tiles of a band that are needed to publish its drift; of fewer, it would be chance.
        processes: number of processes that share the window.
        folder: shared by the processes; None: there is only this one.
    """

    def __init__(
        self,
        champion: Callable[[], Engine],
        window: int,
        minimum: int,
        processes: int = 1,
        folder: Path | None = None,
    ) -> None:
        self._champion, self._folder = champion, folder
        self._window_tiles = max(1, window // processes)
        self._minimum = min(minimum, max(1, window // 2))
        self._engine: Engine | None = None
        self._reference = Reference((), {})
        self._window: Window | None = None
        self._pending: list[DN] = []
        self._batches = 0
        self._published = time.monotonic()

    def observe(self, batch: Batch) -> None:
        """Add a batch's tiles, and publish the drift, every two seconds at most."""
        self._follow(self._champion())
        if self._window is None:
            return
        row, column = divmod(
            11 * self._batches % STRIDE**2, STRIDE
        )  # every offset in turn: 11 is coprime to 64
        self._batches += 1
        tiles = [outcome.pixels for outcome in batch.outcomes if isinstance(outcome, Tile)]
        self._pending += [
            tile[:, row::STRIDE, column::STRIDE].copy() for tile in tiles
        ]  # frees the rest of the tile
        if len(self._pending) >= TILES_TOGETHER:
            self._count()
        if time.monotonic() - self._published >= PUBLISH_S:
            self._published = time.monotonic()
            self.publish()

    def publish(self) -> None:
        """Set the metrics."""
        if self._window is None:
            return
        self._count()
        sums = self._sums_of_all(self._window.sums())
        for band, counts in zip(BAND_NAMES, sums, strict=True):
            tiles = int(counts[-1])
            metrics.DRIFT_TILES.labels(band).set(tiles)
            if band in self._reference.counts and tiles >= self._minimum and counts[:-1].any():
                for measure, value in self._reference.measure(band, counts[:-1]).items():
                    metrics.DRIFT.labels(band, measure).set(value)

    def close(self) -> None:
        """Remove this process's sums from the shared folder."""
        if self._folder is not None and self._window is not None:
            self._file(os.getpid()).unlink(missing_ok=True)

    def _count(self) -> None:
        """Add the pending tiles to the window."""
        if self._window is not None and self._pending:
            self._window.add(np.stack(self._pending))
        self._pending = []

    def _follow(self, engine: Engine) -> None:
        """Use the reference of the champion; bins other than before start a new window."""
        if engine is self._engine:
            return
        before, self._engine = self._reference.edges, engine
        self._reference = Reference.of(engine.metadata)
        if not self._reference.counts:
            self._window = None
        elif self._window is None or before != self._reference.edges:
            self._window = Window(self._reference.edges, self._window_tiles)

    def _file(self, pid: int | str) -> Path:
        assert self._folder is not None  # noqa: S101 - the callers check
        digest = hashlib.sha256(repr(self._reference.edges).encode()).hexdigest()[:12]
        return self._folder / f"drift-{digest}-{pid}.npy"

    def _sums_of_all(self, own: Counts) -> Counts:
        """Write `own` sums to the shared folder, and return the sums of all living processes."""
        if self._folder is None:
            return own
        mine = self._file(os.getpid())
        with atomic_write(mine, durable=False) as temporary, temporary.open("wb") as stream:
            np.save(stream, own)
        total = own.copy()
        for file in self._folder.glob(self._file("*").name):
            pid = int(file.stem.rpartition("-")[2])
            if pid != os.getpid() and metrics.is_alive(pid):
                with contextlib.suppress(OSError, ValueError):  # that process has just ended
                    total += np.load(file, allow_pickle=False)
        return total
