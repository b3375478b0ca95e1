"""The table of a model file's answers."""

import csv
from pathlib import Path

from click.testing import CliRunner

from tilewise.datasets.packs.pack import Pack
from tilewise.datasets.quality.suspects import read_predictions
from tilewise.models.cli import predict


def test_every_tile_of_the_splits_is_answered_with_all_probabilities(
    model_file: Path, pack_folder: Path, pack: Pack, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "answers.csv"
    done = CliRunner().invoke(
        predict, ["--model", str(model_file), "--data", str(pack_folder), "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    held_out = len(pack.rows("val")) + len(pack.rows("test"))
    assert f"{held_out} answers are in {out}" in done.stdout
    read = read_predictions([out])
    assert read.classes == pack.summary.classes
    assert read.probabilities.shape == (held_out, 10)
    row = next(csv.DictReader(out.open()))
    assert float(row["confidence"]) == max(float(row[f"p_{name}"]) for name in read.classes)


def test_a_pack_without_such_a_split_is_one_line(model_file: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(predict, ["--model", str(model_file), "--data", str(tmp_path)])
    assert done.exit_code == 1
    assert "no pack is here" in done.stderr


def test_an_unknown_split_is_a_wrong_call(model_file: Path) -> None:
    assert CliRunner().invoke(predict, ["--model", str(model_file), "--split", "all"]).exit_code == 2
