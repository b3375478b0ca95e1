"""The data module: whole batches, repeats, orders to be had again, and augmentation while fitting alone."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from rasters import noise, write_jpeg, write_tiff
from torch import Tensor

from tilewise.datasets.core.bands import EUROSAT_MS_ORDER, positions
from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.loading.augment import AugmentOptions, BandDropoutOptions
from tilewise.datasets.loading.geometry import AlbumentationsWarp, Backend, GeometryOptions
from tilewise.datasets.loading.loaders import Batch, LoaderOptions, PackedDataset, Store, TrainLoader
from tilewise.datasets.loading.module import TileDataModule
from tilewise.datasets.loading.mosaic import MosaicOptions
from tilewise.datasets.loading.sampling import BlockOptions
from tilewise.datasets.packs.pack import Pack
from tilewise.datasets.packs.packing import write_pack
from tilewise.datasets.packs.splits import SplitPlan
from tilewise.datasets.readers.sources import find_source

NO_AUGMENTATION = AugmentOptions(enabled=False)
BY_ALBUMENTATIONS = AugmentOptions(geometry=GeometryOptions(backend="albumentations"))


class Recorder(pl.LightningModule):
    """Trains one number, and keeps every batch that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[Batch]] = {"train": [], "val": [], "test": []}

    def training_step(self, batch: Batch) -> Tensor:
        self.seen["train"].append(batch)
        return self.weight**2

    def validation_step(self, batch: Batch) -> None:
        self.seen["val"].append(batch)

    def test_step(self, batch: Batch) -> None:
        self.seen["test"].append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Process:
    """The part of a trainer that the data module uses."""

    training = True
    state = pl.trainer.states.TrainerState()

    def __init__(self, rank: int, count: int) -> None:
        self.global_rank, self.world_size = rank, count
        self.strategy = type("Strategy", (), {"root_device": torch.device("cpu")})


def fit(data: TileDataModule, epochs: int = 1) -> Recorder:
    pl.seed_everything(0, verbose=False)
    recorder = Recorder()
    trainer(epochs).fit(recorder, data)
    return recorder


def trainer(epochs: int = 1) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def epoch_of(data: TileDataModule, epoch: int) -> list[Batch]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return list(loader)


def all_of(batches: list[Batch], key: str) -> np.ndarray[Any, np.dtype[Any]]:
    return torch.cat([batch[key] for batch in batches]).numpy()


@pytest.fixture(scope="module")
def mixed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of 10 multispectral and 20 RGB tiles: 24 in train, 6 in val, none in test."""
    root = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(0)
    for n in range(20):
        write_jpeg(
            root / "EuroSAT_RGB" / "AB"[n % 2] / f"{n}.jpg", rng.integers(0, 256, (3, 64, 64), np.uint8)
        )
    for n in range(10):
        write_tiff(
            root / "EuroSAT_MS" / "AB"[n % 2] / f"{n + 20}.tif",
            noise(n)[positions(EUROSAT_MS_ORDER)],
            tags={},
        )
    sources = [find_source(root / "EuroSAT_MS"), find_source(root / "EuroSAT_RGB")]
    write_pack(sources, root / "pack", SplitPlan(fractions=(0.8, 0.2, 0.0)))
    return root / "pack"


# Batches.


def test_a_batch_is_fetched_whole_and_has_the_pixels_labels_and_rows_of_the_pack(pack: Pack) -> None:
    rows = pack.rows("val")
    dataset = PackedDataset(pack, rows)
    batch = dataset[[5, 0, 2]]
    assert len(dataset) == 30
    assert (batch["tiles"].dtype, batch["tiles"].shape) == (torch.uint16, (3, 13, 64, 64))
    assert np.array_equal(batch["tiles"].numpy(), pack.fetch(rows[[5, 0, 2]]))
    assert batch["labels"].tolist() == pack.labels[rows[[5, 0, 2]]].tolist()
    assert batch["rows"].tolist() == rows[[5, 0, 2]].tolist()
    assert torch.equal(dataset[5]["tiles"], batch["tiles"][:1])


def test_val_and_test_are_in_order_whole_and_unaltered_whatever_the_batch_size(
    pack_folder: Path, pack: Pack
) -> None:
    for batch_size in (16, 24):
        data = TileDataModule(pack_folder, batch_size=batch_size, loader=LoaderOptions(evaluation_batch=16))
        for split, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
            batches = list(loader)
            assert [len(batch["rows"]) for batch in batches] == [16, 16]  # the second is filled up
            counted = all_of(batches, "rows") >= 0
            assert np.array_equal(all_of(batches, "rows")[counted], pack.rows(split))
            assert np.array_equal(all_of(batches, "tiles")[counted], pack.fetch(pack.rows(split)))
            assert np.array_equal(all_of(batches, "labels")[counted], pack.labels[pack.rows(split)])
            assert (all_of(batches, "labels")[~counted] == -1).all()


def test_another_split_may_be_tested(pack_folder: Path, pack: Pack) -> None:
    loader = TileDataModule(pack_folder, test_split="val").test_dataloader()
    assert np.array_equal(all_of(list(loader), "rows"), pack.rows("val"))


def test_an_epoch_of_training_is_every_tile_of_train_in_another_order(pack_folder: Path, pack: Pack) -> None:
    data = TileDataModule(pack_folder, batch_size=10, augment=NO_AUGMENTATION)
    batches = epoch_of(data, 0)
    rows = all_of(batches, "rows")
    assert len(batches) == 7
    assert sorted(rows) == pack.rows("train").tolist()
    assert rows.tolist() != sorted(rows)
    assert np.array_equal(all_of(batches, "tiles"), pack.fetch(rows))


def test_a_last_batch_that_is_not_full_is_left_out_of_training_unless_it_is_the_only_one(
    pack_folder: Path,
) -> None:
    assert [len(batch["rows"]) for batch in epoch_of(TileDataModule(pack_folder, batch_size=32), 0)] == [
        32,
        32,
    ]
    assert [len(batch["rows"]) for batch in epoch_of(TileDataModule(pack_folder, batch_size=100), 0)] == [70]


def test_the_module_knows_classes_counts_and_statistics(
    pack_folder: Path, pack: Pack, mixed_folder: Path
) -> None:
    data = TileDataModule(pack_folder)
    assert data.classes == list(pack.summary.classes)
    assert data.class_counts == [7] * 10
    tiles = pack.fetch(pack.rows("train"))
    assert data.band_mean == pytest.approx(tiles.mean(axis=(0, 2, 3)).tolist())
    assert data.band_std == pytest.approx(tiles.std(axis=(0, 2, 3)).tolist())
    assert TileDataModule(mixed_folder).class_counts == [12, 12]


# Orders.


def test_lightning_gives_every_epoch_its_own_order_and_warps(pack_folder: Path) -> None:
    data = TileDataModule(pack_folder, batch_size=35)
    batches = fit(data, epochs=2).seen["train"]
    first, second = all_of(batches[:2], "rows"), all_of(batches[2:], "rows")
    assert sorted(first) == sorted(second)
    assert first.tolist() != second.tolist()
    again = fit(TileDataModule(pack_folder, batch_size=35), epochs=2).seen["train"]
    for one, other in zip(batches, again, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in ("rows", "tiles", "targets"))


@pytest.mark.parametrize("backend", ["torch", "albumentations"])
def test_a_tile_is_warped_otherwise_in_each_epoch_and_the_same_when_an_epoch_is_repeated(
    pack_folder: Path, backend: Backend
) -> None:
    if backend == "albumentations":
        pytest.importorskip("albumentations")

    def tiles(epoch: int, workers: int = 0) -> dict[int, np.ndarray[Any, np.dtype[np.uint16]]]:
        augment = AugmentOptions(geometry=GeometryOptions(backend))
        data = TileDataModule(pack_folder, batch_size=35, loader=LoaderOptions(workers), augment=augment)
        data.trainer = Process(0, 1)  # type: ignore[assignment]
        batches = [data.on_after_batch_transfer(batch, 0) for batch in epoch_of(data, epoch)]
        return dict(zip(all_of(batches, "rows").tolist(), all_of(batches, "tiles"), strict=True))

    first, again, parallel, later = tiles(1), tiles(1), tiles(1, workers=2), tiles(2)
    assert all(np.array_equal(first[row], again[row]) for row in first)
    assert all(np.array_equal(first[row], parallel[row]) for row in first)
    assert sum(np.array_equal(first[row], later[row]) for row in first) < 15


def test_an_index_of_a_later_epoch_is_the_same_tile_warped_otherwise(pack: Pack) -> None:
    pytest.importorskip("albumentations")
    dataset = PackedDataset(pack, pack.rows("val"), AlbumentationsWarp(GeometryOptions(warp=1.0)))
    first, again, later = dataset[3], dataset[3], dataset[3 + 30]
    assert first["rows"].tolist() == later["rows"].tolist() == [pack.rows("val")[3]]
    assert torch.equal(first["tiles"], again["tiles"])
    assert not torch.equal(first["tiles"], later["tiles"])


# Sources.


def test_repeats_say_how_often_the_tiles_of_a_source_stand_in_an_epoch(mixed_folder: Path) -> None:
    data = TileDataModule(mixed_folder, batch_size=1, repeat={"eurosat-ms": 3}, augment=NO_AUGMENTATION)
    rows, counts = np.unique(all_of(epoch_of(data, 0), "rows"), return_counts=True)
    times = dict(zip(rows.tolist(), counts.tolist(), strict=True))
    assert {times[row] for row in data.pack.rows("train", "eurosat-ms").tolist()} == {3}
    assert {times[row] for row in data.pack.rows("train", "eurosat-rgb").tolist()} == {1}
    assert len(times) == 24


def test_a_source_repeated_0_times_is_left_out(mixed_folder: Path) -> None:
    data = TileDataModule(mixed_folder, batch_size=1, repeat={"eurosat-rgb": 0}, augment=NO_AUGMENTATION)
    assert sorted(all_of(epoch_of(data, 0), "rows")) == data.pack.rows("train", "eurosat-ms").tolist()


def test_an_unknown_source_is_refused_with_those_that_exist(mixed_folder: Path) -> None:
    message = r"data\.repeat names spot, but the pack's sources are eurosat-ms, eurosat-rgb"
    with pytest.raises(TrainingError, match=message):
        TileDataModule(mixed_folder, repeat={"spot": 2}).train_dataloader()
    for wrong in ({"eurosat-rgb": -1}, {"eurosat-rgb": 0, "eurosat-ms": 0}):
        with pytest.raises(TrainingError, match="every number must be 0 or more, and one above 0"):
            TileDataModule(mixed_folder, repeat=wrong).train_dataloader()


def test_bands_that_a_tile_lacks_stay_absent_through_the_warps(mixed_folder: Path) -> None:
    geometry = GeometryOptions(warp=1.0)
    augment = AugmentOptions(
        geometry=geometry, band_dropout=BandDropoutOptions(sets={"all": 1.0}, random=0.0)
    )
    data = TileDataModule(mixed_folder, batch_size=24, augment=augment)
    (batch,) = fit(data).seen["train"]
    bands = batch["tiles"].numpy().any(axis=(2, 3)).sum(axis=1)
    is_rgb = np.isin(batch["rows"].numpy(), data.pack.rows("train", "eurosat-rgb"))
    assert np.array_equal(bands, np.where(is_rgb, 3, 13))


def test_a_split_without_tiles_is_refused_with_those_that_have_some(mixed_folder: Path) -> None:
    data = TileDataModule(mixed_folder)
    with pytest.raises(
        TrainingError, match=r"no tile is in the split 'test'; it has train \(24\), val \(6\)"
    ):
        data.test_dataloader()
    with pytest.raises(TrainingError, match="'holdout'"):
        TileDataModule(mixed_folder, test_split="holdout").test_dataloader()


# While fitting.


def test_only_training_batches_are_augmented_and_have_targets(pack_folder: Path, pack: Pack) -> None:
    data = TileDataModule(pack_folder, batch_size=35)
    recorder = fit(data)
    trainer().test(recorder, data, verbose=False)
    for batch in recorder.seen["train"]:
        assert (batch["tiles"].dtype, batch["targets"].shape) == (torch.float32, (35, 10))
        assert torch.allclose(batch["targets"].sum(dim=1), torch.ones(35))
        assert not np.array_equal(batch["tiles"].numpy(), pack.fetch(batch["rows"].numpy()))
    for split in ("val", "test"):
        assert recorder.seen[split]
        for batch in recorder.seen[split]:
            assert set(batch) == {"tiles", "labels", "rows"}
            assert np.array_equal(batch["tiles"].numpy(), pack.fetch(batch["rows"].numpy()))


def test_without_augmentation_training_sees_the_tiles_as_they_are(pack_folder: Path, pack: Pack) -> None:
    for batch in fit(TileDataModule(pack_folder, batch_size=35, augment=NO_AUGMENTATION)).seen["train"]:
        assert batch["tiles"].dtype == torch.float32
        assert np.array_equal(batch["tiles"].numpy(), pack.fetch(batch["rows"].numpy()))
        assert torch.equal(batch["targets"], torch.eye(10)[batch["labels"]])


def test_tiles_are_warped_by_torch_after_mosaics_and_by_albumentations_only_where_that_is_chosen(
    pack_folder: Path,
) -> None:
    mosaics = MosaicOptions(fraction=0.5)
    by_torch = TileDataModule(pack_folder, augment=AugmentOptions(mosaic=mosaics))
    steps = by_torch.augmentation(torch.device("cpu"))
    assert steps.mosaic is not None
    assert steps.warp is not None
    pytest.importorskip("albumentations")
    by_loader = TileDataModule(pack_folder, augment=replace(BY_ALBUMENTATIONS, mosaic=mosaics))
    assert by_loader.augmentation(torch.device("cpu")).warp is None
    assert not np.array_equal(all_of(epoch_of(by_loader, 0), "tiles"), all_of(epoch_of(by_torch, 0), "tiles"))


def test_training_needs_no_albumentations_and_choosing_it_says_what_is_missing(
    pack_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("albumentations", "cv2"):
        monkeypatch.setitem(sys.modules, name, None)  # its import fails
    assert len(fit(TileDataModule(pack_folder, batch_size=35)).seen["train"]) == 2
    with pytest.raises(
        TrainingError, match=r"geometry\.backend: albumentations is not installed; .* or choose torch"
    ):
        TileDataModule(pack_folder, augment=BY_ALBUMENTATIONS).train_dataloader()


# Stores.


@pytest.mark.parametrize("workers", [0, 2])
def test_tiles_from_the_device_are_the_batches_that_tiles_from_memory_are(
    pack_folder: Path, workers: int
) -> None:
    def seen(store: Store) -> dict[str, list[Batch]]:
        data = TileDataModule(pack_folder, batch_size=35, loader=LoaderOptions(workers, store=store))
        recorder = fit(data, epochs=2)
        trainer().test(recorder, data, verbose=False)
        return recorder.seen

    device, memory = seen("device"), seen("memory")
    for stage, batches in memory.items():
        assert batches
        for one, other in zip(batches, device[stage], strict=True):
            assert set(one) == set(other)
            assert all(torch.equal(one[key], other[key]) for key in one)


def test_tiles_on_the_disk_come_in_blocks_once_an_epoch_and_are_read_ahead(
    pack_folder: Path, pack: Pack
) -> None:
    loader = LoaderOptions(store="disk", blocks=BlockOptions(tiles=4, window=32, shards=2))
    data = TileDataModule(pack_folder, batch_size=8, loader=loader, augment=NO_AUGMENTATION)
    rows = [batch["rows"] for batch in fit(data, epochs=2).seen["train"]]
    assert len(rows) == 16
    for epoch in (rows[:8], rows[8:]):
        found = torch.cat(epoch).tolist()
        assert len(set(found)) == 64
        assert set(found) <= set(pack.rows("train").tolist())
    assert torch.cat(rows[:8]).tolist() != torch.cat(rows[8:]).tolist()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("store", ["memory", "device", "disk"])
def test_an_epoch_taken_up_in_its_middle_goes_on_with_the_batches_that_were_left(
    pack_folder: Path, store: Store, workers: int
) -> None:
    def loader() -> TrainLoader:
        blocks = BlockOptions(tiles=4, window=32, shards=2)
        data = TileDataModule(
            pack_folder, batch_size=10, loader=LoaderOptions(workers, store=store, blocks=blocks)
        )
        made = data.train_dataloader()
        assert isinstance(made, TrainLoader)
        return made

    broken, whole, resumed = loader(), loader(), loader()
    whole.sampler.set_epoch(3)  # type: ignore[attr-defined]
    expected = list(whole)
    batches = iter(broken)
    broken.sampler.set_epoch(3)  # type: ignore[attr-defined]  # as Lightning does, after `iter`
    head = [next(batches) for _ in range(2)]
    resumed.load_state_dict(broken.state_dict())
    batches = iter(resumed)
    resumed.sampler.set_epoch(3)  # type: ignore[attr-defined]
    tail = list(batches)
    assert len(expected) == len(resumed) >= 6
    for one, other in zip([*head, *tail], expected, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in other)
    assert len(list(resumed)) == len(expected)  # the next epoch is whole again
    resumed.load_state_dict(resumed.state_dict())
    assert len(list(resumed)) == len(expected)  # a finished epoch leaves nothing to take up


def test_a_store_is_chosen_by_size_or_by_name(pack_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert TileDataModule(pack_folder).chosen_store == "memory"
    assert TileDataModule(pack_folder, loader=LoaderOptions(store="device")).chosen_store == "device"
    monkeypatch.setattr("tilewise.datasets.loading.module._MEMORY_FRACTION", 1e-9)
    assert TileDataModule(pack_folder).chosen_store == "disk"


def test_tiles_on_the_device_cannot_be_warped_by_albumentations(pack_folder: Path) -> None:
    data = TileDataModule(pack_folder, loader=LoaderOptions(store="device"), augment=BY_ALBUMENTATIONS)
    with pytest.raises(TrainingError, match=r"choose torch, or another data\.loader\.store"):
        data.train_dataloader()


def test_impossible_loader_options_are_refused() -> None:
    for wrong in ({"workers": -1}, {"evaluation_batch": 0}):
        with pytest.raises(TrainingError, match=r"data\.loader: .* must be 0 or more"):
            LoaderOptions(**wrong)


def test_each_process_gets_its_part_of_every_batch(pack_folder: Path) -> None:
    def batches(rank: int | None) -> list[Batch]:
        data = TileDataModule(pack_folder, batch_size=20)
        if rank is not None:
            data.trainer = Process(rank, 2)  # type: ignore[assignment]
        return epoch_of(data, 1)

    for whole, first, second in zip(batches(None), batches(0), batches(1), strict=True):
        assert all(torch.equal(whole[key], torch.cat([first[key], second[key]])) for key in whole)


def test_a_split_that_judges_does_not_train_and_none_is_too_few(pack_folder: Path) -> None:
    for splits in ((), ("train", "val"), ("test",)):
        with pytest.raises(
            TrainingError, match=r"data\.train_splits: .*; it is \[train\], \[unlabelled\] or both"
        ):
            TileDataModule(pack_folder, train_splits=splits)


def test_a_pack_that_is_only_tested_needs_no_tiles_that_train(pack_folder: Path, pack: Pack) -> None:
    data = TileDataModule(pack_folder, train_splits=("unlabelled",))
    assert all_of(list(data.test_dataloader()), "rows").tolist() == pack.rows("test").tolist()
    with pytest.raises(TrainingError, match="no tile is in the split 'unlabelled'"):
        data.train_dataloader()
