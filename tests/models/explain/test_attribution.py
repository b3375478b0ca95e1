"""What an answer rests on, found on tiles and models where it is known."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from tiny_onnx import calibrated, write_model

from tilewise.datasets.core.bands import BAND_NAMES, positions
from tilewise.datasets.core.errors import ModelFileError, NoDataError, TilewiseError
from tilewise.datasets.core.tile import BAND_COUNT, DN, Tile, canonical_order
from tilewise.datasets.packs.pack import Pack
from tilewise.models.explain.attribution import AttributionMethod, TileExplanation, explain, log_odds
from tilewise.models.model_file import ModelFile, open_model
from tilewise.models.occlusion import without_pattern

CLASSES = ("Bare", "Built", "Wet")
METHODS = [AttributionMethod.GRADIENTS, AttributionMethod.OCCLUSION]


def tile_of(pixels: DN, bands: tuple[str, ...] = BAND_NAMES) -> Tile:
    return Tile("made", pixels, canonical_order(bands), None)


def half_and_half() -> Tile:
    """Left: nothing. Right: bright in B08, which speaks for Built."""
    pixels = np.full((BAND_COUNT, 64, 64), 1000, np.uint16)
    pixels[positions(("B08",)), :, 32:] = 3000
    return tile_of(pixels)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    """Built by the mean of B08, Wet by that of B11; Bare by neither."""
    weights = np.zeros((BAND_COUNT + 1, 3), np.float32)
    weights[positions(("B08",)), 1] = 0.004
    weights[positions(("B11",)), 2] = 0.004
    weights[-1] = (2, -5, -6)
    path = tmp_path_factory.mktemp("explain") / "model.onnx"
    return open_model(write_model(path, calibrated(CLASSES).model_dump_json(), weights=weights))


@pytest.fixture(scope="module", params=METHODS)
def found(request: pytest.FixtureRequest, model: ModelFile) -> TileExplanation:
    return explain(model, half_and_half(), "Built", request.param)


def test_the_heat_lies_on_the_half_that_the_answer_rests_on(found: TileExplanation) -> None:
    assert found.heat.shape == (64, 64)
    assert found.heat[:, 36:].min() > 0 > found.heat[:, :28].max(), (
        "what is below the tile's mean speaks against it"
    )


def test_the_band_that_the_answer_rests_on_is_found_and_what_is_without_it(found: TileExplanation) -> None:
    assert max(found.bands, key=lambda name: found.bands[name].log_odds) == "B08"
    assert found.bands["B11"].log_odds < 0, "Wet gives way to Built where B11 is gone"
    assert found.bands["B01"].log_odds == pytest.approx(0, abs=1e-5)
    whole = 1 / (1 + np.exp(-found.log_odds))
    assert found.bands["B08"].probability < 0.01 < whole == pytest.approx(found.probabilities[1], abs=1e-5)


def test_probabilities_set_and_outlier_flag_are_the_models(found: TileExplanation) -> None:
    assert found.probabilities.sum() == pytest.approx(1, abs=1e-5)
    members = {name for name, p in zip(CLASSES, found.probabilities, strict=True) if p >= 0.05}
    assert set(found.prediction_set or ()) == members
    assert found.is_outlier is False


def test_shares_of_pixels_add_up_to_what_the_pattern_makes_of_the_answer(
    model_file: Path, pack: Pack
) -> None:
    tile = tile_of(pack.fetch(np.arange(1))[0])
    found = explain(open_model(model_file), tile)
    assert found.method is AttributionMethod.GRADIENTS
    assert found.reason == ""
    difference = found.log_odds - found.mean_log_odds
    assert found.gap is not None
    assert abs(found.gap) < 0.05 * max(abs(difference), 0.05)
    assert found.heat.sum() == pytest.approx(difference, abs=0.06 * max(abs(difference), 0.05))


def test_holes_carry_no_share_and_stay_holes(model: ModelFile) -> None:
    tile = half_and_half()
    tile.pixels[:, :, :16] = 0
    assert (without_pattern(tile.pixels)[:, :, :16] == 0).all()
    found = explain(model, tile, "Built", AttributionMethod.GRADIENTS)
    assert np.abs(found.heat[:, :8]).max() < 1e-9


def test_a_graph_that_gradients_do_not_pass_is_explained_by_occlusion_and_says_why(
    model: ModelFile, tmp_path: Path
) -> None:
    graph = onnx.load(model.path)
    gemm = next(node for node in graph.graph.node if node.op_type == "Gemm")
    gemm.input[0] = "bent"
    graph.graph.node.insert(2, helper.make_node("Elu", ["embedding"], ["bent"]))
    onnx.save(graph, str(tmp_path / "odd.onnx"))
    odd = open_model(tmp_path / "odd.onnx")
    found = explain(odd, half_and_half(), "Built")
    assert found.method is AttributionMethod.OCCLUSION
    assert "gradients are not supported for its operators Elu" in found.reason
    with pytest.raises(ModelFileError, match="use --method occlusion"):
        explain(odd, half_and_half(), method=AttributionMethod.GRADIENTS)


def test_a_file_that_torch_answers_otherwise_is_not_explained_by_gradients(model: ModelFile) -> None:
    other = model.metadata.model_copy(update={"temperature": 3.0})  # not what its graph divides by
    wrong = ModelFile(model.path, model.sha256, other, model.session)
    with pytest.raises(ModelFileError, match=r"differ by .* use --method occlusion"):
        explain(wrong, half_and_half(), method=AttributionMethod.GRADIENTS)


def test_log_odds_are_exact_where_the_probability_is_nearly_one() -> None:
    import torch

    assert float(log_odds(torch.tensor([[60.0, 0.0]]), 0)[0]) == pytest.approx(60)


def test_what_cannot_be_explained_is_told(model: ModelFile) -> None:
    with pytest.raises(NoDataError, match="nothing to explain"):
        explain(model, tile_of(np.zeros((BAND_COUNT, 64, 64), np.uint16)))
    with pytest.raises(TilewiseError, match=r"has no class 'Lake'; it has Bare, Built, Wet"):
        explain(model, half_and_half(), "Lake")
    with pytest.raises(TilewiseError, match=r"coverage 0\.99"):
        explain(model, half_and_half(), coverage=0.99)
