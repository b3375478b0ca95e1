"""The Lightning data module: packed tiles in, batches out, augmented on the way.

A batch is a dict: `tiles` uint16 (batch, 13, 64, 64) in DN, `labels` int64 (batch,), `rows` int64 (batch,),
the tiles' rows in the pack. While fitting, `tiles` become augmented float32 DN on the device, `whole` are the same
before noise and lost lines, and `targets` float32 (batch, classes) are the labels, mixed where tiles were mixed. In the
other stages a place with the row −1 fills a chunk up and is not to be counted.

Tiles come from one of three stores. `device`: all pixels live on the device, and a step copies only the numbers of
its tiles. `memory`: pixels are gathered from the memory map and copied once, as uint16. `disk`: as `memory`, but
shuffled in blocks that are read sequentially ahead of training, for packs that do not fit into the memory.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.loading.atmosphere import AtmosphereOptions
from tilewise.datasets.loading.augment import Augmentation, BandDropout, HoleOptions, MixOptions, RadiometryOptions
from tilewise.datasets.loading.draws import BlockOptions, EpochOrder, Part
from tilewise.datasets.loading.geometry import Geometry, GeometryOptions
from tilewise.datasets.loading.loaders import (
    Batch,
    ChunkSampler,
    PackedDataset,
    ReadAhead,
    ResidentTiles,
    StepSampler,
    TrainLoader,
    as_is,
    resident_bytes,
)
from tilewise.datasets.loading.mosaic import MosaicOptions
from tilewise.datasets.packs.derived import open_pack
from tilewise.datasets.packs.pack import UNLABELLED

_MAY_TRAIN = ("train", UNLABELLED)
_DEVICE_SHARE = 0.4  # of the device's free memory that tiles may take; the network and its gradients need the rest
_MEMORY_SHARE = 0.6  # of the machine's memory


# Where tiles are kept while training, and where they are turned and warped.
Store = Literal["auto", "device", "memory", "disk"]
Place = Literal["auto", "cpu", "device"]


class TileDataModule(pl.LightningDataModule):
    """Packed tiles as Lightning wants them.

    Args:
        pack: folder of a pack (`tilewise data pack`), or an array file (`tilewise.datasets.packs.derived`).
        batch_size: tiles a step, in all training processes together.
        workers: loader processes; 0 reads in the training process.
        repeat: how often the tiles of a source stand in an epoch, e.g. `{eurosat-ms: 6}` where they are few; 0: never.
        train_splits: the splits that train: `train`; where labels count for nothing (pretraining) `unlabelled` too.
        test_split: the split that `test` measures.
        evaluation_batch: tiles that validation and test answer at a time; their figures do not depend on batch_size.
        store: where tiles are kept; auto decides by their size: on a GPU that holds them, else in memory, else on disk.
        blocks: how tiles on the disk are shuffled.
        geometry: turns and warps.
        geometry_on: where tiles are turned and warped; auto: on a GPU, or on the CPU by Albumentations. With mosaics
            auto is the device, which warps after it made them.
        radiometry: gain, haze and noise, on the device.
        band_dropout: hiding of bands, on the device.
        mix: mixing of tiles, on the device.
        atmosphere: simulation of Level-2A from Level-1C, on the device.
        holes: loss of parts of tiles, on the device.
        mosaic: tiles of one class in small beside each other, on the device.
        augment: false switches all of that off.
        compile: compile the augmentation; null: on a GPU.
        seed: of the order of tiles and of every draw.
    """

    def __init__(
        self,
        pack: Path = Path("data/packed"),
        batch_size: int = 128,
        workers: int = 0,
        repeat: dict[str, int] | None = None,
        train_splits: tuple[str, ...] = ("train",),
        test_split: str = "test",
        evaluation_batch: int = 256,
        store: Store = "auto",
        blocks: BlockOptions = BlockOptions(),  # noqa: B008 - frozen
        geometry: GeometryOptions = GeometryOptions(),  # noqa: B008 - frozen
        geometry_on: Place = "auto",
        radiometry: RadiometryOptions = RadiometryOptions(),  # noqa: B008 - frozen
        band_dropout: BandDropout = BandDropout(),  # noqa: B008 - frozen
        mix: MixOptions = MixOptions(),  # noqa: B008 - frozen
        atmosphere: AtmosphereOptions = AtmosphereOptions(share=0.0),  # noqa: B008 - frozen
        holes: HoleOptions = HoleOptions(share=0.0),  # noqa: B008 - frozen
        mosaic: MosaicOptions = MosaicOptions(),  # noqa: B008 - frozen
        augment: bool = True,
        compile: bool | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size, self.workers, self.augment, self.seed = batch_size, workers, augment, seed
        self.repeat, self.evaluation_batch = repeat or {}, evaluation_batch
        self.train_splits, self.test_split = _checked(train_splits), test_split
        self.store, self.blocks, self.compile = store, blocks, compile
        self.geometry, self.geometry_on, self.radiometry = geometry, geometry_on, radiometry
        self.band_dropout, self.mix, self.atmosphere, self.holes = band_dropout, mix, atmosphere, holes
        self.mosaic = mosaic
        self.pack = open_pack(Path(pack))
        self.classes = list(self.pack.summary.classes)
        train = self.pack.summary.counts.get("train", {})
        self.class_counts = [train.get(name, 0) for name in self.classes]
        statistics = self.pack.statistics()
        self.band_mean = [float(band["mean"]) for band in statistics]
        self.band_std = [float(band["std"]) for band in statistics]  # 0: no tile has the band
        self._decided: Store | None = None
        self._loader: TrainLoader | None = None
        self._taken_up: dict[str, int] = {}
        self._resident: ResidentTiles | None = None
        self._augmentation: Augmentation | None = None
        self._ahead: ReadAhead | None = None

    @property
    def device(self) -> torch.device:
        """The device that trains; the CPU without a trainer."""
        return self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")

    @property
    def chosen_store(self) -> Store:
        """Where tiles are kept, decided by the size of the train and val splits if it was left open."""
        if self._decided is None:
            self._decided = self._decide_store() if self.store == "auto" else self.store
        return self._decided

    @property
    def geometry_place(self) -> Place:
        """Where tiles are turned and warped.

        Raises:
            TrainingError: on the CPU, but the tiles are on the device.
        """
        resident = self.chosen_store == "device"
        if self.geometry_on == "auto":
            return "device" if resident or self.device.type != "cpu" or self.mosaic.share > 0 else "cpu"
        if resident and self.geometry_on == "cpu":
            raise TrainingError("tiles that are kept on the device cannot be warped on the CPU; change data.store")
        return self.geometry_on

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the augmented, shuffled loader of the train split."""
        rows = np.concatenate([self._rows(split) for split in self.train_splits])
        repeated = np.concatenate([np.tile(rows[self.pack.sources[rows] == s], n) for s, n in self._repeats()])
        store = self.chosen_store
        on_cpu = self.augment and self.geometry_place == "cpu"
        dataset = self._dataset(repeated, Geometry(self.geometry) if on_cpu else None, store)
        blocks = self.blocks if store == "disk" else None
        order, part = EpochOrder(len(repeated), self.batch_size, self.seed, blocks), self._part()
        part.of_batch(np.zeros((0, order.batch), np.int64), blocks)  # what cannot be parted is said before it starts
        sampler = StepSampler(order, part, blocks, self._reader(repeated) if blocks else None)
        loader = self._loader = TrainLoader(dataset, sampler, **self._options(store))
        if self._taken_up:
            loader.load_state_dict(self._taken_up)
            self._taken_up = {}
        return loader

    def state_dict(self) -> dict[str, int]:
        """Return how far the epoch is, for a checkpoint.

        Lightning asks the loader itself too, but forgets the answer where the number of steps was asked for before a
        checkpoint is loaded, as a schedule of the learning rate does.
        """
        return self._loader.state_dict() if self._loader is not None else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Have the next loader of the train split go on from there."""
        self._taken_up = state_dict

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of the val split, in order, unaltered."""
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the loader of `test_split`, in order, unaltered."""
        return self._in_order(self.test_split)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """On the device that the batch is on now: take tiles that live there, and while fitting augment them."""
        if "tiles" not in batch and self._resident is not None:
            tiles, _ = self._resident.fetch(batch["rows"].clamp(min=0))
            batch = {**batch, "tiles": tiles}
        if self.trainer is None or not self.trainer.training:
            return {name: batch[name] for name in ("tiles", "labels", "rows")}
        augment = self.augmentation(batch["tiles"].device)
        tiles, whole, targets = augment(batch["tiles"], batch["labels"], batch["keys"])
        return {**batch, "tiles": tiles, "whole": whole, "targets": targets}

    def augmentation(self, device: torch.device) -> Augmentation:
        """Return what is done to training batches on `device`, made on the first call."""
        if self._augmentation is None:
            made = self._make_augmentation().to(device)
            wanted = device.type == "cuda" if self.compile is None else self.compile
            if wanted:
                made.compile(fullgraph=True, dynamic=False)
            self._augmentation = made
        return self._augmentation

    def teardown(self, stage: str) -> None:
        """Let go of the device's memory and of the reading thread."""
        self._resident = self._augmentation = self._decided = None
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _decide_store(self) -> Store:
        size = resident_bytes(self.pack, np.concatenate([*self._train_parts(), self.pack.rows("val")]))
        if self.device.type == "cuda" and size <= _DEVICE_SHARE * torch.cuda.mem_get_info(self.device)[0]:
            return "device"
        return "memory" if size <= _MEMORY_SHARE * _memory() else "disk"

    def _make_augmentation(self) -> Augmentation:
        if not self.augment:
            return Augmentation(self.classes, self.seed)
        geometry = self.geometry if self.geometry_place == "device" else None
        return Augmentation(
            self.classes,
            self.seed,
            geometry,
            self.radiometry,
            self.band_dropout,
            self.mix,
            self.atmosphere,
            self.holes,
            self.mosaic,
        ).requires_grad_(False)

    def _train_parts(self) -> list[npt.NDArray[np.int64]]:
        """Return the rows of each split that trains, which a pack that is only tested need not have."""
        return [self.pack.rows(split) for split in self.train_splits]

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
        found = [(source, self.repeat.get(source, 1)) for source in self.pack.summary.sources]
        if min(times for _, times in found) < 0 or not any(times for _, times in found):
            raise TrainingError(f"data.repeat: {self.repeat}: no number is below 0, and some source must train")
        return found

    def _part(self) -> Part:
        return Part(self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else Part()

    def _dataset(self, rows: npt.NDArray[np.int64], geometry: Geometry | None, store: Store) -> PackedDataset:
        if store == "device" and (self._resident is None or not np.isin(rows, self._resident.rows).all()):
            fitting = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
            held = [] if self._resident is None else [self._resident.rows]
            more = [*self._train_parts(), self.pack.rows("val")] if fitting else []
            self._resident = ResidentTiles(self.pack, np.concatenate([rows, *held, *more]), self.device)
        return PackedDataset(self.pack, rows, geometry, self.seed, pixels=store != "device")

    def _in_order(self, split: str) -> DataLoader[Batch]:
        rows, store = self._rows(split), self.chosen_store
        sampler = ChunkSampler(len(rows), self.evaluation_batch, self._part())
        dataset = self._dataset(rows, None, store)
        return DataLoader(dataset, sampler=sampler, batch_size=None, collate_fn=as_is, **self._options(store))

    def _reader(self, rows: npt.NDArray[np.int64]) -> Callable[[npt.NDArray[np.int64]], None]:
        ahead = self._ahead = self._ahead or ReadAhead(self.pack)
        return lambda positions: ahead.want(rows[positions])

    def _options(self, store: Store) -> dict[str, Any]:
        workers = 0 if store == "device" else self.workers  # there is nothing to read
        return {
            "num_workers": workers,
            "persistent_workers": workers > 0,
            # Its own generator: a loader that draws from torch's would shift the draws of the network.
            "generator": torch.Generator().manual_seed(self.seed),
            # What one copy takes to the device while it computes; a list of row numbers is not worth a thread.
            "pin_memory": torch.cuda.is_available() and store != "device",
        }


def _memory() -> int:
    """Return the bytes of this machine's memory, or of what a container may use of it."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(whole, int(text)) if text.isdigit() else whole


def _checked(splits: tuple[str, ...]) -> tuple[str, ...]:
    """Return the splits that train; raises TrainingError where there are none, or some that judge."""
    if not splits or not set(splits) <= set(_MAY_TRAIN):
        raise TrainingError(f"data.train_splits: {list(splits)}; it is [train], [{UNLABELLED}] or both")
    return splits
