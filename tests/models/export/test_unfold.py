"""Weights that come out of a model file again: the same function, when it answers and when it learns."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tilewise.datasets.core.errors import ModelFileError
from tilewise.datasets.packs.pack import Pack
from tilewise.models.export.export import export
from tilewise.models.export.unfold import unfold_weights
from tilewise.models.model_file import INPUT, int8_of, open_model
from tilewise.models.network.backbones import PatchCNN, ResidualCNN
from tilewise.models.network.classifier import Classifier


def network() -> PatchCNN:
    return PatchCNN(16, (24, 32), (1, 1))


@pytest.fixture
def tiles(pack: Pack) -> torch.Tensor:
    return torch.from_numpy(pack.fetch(pack.rows("train")))


def test_they_answer_as_the_file_does_and_in_training_almost(
    skilled_model: Path, tiles: torch.Tensor
) -> None:
    classifier = Classifier(network(), 10, [1.0] * 13, [1.0] * 13)
    classifier.load_state_dict(unfold_weights(open_model(skilled_model), network(), tiles))
    expected = open_model(skilled_model).session.run(["logits"], {INPUT: tiles.numpy()})[0]
    with torch.no_grad():
        answering, learning = classifier.eval()(tiles)[0].numpy(), classifier.train()(tiles)[0].numpy()
    np.testing.assert_allclose(answering, expected, atol=1e-3)
    np.testing.assert_allclose(learning, expected, atol=0.05)
    assert expected.std() > 0.5, "far from nothing"


def test_the_network_that_is_handed_over_stays_as_it_is(skilled_model: Path, tiles: torch.Tensor) -> None:
    given = network()
    before = {name: value.clone() for name, value in given.state_dict().items()}
    unfold_weights(open_model(skilled_model), given, tiles)
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())


@pytest.mark.slow
def test_a_file_that_looks_in_several_ways_holds_the_same_weights(
    skilled_model: Path, tiles: torch.Tensor, tmp_path: Path
) -> None:
    classifier = Classifier(network(), 10, [1.0] * 13, [1.0] * 13, symmetries=4)
    classifier.load_state_dict(unfold_weights(open_model(skilled_model), network(), tiles))
    export(classifier.eval(), open_model(skilled_model).metadata, tmp_path / "four.onnx", tiles[:4].numpy())
    again = unfold_weights(open_model(tmp_path / "four.onnx"), network(), tiles)
    assert torch.allclose(again["head.weight"], classifier.head.weight)


def test_other_networks_and_rounded_weights_are_refused(skilled_model: Path, tiles: torch.Tensor) -> None:
    with pytest.raises(ModelFileError, match="another network"):
        unfold_weights(open_model(skilled_model), ResidualCNN((8, 16), (1, 1), (8,)), tiles)
    with pytest.raises(ModelFileError, match="another network"):
        unfold_weights(open_model(skilled_model), PatchCNN(16, (24, 40), (1, 1)), tiles)
    with pytest.raises(ModelFileError, match="name the fp32 file beside it"):
        unfold_weights(open_model(int8_of(skilled_model)), network(), tiles)
