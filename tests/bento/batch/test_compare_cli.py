"""`tilewise compare` as its users meet it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from click.testing import CliRunner, Result
from geotiffs import CORNER
from maps_of_two_dates import write_maps

from tilewise.bento.inference.blending import NO_CLASS
from tilewise.cli import main


def compare(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, arguments)], env={"COLUMNS": "120"})


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Maps of two places on two dates, under other names, and one of a place that only one date has."""
    east = CORNER @ Affine.translation(1000, 0)
    after = np.zeros((64, 64))
    after[:16], after[16:20] = 1, 2
    write_maps(tmp_path / "old", "west_2022", np.zeros((64, 64)))
    write_maps(tmp_path / "old", "east_2022", np.ones((64, 64)), transform=east)
    write_maps(tmp_path / "new", "T1_2025", after)
    write_maps(tmp_path / "new", "T2_2025", np.ones((64, 64)), transform=east)
    write_maps(tmp_path / "new", "far", after, transform=CORNER @ Affine.translation(0, 1000))
    return tmp_path / "old", tmp_path / "new"


def test_folders_are_matched_by_place(folders: tuple[Path, Path], tmp_path: Path) -> None:
    done = compare(*folders, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "changed: 12.8 of 41.0 ha; both maps are expected to be right in 8.2 ± " in done.output
    assert "far.classes.tif: no map of this place on the other side" in done.stderr
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"west_2022_to_T1_2025.changes.tif", "east_2022_to_T2_2025.changes.tif"} < files
    assert {"compare.csv", "compare.json"} < files


def test_the_table_has_a_row_for_each_pair_of_classes_and_no_formula(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    assert compare(*folders, "--out", tmp_path / "out").exit_code == 0
    with (tmp_path / "out" / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    west = {(r["before"], r["after"]): r for r in rows if r["map_before"] == "west_2022"}
    assert set(west) == {("Forest", "Forest"), ("Forest", "Pasture"), ("Forest", "'=River")}
    changed = west["Forest", "Pasture"]
    assert (float(changed["ha"]), float(changed["expected_ha"])) == pytest.approx((10.24, 6.5536))


def test_json_on_standard_output_is_the_file(folders: tuple[Path, Path], tmp_path: Path) -> None:
    done = compare(*folders, "--out", tmp_path / "out", "--json")
    assert done.stdout == (tmp_path / "out" / "compare.json").read_text()
    pairs = json.loads(done.stdout)
    assert [pair["changed_ha"] for pair in pairs] == [0, 12.8]
    assert pairs[1]["not_compared_ha"] == {"no_data": 0, "out_of_distribution": 0}


def test_the_same_comparison_writes_the_same_bytes(folders: tuple[Path, Path], tmp_path: Path) -> None:
    contents = []
    for _ in range(2):
        assert compare(*folders, "--out", tmp_path / "out").exit_code == 0
        contents.append({file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()})
    assert contents[0] == contents[1]


def test_several_dates_on_one_side_are_an_error_with_the_way_out(tmp_path: Path) -> None:
    old = write_maps(tmp_path / "old", "a", np.zeros((64, 64)))
    for name in ("b", "c"):
        write_maps(tmp_path / "new", name, np.zeros((64, 64)))
    done = compare(old, tmp_path / "new", "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "shares its ground with 2 maps" in done.stderr
    assert "give the two files" in done.stderr


def test_maps_of_different_places_are_an_error(tmp_path: Path) -> None:
    far = CORNER @ Affine.translation(1000, 0)
    paths = [
        write_maps(tmp_path, "a", np.zeros((64, 64))),
        write_maps(tmp_path, "b", np.zeros((64, 64)), transform=far),
    ]
    done = compare(*paths, "--out", tmp_path / "out", "--align")
    assert done.exit_code == 1
    assert "shares more than half of its ground" in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_and_a_missing_one_are_told(tmp_path: Path) -> None:
    path = write_maps(tmp_path / "maps", "a", np.zeros((64, 64)))
    (tmp_path / "empty").mkdir()
    done = compare(path, tmp_path / "empty", "--out", tmp_path / "out")
    assert (done.exit_code, "holds no NAME.classes.tif" in done.stderr) == (1, True)
    assert compare(path, tmp_path / "missing", "--out", tmp_path / "out").exit_code == 2


def test_maps_without_a_pixel_to_compare_say_so_and_claim_no_change(tmp_path: Path) -> None:
    clouds = np.full((64, 64), NO_CLASS)
    paths = [write_maps(tmp_path / when, "a", clouds) for when in ("old", "new")]
    done = compare(*paths, "--out", tmp_path / "out")
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        "a to a: no pixel has a class in both maps",
        "not compared: 41.0 ha no data, 0.0 ha unlike the training data",
    ]
