from collections.abc import Callable
from functools import partial
from typing import Literal

import pytest
import torch

from tilewise.models.network.backbones import PatchCNN, ResidualCNN
from tilewise.models.network.classifier import Classifier


@pytest.mark.parametrize("stem", [(16,), (8, 16)])
def test_a_tile_becomes_one_embedding_of_the_promised_length(stem: tuple[int, ...]) -> None:
    backbone = ResidualCNN(widths=(16, 24), depths=(1, 2), stem=stem)
    assert backbone(torch.zeros(3, 13, 64, 64)).shape == (3, backbone.features) == (3, 24)


def test_a_network_of_patches_too_gives_one_embedding_of_the_promised_length() -> None:
    backbone = PatchCNN(patch=8, widths=(16, 24), depths=(2, 1))
    assert backbone(torch.zeros(3, 13, 64, 64)).shape == (3, backbone.features) == (3, 24)


@pytest.mark.parametrize(("window", "reach"), [(4, 0), (6, 1), (8, 2)])
def test_a_larger_window_sees_that_many_pixels_around_its_patch(window: Literal[4, 6, 8], reach: int) -> None:
    torch.manual_seed(0)
    first = PatchCNN(patch=8, window=window).eval().blocks[0]
    tile = torch.randn(1, 13, 64, 64, requires_grad=True)
    first(tile)[0, :, 8, 8].square().sum().backward()
    assert tile.grad is not None
    seen = (tile.grad[0] != 0).any(dim=0).nonzero()
    assert seen.amin(dim=0).tolist() == [32 - reach] * 2
    assert seen.amax(dim=0).tolist() == [35 + reach] * 2


@pytest.mark.parametrize(
    "make",
    [partial(ResidualCNN, widths=(8, 16), depths=(1, 1), stem=(8,)), partial(PatchCNN, 32, (32, 32), (2, 1))],
    ids=["residual", "patches"],
)
def test_every_part_of_the_tile_and_every_band_reaches_the_embedding(
    make: Callable[[], torch.nn.Module],
) -> None:
    torch.manual_seed(0)
    backbone = make().eval()
    tile = torch.randn(1, 13, 64, 64, requires_grad=True)
    backbone(tile).square().sum().backward()
    assert tile.grad is not None
    seen = tile.grad[0].abs()
    assert (seen.amax(dim=(1, 2)) > 0).all()  # every band
    assert (seen.amax(dim=0).unfold(0, 4, 4).unfold(1, 4, 4).amax(dim=(2, 3)) > 0).all()  # every 4 x 4 pixels


def test_a_classifier_gives_logits_for_its_classes_and_the_backbones_embedding() -> None:
    backbone = ResidualCNN(widths=(8,), depths=(1,), stem=(8,))
    classifier = Classifier(backbone, classes=7, band_mean=[1000.0] * 13, band_std=[500.0] * 13)
    logits, embedding = classifier(torch.ones(2, 13, 64, 64, dtype=torch.uint16))
    assert logits.shape == (2, 7)
    assert embedding.shape == (2, 8)


def test_an_empty_tile_and_a_tile_of_mean_values_look_the_same_to_the_network() -> None:
    backbone = ResidualCNN(widths=(8,), depths=(1,), stem=(8,))
    classifier = Classifier(backbone, classes=3, band_mean=[1000.0] * 13, band_std=[500.0] * 13).eval()
    empty = classifier(torch.zeros(1, 13, 64, 64))[0]
    mean = classifier(torch.full((1, 13, 64, 64), 1000.0))[0]
    torch.testing.assert_close(empty, mean, atol=0.1, rtol=0.1)  # within half a step of eight bits a band
