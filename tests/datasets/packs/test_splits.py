"""Splits: by lists, at random by name, and by blocks that no split shares."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rasterio.warp import transform

from tilewise.datasets.core.errors import SplitError
from tilewise.datasets.packs.splits import SplitMethod, SplitPlan, assign, read_lists
from tilewise.datasets.readers.records import Bounds, TileRecord


def record(name: str, label: str = "A", bounds: Bounds | None = None, source: str = "geotiff") -> TileRecord:
    crs = "EPSG:32632" if bounds else ""
    return TileRecord(name, label, source, "L1C", ("B02",), crs, bounds, name, 1.0, 1, 9)


def labelled(**counts: int) -> list[TileRecord]:
    return [record(f"{label}_{n}", label) for label, count in counts.items() for n in range(count)]


def strewn(count: int, side_m: float, seed: int = 0) -> list[TileRecord]:
    """Tiles of 640 m, strewn over a square of `side_m` in Germany."""
    corners = np.random.default_rng(seed).uniform(0, side_m, (count, 2)) + np.array([500_000, 5_400_000])
    return [record(f"t{n}", bounds=(x, y, x + 640, y + 640)) for n, (x, y) in enumerate(corners.tolist())]


def by_name(records: Sequence[TileRecord], plan: SplitPlan) -> dict[str, str]:
    return dict(zip([r.name for r in records], assign(records, plan), strict=True))


def write_lists(folder: Path, **names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for split, listed in names.items():
        (folder / f"eurosat-{split}.txt").write_text("\n".join(listed.split()) + "\n")
    return folder


# Lists.


def test_lists_say_the_split_of_each_name(tmp_path: Path) -> None:
    lists = write_lists(tmp_path, train="a.jpg b.jpg", val="c.tif", test="d")
    records = [record("d"), record("b"), record("c"), record("a"), record("b", source="eurosat-rgb")]
    assert assign(records, SplitPlan(SplitMethod.LISTS, lists)) == ["test", "train", "val", "train", "train"]


def test_lists_may_come_from_windows(tmp_path: Path) -> None:
    lists = write_lists(tmp_path, train="a", val="c", test="d")
    (lists / "eurosat-train.txt").write_bytes("\ufeffa.jpg\r\n\r\nb.jpg\r\n".encode())
    assert read_lists(lists) == {"a": "train", "b": "train", "c": "val", "d": "test"}


def test_a_tile_in_no_list_is_an_error_that_names_it(tmp_path: Path) -> None:
    lists = write_lists(tmp_path, train="a", val="c", test="d")
    with pytest.raises(SplitError, match="lost is in none of the lists"):
        assign([record("a"), record("lost")], SplitPlan(SplitMethod.LISTS, lists))


def test_a_name_in_two_lists_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match="b is in the lists of train and test"):
        read_lists(write_lists(tmp_path, train="a b", val="c", test="d b"))
    assert read_lists(write_lists(tmp_path, train="a a", val="c", test="d"))["a"] == "train"


def test_a_missing_an_empty_and_a_double_list_are_errors(tmp_path: Path) -> None:
    lists = write_lists(tmp_path, train="a", val="c")
    with pytest.raises(SplitError, match=r"one list \*test\*\.txt is needed, but there are 0"):
        read_lists(lists)
    with pytest.raises(SplitError, match=r"eurosat-test\.txt: the list is empty"):
        read_lists(write_lists(lists, test=""))
    write_lists(lists, test="d")
    (lists / "my-test.txt").write_text("e\n")
    with pytest.raises(SplitError, match="but there are 2"):
        read_lists(lists)


@pytest.mark.parametrize("there", [True, False])
def test_lists_without_a_folder_say_how_to_get_one(tmp_path: Path, there: bool) -> None:
    with pytest.raises(SplitError, match="fetch eurosat-splits"):
        assign([record("a")], SplitPlan(SplitMethod.LISTS, tmp_path / "no" if there else None))


# At random.


def test_each_class_is_divided_by_the_shares_exactly() -> None:
    records = labelled(A=100, B=10, C=40)
    splits = assign(records, SplitPlan(fractions=(0.6, 0.2, 0.2)))
    counts = Counter((r.label, split) for r, split in zip(records, splits, strict=True))
    for label, total in {"A": 100, "B": 10, "C": 40}.items():
        shares = [counts[label, split] / total for split in ("train", "val", "test")]
        assert shares == [0.6, 0.2, 0.2]


@pytest.mark.parametrize("shares", [(1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.7, 0.3, 0.0)])
def test_a_share_of_nothing_gets_nothing(shares: tuple[float, float, float]) -> None:
    counts = Counter(assign(labelled(A=10, B=20), SplitPlan(fractions=shares)))
    assert [counts[split] / 30 for split in ("train", "val", "test")] == pytest.approx(shares)


def test_the_order_of_files_does_not_matter() -> None:
    records = labelled(A=50, B=30)
    shuffled = [records[place] for place in np.random.default_rng(3).permutation(len(records))]
    assert by_name(shuffled, SplitPlan()) == by_name(records, SplitPlan())


def test_the_seed_changes_the_draw_and_the_same_seed_does_not() -> None:
    records = labelled(A=50, B=30)
    assert assign(records, SplitPlan(seed=1)) == assign(records, SplitPlan(seed=1))
    assert assign(records, SplitPlan(seed=1)) != assign(records, SplitPlan(seed=2))


def test_the_draw_does_not_follow_the_names_order() -> None:
    splits = assign(labelled(A=200), SplitPlan())
    assert 40 < splits[:100].count("train") < 80


@pytest.mark.parametrize("method", [SplitMethod.RANDOM, SplitMethod.SPATIAL])
def test_a_name_in_two_sources_falls_into_one_split(method: SplitMethod) -> None:
    ms = strewn(60, 400_000)
    rgb = [record(r.name, r.label, r.bounds, "eurosat-rgb") for r in ms]
    splits = assign([*ms, *rgb], SplitPlan(method))
    assert splits[:60] == splits[60:]
    assert len(set(splits)) == 3


# By blocks.


def test_no_block_is_in_two_splits() -> None:
    records = strewn(600, 300_000)
    splits = assign(records, SplitPlan(SplitMethod.SPATIAL, block_km=30))
    blocks = defaultdict(set)
    for r, split in zip(records, splits, strict=True):
        assert r.bounds is not None
        left, bottom, right, top = r.bounds
        (x,), (y,) = transform(r.crs, "EPSG:6933", [(left + right) / 2], [(bottom + top) / 2])
        blocks[x // 30_000, y // 30_000].add(split)
    assert len(blocks) > 80
    assert all(len(found) == 1 for found in blocks.values())
    assert Counter(splits)["train"] / 600 == pytest.approx(0.6, abs=0.05)
    assert Counter(splits)["val"] / 600 == pytest.approx(0.2, abs=0.05)


def test_near_neighbours_share_a_split_and_distant_tiles_do_not_all() -> None:
    near = strewn(40, 2_000)
    assert len(set(assign(near, SplitPlan(SplitMethod.SPATIAL, block_km=500)))) == 1
    assert len(set(assign(strewn(40, 400_000), SplitPlan(SplitMethod.SPATIAL, block_km=10)))) == 3


def test_blocks_are_dealt_the_same_in_any_order_and_otherwise_by_another_seed() -> None:
    records = strewn(100, 300_000)
    plan = SplitPlan(SplitMethod.SPATIAL, block_km=20)
    assert by_name(records[::-1], plan) == by_name(records, plan)
    assert by_name(records, SplitPlan(SplitMethod.SPATIAL, block_km=20, seed=1)) != by_name(records, plan)


def test_blocks_join_tiles_across_utm_zones() -> None:
    """A place near the border of zones 32 and 33 (12° E) is written in both."""
    xs, ys = transform("EPSG:32632", "EPSG:32633", [715_000.0], [5_540_000.0])
    here = record("a", bounds=(715_000, 5_540_000, 715_640, 5_540_640))
    there = TileRecord(
        *("b", "A", "geotiff", "L1C", ("B02",), "EPSG:32633", (xs[0], ys[0], xs[0] + 640, ys[0] + 640)),
        *("b", 1.0, 1, 9),
    )
    for seed in range(8):
        assert len(set(assign([here, there], SplitPlan(SplitMethod.SPATIAL, seed=seed)))) == 1


def test_a_tile_without_coordinates_has_no_block() -> None:
    with pytest.raises(SplitError, match="lost: no coordinates"):
        assign([*strewn(3, 1000), record("lost")], SplitPlan(SplitMethod.SPATIAL))


# Plans that cannot be.


@pytest.mark.parametrize(
    "shares", [(0.5, 0.2, 0.2), (0.8, 0.3, -0.1), (float("nan"), 0.5, 0.5), (60, 20, 20)]
)
def test_shares_that_are_none_are_refused(shares: tuple[float, float, float]) -> None:
    with pytest.raises(SplitError, match="must be 0 or more and sum to 1"):
        assign(labelled(A=3), SplitPlan(fractions=shares))


@pytest.mark.parametrize("side", [0, -5, float("inf"), float("nan")])
def test_blocks_without_a_side_are_refused(side: float) -> None:
    with pytest.raises(SplitError, match="above 0 km"):
        assign(strewn(3, 1000), SplitPlan(SplitMethod.SPATIAL, block_km=side))
