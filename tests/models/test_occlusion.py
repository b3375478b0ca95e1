"""Patch occlusion, which the service and `tilewise explain` share."""

import numpy as np
import pytest

from tilewise.datasets.acquire.synthetic import synthesise_tile
from tilewise.datasets.core.tile import DN
from tilewise.models.occlusion import Values, in_batches, occlude, without_pattern

TILE = synthesise_tile("Forest", 3, 1).pixels
WEIGHTS = np.random.default_rng(0).normal(size=(13, 64, 64)).astype(np.float32) * 1e-4


def score(tiles: DN) -> Values:
    """A score that depends on every pixel."""
    return np.asarray((tiles.astype(np.float32) * WEIGHTS).sum(axis=(1, 2, 3)))


@pytest.mark.parametrize(("size", "stride"), [(8, 4), (8, 8), (16, 12), (64, 64)])
def test_the_heat_is_that_of_captums_occlusion(size: int, stride: int) -> None:
    captum, torch = pytest.importorskip("captum.attr"), pytest.importorskip("torch")

    def forward(tiles):  # type: ignore[no-untyped-def]
        return torch.from_numpy(score(tiles.numpy().astype(np.uint16)))

    expected = captum.Occlusion(forward).attribute(
        torch.from_numpy(TILE[None].astype(np.float32)),
        sliding_window_shapes=(13, size, size),
        strides=(13, stride, stride),
        baselines=torch.from_numpy(without_pattern(TILE)[None].astype(np.float32)),
    )[0, 0]
    _, heat = occlude(TILE, lambda tiles: score(TILE[None]) - score(tiles), size, stride)
    np.testing.assert_allclose(heat, expected.numpy(), atol=1e-3)
    assert np.abs(heat).max() > 0.1


def test_a_tile_without_pattern_has_the_bands_means_and_keeps_its_holes() -> None:
    pixels = TILE.copy()
    pixels[3, :10] = 0
    even = without_pattern(pixels)
    assert (even[3, :10] == 0).all()
    assert set(np.unique(even[3, 10:])) == {np.rint(pixels[3, 10:].mean())}


def test_a_bounded_number_of_tiles_is_held_at_once() -> None:
    sizes = []

    def drop(tiles: DN) -> Values:
        sizes.append(len(tiles))
        return np.arange(len(tiles), dtype=np.float32)

    found = in_batches(iter([TILE] * 150), 150, drop)
    assert (len(found), sum(sizes), max(sizes)) == (150, 150, 64)
    assert len(in_batches(iter([]), 0, drop)) == 0
