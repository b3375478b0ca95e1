"""Colours alone: the same wherever they lie in the tile, learned as Level-2A shows them, of a pack that has
them."""

from pathlib import Path

import numpy as np
import pytest

from tilewise.datasets.acquire.synthetic import synthesise_tile
from tilewise.datasets.core.bands import BAND_SETS, positions
from tilewise.datasets.core.errors import NoTilesError
from tilewise.datasets.core.tile import Tile, only_bands
from tilewise.datasets.packs.pack import Pack
from tilewise.datasets.packs.packing import write_pack
from tilewise.datasets.packs.splits import SplitMethod, SplitPlan
from tilewise.datasets.quality.reviewed import write_tile
from tilewise.datasets.readers.sources import find_source
from tilewise.training.fit.pseudo_labels import Colours, colour_features


@pytest.fixture(scope="module")
def colours(pack: Pack) -> Colours:
    return Colours(pack)


def test_where_the_pixels_lie_changes_nothing(colours: Colours, pack: Pack) -> None:
    tiles = pack.fetch(np.arange(20))
    order = np.random.default_rng(0).permutation(64 * 64)
    shuffled = tiles.reshape(20, 13, -1)[:, :, order].reshape(tiles.shape)
    assert colours.guess(shuffled) == colours.guess(tiles)


def test_it_is_right_more_often_than_chance_on_tiles_that_it_did_not_learn(
    colours: Colours, pack: Pack
) -> None:
    rows = pack.rows("val")
    guessed = colours.guess(only_bands(pack.fetch(rows), BAND_SETS["l2a"]))
    right = [
        name == pack.summary.classes[label] for name, label in zip(guessed, pack.labels[rows], strict=True)
    ]
    assert np.mean(right) > 0.3, "chance is a tenth"


def test_pixels_without_data_are_passed_over(pack: Pack) -> None:
    tiles = pack.fetch(np.arange(4))
    holed = tiles.copy()
    holed[:, :, ::2] = 0
    kept = np.repeat(tiles[:, :, 1::2], 2, axis=2)
    np.testing.assert_allclose(
        colour_features(holed), colour_features(kept), atol=5e-3
    )  # percentiles interpolate
    assert np.isfinite(colour_features(np.zeros_like(tiles))).all()


def test_a_band_that_is_needed_and_missing_is_nothing_and_no_error(pack: Pack) -> None:
    tiles = pack.fetch(np.arange(2))
    tiles[:, positions(["B11"])] = 0
    assert np.isfinite(colour_features(tiles)).all()


def test_a_pack_without_tiles_of_all_bands_is_refused(tmp_path: Path) -> None:
    rgb = BAND_SETS["rgb"]
    for number in range(1, 13):
        tile = synthesise_tile(("Forest", "River")[number % 2], number, 0)
        seen = Tile(tile.name, only_bands(tile.pixels[None], rgb)[0], rgb, tile.level)
        write_tile(seen, tmp_path / "rgb" / tile.name.split("_")[0] / f"{tile.name}.tif")
    write_pack([find_source(tmp_path / "rgb")], tmp_path / "pack", SplitPlan(SplitMethod.RANDOM))
    with pytest.raises(NoTilesError, match="no tile of its train split has all 13 bands"):
        Colours(Pack(tmp_path / "pack"))
