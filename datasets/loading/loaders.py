"""Load whole batches of a pack: from the memory map, the device's memory, or ahead from the disk."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.core.tile import BAND_COUNT, DN, TILE_SIZE
from tilewise.datasets.loading.geometry import AlbumentationsWarp
from tilewise.datasets.loading.sampling import BlockOptions, Indices, StepSampler
from tilewise.datasets.packs.pack import PLANE_BYTES, PLANES

if TYPE_CHECKING:
    from tilewise.datasets.packs.pack import Pack

Batch = dict[str, Tensor]
Store = Literal["auto", "device", "memory", "disk"]

_GAP = 512 * 1024  # bytes that are cheaper to read through than to skip
_BYTES_AHEAD = 8 * 2**20
_MAX_REQUESTS = 4  # that wait: more would push out of the cache what is needed first
_PLANES_AT_A_TIME = 1024  # copied to a device: 8 MB


@dataclass(frozen=True)
class LoaderOptions:
    """How batches are loaded.

    Attributes:
        workers: loader processes; 0 reads in the training process. The pack is memory-mapped, so 0 is often
            fastest.
        evaluation_batch: tiles that validation and test answer at a time; their figures do not depend on it.
        store: where tiles are kept. `device`: all pixels live on the device. `memory`: pixels are gathered
            from the memory map. `disk`: they are shuffled in blocks that are read ahead. `auto` decides by
            the tiles' size: on a GPU that holds them, else in memory, else on disk.
        blocks: how tiles on the disk are shuffled.

    Raises:
        TrainingError: fewer than 0 workers, or an evaluation batch below 1.
    """

    workers: int = 0
    evaluation_batch: int = 256
    store: Store = "auto"
    blocks: BlockOptions = BlockOptions()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        if self.workers < 0 or self.evaluation_batch < 1:
            raise TrainingError(
                f"data.loader: workers {self.workers} must be 0 or more, "
                f"evaluation_batch {self.evaluation_batch} 1 or more"
            )


class PackedDataset(Dataset[Batch]):
    """Fetch rows of a pack, a whole batch by one call.

    An index counts through epochs: index + epoch × length is the same tile in another epoch, augmented
    differently. That number is the tile's key, on which with the seed all its draws depend, and nothing else.
    An index of −1 fills a chunk up: its item is the first tile, with the label and the row −1.

    Args:
        pack: source of the tiles.
        rows: int64: the pack's rows that an index counts.
        warp: warps tiles one by one on the CPU.
        seed: seed of the warps.
        pixels: false leaves out `tiles`, where they are on the device already.
    """

    def __init__(
        self,
        pack: Pack,
        rows: npt.NDArray[np.int64],
        warp: AlbumentationsWarp | None = None,
        seed: int = 0,
        pixels: bool = True,
    ) -> None:
        self._pack, self.rows, self._warp, self._seed, self._pixels = pack, rows, warp, seed, pixels

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
            if self._warp is not None:
                _warp_each(tiles, self._warp, keys, self._seed)
            batch["tiles"] = torch.from_numpy(tiles)
        return batch


def _warp_each(tiles: DN, warp: AlbumentationsWarp, keys: Indices, seed: int) -> None:
    """Warp each tile of a batch in place, only in the bands that it has."""
    for tile, key in zip(tiles, keys.tolist(), strict=True):
        warp.reseed(int(np.random.SeedSequence([seed, key]).generate_state(1)[0] >> 1))
        bands = tile.any(axis=(1, 2))
        tile[bands] = warp(tile[bands])


class TrainLoader(DataLoader[Batch]):
    """Load the steps of an epoch; can be stopped and resumed at any of them.

    Lightning keeps the state in every checkpoint, and restores it to a run that is resumed within an epoch.
    """

    def __init__(self, dataset: PackedDataset, sampler: StepSampler, **options: Any) -> None:
        super().__init__(dataset, sampler=sampler, batch_size=None, collate_fn=as_is, **options)
        self._steps, self._done = sampler, 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # A generator, so that workers start on the first request, when the epoch is known.
        self._done = self._steps.start
        for batch in super().__iter__():
            self._done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return how many steps of the epoch have been yielded."""
        return {"step": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next epoch after the steps that were yielded; if it was finished, at its start."""
        self._steps.start = state["step"] % len(self._steps)


def as_is(batch: Any) -> Any:
    """Return the batch: the dataset has collated it already."""
    return batch


class ResidentTiles:
    """Keep the planes of some rows of a pack on a device, only the bands that each tile has.

    Attributes:
        rows: int64, ascending: which tiles.

    Args:
        pack: source of the tiles.
        rows: int64 (n,): which tiles.
        device: the device that keeps them.
    """

    def __init__(self, pack: Pack, rows: npt.NDArray[np.int64], device: torch.device) -> None:
        self.rows = rows = np.unique(rows)
        sources = np.concatenate(
            [pack.first_plane[row] + np.arange(len(pack.band_indices[row])) for row in rows]
        )
        planes = np.zeros((len(pack), BAND_COUNT), np.int32)  # 0 is the plane of bands that a tile lacks
        planes[
            np.repeat(rows, [len(pack.band_indices[row]) for row in rows]), _all_band_indices(pack, rows)
        ] = np.arange(len(sources), dtype=np.int32) + 1
        # As int16: not every device gathers uint16, and a gather does not look at the values.
        self._planes = torch.zeros((len(sources) + 1, TILE_SIZE, TILE_SIZE), dtype=torch.int16, device=device)
        for first in range(0, len(sources), _PLANES_AT_A_TIME):
            part = pack.planes[sources[first : first + _PLANES_AT_A_TIME]].astype(np.uint16).view(np.int16)
            self._planes[first + 1 : first + 1 + len(part)] = torch.from_numpy(part).to(device)
        self._plane_of = torch.from_numpy(planes).to(device)
        self._labels = torch.from_numpy(pack.labels).to(device)

    def fetch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return tiles uint16 (batch, 13, 64, 64) and labels int64 (batch,) of `rows`, int64."""
        return self._planes[self._plane_of[rows].long()].view(torch.uint16), self._labels[rows]


def resident_bytes(pack: Pack, rows: npt.NDArray[np.int64]) -> int:
    """Return how many bytes the tiles in `rows` take on a device."""
    return sum(len(pack.band_indices[row]) for row in np.unique(rows)) * PLANE_BYTES


def _all_band_indices(pack: Pack, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return cast("npt.NDArray[np.int64]", np.concatenate([pack.band_indices[row] for row in rows]))


class ReadAhead:
    """Read the tiles of coming steps in the background, so that the operating system's cache holds them.

    Attributes:
        bytes_read: bytes read so far.
    """

    def __init__(self, pack: Pack) -> None:
        self._pack, self.bytes_read = pack, 0
        self._requests: queue.Queue[npt.NDArray[np.int64] | None] = queue.Queue(_MAX_REQUESTS)
        self._thread = threading.Thread(target=self._work, name="read-ahead", daemon=True)
        self._thread.start()

    def request(self, rows: npt.NDArray[np.int64]) -> None:
        """Have the tiles in `rows` read; the request is dropped if the disk is behind already."""
        if not len(rows):
            return
        try:
            self._requests.put_nowait(rows)
        except queue.Full:
            return

    def close(self) -> None:
        """Finish the requests that wait, and end the thread."""
        self._requests.put(None)
        self._thread.join(timeout=60)

    def _work(self) -> None:
        buffer = memoryview(bytearray(_BYTES_AHEAD))
        with (self._pack.root / PLANES).open("rb", buffering=0) as file:
            while (rows := self._requests.get()) is not None:
                for start, stop in byte_ranges(self._pack, rows):
                    file.seek(start)
                    while start < stop and (
                        count := file.readinto(buffer[: min(_BYTES_AHEAD, stop - start)])
                    ):
                        start += count
                        self.bytes_read += count


def byte_ranges(pack: Pack, rows: npt.NDArray[np.int64], gap: int = _GAP) -> list[tuple[int, int]]:
    """Return the ascending (start, stop) of `rows` in the planes file, merging those within `gap` bytes."""
    ordered = np.unique(rows)
    starts = pack.first_plane[ordered] * PLANE_BYTES
    stops = starts + np.array([len(pack.band_indices[row]) for row in ordered], np.int64) * PLANE_BYTES
    breaks = np.flatnonzero(starts[1:] - stops[:-1] > gap) + 1
    firsts, lasts = np.concatenate([[0], breaks]), np.concatenate([breaks, [len(ordered)]]) - 1
    return [(int(starts[first]), int(stops[last])) for first, last in zip(firsts, lasts, strict=True)]
