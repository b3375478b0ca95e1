"""Export of the INT8 file: kept where it is as good as fp32, refused with a reason where it is not."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from linear_model import write_linear_model

from tilewise.datasets.packs.pack import Pack
from tilewise.models.export.quantise import rewrite_metadata
from tilewise.models.export.stamp import save_model
from tilewise.models.model_file import INT8, ModelMetadata, Outliers, PredictionSets, int8_of, open_model
from tilewise.training.evaluate import quantisation
from tilewise.training.evaluate.quantisation import calibration_tiles, compare, export_int8
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
    assert "points of accuracy on the validation split and is" in capsys.readouterr().out


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
