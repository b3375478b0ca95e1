"""The benchmark of networks runs, counts, and says what was left out."""

import sys
from pathlib import Path

import model_speed
import pytest


@pytest.mark.slow
def test_it_prints_a_row_for_each_engine_that_is_there(
    skilled_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (
        "--engines onnxruntime --batches 1,2 --rounds 2 --seconds 0.01 --core-seconds --networks timm/nothing"
    )
    monkeypatch.setattr(sys, "argv", ["model_speed.py", "--model", str(skilled_model), *options.split()])
    monkeypatch.setattr(model_speed.importlib.util, "find_spec", lambda name: None)
    model_speed.main()
    output = capsys.readouterr().out
    rows = [line.split("|")[1:-1] for line in output.splitlines() if line.startswith("| this model")]
    assert [row[2].strip() for row in rows] == ["onnxruntime fp32", "onnxruntime INT8"]
    assert all(len(row) == 8 and "±" in row[3] and "±" in row[4] for row in rows)
    assert "left out: timm/nothing: timm is not installed" in output
    assert "no verdict" in output


def test_work_is_counted_from_the_graph(skilled_model: Path) -> None:
    patches = 13 * 4 * 4 * 16 * 16 * 16
    convolutions = 9 * 16 * 24 * 8 * 8 + 9 * 24 * 32 * 4 * 4
    counted = model_speed.gflop(skilled_model) * 1e9 / 2
    assert patches + convolutions <= counted <= 1.05 * (patches + convolutions) + 20_000


def test_a_model_that_is_none_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        sys, "argv", ["model_speed.py", "--model", str(tmp_path / "model.onnx"), "--networks", ""]
    )
    with pytest.raises(SystemExit, match="there is no such model"):
        model_speed.main()
