"""What changed between two packs, in numbers that a person can check."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rasters import noise, write_folder, write_l1c, write_tiff

from tilewise.datasets.cli import main
from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.packs.packing import write_pack
from tilewise.datasets.packs.splits import SplitPlan
from tilewise.datasets.packs.versions import PackDiff, as_markdown, compare, in_words, open_version
from tilewise.datasets.readers.sources import find_source

PLAN = SplitPlan(fractions=(1.0, 0.0, 0.0))  # every tile trains, so that statistics are of all


def pack(root: Path, out: Path) -> str:
    write_pack([find_source(root)], out, PLAN)
    return str(out)


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two packs: the second has a tile more, one less, one of another class, one with another B05."""
    folder = tmp_path_factory.mktemp("diff")
    names = [f"{label}/{label}_{n}" for label in "AB" for n in range(3)]
    root = write_folder(folder / "data", dict(zip(names, (0, 1, 2, 10, 11, 12), strict=True)))
    before = pack(root, folder / "before")
    (root / "A/A_0.tif").unlink()
    (root / "A/A_1.tif").rename(root / "B/A_1.tif")
    write_l1c(root / "B/B_7.tif", 7)
    bright = noise(12)
    bright[BAND_NAMES.index("B05")] = 20_000
    write_tiff(root / "B/B_2.tif", bright, BAND_NAMES)
    return before, pack(root, folder / "after")


@pytest.fixture(scope="module")
def found(packs: tuple[str, str]) -> PackDiff:
    return compare(*map(open_version, packs))


def test_every_tile_that_changed_is_named_once(found: PackDiff) -> None:
    assert found.added == [("geotiff", "B_7")]
    assert found.removed == [("geotiff", "A_0")]
    assert [(c.name, c.before, c.after) for c in found.relabelled] == [("A_1", "A", "B")]
    assert found.changed_pixels == [("geotiff", "B_2")]
    assert not found.is_empty
    assert "1 relabelled: A_1 A → B" in in_words(found)


def test_class_balance_is_counted_and_its_shift_measured(found: PackDiff) -> None:
    assert [(c.name, c.before, c.after) for c in found.classes] == [("A", 3, 1), ("B", 3, 5)]
    assert found.classes[1].fraction_after == pytest.approx(5 / 6)
    expected = (1 / 6 - 1 / 2) * np.log((1 / 6) / (1 / 2)) + (5 / 6 - 1 / 2) * np.log((5 / 6) / (1 / 2))
    assert found.class_psi == pytest.approx(expected)


def test_the_band_that_changed_is_the_one_that_drifts_most(found: PackDiff) -> None:
    bands = {band.band: band for band in found.bands}
    assert list(bands) == list(BAND_NAMES)
    assert found.max_drift[0] == "B05"
    assert bands["B05"].after["mean"] > bands["B05"].before["mean"] + 1000
    for name in BAND_NAMES:
        if name != "B05":
            assert bands[name].psi < 0.1  # type: ignore[operator]


def test_a_version_and_itself_differ_in_nothing(packs: tuple[str, str]) -> None:
    same = compare(*map(open_version, (packs[0], packs[0])))
    assert same.is_empty
    assert in_words(same) == ["the same tiles, classes, splits and pixels"]
    assert same.max_drift[1] == pytest.approx(0)


def test_a_band_that_one_version_lacks_has_no_distance(packs: tuple[str, str], tmp_path: Path) -> None:
    for seed, label in enumerate("AB"):
        write_tiff(tmp_path / "rgb" / label / f"{label}.tif", noise(seed, bands=3), ("B04", "B03", "B02"))
    after = compare(open_version(packs[0]), open_version(pack(tmp_path / "rgb", tmp_path / "pack")))
    bands = {band.band: band for band in after.bands}
    assert bands["B08"].psi is None
    assert bands["B04"].psi is not None
    assert "| B08 |" in as_markdown(after)


def test_the_command_writes_a_report_and_fails_where_drift_is_too_large(
    packs: tuple[str, str], tmp_path: Path
) -> None:
    words = ["diff", *packs, "--out", str(tmp_path), "--max-psi", "0.25"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1
    assert "error: the class balance has a PSI of 0.536, above 0.25; look at the new tiles" in done.stderr
    assert json.loads((tmp_path / "diff.json").read_text())["added"] == [["geotiff", "B_7"]]
    assert "- 1 removed: A_0" in (tmp_path / "diff.md").read_text()
