"""The eight ways of a square, and networks that look at a tile in several of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.core.tile import Tile
from tilewise.datasets.packs.pack import Pack
from tilewise.models.explain.attribution import AttributionMethod, explain
from tilewise.models.export.export import export
from tilewise.models.export.quantise import quantise
from tilewise.models.model_file import INPUT, ModelMetadata, int8_of, open_model
from tilewise.models.network.backbones import PatchCNN
from tilewise.models.network.classifier import SYMMETRIES, Classifier


def classifier(symmetries: int) -> Classifier:
    torch.manual_seed(0)
    return Classifier(PatchCNN(8, (8,), (1,)), 10, [1500.0] * 13, [700.0] * 13, symmetries).eval()


def test_the_ways_are_those_of_turning_and_mirroring_an_array() -> None:
    plane = torch.arange(16.0).view(1, 1, 4, 4)
    array = plane[0, 0].numpy()
    expected = [np.rot90(each, turns, (0, 1)) for each in (array, array[:, ::-1]) for turns in range(4)]
    assert len({each.tobytes() for each in expected}) == 8
    for way, by_hand in zip(SYMMETRIES, expected, strict=True):
        np.testing.assert_array_equal(way(plane)[0, 0].numpy(), by_hand)


@pytest.mark.parametrize("symmetries", [2, 4, 8])
def test_logits_are_the_mean_of_those_of_each_way(symmetries: int, pack: Pack) -> None:
    tiles = torch.from_numpy(pack.fetch(np.arange(5)))
    with torch.no_grad():
        each = [classifier(1)(way(tiles))[0] for way in SYMMETRIES[:symmetries]]
        logits, embedding = classifier(symmetries)(tiles)
    torch.testing.assert_close(logits, torch.stack(each).mean(0), atol=1e-5, rtol=1e-5)
    assert embedding.shape == (5, 8)


def test_while_a_network_learns_it_sees_tiles_as_they_are(pack: Pack) -> None:
    tiles = torch.from_numpy(pack.fetch(np.arange(5)))
    torch.testing.assert_close(classifier(8).train()(tiles)[0], classifier(1).train()(tiles)[0])


@pytest.fixture(scope="module")
def exported(pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model file of a network that looks in all eight ways."""
    path = tmp_path_factory.mktemp("eight") / "model.onnx"
    told = ModelMetadata(name="test", version="1", classes=pack.summary.classes, network="PatchCNN")
    assert export(classifier(8), told, path, pack.fetch(np.arange(40))) < 1e-4
    return path


@pytest.mark.slow
def test_the_file_answers_a_turned_tile_as_the_tile_itself_in_both_precisions(
    pack: Pack, exported: Path
) -> None:
    tiles, int8 = pack.fetch(np.arange(40)), int8_of(exported)
    quantise(exported, int8, tiles)
    turned = np.ascontiguousarray(np.rot90(tiles, 1, (2, 3))[:, :, ::-1])
    for file in (exported, int8):
        session = open_model(file).session
        before, after = (session.run(["probabilities"], {INPUT: seen})[0] for seen in (tiles, turned))
        np.testing.assert_allclose(before, after, atol=1e-5)
        assert session.run(["outlier_score"], {INPUT: tiles[:1]})[0].shape == (1,)


@pytest.mark.slow
def test_its_answers_are_explained_like_any_others(pack: Pack, exported: Path) -> None:
    tile = Tile("made", pack.fetch(np.arange(1))[0], BAND_NAMES, None)
    turned = replace(tile, pixels=np.ascontiguousarray(np.rot90(tile.pixels, 1, (1, 2))))
    heat, of_turned = (
        explain(open_model(exported), each, method=AttributionMethod.GRADIENTS).heat
        for each in (tile, turned)
    )
    assert heat.std() > 0
    np.testing.assert_allclose(np.rot90(heat), of_turned, atol=1e-4 * np.abs(heat).max())
