"""Export of the INT8 file: kept where it is as good as fp32, refused with a reason where it is not."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from linear_model import write_linear_model
from tiny_onnx import metadata as tiny_metadata

from tilewise.datasets.packs.pack import Pack
from tilewise.models.export.quantise import rewrite_metadata
from tilewise.models.export.stamp import save_model
from tilewise.models.model_file import INT8, ModelMetadata, Outliers, PredictionSets, int8_of, open_model
from tilewise.training.evaluate import quantisation
from tilewise.training.evaluate.outputs import NO_ZONE, Predictions
from tilewise.training.evaluate.quantisation import Comparison, calibration_tiles, compare, export_int8
from tilewise.training.settings import Quantisation

LENIENT = Quantisation(tiles=64, max_lost=0.2)


@pytest.fixture
def model(skilled_model: Path, tmp_path: Path) -> Path:
    """A model file that promises coverage and flags."""
    path = tmp_path / "model.onnx"
    shutil.copyfile(skilled_model, path)
    promises = {
        "prediction_sets": PredictionSets(method="test", thresholds={0.9: 0.0}),
        "outliers": Outliers(method="test", threshold=1.0, false_alarms=0.05),
    }
    rewrite_metadata(path, open_model(path).metadata.model_copy(update=promises))
    return path


def metadata(path: Path) -> ModelMetadata:
    return open_model(path).metadata


def test_the_file_is_kept_and_its_figures_are_told(
    model: Path, pack: Pack, capsys: pytest.CaptureFixture[str]
) -> None:
    files, metrics = export_int8(model, pack, LENIENT)
    assert files == [int8_of(model)]
    assert metadata(files[0]).precision == INT8
    assert metadata(files[0]).quantised_from == open_model(model).sha256
    assert {"int8/val/accuracy", "int8/val/lost", "int8/geotiff/rgb/lost", "int8/times_as_fast"} <= set(
        metrics
    )
    assert metadata(files[0]).metrics["int8/val/accuracy"] == metrics["int8/val/accuracy"]
    lost = 100 * metrics["int8/val/lost"]
    assert (
        f"INT8 loses {lost:.2f} points of accuracy on the validation split and is" in capsys.readouterr().out
    )


def test_the_figures_are_those_of_the_files(model: Path, pack: Pack) -> None:
    export_int8(model, pack, LENIENT)
    rows = pack.rows("val")
    answers = (
        open_model(int8_of(model)).session.run(["probabilities"], {"tiles": pack.fetch(rows)})[0].argmax(1)
    )
    found = compare(open_model(model), open_model(int8_of(model)), pack)
    assert found.as_they_are[1].accuracy == pytest.approx((answers == pack.labels[rows]).mean())
    assert found.objection(LENIENT) is None


def test_a_file_that_loses_too_much_is_refused_and_the_old_one_goes(
    model: Path, pack: Pack, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copyfile(model, int8_of(model))
    files, _ = export_int8(model, pack, Quantisation(tiles=64, max_lost=-1.0))
    assert files == []
    assert [path.name for path in model.parent.iterdir()] == ["model.onnx"]
    output = capsys.readouterr().out
    assert "no INT8 file was written, the model serves in fp32: INT8 loses" in output
    assert "points of accuracy, the limit is -100" in output


def test_a_file_whose_probabilities_mean_something_else_is_refused(model: Path, pack: Pack) -> None:
    sharp = model.with_name("sharp.onnx")
    graph = onnx.load(str(model))
    softmax = next(node for node in graph.graph.node if node.op_type == "Softmax")
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.array(3, np.float32), "three"))
    tripled = onnx.helper.make_node("Mul", [softmax.input[0], "three"], ["tripled"])
    graph.graph.node.insert(list(graph.graph.node).index(softmax), tripled)
    softmax.input[0] = "tripled"
    save_model(graph, open_model(model).metadata, sharp)
    found = compare(open_model(model), open_model(sharp), pack)
    assert found.lost == 0
    assert found.temperature == pytest.approx(3, rel=0.05)
    assert "would need 3.0" in str(found.objection(LENIENT))


def test_without_gain_on_this_processor_the_file_is_kept_and_it_is_said(
    model: Path, pack: Pack, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantisation, "gain", lambda fp32, int8: 0.8)
    files, _ = export_int8(model, pack, LENIENT)
    assert files == [int8_of(model)]
    assert "gains nothing from INT8; services on such processors use fp32" in capsys.readouterr().out


def test_it_can_be_switched_off(model: Path, pack: Pack) -> None:
    assert export_int8(model, pack, Quantisation(enabled=False)) == ([], {})
    assert not int8_of(model).exists()


def test_calibration_sees_every_set_of_bands(pack: Pack) -> None:
    tiles = calibration_tiles(pack, 40)
    counts = {int(count) for count in (tiles > 0).any((2, 3)).sum(1)}
    assert {13, 12, 4, 3} <= counts
    assert len(tiles) == 40


@pytest.mark.parametrize("wrong", [{"tiles": 0}, {"percentile": 0.0}, {"percentile": 100.5}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"quantisation.{next(iter(wrong))}"):
        Quantisation(**wrong)


def test_a_network_without_convolutions_is_served_in_fp32_and_it_is_said(
    pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    linear = write_linear_model(tmp_path / "model.onnx")
    assert export_int8(linear, pack, LENIENT) == ([], {})
    assert "has no convolution, so INT8 would change nothing" in capsys.readouterr().out


# The verdict, on predictions that are made up.

PROMISES = tiny_metadata().model_copy(
    update={
        "prediction_sets": PredictionSets(method="made up", thresholds={0.9: 0.5, 0.95: 0.25}),
        "outliers": Outliers(method="made up", threshold=1.0, false_alarms=0.05),
    }
)


def predictions(of_label: list[float], flagged: int = 0) -> Predictions:
    """Predictions that give each tile's label this probability, the first `flagged` of them as outliers."""
    right = np.array(of_label, np.float32)
    labels = np.arange(len(right)) % 2
    probabilities = np.stack([right, 1 - right], axis=1)
    probabilities[labels == 1] = probabilities[labels == 1, ::-1]
    scores = np.where(np.arange(len(right)) < flagged, 2, 0).astype(np.float32)
    return Predictions(PROMISES.classes, probabilities, scores, labels, np.full(len(right), NO_ZONE))


def of_accuracy(correct: int, count: int = 20) -> Predictions:
    return predictions([0.75] * correct + [0.25] * (count - correct))


def comparison(fp32: Predictions, int8: Predictions) -> Comparison:
    return Comparison(PROMISES, (fp32, int8), {"made-up/all": (fp32, int8)})


@pytest.mark.parametrize(
    ("all_bands", "rgb", "lost"),
    [((16, 15), (16, 16), 0.05), ((16, 16), (16, 10), 0.15), ((16, 14), (10, 16), 0.1)],
    ids=["most with all bands", "most over all sets of bands", "gained with fewer bands"],
)
def test_the_greater_loss_of_accuracy_counts(
    all_bands: tuple[int, int], rgb: tuple[int, int], lost: float
) -> None:
    whole, fewer = ((of_accuracy(fp32), of_accuracy(int8)) for fp32, int8 in (all_bands, rgb))
    found = Comparison(PROMISES, whole, {"made-up/all": whole, "made-up/rgb": fewer})
    assert found.lost == pytest.approx(lost)
    refused = f"INT8 loses {100 * lost:.2f} points of accuracy, the limit is {100 * lost - 1:g}"
    assert found.objection(Quantisation(max_lost=round(lost - 0.01, 4))) == refused
    assert "points of accuracy" not in str(found.objection(Quantisation(max_lost=lost + 0.01)))


def test_the_figures_of_a_tracker_are_those_of_both_files() -> None:
    fp32, int8 = predictions([0.75] * 8 + [0.25] * 2), predictions([0.25] * 3 + [0.75] * 7)
    figures = Comparison(
        PROMISES, (fp32, int8), {"made-up/all": (fp32, int8), "made-up/rgb": (fp32, fp32)}
    ).metrics()
    assert figures.pop("int8/val/calibration_error") == pytest.approx(
        0.05, abs=1e-6
    )  # sure by 0.75, right by 0.7
    assert figures.pop("int8/val/shifted") >= 0
    assert figures == pytest.approx(
        {
            "int8/val/accuracy": 0.7,
            "int8/val/lost": 0.1,
            "int8/val/agreement": 0.5,
            "int8/made-up/all/accuracy": 0.7,
            "int8/made-up/all/lost": 0.1,
            "int8/made-up/rgb/accuracy": 0.8,
            "int8/made-up/rgb/lost": 0.0,
        }
    )


@pytest.mark.parametrize(("power", "refused"), [(1 / 3, True), (0.88, True), (0.92, False), (1, False)])
def test_probabilities_that_become_softer_or_sharper_are_refused(power: float, refused: bool) -> None:
    """Probabilities raised to a power need that power as their temperature."""
    fp32 = of_accuracy(150, 200)
    for shift in (power, 1 / power):
        raised = fp32.probabilities**shift
        probabilities = (raised / raised.sum(1, keepdims=True)).astype(np.float32)
        found = comparison(fp32, replace(fp32, probabilities=probabilities))
        assert found.temperature == pytest.approx(shift, rel=1e-3)
        objection = f"INT8's probabilities would need {shift:.2f} times fp32's temperature"
        assert ("temperature" in str(found.objection(LENIENT))) is refused
        assert not refused or found.objection(LENIENT) == objection


SURE, UNSURE, WRONG = [0.75] * 75, [0.375] * 15, [0.125] * 10
"""Of 100 tiles: within both prediction sets, within that of 95 % alone, and in neither."""


@pytest.mark.parametrize(
    ("of_label", "flagged", "shifted"),
    [
        (SURE + UNSURE + WRONG, 10, 0.0),
        ([*SURE[1:], 0.375, *UNSURE, *WRONG], 10, 0.01),
        (SURE + [0.75] * 3 + UNSURE[3:] + WRONG, 10, 0.03),
        (SURE + [0.125] * 4 + UNSURE[4:] + WRONG, 10, 0.04),
        (SURE + UNSURE + [0.375] * 5 + WRONG[5:], 10, 0.05),
        (SURE + UNSURE + WRONG, 4, 0.06),
        (SURE + UNSURE + WRONG, 17, 0.07),
        ([0.375] * 2 + SURE[2:] + UNSURE + WRONG, 2, 0.08),
    ],
)
def test_the_largest_change_of_a_promise_counts_up_or_down(
    of_label: list[float], flagged: int, shifted: float
) -> None:
    fp32 = predictions(SURE + UNSURE + WRONG, 10)
    assert comparison(fp32, predictions(of_label, flagged)).shifted == pytest.approx(shifted)


def test_a_model_that_promises_nothing_shifts_nothing() -> None:
    pair = (predictions(SURE), predictions(UNSURE * 5))
    assert Comparison(tiny_metadata(), pair, {"made-up/all": pair}).shifted == 0


@pytest.mark.parametrize(
    ("tiles", "changed", "refused"),
    [(20, 2, False), (20, 3, True), (1000, 9, False), (1000, 11, True)],
    ids=["two of few tiles", "three of few tiles", "under 1 % of many", "over 1 % of many"],
)
def test_a_file_that_changes_coverage_or_flags_is_refused_beyond_two_tiles_or_one_percent(
    tiles: int, changed: int, refused: bool
) -> None:
    fp32 = predictions([0.75] * tiles, flagged=tiles // 2)
    moves = f"INT8 changes coverage or the flagged fraction by {100 * changed / tiles:.2f} points"
    for flagged in (tiles // 2 + changed, tiles // 2 - changed):
        objection = comparison(fp32, predictions([0.75] * tiles, flagged)).objection(LENIENT)
        assert objection == (moves if refused else None)
