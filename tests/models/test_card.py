"""The card of a model: written from the file and from what was measured of it, and of no other."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_onnx import metadata, write_model

from tilewise.models.cli import card
from tilewise.models.model_file import PredictionSets, int8_of, open_model


def assessed(folder: Path, sha256: str) -> Path:
    folder.mkdir()
    (folder / "assessment.json").write_text(json.dumps({"sha256": sha256}))
    (folder / "assessment.md").write_text(
        "## Assessment of model.onnx\n\n| figure | found % |\n|---|---|\n| x | 95.1 |\n"
    )
    return folder


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(card, ["--model", *map(str, arguments)])
    return result.exit_code, result.output


def test_a_card_tells_what_the_file_is_and_every_figure_of_its_assessment(
    model_file: Path, tmp_path: Path
) -> None:
    speed = tmp_path / "speed.md"
    speed.write_text("## Speed\n\n12,000 tiles/s\n")
    folder = assessed(tmp_path / "assessment", open_model(model_file).sha256)
    status, printed = run(
        model_file, "--assessment", folder, "--append", speed, "--out", tmp_path / "card.md"
    )
    assert (status, printed) == (0, f"the card is {tmp_path / 'card.md'}\n")
    text = (tmp_path / "card.md").read_text()
    assert open_model(model_file).sha256 in text
    assert "| x | 95.1 |" in text
    assert text.index("## Limits") < text.index("## Assessment") < text.index("12,000 tiles/s")


@pytest.mark.parametrize("there", [False, True])
def test_figures_of_another_model_or_none_are_refused(model_file: Path, tmp_path: Path, there: bool) -> None:
    folder = assessed(tmp_path / "other", "0" * 64) if there else tmp_path / "other"
    status, printed = run(model_file, "--assessment", folder, "--out", tmp_path / "card.md")
    assert status == 1
    assert "assess" in printed
    assert not (tmp_path / "card.md").exists()


def test_figures_of_the_int8_file_are_taken_while_it_lies_beside_the_model(
    model_file: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model.onnx"
    shutil.copyfile(model_file, model)
    int8_of(model).write_bytes(b"eight bits")
    folder = assessed(tmp_path / "int8", hashlib.sha256(b"eight bits").hexdigest())
    assert run(model, "--assessment", folder, "--out", tmp_path / "card.md")[0] == 0
    int8_of(model).write_bytes(b"eight other bits")
    status, printed = run(model, "--assessment", folder, "--out", tmp_path / "card.md")
    assert (status, "nor an INT8 file beside it; assess them again" in printed) == (1, True)


def test_a_card_names_each_coverage_as_it_is(tmp_path: Path) -> None:
    sets = PredictionSets(method="split", thresholds={0.9: 0.3, 0.925: 0.2, 0.975: 0.1})
    text = metadata().model_copy(update={"prediction_sets": sets}).model_dump_json()
    status, printed = run(write_model(tmp_path / "model.onnx", text), "--out", tmp_path / "card.md")
    assert status == 0, printed
    assert "for 90%, 92.5%, 97.5% |" in (tmp_path / "card.md").read_text()


def test_a_card_names_the_published_weights_that_training_began_with(tmp_path: Path) -> None:
    described = metadata().model_copy(update={"ancestry": "timm/resnet18, a1_in1k"})
    path = write_model(tmp_path / "model.onnx", described.model_dump_json())
    assert run(path, "--out", tmp_path / "card.md")[0] == 0
    text = (tmp_path / "card.md").read_text()
    assert "| began with | timm/resnet18, a1_in1k |" in text
    assert "published weights (timm/resnet18, a1_in1k), whose licence applies too" in text
