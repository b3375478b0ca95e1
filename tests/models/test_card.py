"""The card of a model: written from the file and from what was measured of it, and of no other."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from models.cli import main
from models.modelfile import open_model


def assessed(folder: Path, data_hash: str) -> Path:
    folder.mkdir()
    (folder / "assessment.json").write_text(json.dumps({"trained on the data": data_hash}))
    (folder / "assessment.md").write_text(
        "## Assessment of model.onnx\n\n| figure | found % |\n|---|---|\n| x | 95.1 |\n"
    )
    return folder


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["card", *map(str, arguments)])
    return result.exit_code, result.output


def test_a_card_tells_what_the_file_is_and_every_figure_of_its_assessment(model_file: Path, tmp_path: Path) -> None:
    speed = tmp_path / "speed.md"
    speed.write_text("## Speed\n\n12,000 tiles/s\n")
    folder = assessed(tmp_path / "assessment", open_model(model_file).metadata.data_hash[:12])
    status, said = run(model_file, "--assessment", folder, "--append", speed, "--out", tmp_path / "card.md")
    assert (status, said) == (0, f"the card is {tmp_path / 'card.md'}\n")
    text = (tmp_path / "card.md").read_text()
    assert open_model(model_file).sha256 in text
    assert "| x | 95.1 |" in text
    assert text.index("## Limits") < text.index("## Assessment") < text.index("12,000 tiles/s")


@pytest.mark.parametrize("there", [False, True])
def test_figures_of_another_model_or_none_are_refused(model_file: Path, tmp_path: Path, there: bool) -> None:
    folder = assessed(tmp_path / "other", "0123456789ab") if there else tmp_path / "other"
    status, said = run(model_file, "--assessment", folder, "--out", tmp_path / "card.md")
    assert status == 1
    assert "assess" in said
    assert not (tmp_path / "card.md").exists()
