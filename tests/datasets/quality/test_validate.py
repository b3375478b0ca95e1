"""Validation finds what must not reach training, says where, and stops the pipeline."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from rasters import noise, write_folder, write_l1c, write_tiff

from tilewise.datasets.cli import main
from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.core.radiometry import ReadOptions
from tilewise.datasets.packs.pack import INDEX, PLANES
from tilewise.datasets.packs.packing import write_pack
from tilewise.datasets.packs.splits import SplitMethod, SplitPlan
from tilewise.datasets.quality.schema import ValidationLimits
from tilewise.datasets.quality.validate import (
    ERROR,
    WARNING,
    ValidationFinding,
    ValidationReport,
    as_markdown,
    validate,
    validate_pack,
)
from tilewise.datasets.readers.sources import CARD_NAME, find_source

GOOD = {f"{label}/{label}_{n}": 10 * place + n for place, label in enumerate(("A", "B")) for n in range(5)}


def check(
    root: Path, plan: SplitPlan | None = None, limits: ValidationLimits | None = None
) -> ValidationReport:
    return validate([find_source(root)], plan or SplitPlan(), limits)


def only(report: ValidationReport, **kind: str) -> ValidationFinding:
    """Return the one finding of the report, which is of this severity and check."""
    (finding,) = report.findings
    assert {name: getattr(finding, name) for name in kind} == kind
    return finding


def lists(folder: Path, split_of: Mapping[str, str]) -> SplitPlan:
    """A plan of lists that name {tile: split}."""
    folder.mkdir()
    for split in ("train", "val", "test"):
        names = [name for name, given in split_of.items() if given == split] or [f"no_{split}"]
        (folder / f"{split}.txt").write_text("\n".join(names))
    return SplitPlan(SplitMethod.LISTS, folder)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of five sound tiles."""
    return write_folder(tmp_path / "data", GOOD)


def test_sound_tiles_pass_without_a_finding(root: Path) -> None:
    report = check(root)
    assert not report.failed
    assert report.findings == []
    assert (report.tiles, report.classes) == (10, {"A": 5, "B": 5})
    assert report.splits == {"train": {"A": 3, "B": 3}, "val": {"A": 1, "B": 1}, "test": {"A": 1, "B": 1}}


# Tiles.


def test_unreadable_files_are_errors_grouped_by_their_reason(root: Path) -> None:
    for name in ("A/A_0", "A/A_1", "B/B_4"):
        path = root / f"{name}.tif"
        path.write_bytes(path.read_bytes()[:50_000])
    write_tiff(root / "B" / "B_3.tif", noise(bands=13, size=63), BAND_NAMES)
    report = check(root)
    assert report.failed
    assert report.tiles == 6
    truncated, size = [finding for finding in report.findings if finding.check == "readable"]
    assert (truncated.severity, truncated.check, truncated.count) == (ERROR, "readable", 3)
    assert truncated.message == "a truncated or corrupt GeoTIFF"
    assert truncated.examples == ["A_0", "A_1", "B_4"]
    assert size.message.startswith("63 × 63 pixels")
    assert size.examples == ["B_3"]


def test_tiles_that_nobody_described_are_errors_that_say_what_to_say(tmp_path: Path) -> None:
    for seed, label in enumerate(("A", "A", "B", "B")):
        write_tiff(tmp_path / label / f"{label}_{seed}.tif", noise(seed, bands=3), tags={})
    report = check(tmp_path)
    assert any("3 bands have no names" in finding.message for finding in report.findings)
    options = ReadOptions(("B04", "B03", "B02"), scale=1e-4, offset=0.0)
    still = validate([find_source(tmp_path, options=options)], SplitPlan())
    assert any("have no level" in finding.message for finding in still.findings)


def test_tiles_without_data_are_errors(root: Path) -> None:
    pixels = noise(1)
    pixels[:, :33] = 0
    write_tiff(root / "A" / "A_1.tif", pixels, BAND_NAMES)
    found = only(check(root), severity=ERROR, check="no data")
    assert found.examples == ["A_1"]
    assert "more than 50%" in found.message
    assert check(root, limits=ValidationLimits(max_no_data=0.52)).findings == []


def test_tiles_brighter_than_any_land_are_a_warning(root: Path) -> None:
    pixels = noise(1)
    pixels[3, 5, 5] = 30_001
    write_tiff(root / "A" / "A_1.tif", pixels, BAND_NAMES)
    report = check(root)
    assert only(report, severity=WARNING, check="range").examples == ["A_1"]
    assert not report.failed
    assert check(root, limits=ValidationLimits(highest_dn=30_001)).findings == []


def test_tiles_of_one_value_are_errors(root: Path) -> None:
    write_tiff(root / "A" / "A_1.tif", np.full((13, 64, 64), 700, np.uint16), BAND_NAMES)
    found = only(check(root), severity=ERROR, check="range")
    assert (found.examples, found.message) == (["A_1"], "all pixels of all bands are the same: no picture")


# Sets of tiles.


def test_the_same_pixels_twice_in_a_class_are_a_warning(root: Path, tmp_path: Path) -> None:
    write_l1c(root / "A" / "A_9.tif", seed=1, compress="deflate")
    plan = lists(tmp_path / "lists", {Path(name).name: "train" for name in GOOD} | {"A_9": "train"})
    report = check(root, plan)
    found = next(finding for finding in report.findings if finding.check == "duplicates")
    assert (found.severity, found.count, found.examples) == (WARNING, 1, ["A_1 = A_9"])


def test_the_same_pixels_under_two_classes_are_an_error(root: Path, tmp_path: Path) -> None:
    write_l1c(root / "B" / "B_9.tif", seed=1)
    plan = lists(tmp_path / "lists", {Path(name).name: "train" for name in GOOD} | {"B_9": "train"})
    found = next(finding for finding in check(root, plan).findings if finding.check == "duplicates")
    assert (found.severity, found.message) == (ERROR, "the same pixels under two classes")
    assert found.examples == ["A_1 = B_9"]


def test_the_same_pixels_in_two_splits_are_an_error(root: Path, tmp_path: Path) -> None:
    write_l1c(root / "A" / "A_9.tif", seed=1)
    split_of = {Path(name).name: "train" for name in GOOD} | {"A_9": "test", "A_2": "val"}
    report = check(root, lists(tmp_path / "lists", split_of))
    assert report.failed
    found = next(finding for finding in report.findings if finding.check == "leakage")
    assert (found.severity, found.message, found.count) == (ERROR, "the same pixels in two splits", 1)
    assert found.examples == ["A_1 = A_9"]


@pytest.mark.parametrize(
    ("shift_m", "overlaps"), [(0, 1), (600, 1), (-600, 1), (640, 0), (635, 0), (5000, 0)]
)
@pytest.mark.parametrize("axis", [0, 1])
def test_footprints_that_overlap_across_splits_are_a_warning(
    tmp_path: Path, shift_m: int, overlaps: int, axis: int
) -> None:
    corner = [500_000.0, 5_500_000.0]
    write_l1c(tmp_path / "data" / "A" / "a.tif", 1, corner=tuple(corner))
    corner[axis] += shift_m
    write_l1c(tmp_path / "data" / "B" / "b.tif", 2, corner=tuple(corner))
    report = check(tmp_path / "data", lists(tmp_path / "lists", {"a": "train", "b": "val"}))
    assert len(report.findings) == overlaps
    if overlaps:
        found = only(report, severity=WARNING, check="leakage")
        assert found.examples == ["a × b"]
    together = check(tmp_path / "data", lists(tmp_path / "more", {"a": "train", "b": "train"}))
    assert not [finding for finding in together.findings if finding.check == "leakage"]


def test_the_same_numbers_in_two_crs_do_not_overlap(tmp_path: Path) -> None:
    write_l1c(tmp_path / "data" / "A" / "a.tif", 1, corner=(500_000, 5_500_000))
    write_l1c(tmp_path / "data" / "B" / "b.tif", 2, corner=(500_000, 5_500_000), crs="EPSG:32633")
    assert check(tmp_path / "data", lists(tmp_path / "lists", {"a": "train", "b": "val"})).findings == []


def test_classes_of_very_different_size_are_a_warning(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {f"A/A_{n}": n for n in range(22)} | {f"B/B_{n}": 50 + n for n in range(2)})
    found = only(check(root), severity=WARNING, check="balance")
    assert found.message == "A has 11.0 times the tiles of B"
    assert check(root, limits=ValidationLimits(max_imbalance=11)).findings == []


def test_a_single_class_is_an_error(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {f"A/A_{n}": n for n in range(5)})
    assert only(check(root), severity=ERROR, check="balance").examples == ["A"]


def test_an_empty_split_is_an_error(root: Path) -> None:
    found = only(check(root, SplitPlan(fractions=(0.8, 0.0, 0.2))), severity=ERROR, check="splits")
    assert (found.message, found.examples) == ("no tile at all", ["val"])
    assert check(root, SplitPlan(fractions=(0.8, 0.2, 0.0))).findings == []


def test_a_split_that_does_not_fit_is_an_error(root: Path, tmp_path: Path) -> None:
    plan = lists(tmp_path / "lists", {Path(name).name: "train" for name in GOOD if not name.endswith("B_4")})
    report = check(root, plan)
    assert "B_4 is in none of the lists" in only(report, severity=ERROR, check="splits").message
    assert report.splits == {}
    assert report.classes == {"A": 5, "B": 5}


# Reports.


def test_errors_stand_before_warnings_and_examples_are_few(root: Path) -> None:
    for n in range(5):
        pixels = noise(n)
        pixels[0, 0, 0] = 40_000
        write_tiff(root / "A" / f"A_{n}.tif", pixels, BAND_NAMES)
        write_tiff(root / "B" / f"B_{n}.tif", np.full((13, 64, 64), 50_000 + 9 * n, np.uint16), BAND_NAMES)
    report = check(root)
    assert [(finding.severity, finding.count) for finding in report.findings] == [(ERROR, 5), (WARNING, 10)]
    assert len(report.findings[1].examples) == 5


def test_the_page_shows_counts_findings_and_verdict(root: Path) -> None:
    write_tiff(root / "A" / "A_1.tif", np.full((13, 64, 64), 700, np.uint16), BAND_NAMES)
    page = as_markdown(check(root))
    assert "10 readable tiles; validation **failed**." in page
    assert "| A | 5 | 3 | 1 | 1 |" in page
    assert "| error | range | 1 | all pixels of all bands are the same: no picture (e.g. A_1) |" in page


# The command.


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tilewise", "data", "validate", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)


def test_the_command_passes_sound_tiles_and_leaves_a_report(root: Path, tmp_path: Path) -> None:
    done = run(str(root), "--out", "report", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "passed; the report is in report" in done.stdout
    assert "validating: 10 of 10" in done.stderr
    report = json.loads((tmp_path / "report" / "validation.json").read_text())
    assert (report["failed"], report["tiles"], report["findings"]) == (False, 10, [])
    assert "validation **passed**" in (tmp_path / "report" / "validation.md").read_text()


def test_the_command_fails_with_1_and_one_line_and_leaves_the_report(root: Path, tmp_path: Path) -> None:
    (root / "A" / "A_1.tif").write_bytes(b"")
    done = run(str(root), "--highest-dn", "100", "--out", "deep/report", cwd=tmp_path)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if not line.startswith("validating")]
    assert errors == ["error: 1 kind of error; deep/report/validation.md lists them"]
    assert "an empty file" in done.stdout
    report = json.loads((tmp_path / "deep" / "report" / "validation.json").read_text())
    assert report["failed"]
    assert [finding["severity"] for finding in report["findings"]] == ["error", "warning"]


def test_the_command_passes_with_0_when_there_are_only_warnings(root: Path, tmp_path: Path) -> None:
    done = run(str(root), "--highest-dn", "100", cwd=tmp_path)
    assert done.returncode == 0
    assert "warning" in done.stdout
    page = (tmp_path / "artifacts" / "validation" / "validation.md").read_text()
    assert "DN above 100: brighter than any land" in page


# Packs.


def test_a_pack_is_held_to_its_own_hashes(pack_folder: Path, tmp_path: Path) -> None:
    whole = validate_pack(pack_folder)
    assert not whole.failed
    assert whole.tiles == 120
    rotten = shutil.copytree(pack_folder, tmp_path / "pack")
    with (rotten / PLANES).open("r+b") as file:
        file.seek(5_000)
        file.write(b"\x07\x07")
    found = [finding for finding in validate_pack(rotten).findings if finding.severity == ERROR]
    assert [(f.check, f.message) for f in found] == [("pack", "the pixels are not those that were packed")]
    assert found[0].count == 1


def test_tiles_without_labels_are_validated_as_folders_and_as_a_pack_and_shown_by_themselves(
    root: Path, tmp_path: Path
) -> None:
    rest = write_folder(tmp_path / "rest", {f"A/rest_{n}": 100 + n for n in range(3)})
    (rest / CARD_NAME).write_text(json.dumps({"name": "rest", "extra": {"split": "unlabelled"}}))
    sources = [find_source(root), find_source(rest)]
    of_folders = validate(sources, SplitPlan())
    write_pack(sources, tmp_path / "pack", SplitPlan())
    for report in (of_folders, validate_pack(tmp_path / "pack")):
        assert not report.failed
        assert report.splits["unlabelled"] == {"A": 3}
        assert "| class | tiles | train | val | test | unlabelled |" in as_markdown(report)
    result = CliRunner().invoke(main, ["card", str(tmp_path / "pack"), "--out", str(tmp_path / "card.md")])
    assert "validation passed" in result.output
    assert "| all | 6 | 2 | 2 | 3 | 13 |" in (tmp_path / "card.md").read_text()


def test_a_pack_whose_index_was_changed_by_hand_fails(pack_folder: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(pack_folder, tmp_path / "pack")
    index = pq.read_table(changed / INDEX)
    labels = ["River", *index["label"].to_pylist()[1:]]
    pq.write_table(
        index.set_column(index.schema.get_field_index("label"), "label", [labels]), changed / INDEX
    )
    messages = [finding.message for finding in validate_pack(changed).findings]
    assert "the index is not the one that pack.json was written for" in messages
    levels = ["L9", *index["level"].to_pylist()[1:]]
    pq.write_table(
        index.set_column(index.schema.get_field_index("level"), "level", [levels]), changed / INDEX
    )
    (broken,) = validate_pack(changed).findings
    assert (broken.severity, broken.check, broken.count) == (ERROR, "level", 1)
