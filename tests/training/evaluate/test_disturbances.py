import numpy as np
import pytest

from tilewise.datasets.core.tile import DN
from tilewise.datasets.packs.pack import Pack
from tilewise.training.evaluate.disturbances import DESCRIPTIONS, DISTURBANCES


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
    assert DESCRIPTIONS[name]


@pytest.mark.parametrize("name", ["rotated", "half_pixel", "jpeg", "band_gain"])
def test_a_disturbed_tile_still_looks_like_itself(tiles: DN, name: str) -> None:
    found = DISTURBANCES[name](tiles)
    present = np.delete(np.arange(13), 9)
    level = np.array([found[n, b][found[n, b] > 0].mean() / tiles[n, b][tiles[n, b] > 0].mean()
                      for n in range(len(tiles)) for b in present])  # fmt: skip
    assert np.abs(level - 1).max() < 0.25


@pytest.mark.parametrize(("name", "deviation"), [("weak_noise", 30), ("noise", 100)])
def test_noise_is_as_strong_as_its_words_say(name: str, deviation: int) -> None:
    tiles = np.full((2, 13, 64, 64), 3000, np.uint16)
    assert DISTURBANCES[name](tiles).std() == pytest.approx(deviation, rel=0.02)
    assert f"{deviation} DN" in DESCRIPTIONS[name]


@pytest.mark.parametrize("name", ["rotated", "half_pixel"])
def test_holes_are_not_filled_by_interpolation(tiles: DN, name: str) -> None:
    found = DISTURBANCES[name](tiles)[0]
    assert (found[0] == 0).sum() >= (tiles[0, 0] == 0).sum()
    assert found[0][found[0] > 0].min() >= 0.5 * tiles[0, 0][tiles[0, 0] > 0].min()


def test_half_the_size_holds_all_of_a_tile_and_twice_the_size_its_middle(tiles: DN) -> None:
    whole = tiles[1:, :9].astype(np.float32)
    smaller, larger = (DISTURBANCES[name](tiles)[1:, :9].astype(np.float32) for name in ("smaller", "larger"))
    means = whole.reshape(*whole.shape[:2], 32, 2, 32, 2).mean((3, 5))
    assert np.abs(smaller[:, :, 16:48, 16:48] - means).max() <= 0.51
    assert np.abs(smaller[:, :, 16:48, 15] - means[:, :, :, 0]).max() <= 0.51, (
        "beyond the edge is its mirror image"
    )
    middle = whole[:, :, 16:48, 16:48]
    np.testing.assert_allclose(larger[:, :, ::2, ::2].mean((2, 3)), middle.mean((2, 3)), rtol=0.05)
    assert larger.max() <= middle.max() + 0.51
