"""Drift: how far the values of the latest tiles lie from those that the model was trained on, band by band.

The model file holds a histogram of each band's DN over the training data. Each process keeps histograms of the latest
tiles that it answered, of a sample of their pixels, and lays their sum into a folder that the service's processes
share. Histograms can be added and measures cannot, so every process adds all of them up before it measures, and any
process's figure is the service's. Several machines stand side by side in Prometheus: look at their maximum.
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
from tilewise.datasets.core.tile import BAND_COUNT, DN, Tile
from tilewise.datasets.packs.statistics import Counts, distances
from tilewise.models.model_file import ModelMetadata

STRIDE = 8  # every eighth row and column of a tile: 64 of its pixels, from a corner that moves on from batch to batch
BLOCKS = 16  # a window forgets its oldest tiles a sixteenth at a time
TOGETHER = 32  # tiles are counted: for each alone, it takes five times as long
EVERY_S = 2.0
_VALUES = 65_536  # that a DN can take


@dataclass(frozen=True, slots=True)
class Reference:
    """How the training data are distributed: DN edges, and counts between them, of each band that they have."""

    edges: tuple[int, ...]
    counts: dict[str, Counts]

    @classmethod
    def of(cls, metadata: ModelMetadata) -> "Reference":
        """Return the reference in a model file; without bands where the file has none."""
        found = {item.band: np.asarray(item.counts, np.int64) for item in metadata.histograms}
        bins = len(metadata.histogram_edges) - 1
        sound = {band: counts for band, counts in found.items() if len(counts) == bins and counts.any()}
        return cls(metadata.histogram_edges, sound if bins > 1 else {})

    def measure(self, band: str, counts: Counts) -> dict[str, float]:
        """Return how far `counts` of a band's DN, between the same edges, lie from the reference, by each measure."""
        return distances(counts, self.counts[band], self.edges)


class Window:
    """Histograms of each band's DN over its latest tiles.

    Args:
        edges: of the bins, in DN.
        tiles: that it looks back on, in each band; up to a sixteenth fewer at times.
    """

    def __init__(self, edges: Sequence[int], tiles: int) -> None:
        bins = len(edges) - 1
        self._block = -(-tiles // BLOCKS)  # tiles in a block
        self._now = np.zeros(BAND_COUNT, np.intp)  # each band's current block
        self._tiles = np.zeros((BAND_COUNT, BLOCKS), np.int64)
        self._counts = np.zeros((BAND_COUNT, BLOCKS, bins), np.int64)
        self._bands = np.arange(BAND_COUNT)
        bin_of = np.searchsorted(edges, np.arange(_VALUES), "right") - 1
        bin_of[(bin_of < 0) | (bin_of >= bins)] = bins  # no data, and what lies beyond the edges, is not counted
        self._bin_of = bin_of
        self._offsets = (self._bands * (bins + 1))[:, None, None]

    def add(self, pixels: DN) -> None:
        """Count uint16 (n, 13, height, width)."""
        bins = self._counts.shape[2]
        places = (self._bin_of[pixels] + self._offsets).ravel()
        counted = np.bincount(places, minlength=BAND_COUNT * (bins + 1)).reshape(BAND_COUNT, bins + 1)
        self._counts[self._bands, self._now] += counted[:, :bins]
        self._tiles[self._bands, self._now] += pixels.any(axis=(2, 3)).sum(axis=0)
        full = np.flatnonzero(self._tiles[self._bands, self._now] >= self._block)
        if full.size:
            self._now[full] = (self._now[full] + 1) % BLOCKS
            self._tiles[full, self._now[full]] = 0
            self._counts[full, self._now[full]] = 0

    def sums(self) -> Counts:
        """Return int64 (13, bins + 1): the counts in each bin, and at the end the number of tiles."""
        return np.concatenate([self._counts.sum(axis=1), self._tiles.sum(axis=1)[:, None]], axis=1)


class Drift:
    """Watches the tiles that are answered, and tells their drift in the metrics `tilewise_drift`.

    Args:
        champion: gives the model whose reference counts now.
        window: tiles of each band that all processes together look back on.
        least: tiles of a band before its drift is told: of a few, it would be chance.
        processes: that share the window.
        folder: that they share; None: this one is alone.
    """

    def __init__(
        self, champion: Callable[[], Engine], window: int, minimum: int, processes: int = 1, folder: Path | None = None
    ) -> None:
        self._champion, self._folder = champion, folder
        self._window_tiles = max(1, window // processes)
        self._minimum = min(minimum, max(1, window // 2))
        self._engine: Engine | None = None
        self._reference = Reference((), {})
        self._window: Window | None = None
        self._pending: list[DN] = []
        self._turn = 0
        self._told = time.monotonic()

    def look(self, batch: Batch) -> None:
        """Take a batch's tiles in, and tell where they have led, every two seconds at most."""
        self._follow(self._champion())
        if self._window is None:
            return
        row, column = divmod(self._turn % STRIDE**2, STRIDE)
        self._turn += 11  # no divisor of 64: the corner comes by all places
        tiles = [outcome.pixels for outcome in batch.outcomes if isinstance(outcome, Tile)]
        self._pending += [tile[:, row::STRIDE, column::STRIDE].copy() for tile in tiles]  # lets go of the whole tile
        if len(self._pending) >= TOGETHER:
            self._count()
        if time.monotonic() - self._told >= EVERY_S:
            self._told = time.monotonic()
            self.tell()

    def tell(self) -> None:
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
        """Take this process out of what the others add up."""
        if self._folder is not None and self._window is not None:
            self._file(os.getpid()).unlink(missing_ok=True)

    def _count(self) -> None:
        """Take what is pending into the window."""
        if self._window is not None and self._pending:
            self._window.add(np.stack(self._pending))
        self._pending = []

    def _follow(self, engine: Engine) -> None:
        """Take the reference of the model that answers now; other bins than before begin a new window."""
        if engine is self._engine:
            return
        before, self._engine = self._reference.edges, engine
        self._reference = Reference.of(engine.metadata)
        if not self._reference.counts:
            self._window = None
        elif self._window is None or before != self._reference.edges:
            self._window = Window(self._reference.edges, self._window_tiles)

    def _file(self, pid: int | str) -> Path:
        assert self._folder is not None  # noqa: S101 - asked by the callers
        digest = hashlib.sha256(repr(self._reference.edges).encode()).hexdigest()[:12]
        return self._folder / f"drift-{digest}-{pid}.npy"

    def _sums_of_all(self, own: Counts) -> Counts:
        """Lay `own` sums into the shared folder, and return them with those of the other living processes."""
        if self._folder is None:
            return own
        mine = self._file(os.getpid())
        unfinished = mine.with_suffix(".part")
        with unfinished.open("wb") as stream:
            np.save(stream, own)
        unfinished.replace(mine)
        total = own.copy()
        for file in self._folder.glob(self._file("*").name):
            pid = int(file.stem.rpartition("-")[2])
            if pid != os.getpid() and metrics.is_alive(pid):
                with contextlib.suppress(OSError, ValueError):  # it has just gone
                    total += np.load(file, allow_pickle=False)
        return total
