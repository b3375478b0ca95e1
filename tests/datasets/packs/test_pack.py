"""Reading a pack: any tiles, in any order, from the pack alone, and only from a whole one."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from rasters import noise, write_folder

from tilewise.datasets.core.errors import PackError
from tilewise.datasets.packs.pack import CARD, INDEX, PLANES, STATISTICS, Pack
from tilewise.datasets.packs.packing import write_pack
from tilewise.datasets.packs.splits import SplitPlan
from tilewise.datasets.readers.sources import find_source


@pytest.fixture
def copy(pack_folder: Path, tmp_path: Path) -> Path:
    """A copy of the synthetic pack, to damage."""
    return shutil.copytree(pack_folder, tmp_path / "pack")


def test_tiles_are_fetched_from_the_memory_map_without_any_file(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", {f"{label}/{label}_{n}": n for label in "AB" for n in range(4)})
    write_pack([find_source(root)], tmp_path / "pack", SplitPlan())
    pack = Pack(tmp_path / "pack")
    shutil.rmtree(root)
    shutil.rmtree(tmp_path / "pack")  # the map stays open
    expected = np.stack([noise(n) for n in (0, 1, 2, 3, 0, 1, 2, 3)])
    assert np.array_equal(pack.fetch(np.arange(8)), expected)


def test_rows_are_fetched_in_any_order_and_as_often_as_wanted(pack: Pack) -> None:
    every = pack.fetch(np.arange(len(pack)))
    assert every.shape == (120, 13, 64, 64)
    assert np.array_equal(pack.fetch([7, 3, 119, 3]), every[[7, 3, 119, 3]])
    assert pack.fetch([]).shape == (0, 13, 64, 64)


def test_what_is_fetched_can_be_altered_without_altering_the_pack(pack: Pack) -> None:
    tiles = pack.fetch([5])
    before = tiles.copy()
    tiles[:] = 0
    assert np.array_equal(pack.fetch([5]), before)


def test_rows_of_splits_and_sources_divide_the_pack(pack: Pack) -> None:
    rows = [pack.rows(split) for split in ("train", "val", "test")]
    assert [len(found) for found in rows] == [70, 30, 20]
    assert sorted(np.concatenate(rows)) == list(range(120))
    assert np.array_equal(pack.rows("val", "geotiff"), rows[1])
    assert not len(pack.rows("val", "eurosat-ms"))
    assert not len(pack.rows("holiday"))


def test_labels_are_the_classes_of_the_folders(pack: Pack, tiles_folder: Path) -> None:
    classes = sorted(path.name for path in tiles_folder.iterdir() if path.is_dir())
    assert pack.summary.classes == tuple(classes)
    assert [classes[label] for label in pack.labels] == pack.index["label"].to_pylist()
    counts = {split: sum(found.values()) for split, found in pack.summary.counts.items()}
    assert counts == {"train": 70, "val": 30, "test": 20}


# Incomplete packs.


@pytest.mark.parametrize("length", [0, 1, -8192, -1, 1_000_000_000])
def test_planes_of_another_length_are_detected(copy: Path, length: int) -> None:
    planes = copy / PLANES
    size = length if length >= 0 else planes.stat().st_size + length
    with planes.open("r+b") as file:
        file.truncate(size)
    with pytest.raises(PackError, match=r"planes\.u16: missing or incomplete; pack again"):
        Pack(copy)


@pytest.mark.parametrize("name", [PLANES, INDEX])
def test_a_missing_file_is_detected(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(PackError, match=f"{name}: missing or incomplete; pack again"):
        Pack(copy)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_index_is_detected(copy: Path, share: float) -> None:
    content = (copy / INDEX).read_bytes()
    (copy / INDEX).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(PackError, match=r"index\.parquet: missing or incomplete"):
        Pack(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', "\0\0"])
def test_a_damaged_card_is_detected(copy: Path, text: str) -> None:
    (copy / CARD).write_text(text)
    with pytest.raises(PackError):
        Pack(copy)


@pytest.mark.parametrize("text", [None, "", "{}"])
def test_missing_statistics_are_detected(copy: Path, text: str | None) -> None:
    (copy / STATISTICS).unlink()
    if text is not None:
        (copy / STATISTICS).write_text(text)
    with pytest.raises(PackError, match=r"statistics\.json: missing or incomplete"):
        Pack(copy).statistics()


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_a_pack_of_another_version_is_refused(copy: Path, version: object) -> None:
    fields = json.loads((copy / CARD).read_text())
    (copy / CARD).write_text(json.dumps({**fields, "version": version}))
    with pytest.raises(PackError, match=f"a pack of version {version}, but version 1 is needed; pack again"):
        Pack(copy)


def test_a_folder_without_a_pack_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="no pack is here; `tilewise data pack` makes one"):
        Pack(tmp_path)


def test_a_pack_is_sent_to_another_process_by_name_and_not_with_its_pixels(pack: Pack) -> None:
    sent = pickle.dumps(pack)
    assert len(sent) < 1000
    again = pickle.loads(sent)  # noqa: S301 - what this test has written itself
    assert (again.fetch([0, 3]) == pack.fetch([0, 3])).all()
