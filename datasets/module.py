"""The Lightning data module: packed tiles in, batches out, augmented on the way.

A batch is a dict: `tiles` uint16 (batch, 13, 64, 64) in DN, `labels` int64 (batch,), `rows` int64 (batch,),
the tiles' rows in the pack. While fitting, `tiles` become augmented float32 DN on the device, and `targets`
float32 (batch, classes) are the labels, mixed where tiles were mixed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from datasets.augment import (
    BandDropout,
    MixOptions,
    RadiometryOptions,
    cutmix,
    drop_bands,
    jitter_radiometry,
)
from datasets.errors import TrainingError
from datasets.geometry import Geometry, GeometryOptions
from datasets.pack import Pack
from datasets.tile import DN

Batch = dict[str, Tensor]


class PackedDataset(Dataset[Batch]):
    """Rows of a pack. A whole batch is fetched by one call (`__getitems__`), not tile by tile.

    An index counts through epochs: index + epoch × length is the same tile in another epoch, warped
    otherwise. So the warps depend on the seed, the epoch and the tiles alone, not on the number of workers or
    on where a run was resumed.
    """

    def __init__(
        self, pack: Pack, rows: npt.NDArray[np.int64], geometry: Geometry | None = None, seed: int = 0
    ) -> None:
        self._pack, self.rows, self._geometry, self._seed = pack, rows, geometry, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        rows = self.rows[np.array(indices) % len(self.rows)]
        tiles = self._pack.fetch(rows)
        if self._geometry is not None:
            draw = np.random.default_rng([self._seed, *indices[:1]])
            self._geometry.reseed(int(draw.integers(2**31)))
            _warp_each(tiles, self._geometry)
        return {
            "tiles": torch.from_numpy(tiles),
            "labels": torch.from_numpy(self._pack.labels[rows]),
            "rows": torch.from_numpy(rows),
        }


class EpochSampler(Sampler[int]):
    """A new order each epoch, from the seed and the epoch alone, as indices that count through epochs."""

    def __init__(self, length: int, seed: int) -> None:
        self._length, self._seed, self._epoch = length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Take the order of `epoch`; Lightning calls this."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self._seed, self._epoch]).permutation(self._length)
        return iter((order + self._epoch * self._length).tolist())


class TileDataModule(pl.LightningDataModule):
    """Packed tiles as Lightning wants them.

    Args:
        pack: folder of a pack (`python -m datasets pack`).
        batch_size: tiles a step.
        workers: loader processes; 0 reads in the training process.
        repeat: how often the tiles of a source stand in an epoch, e.g. `{eurosat-ms: 6}` where they are few.
        test_split: the split that `test` measures.
        geometry: turns and warps, on the CPU.
        radiometry: gain, haze and noise, on the device.
        band_dropout: hiding of bands, on the device.
        mix: mixing of tiles, on the device.
        augment: false switches all of that off.
        seed: of the order of tiles.
    """

    def __init__(
        self,
        pack: Path = Path("data/packed"),
        batch_size: int = 128,
        workers: int = 0,
        repeat: dict[str, int] | None = None,
        test_split: str = "test",
        geometry: GeometryOptions = GeometryOptions(),  # noqa: B008 - frozen
        radiometry: RadiometryOptions = RadiometryOptions(),  # noqa: B008 - frozen
        band_dropout: BandDropout = BandDropout(),  # noqa: B008 - frozen
        mix: MixOptions = MixOptions(),  # noqa: B008 - frozen
        augment: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size, self.workers, self.augment, self.seed = batch_size, workers, augment, seed
        self.repeat, self.test_split = repeat or {}, test_split
        self.geometry, self.radiometry = geometry, radiometry
        self.band_dropout, self.mix = band_dropout, mix
        self.pack = Pack(Path(pack))
        self.classes = list(self.pack.summary.classes)
        train = self.pack.summary.counts.get("train", {})
        self.class_counts = [train.get(name, 0) for name in self.classes]
        statistics = self.pack.statistics()
        self.band_mean = [float(band["mean"]) for band in statistics]
        self.band_std = [float(band["std"]) for band in statistics]  # 0: no tile has the band

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the augmented, shuffled loader of the train split."""
        rows = self._rows("train")
        repeated = np.concatenate([np.tile(rows[self.pack.sources[rows] == s], n) for s, n in self._repeats()])
        geometry = Geometry(self.geometry) if self.augment else None
        dataset = PackedDataset(self.pack, repeated, geometry, self.seed)
        sampler = EpochSampler(len(dataset), self.seed)
        return self._loader(dataset, sampler=sampler, drop_last=len(dataset) >= self.batch_size)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the val split, in order, unaltered."""
        return self._loader(PackedDataset(self.pack, self._rows("val")))

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of `test_split`, in order, unaltered."""
        return self._loader(PackedDataset(self.pack, self._rows(self.test_split)))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """While fitting, add targets and augment the batch on the device it is on now."""
        if self.trainer is None or not self.trainer.training:
            return batch
        targets = torch.nn.functional.one_hot(batch["labels"], len(self.classes)).float()
        tiles = batch["tiles"].float()
        if self.augment:
            tiles = drop_bands(jitter_radiometry(tiles, self.radiometry), self.band_dropout)
            tiles, targets = cutmix(tiles, targets, self.mix)
        return {**batch, "tiles": tiles, "targets": targets}

    def _rows(self, split: str) -> npt.NDArray[np.int64]:
        rows = self.pack.rows(split)
        if not len(rows):
            have = ", ".join(f"{name} ({sum(c.values())})" for name, c in self.pack.summary.counts.items())
            raise TrainingError(f"{self.pack.root}: no tile is in the split {split!r}; it has {have}")
        return rows

    def _repeats(self) -> list[tuple[str, int]]:
        unknown = set(self.repeat) - set(self.pack.summary.sources)
        if unknown:
            have = ", ".join(self.pack.summary.sources)
            raise TrainingError(f"repeat names {', '.join(unknown)}, but the pack's sources are {have}")
        return [(source, self.repeat.get(source, 1)) for source in self.pack.summary.sources]

    def _loader(self, dataset: PackedDataset, **options: Any) -> DataLoader[Batch]:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            # Its own generator: a loader that draws from torch's would shift the draws of the augmentation.
            generator=torch.Generator().manual_seed(self.seed),
            pin_memory=torch.cuda.is_available(),
            collate_fn=_as_is,
            **options,
        )


def _as_is(batch: Any) -> Any:
    """Return the batch: `__getitems__` has collated it already."""
    return batch


def _warp_each(tiles: DN, geometry: Geometry) -> None:
    """Warp each tile of a batch in place, touching only the bands that it has."""
    for tile in tiles:
        bands = tile.any(axis=(1, 2))
        tile[bands] = geometry(tile[bands])
