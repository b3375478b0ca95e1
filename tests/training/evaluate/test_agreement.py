"""How often model files agree, beside how often they are right, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tilewise.datasets.packs.pack import Pack
from tilewise.models.model_file import INPUT, open_model
from tilewise.training.evaluate.spread import agreement, agreement_table


def ask(*words: object) -> Result:
    return CliRunner().invoke(agreement, [str(word) for word in words])


def test_two_files_agree_as_often_as_they_answer_alike(
    model_file: Path, skilled_model: Path, pack: Pack
) -> None:
    rows = pack.rows("val")
    models = [open_model(path) for path in (model_file, skilled_model)]
    answers = [m.session.run(["probabilities"], {INPUT: pack.fetch(rows)})[0].argmax(1) for m in models]
    table = agreement_table(models, pack, ["val"])
    assert [row[0] for row in table.rows] == [f"val: geotiff/{view}" for view in ("all", "l2a", "10m", "rgb")]
    _, tiles, agree, right = table.rows[0]
    assert tiles == len(rows)
    assert agree == pytest.approx((answers[0] == answers[1]).mean())
    assert right == pytest.approx(np.mean([(found == pack.labels[rows]).mean() for found in answers]))


def test_every_pair_of_three_counts(model_file: Path, skilled_model: Path, pack: Pack) -> None:
    one, other = open_model(model_file), open_model(skilled_model)
    alike = replace(one, metadata=one.metadata.model_copy(update={"weights": "of another seed"}))
    pair = agreement_table([one, other], pack, ["val"]).rows[0][2]
    three = agreement_table([one, other, alike], pack, ["val"]).rows[0][2]
    assert three == pytest.approx((2 * float(str(pair)) + 1) / 3)


def test_the_command_prints_a_table(model_file: Path, skilled_model: Path, pack_folder: Path) -> None:
    done = ask(model_file, skilled_model, "--data", pack_folder, "--split", "val", "--split", "test")
    assert done.exit_code == 0, done.output
    assert "| split: tiles, bands | tiles | agree % | accuracy % |" in done.output
    assert "| test: geotiff/rgb |" in done.output


@pytest.mark.parametrize(
    ("twice", "split", "message"),
    [(True, "val", "each of other weights"), (False, "nowhere", "no tile is in the split 'nowhere'; it has")],
)
def test_what_cannot_be_compared_is_one_line(
    twice: bool, split: str, message: str, model_file: Path, skilled_model: Path, pack_folder: Path
) -> None:
    done = ask(model_file, model_file if twice else skilled_model, "--data", pack_folder, "--split", split)
    assert done.exit_code == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
