"""The Lightning data module: packed tiles in, batches out, augmented on the device.

A batch is a dict: `tiles` uint16 (batch, 13, 64, 64) in DN, `labels` int64 (batch,), `rows` int64 (batch,),
the tiles' rows in the pack. While fitting, `tiles` become augmented float32 DN on the device, `whole` are the
same before noise and lost lines, and `targets` float32 (batch, classes) are the labels, mixed where tiles
were mixed. In the other stages a tile with the row −1 fills a chunk up and is not to be counted.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.loading.augment import Augmentation, AugmentOptions
from tilewise.datasets.loading.geometry import AlbumentationsWarp
from tilewise.datasets.loading.loaders import (
    Batch,
    LoaderOptions,
    PackedDataset,
    ReadAhead,
    ResidentTiles,
    Store,
    TrainLoader,
    as_is,
    resident_bytes,
)
from tilewise.datasets.loading.sampling import ChunkSampler, EpochOrder, ProcessRank, StepSampler
from tilewise.datasets.packs.groups import group_tiles
from tilewise.datasets.packs.pack import UNLABELLED, open_pack

HELD_OUT = "held-out"
_TRAINING_SPLITS = ("train", UNLABELLED)
_DEVICE_FRACTION = (
    0.4  # of the device's free memory that tiles may take; the network and its gradients need the rest
)
_MEMORY_FRACTION = 0.6  # of the machine's memory


@dataclass(frozen=True)
class HoldOutOptions:
    """Which tiles of the train split are kept out of training.

    Attributes:
        groups: number of groups of like tiles that each class is divided into.
        held_out: the groups, 0 to `groups` - 1, that do not train.
    """

    groups: int = 8
    held_out: tuple[int, ...] = ()


class TileDataModule(pl.LightningDataModule):
    """Give Lightning the tiles of a pack, batch by batch.

    Args:
        pack: folder of a pack (`tilewise data pack`), or an array file (`.npz`, see
            `tilewise.datasets.packs.pack`).
        batch_size: tiles a step, in all training processes together.
        repeat: how often an epoch holds the tiles of a source, e.g. `{eurosat-ms: 6}` where they are few; 0:
            never.
        train_splits: the splits that train: `train`; where labels count for nothing (pretraining)
            `unlabelled` too.
        test_split: the split that `test` measures; `held-out`: the groups that `hold_out` keeps from
            training.
        hold_out: groups of tiles that look alike and do not train, to measure the network on unlike land.
        loader: where tiles are kept and how they are read.
        augment: how training batches are augmented.
        seed: seed of the order of tiles and of every draw.

    Raises:
        TrainingError: a split in `train_splits` must not train.
        PackError: `pack` is missing, or cannot be read.
    """

    def __init__(
        self,
        pack: Path = Path("data/packed"),
        batch_size: int = 128,
        repeat: dict[str, int] | None = None,
        train_splits: tuple[str, ...] = ("train",),
        test_split: str = "test",
        hold_out: HoldOutOptions = HoldOutOptions(),
        loader: LoaderOptions = LoaderOptions(),  # noqa: B008 - frozen
        augment: AugmentOptions = AugmentOptions(),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size, self.repeat, self.seed = batch_size, repeat or {}, seed
        self.train_splits, self.test_split = _checked_splits(train_splits), test_split
        self.loader, self.augment, self.hold_out = loader, augment, hold_out
        self.pack = open_pack(Path(pack))
        self.classes = list(self.pack.summary.classes)
        train = self.pack.summary.counts.get("train", {})
        self.class_counts = [train.get(name, 0) for name in self.classes]
        statistics = self.pack.statistics()
        self.band_mean = [float(band["mean"]) for band in statistics]
        self.band_std = [float(band["std"]) for band in statistics]  # 0: no tile has the band
        self._chosen_store: Store | None = None
        self._train_loader: TrainLoader | None = None
        self._resumed_state: dict[str, int] = {}
        self._resident: ResidentTiles | None = None
        self._augmentation: Augmentation | None = None
        self._read_ahead: ReadAhead | None = None

    @property
    def device(self) -> torch.device:
        """The device that trains; the CPU without a trainer."""
        return self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")

    @property
    def chosen_store(self) -> Store:
        """Where tiles are kept; `auto` is decided by the size of the train and val splits."""
        if self._chosen_store is None:
            store = self.loader.store
            self._chosen_store = self._decide_store() if store == "auto" else store
        return self._chosen_store

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the shuffled loader of the train split."""
        rows = np.concatenate([self._rows(split) for split in self.train_splits])
        rows = rows[~np.isin(rows, self._held_out)]
        repeated = np.concatenate(
            [np.tile(rows[self.pack.sources[rows] == s], n) for s, n in self._repeats()]
        )
        store = self.chosen_store
        dataset = self._dataset(repeated, self._loader_warp(store), store)
        blocks = self.loader.blocks if store == "disk" else None
        order, process = EpochOrder(len(repeated), self.batch_size, self.seed, blocks), self._process()
        process.columns_of(np.zeros((0, order.batch), np.int64), blocks)  # fail before training starts
        sampler = StepSampler(order, process, blocks, self._reader(repeated) if blocks else None)
        loader = self._train_loader = TrainLoader(dataset, sampler, **self._options(store))
        if self._resumed_state:
            loader.load_state_dict(self._resumed_state)
            self._resumed_state = {}
        return loader

    def state_dict(self) -> dict[str, int]:
        """Return how far the epoch is, for a checkpoint.

        Lightning asks the loader itself too, but forgets the answer where the number of steps was computed
        before a checkpoint is loaded, as a schedule of the learning rate does.
        """
        return self._train_loader.state_dict() if self._train_loader is not None else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Have the next loader of the train split continue from there."""
        self._resumed_state = state_dict

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the val split, in order, unaltered."""
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of `test_split`, in order, unaltered."""
        return self._in_order(self.test_split)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """On the batch's device: fetch tiles that live there, and augment them while fitting."""
        if "tiles" not in batch and self._resident is not None:
            tiles, _ = self._resident.fetch(batch["rows"].clamp(min=0))
            batch = {**batch, "tiles": tiles}
        if self.trainer is None or not self.trainer.training:
            return {name: batch[name] for name in ("tiles", "labels", "rows")}
        augment = self.augmentation(batch["tiles"].device)
        tiles, whole, targets = augment(batch["tiles"], batch["labels"], batch["keys"])
        return {**batch, "tiles": tiles, "whole": whole, "targets": targets}

    def augmentation(self, device: torch.device) -> Augmentation:
        """Return the augmentation of training batches on `device`, built on the first call."""
        if self._augmentation is None:
            made = Augmentation(self.classes, self.seed, self.augment).requires_grad_(False).to(device)
            compiled = device.type == "cuda" if self.augment.compile is None else self.augment.compile
            if compiled:
                made.compile(fullgraph=True, dynamic=False)
            self._augmentation = made
        return self._augmentation

    def teardown(self, stage: str) -> None:
        """Release the device's memory and end the reading thread."""
        self._resident = self._augmentation = self._chosen_store = None
        if self._read_ahead is not None:
            self._read_ahead.close()
            self._read_ahead = None

    def _decide_store(self) -> Store:
        size = resident_bytes(self.pack, np.concatenate([*self._train_rows(), self.pack.rows("val")]))
        if self.device.type == "cuda" and size <= _DEVICE_FRACTION * torch.cuda.mem_get_info(self.device)[0]:
            return "device"
        return "memory" if size <= _MEMORY_FRACTION * _memory_bytes() else "disk"

    def _loader_warp(self, store: Store) -> AlbumentationsWarp | None:
        """Return the warp that the loader applies, or None where the device warps.

        Raises:
            TrainingError: Albumentations should warp tiles that the loader never sees.
        """
        if not self.augment.enabled or self.augment.geometry.backend != "albumentations":
            return None
        if store == "device":
            raise TrainingError(
                "data.augment.geometry.backend: albumentations cannot warp tiles that are kept on the "
                "device; choose torch, or another data.loader.store"
            )
        return AlbumentationsWarp(self.augment.geometry)

    def _train_rows(self) -> list[npt.NDArray[np.int64]]:
        """Return the rows of each split that trains, which a pack that is only tested need not have."""
        return [self.pack.rows(split) for split in self.train_splits]

    @cached_property
    def _held_out(self) -> npt.NDArray[np.int64]:
        """The rows of the train split in groups that do not train."""
        rows = self.pack.rows("train")
        if not self.hold_out.held_out:
            return rows[:0]
        return rows[np.isin(group_tiles(self.pack, rows, self.hold_out.groups), self.hold_out.held_out)]

    def _rows(self, split: str) -> npt.NDArray[np.int64]:
        rows = self._held_out if split == HELD_OUT else self.pack.rows(split)
        if not len(rows):
            have = ", ".join(f"{name} ({sum(c.values())})" for name, c in self.pack.summary.counts.items())
            raise TrainingError(f"{self.pack.root}: no tile is in the split {split!r}; it has {have}")
        return rows

    def _repeats(self) -> list[tuple[str, int]]:
        unknown = set(self.repeat) - set(self.pack.summary.sources)
        if unknown:
            have = ", ".join(self.pack.summary.sources)
            raise TrainingError(f"data.repeat names {', '.join(unknown)}, but the pack's sources are {have}")
        found = [(source, self.repeat.get(source, 1)) for source in self.pack.summary.sources]
        if min(times for _, times in found) < 0 or not any(times for _, times in found):
            raise TrainingError(
                f"data.repeat: {self.repeat}: every number must be 0 or more, and one above 0"
            )
        return found

    def _process(self) -> ProcessRank:
        if self.trainer is None:
            return ProcessRank()
        return ProcessRank(self.trainer.global_rank, self.trainer.world_size)

    def _dataset(
        self, rows: npt.NDArray[np.int64], warp: AlbumentationsWarp | None, store: Store
    ) -> PackedDataset:
        if store == "device" and (self._resident is None or not np.isin(rows, self._resident.rows).all()):
            fitting = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
            held = [] if self._resident is None else [self._resident.rows]
            more = [*self._train_rows(), self.pack.rows("val")] if fitting else []
            self._resident = ResidentTiles(self.pack, np.concatenate([rows, *held, *more]), self.device)
        return PackedDataset(self.pack, rows, warp, self.seed, pixels=store != "device")

    def _in_order(self, split: str) -> DataLoader[Batch]:
        rows, store = self._rows(split), self.chosen_store
        sampler = ChunkSampler(len(rows), self.loader.evaluation_batch, self._process())
        dataset = self._dataset(rows, None, store)
        return DataLoader(dataset, sampler=sampler, batch_size=None, collate_fn=as_is, **self._options(store))

    def _reader(self, rows: npt.NDArray[np.int64]) -> Callable[[npt.NDArray[np.int64]], None]:
        reader = self._read_ahead = self._read_ahead or ReadAhead(self.pack)
        return lambda indices: reader.request(rows[indices])

    def _options(self, store: Store) -> dict[str, Any]:
        workers = 0 if store == "device" else self.loader.workers  # there is nothing to read
        return {
            "num_workers": workers,
            "persistent_workers": workers > 0,
            # Its own generator: a loader that draws from torch's would shift the draws of the network.
            "generator": torch.Generator().manual_seed(self.seed),
            # Batches are copied while the device computes; row numbers are not worth a thread.
            "pin_memory": torch.cuda.is_available() and store != "device",
        }


def _memory_bytes() -> int:
    """Return the bytes of this machine's memory, or of what a container may use of it."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(whole, int(text)) if text.isdigit() else whole


def _checked_splits(splits: tuple[str, ...]) -> tuple[str, ...]:
    """Return the splits that train; raise TrainingError where there are none, or some that only evaluate."""
    if not splits or not set(splits) <= set(_TRAINING_SPLITS):
        raise TrainingError(f"data.train_splits: {list(splits)}; it is [train], [{UNLABELLED}] or both")
    return splits
