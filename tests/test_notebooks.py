"""The tutorials run, from the first cell to the last."""

from pathlib import Path

import nbformat
import pytest
from linear_model import write_linear_model
from nbclient import NotebookClient

pytestmark = pytest.mark.slow

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


# What the last cell prints: a line that must be there, and how many arrows.
ANSWERS = {
    "tutorial": ("Forest_2.tif ->", 3),
    "scenes": ("Forest -> Industrial: ", 4),
    "finetuning": ("Forest -> Forest ", 7),
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_ends_in_an_answer(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where a notebook works
    monkeypatch.setenv("TILEWISE_TUTORIAL_TILES", "12")
    monkeypatch.setenv("TILEWISE_TUTORIAL_EPOCHS", "2")
    if path.stem == "scenes":  # the tutorial is where a network is trained
        monkeypatch.setenv("TILEWISE_MODEL", str(write_linear_model(tmp_path / "model.onnx")))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(path.parent)}}).execute()
    last = [cell for cell in notebook.cells if cell.cell_type == "code"][-1]
    text = "".join(output.get("text", "") for output in last.outputs)
    line, arrows = ANSWERS[path.stem]
    assert line in text
    assert text.count("->") == arrows
