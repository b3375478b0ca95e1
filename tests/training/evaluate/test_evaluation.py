import csv
import json
from pathlib import Path

import pytest
import torch

from tilewise.datasets.core.bands import L2A_BANDS, RGB_BANDS, positions
from tilewise.training.evaluate.evaluation import (
    as_markdown,
    evaluate,
    see_through,
    views_of,
    write_evaluations,
)

CLASSES = ["Forest", "River", "Sea"]


def sure(answers: list[int]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(answers), 3).float()


def test_figures_are_those_that_one_counts_by_hand() -> None:
    result = evaluate("x", sure([0, 0, 1, 1, 2]), torch.tensor([0, 1, 1, 1, 2]), CLASSES)
    assert result.accuracy == pytest.approx(4 / 5)
    assert result.confusion == ((1, 0, 0), (1, 2, 0), (0, 0, 1))
    forest, river, sea = result.classes
    assert (forest.precision, forest.recall) == pytest.approx((0.5, 1.0))
    assert (river.precision, river.recall) == pytest.approx((1.0, 2 / 3))
    assert result.macro_f1 == pytest.approx((2 / 3 + 0.8 + 1.0) / 3)
    assert sea.tiles == 1


def test_a_class_without_tiles_does_not_pull_the_mean_down() -> None:
    result = evaluate("x", sure([0, 1]), torch.tensor([0, 1]), CLASSES)
    assert result.macro_f1 == pytest.approx(1.0)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    half_sure = torch.tensor([[0.8, 0.2, 0.0]] * 10)
    labels = torch.tensor([0] * 5 + [1] * 5)
    assert evaluate("x", half_sure, labels, CLASSES).calibration_error == pytest.approx(0.3, abs=1e-5)


def test_tiles_are_only_seen_through_bands_that_they_have() -> None:
    assert views_of(RGB_BANDS) == ["all"]
    assert views_of(L2A_BANDS) == ["all", "10m", "rgb"]


def test_seeing_through_a_set_hides_the_other_bands() -> None:
    seen = see_through(torch.ones(1, 13, 2, 2), "rgb")
    assert seen.sum() == 3 * 4
    assert (seen[:, positions(RGB_BANDS)] == 1).all()


def test_reports_are_written_as_numbers_tables_and_pictures(tmp_path: Path) -> None:
    result = evaluate("eurosat-ms/rgb", sure([0, 0, 1]), torch.tensor([0, 1, 1]), CLASSES)
    written = write_evaluations([result], tmp_path, "best.ckpt")
    assert all(path.is_file() for path in written)
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["checkpoint"] == "best.ckpt"
    assert content["groups"]["eurosat-ms/rgb"]["accuracy"] == pytest.approx(2 / 3)
    with (tmp_path / "confusion-eurosat-ms-rgb.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[2] == ["River", "1", "1", "0"]
    assert (tmp_path / "confusion-eurosat-ms-rgb.png").read_bytes().startswith(b"\x89PNG")
    assert "| eurosat-ms/rgb | 3 | 66.67% |" in as_markdown([result])
