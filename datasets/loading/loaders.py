"""Loaders of whole batches: which rows, read by one call, in an order that can be taken up within an epoch."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tilewise.datasets.core.tile import BAND_COUNT, DN, TILE_SIZE
from tilewise.datasets.loading.draws import BlockOptions, EpochOrder, Indices, Part, in_chunks
from tilewise.datasets.loading.geometry import Geometry
from tilewise.datasets.packs.pack import PLANE_BYTES, PLANES, Pack

if TYPE_CHECKING:
    from tilewise.datasets.packs.pack import Pack

_GAP = 512 * 1024  # bytes that are cheaper to read through than to skip
_BYTES_AHEAD = 8 * 2**20
_AHEAD = 4  # requests that may wait: more would push out of the cache what is needed first


class ReadAhead:
    """Reads the tiles of coming steps in the background.

    Attributes:
        bytes_read: so far.
    """

    def __init__(self, pack: Pack) -> None:
        self._pack, self.bytes_read = pack, 0
        self._wanted: queue.Queue[npt.NDArray[np.int64] | None] = queue.Queue(_AHEAD)
        self._thread = threading.Thread(target=self._work, name="read-ahead", daemon=True)
        self._thread.start()

    def want(self, rows: npt.NDArray[np.int64]) -> None:
        """Have the tiles in `rows` read; forgotten if the disk is behind already."""
        if not len(rows):
            return
        try:
            self._wanted.put_nowait(rows)
        except queue.Full:
            return

    def close(self) -> None:
        """Finish what was asked for, and end the thread."""
        self._wanted.put(None)
        self._thread.join(timeout=60)

    def _work(self) -> None:
        buffer = memoryview(bytearray(_BYTES_AHEAD))
        with (self._pack.root / PLANES).open("rb", buffering=0) as file:
            while (rows := self._wanted.get()) is not None:
                for start, stop in byte_ranges(self._pack, rows):
                    file.seek(start)
                    while start < stop and (count := file.readinto(buffer[: min(_BYTES_AHEAD, stop - start)])):
                        start += count
                        self.bytes_read += count


def byte_ranges(pack: Pack, rows: npt.NDArray[np.int64], gap: int = _GAP) -> list[tuple[int, int]]:
    """Return where the pixels of `rows` lie in the file of planes: ascending (start, stop), near ones made one."""
    ordered = np.unique(rows)
    starts = pack.first_plane[ordered] * PLANE_BYTES
    stops = starts + np.array([len(pack.places[row]) for row in ordered], np.int64) * PLANE_BYTES
    breaks = np.flatnonzero(starts[1:] - stops[:-1] > gap) + 1
    firsts, lasts = np.concatenate([[0], breaks]), np.concatenate([breaks, [len(ordered)]]) - 1
    return [(int(starts[first]), int(stops[last])) for first, last in zip(firsts, lasts, strict=True)]


_PIECE = 1024  # planes copied at a time: 8 MB


class ResidentTiles:
    """The planes of some rows of a pack on a device, only the bands that each tile has.

    Attributes:
        rows: int64, ascending: which tiles.

    Args:
        pack: where they come from.
        rows: int64 (n,): which tiles.
        device: where they go.
    """

    def __init__(self, pack: Pack, rows: npt.NDArray[np.int64], device: torch.device) -> None:
        self.rows = rows = np.unique(rows)
        sources = np.concatenate([pack.first_plane[row] + np.arange(len(pack.places[row])) for row in rows])
        places = np.zeros((len(pack), BAND_COUNT), np.int32)  # 0 is the plane of bands that a tile lacks
        places[np.repeat(rows, [len(pack.places[row]) for row in rows]), _concatenate(pack, rows)] = (
            np.arange(len(sources), dtype=np.int32) + 1
        )
        # As int16: not every device gathers uint16, and a gather does not look at the values.
        self._planes = torch.zeros((len(sources) + 1, TILE_SIZE, TILE_SIZE), dtype=torch.int16, device=device)
        for first in range(0, len(sources), _PIECE):
            piece = pack.planes[sources[first : first + _PIECE]].astype(np.uint16).view(np.int16)
            self._planes[first + 1 : first + 1 + len(piece)] = torch.from_numpy(piece).to(device)
        self._places = torch.from_numpy(places).to(device)
        self._labels = torch.from_numpy(pack.labels).to(device)

    def fetch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return tiles uint16 (batch, 13, 64, 64) and labels int64 (batch,) of `rows`, int64 on the device."""
        return self._planes[self._places[rows].long()].view(torch.uint16), self._labels[rows]


def resident_bytes(pack: Pack, rows: npt.NDArray[np.int64]) -> int:
    """Return how many bytes the tiles in `rows` take on a device."""
    return sum(len(pack.places[row]) for row in np.unique(rows)) * PLANE_BYTES


def _concatenate(pack: Pack, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return cast("npt.NDArray[np.int64]", np.concatenate([pack.places[row] for row in rows]))


Batch = dict[str, Tensor]


class PackedDataset(Dataset[Batch]):
    """Rows of a pack. A whole batch is fetched by one call, not tile by tile.

    An index counts through epochs: index + epoch × length is the same tile in another epoch, augmented otherwise. That
    number is the tile's key, on which with the seed all its draws depend, and nothing else. An index of −1 is a place
    that is not counted: the first tile stands there, with the label and the row −1.

    Args:
        pack: where tiles come from.
        rows: int64: the pack's rows that an index counts.
        geometry: turns and warps tiles on the CPU.
        seed: of the warps.
        pixels: false leaves out `tiles`, for whoever has them on the device.
    """

    def __init__(
        self,
        pack: Pack,
        rows: npt.NDArray[np.int64],
        geometry: Geometry | None = None,
        seed: int = 0,
        pixels: bool = True,
    ) -> None:
        self._pack, self.rows, self._geometry, self._seed, self._pixels = pack, rows, geometry, seed, pixels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | list[int]) -> Batch:
        keys = np.atleast_1d(np.array(index, np.int64))
        counted = keys >= 0
        rows = self.rows[np.where(counted, keys % len(self.rows), 0)]
        batch = {
            "labels": torch.from_numpy(np.where(counted, self._pack.labels[rows], -1)),
            "rows": torch.from_numpy(np.where(counted, rows, -1)),
            "keys": torch.from_numpy(keys),
        }
        if self._pixels:
            tiles = self._pack.fetch(rows)
            if self._geometry is not None:
                _warp_each(tiles, self._geometry, keys, self._seed)
            batch["tiles"] = torch.from_numpy(tiles)
        return batch


class StepSampler(Sampler[list[int]]):
    """This process's indices of each step, as indices that count through epochs.

    Attributes:
        start: the step that the next epoch begins with; then 0 again.

    Args:
        order: of the tiles of all processes.
        part: which process this is.
        blocks: how they are shuffled in blocks, if they are.
        ahead: is told the positions (not counting through epochs) of the tiles of the coming window.
    """

    def __init__(
        self,
        order: EpochOrder,
        part: Part,
        blocks: BlockOptions | None = None,
        ahead: Callable[[Indices], None] | None = None,
    ) -> None:
        self._order, self._part, self._blocks, self._ahead = order, part, blocks, ahead
        self._epoch, self.start = 0, 0

    def set_epoch(self, epoch: int) -> None:
        """Take the order of `epoch`; Lightning calls this."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._order.steps

    def __iter__(self) -> Iterator[list[int]]:
        steps = self._part.of_batch(self._order.of(self._epoch), self._blocks)
        start, self.start = self.start, 0
        for number in range(start, len(steps)):
            self._look_ahead(steps, start, number)
            yield (steps[number] + self._epoch * self._order.length).tolist()

    def _look_ahead(self, steps: Indices, start: int, number: int) -> None:
        """At the first step of a window, ask for the tiles of the next one."""
        if self._ahead is None or self._blocks is None:
            return
        window = max(1, self._blocks.window // self._order.batch)
        if number == start:
            self._ahead(steps[start : start + window].ravel())
        if number == start or number % window == 0:
            self._ahead(steps[number + window : number + 2 * window].ravel())


class TrainLoader(DataLoader[Batch]):
    """Loads the steps of an epoch, and can be stopped and taken up at any of them.

    Lightning keeps the state in every checkpoint, and gives it back to a run that is resumed within an epoch.
    """

    def __init__(self, dataset: PackedDataset, sampler: StepSampler, **options: Any) -> None:
        super().__init__(dataset, sampler=sampler, batch_size=None, collate_fn=as_is, **options)
        self._steps, self._done = sampler, 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # A generator, so that workers start on the first request, when the epoch is known, and not on `iter()`.
        self._done = self._steps.start
        for batch in super().__iter__():
            self._done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return how many steps of the epoch have been given out."""
        return {"step": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next epoch after the steps that had been given out; a finished epoch leaves nothing to take up."""
        self._steps.start = state["step"] % len(self._steps)


class ChunkSampler(Sampler[list[int]]):
    """All indices in order, in chunks that are the same for any number of processes (`tilewise.datasets.loading.draws.in_chunks`)."""

    def __init__(self, length: int, chunk: int, part: Part) -> None:
        self._chunks = [positions.tolist() for positions in in_chunks(length, chunk, part)]

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._chunks)


def as_is(batch: Any) -> Any:
    """Return the batch: the dataset has collated it already."""
    return batch


def _warp_each(tiles: DN, geometry: Geometry, keys: Indices, seed: int) -> None:
    """Warp each tile of a batch in place, touching only the bands that it has."""
    for tile, key in zip(tiles, keys.tolist(), strict=True):
        geometry.reseed(int(np.random.SeedSequence([seed, key]).generate_state(1)[0] >> 1))
        bands = tile.any(axis=(1, 2))
        tile[bands] = geometry(tile[bands])
