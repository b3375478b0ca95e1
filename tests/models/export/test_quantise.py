"""The INT8 file: as sure as its fp32 file, in the same form, for any set of bands."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from linear_model import write_linear_model

from tilewise.datasets.core.errors import ExportError
from tilewise.datasets.core.tile import DN
from tilewise.datasets.packs.pack import Pack
from tilewise.models.export.quantise import quantise
from tilewise.models.model_file import INPUT, INT8, int8_of, open_model


@pytest.fixture(scope="module")
def tiles(pack: Pack) -> DN:
    """Tiles with all bands, with some, and with holes."""
    tiles = pack.fetch(np.arange(60))
    tiles[::3, 5:] = 0
    tiles[1::6, :, :8] = 0
    return tiles


@pytest.fixture(scope="module")
def int8_file(skilled_model: Path) -> Path:
    return int8_of(skilled_model)


def test_int8_answers_about_as_fp32_and_in_the_same_form(
    skilled_model: Path, int8_file: Path, tiles: DN
) -> None:
    fp32, int8 = (open_model(path).session.run(None, {INPUT: tiles}) for path in (skilled_model, int8_file))
    assert (fp32[0].argmax(1) == int8[0].argmax(1)).mean() >= 0.95
    np.testing.assert_allclose(int8[0].sum(1), 1, atol=1e-5)
    for before, after in zip(fp32, int8, strict=True):
        assert (after.shape, after.dtype) == (before.shape, np.float32)
        assert np.isfinite(after).all()
        assert np.abs(after - before).mean() <= 0.05 * max(float(np.abs(before).max()), 1.0)


def test_each_tile_is_answered_as_if_it_had_come_alone(int8_file: Path, tiles: DN) -> None:
    session = open_model(int8_file).session
    together = session.run(None, {INPUT: tiles[:5]})[0]
    alone = np.concatenate([session.run(None, {INPUT: tiles[i : i + 1]})[0] for i in range(5)])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_the_file_says_that_it_is_int8_and_from_which_file(skilled_model: Path, int8_file: Path) -> None:
    original, metadata = open_model(skilled_model), open_model(int8_file).metadata
    assert (metadata.precision, metadata.quantised_from) == (INT8, original.sha256)
    own = ("precision", "quantised_from", "self_test", "digest")
    unchanged = {name: getattr(original.metadata, name) for name in own}
    assert metadata.model_copy(update=unchanged) == original.metadata


def test_convolutions_are_int8_and_head_and_outlier_score_are_not(int8_file: Path) -> None:
    graph = onnx.load(str(int8_file)).graph
    integers = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert convolutions
    assert all(set(node.input) <= integers for node in convolutions)
    products = [node for node in graph.node if node.op_type in ("Gemm", "MatMul")]
    assert products
    assert not any(integers & set(node.input) for node in products)


def test_weights_have_a_scale_for_each_channel(int8_file: Path) -> None:
    graph = onnx.load(str(int8_file)).graph
    sizes = {item.name: int(np.prod(item.dims)) for item in graph.initializer}
    made_by = {node.output[0]: node for node in graph.node}
    for node in graph.node:
        if node.op_type == "Conv":
            weights = made_by[node.input[1]]
            channels = onnx.numpy_helper.to_array(
                next(i for i in graph.initializer if i.name == weights.input[0])
            )
            assert sizes[weights.input[1]] == len(channels)


def test_bands_are_normalised_by_the_quantisation_itself(int8_file: Path) -> None:
    graph = onnx.load(str(int8_file)).graph
    sizes = {item.name: int(np.prod(item.dims)) for item in graph.initializer}
    first = next(node for node in graph.node if node.op_type == "QuantizeLinear")
    assert sizes[first.input[1]] == sizes[first.input[2]] == 13


@pytest.mark.parametrize("method", ["minmax", "entropy"])
def test_ranges_can_be_chosen_otherwise(method: str, skilled_model: Path, tiles: DN, tmp_path: Path) -> None:
    quantise(skilled_model, tmp_path / "model.onnx", tiles, method)
    assert open_model(tmp_path / "model.onnx").metadata.precision == INT8


def test_an_unknown_way_to_choose_ranges_is_refused(skilled_model: Path, tiles: DN, tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match="'median' is no method to choose ranges; use minmax, percentile, entropy"
    ):
        quantise(skilled_model, tmp_path / "model.onnx", tiles, "median")


def test_an_int8_file_is_not_quantised_again(int8_file: Path, tiles: DN, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is INT8 already; name the fp32 file"):
        quantise(int8_file, tmp_path / "model.onnx", tiles)


def test_a_graph_without_convolutions_is_refused(tiles: DN, tmp_path: Path) -> None:
    linear = write_linear_model(tmp_path / "linear.onnx")
    with pytest.raises(ExportError, match="has no convolution, so INT8 would change nothing"):
        quantise(linear, tmp_path / "model.onnx", tiles)


def test_absent_bands_are_filled_in_eight_bits(int8_file: Path) -> None:
    graph = onnx.load(str(int8_file)).graph
    made_by = {output: node for node in graph.node for output in node.output}
    first = next(node for node in graph.node if node.op_type == "QuantizeLinear")
    (fill,) = (node for node in graph.node if node.name == "input_fill")
    assert made_by[fill.input[2]] is first, "what is chosen from is bytes already"
    before = next(made_by[name] for name in first.input if name in made_by)
    assert before.op_type != "Max", "nothing was filled before"
