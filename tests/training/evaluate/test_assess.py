"""The whole command on a model without skill: what is measured is there, and is true of that model."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tilewise.datasets.packs.pack import Pack
from tilewise.models.model_file import INPUT, open_model
from tilewise.training.evaluate.assess import assess, verdict_table
from tilewise.training.evaluate.assess_settings import AssessSettings
from tilewise.training.evaluate.disturbances import DISTURBANCES
from tilewise.training.evaluate.evaluation import Table
from tilewise.training.evaluate.out_of_distribution import ELSEWHERE

SECTIONS = (
    "verdicts",
    "accuracy",
    "classes",
    "zones",
    "calibration",
    "sets",
    "groups",
    "out_of_distribution",
    "robustness",
)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("settings") / "assess.yaml"
    path.write_text("halves: 2\nneighbours: 3\nfitted: 40\nzone_tiles: 1\n")
    return path


@pytest.fixture(scope="module")
def report(
    model_file: Path, pack_folder: Path, settings: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict:
    out = tmp_path_factory.mktemp("assessed")
    words = ["--model", model_file, "--data", pack_folder, "--out", out, "--settings", settings]
    done = CliRunner().invoke(assess, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    assert (out / "assessment.md").read_text() in done.stdout
    return json.loads((out / "assessment.json").read_text())


def rows(report: dict, table: str) -> dict[str, dict]:
    found = report["tables"][table]["rows"]
    return {row[next(iter(row))]: row for row in found}


def test_every_table_has_rows_and_the_command_stands_above(report: dict) -> None:
    assert tuple(report["tables"]) == SECTIONS
    assert all(table["rows"] for table in report["tables"].values())
    assert report["command"].startswith("tilewise assess")
    assert report["synthetic"] == "true"


def test_accuracy_is_that_of_the_file(report: dict, model_file: Path, pack: Pack) -> None:
    where = pack.rows("val")
    answered = open_model(model_file).session.run(["probabilities"], {INPUT: pack.fetch(where)})[0].argmax(1)
    found = rows(report, "accuracy")["geotiff/all"]
    assert found["accuracy %"] == pytest.approx((answered == pack.labels[where]).mean())
    assert found["tiles"] == len(where)


def test_all_bands_and_disturbances_are_measured(report: dict) -> None:
    assert list(rows(report, "accuracy")) == [f"geotiff/{view}" for view in ("all", "l2a", "10m", "rgb")]
    robustness = rows(report, "robustness")
    assert len(robustness) == 1 + len(DISTURBANCES)
    assert all(row["flagged %"] is None for row in robustness.values()), "this file has no threshold"
    assert len(rows(report, "classes")) == 10


def test_each_place_is_in_a_zone_of_latitude(report: dict, pack: Pack) -> None:
    zones = rows(report, "zones")
    assert sum(row["tiles"] for row in zones.values()) == len(pack.rows("val"))
    assert all("° N" in title for title in zones)


def test_sets_of_a_model_without_skill_are_large_and_cover(report: dict) -> None:
    for row in report["tables"]["sets"]["rows"]:
        assert row["mean size"] > 3
        assert row["covered %"] > row["target %"] - 0.2


def test_faults_are_compared_by_every_score(report: dict) -> None:
    unknown_tiles = rows(report, "out_of_distribution")
    assert {"in distribution: geotiff", "geotiff: an offset of +1000 left in"} <= set(unknown_tiles)
    assert all(
        name in unknown_tiles["in distribution: geotiff"]
        for name in ("the file's score %", "kNN %", "energy %", "softmax %")
    )
    assert np.isfinite([row["kNN %"] for row in unknown_tiles.values()]).all()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--split", "nowhere"], "no tile is in the split 'nowhere'; it has"),
        (["--clouds", "."], "no GeoTIFF with a band for the cloud probability"),
        (["--settings", "nothing.yaml"], "nothing.yaml: cannot be read"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    words: list[str], says: str, model_file: Path, pack_folder: Path, settings: Path, in_folder: Path
) -> None:
    common = ["--model", str(model_file), "--data", str(pack_folder), "--settings", str(settings)]
    done = CliRunner().invoke(assess, [*common, *words])
    assert done.exit_code == 1
    assert says in done.stderr.splitlines()[-1]


def table(header: tuple[str, ...], *rows: tuple[str | int | float, ...]) -> Table:
    return Table("", "", "", header, rows)


def verdicts(
    error: float = 0.01, covered: float = 0.95, alarms: float = 0.05, flagged: float = 0.95, tiles: int = 400
) -> dict[str, tuple[str, str]]:
    """Return the target and whether it is met, by the name of the verdict."""
    found = verdict_table(
        table(("figure", "mean %"), ("calibration error", error)),
        table(("method", "target %", "covered %"), ("LAC", 0.95, covered), ("APS", 0.95, 0.5)),
        table(
            ("input", "tiles", "the file's score %"),
            ("in distribution: rgb", tiles, alarms),
            ("rgb: an offset of +1000 left in", tiles, flagged),
            (ELSEWHERE, tiles, 1.0),
        ),
        AssessSettings(),
    )
    return {str(name): (str(target), str(met)) for name, _, target, met in found.rows}


def test_each_verdict_says_its_target_and_all_are_met_by_a_good_model() -> None:
    assert verdicts() == {
        "calibration error": ("≤ 1.5%", "yes"),
        "coverage at 95%": ("± 1%", "yes"),
        "false alarms, in distribution: rgb": ("≤ 5%, of 400 tiles ≤ 7.2%", "yes"),
        "flagged, rgb: an offset of +1000 left in": ("≥ 95%", "yes"),
    }


@pytest.mark.parametrize(
    ("figures", "name", "met"),
    [
        ({"error": 0.015}, "calibration error", "yes"),
        ({"error": 0.0151}, "calibration error", "NO"),
        ({"covered": 0.941}, "coverage at 95%", "yes"),
        ({"covered": 0.939}, "coverage at 95%", "NO"),
        ({"covered": 0.961}, "coverage at 95%", "NO"),
        ({"alarms": 0.071}, "false alarms, in distribution: rgb", "yes"),
        ({"alarms": 0.072}, "false alarms, in distribution: rgb", "NO"),
        ({"alarms": 4 / 41, "tiles": 41}, "false alarms, in distribution: rgb", "yes"),
        ({"alarms": 5 / 41, "tiles": 41}, "false alarms, in distribution: rgb", "NO"),
        ({"flagged": 0.949}, "flagged, rgb: an offset of +1000 left in", "NO"),
    ],
)
def test_a_verdict_turns_at_its_limit(figures: dict[str, float], name: str, met: str) -> None:
    assert verdicts(**figures)[name][1] == met  # type: ignore[arg-type]


def test_the_note_says_how_much_more_false_alarms_few_tiles_may_have(report: dict) -> None:
    assert "two standard errors" in report["tables"]["verdicts"]["note"]
