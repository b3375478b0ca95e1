import numpy as np
import pytest

from datasets.pack import Pack
from datasets.tile import DN
from training.disturbances import DISTURBANCES, WORDS


@pytest.fixture(scope="module")
def tiles(pack: Pack) -> DN:
    found = pack.fetch(np.arange(0, 60, 12))
    found[:, 9] = 0
    found[0, :, 20:24, 30:40] = 0
    return found


@pytest.mark.parametrize("name", DISTURBANCES)
def test_every_disturbance_keeps_form_and_absent_bands_and_has_words(tiles: DN, name: str) -> None:
    found = DISTURBANCES[name](tiles)
    assert found.shape == tiles.shape
    assert found.dtype == np.uint16
    assert not found[:, 9].any()
    assert (found != tiles).any()
    assert WORDS[name]


@pytest.mark.parametrize("name", ["rotated", "half_pixel", "jpeg", "band_gain"])
def test_a_disturbed_tile_still_looks_like_itself(tiles: DN, name: str) -> None:
    found = DISTURBANCES[name](tiles)
    present = np.delete(np.arange(13), 9)
    level = np.array([found[n, b][found[n, b] > 0].mean() / tiles[n, b][tiles[n, b] > 0].mean()
                      for n in range(len(tiles)) for b in present])  # fmt: skip
    assert np.abs(level - 1).max() < 0.25


@pytest.mark.parametrize("name", ["rotated", "half_pixel"])
def test_holes_are_not_filled_by_interpolation(tiles: DN, name: str) -> None:
    found = DISTURBANCES[name](tiles)[0]
    assert (found[0] == 0).sum() >= (tiles[0, 0] == 0).sum()
    assert found[0][found[0] > 0].min() >= 0.5 * tiles[0, 0][tiles[0, 0] > 0].min()
