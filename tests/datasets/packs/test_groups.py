"""Groups of tiles that look alike, in an array file whose colours are known."""

from pathlib import Path

import numpy as np
import pytest

from tilewise.datasets.loading.module import HoldOutOptions, TileDataModule
from tilewise.datasets.packs.groups import group_tiles
from tilewise.datasets.packs.pack import Pack, open_pack

LEVELS = (300, 900, 2700)  # DN of three regions


@pytest.fixture
def regions(tmp_path: Path) -> Path:
    """Two classes of thirty tiles, from three regions; every place has a second, slightly darker tile."""
    rng = np.random.default_rng(0)
    levels = np.tile(np.repeat(LEVELS, 10), 2)
    tiles = rng.normal(levels[:, None, None, None], 20, (60, 13, 64, 64)).clip(1).astype(np.uint16)
    names = [f"folder/Place_{n}.tif" for n in range(60)] + [f"other/Place_{n}.jpg" for n in range(60)]
    labels = np.repeat([0, 1], 30)
    np.savez(
        tmp_path / "regions.npz",
        tiles=np.concatenate([tiles, (tiles * 0.98).astype(np.uint16)]),
        labels=np.tile(labels, 2),
        splits=np.array(["train"] * 120),
        names=np.array(names),
    )
    return tmp_path / "regions.npz"


def groups_of(pack: Pack) -> np.ndarray:
    return group_tiles(pack, pack.rows("train"), 3)


def test_tiles_of_one_region_are_one_group_in_each_class(regions: Path) -> None:
    groups = groups_of(open_pack(regions))[:60].reshape(2, 3, 10)
    assert (groups == groups[:, :, :1]).all()
    assert all(len(set(of_class[:, 0].tolist())) == 3 for of_class in groups)


def test_two_tiles_of_one_place_are_in_one_group(regions: Path) -> None:
    groups = groups_of(open_pack(regions))
    assert (groups[:60] == groups[60:]).all()


def test_groups_are_the_same_each_time(regions: Path) -> None:
    assert (groups_of(open_pack(regions)) == groups_of(open_pack(regions))).all()


def test_a_held_out_group_does_not_train(regions: Path) -> None:
    data = TileDataModule(regions, batch_size=8, hold_out=HoldOutOptions(groups=3, held_out=(1,)))
    rows = np.concatenate([batch["rows"].numpy() for batch in data.train_dataloader()])
    groups = groups_of(data.pack)
    assert 1 not in groups[rows]
    assert len(rows) == 80


def test_what_was_held_out_can_be_tested(regions: Path) -> None:
    held_out = HoldOutOptions(groups=3, held_out=(1,))
    data = TileDataModule(regions, batch_size=8, test_split="held-out", hold_out=held_out)
    rows = np.concatenate([batch["rows"].numpy() for batch in data.test_dataloader()])
    tested = rows[rows >= 0]  # -1 fills a chunk up
    assert set(groups_of(data.pack)[tested].tolist()) == {1}
    assert len(tested) == 40


def test_what_is_held_out_does_not_depend_on_what_else_trains(regions: Path) -> None:
    with np.load(regions) as file:
        arrays = dict(file)
    arrays["splits"] = arrays["splits"].astype("U10")
    arrays["splits"][110:] = "unlabelled"  # their colours would make other groups
    arrays["tiles"][110:] = 20_000
    np.savez(regions, **arrays)
    held_out = HoldOutOptions(groups=3, held_out=(1,))
    tested = TileDataModule(regions, batch_size=1, test_split="held-out", hold_out=held_out)
    both = ("train", "unlabelled")
    trained = TileDataModule(regions, batch_size=1, train_splits=both, hold_out=held_out)
    left_out = np.concatenate([batch["rows"].numpy() for batch in tested.test_dataloader()])
    seen = np.concatenate([batch["rows"].numpy() for batch in trained.train_dataloader()])
    assert not set(left_out[left_out >= 0]) & set(seen)
    assert set(range(110, 120)) <= set(seen)
