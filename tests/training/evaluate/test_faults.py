import numpy as np
import pytest

from tilewise.datasets.core.bands import BAND_NAMES, L2A_BANDS, positions
from tilewise.datasets.core.tile import DN
from tilewise.training.evaluate.disturbances import FAULTS, cut_off, eurosat_order, offset_left_in, unit_scale
from tilewise.training.fit.calibrate import draw_bands, draw_brightness, draw_faults, mix_lines


@pytest.fixture
def tiles() -> DN:
    found = np.random.default_rng(0).integers(1, 6000, (12, 13, 16, 16), dtype=np.uint16)
    found[:, :, :2] = 0
    return found


def test_no_fault_makes_data_of_holes(tiles: DN) -> None:
    for fault in FAULTS.values():
        assert (fault.apply(tiles)[:, :, :2] == 0).all()


def test_the_offset_is_added_and_the_scale_leaves_the_min_dn(tiles: DN) -> None:
    np.testing.assert_array_equal(offset_left_in(tiles)[:, :, 2:], tiles[:, :, 2:] + 1000)
    assert (unit_scale(tiles)[:, :, 2:] == 1).all()


def test_the_order_of_eurosat_puts_each_band_where_another_belongs(tiles: DN) -> None:
    found = eurosat_order(tiles)
    np.testing.assert_array_equal(found[:, positions(["B8A"])], tiles[:, positions(["B09"])])
    np.testing.assert_array_equal(found[:, positions(["B12"])], tiles[:, positions(["B8A"])])
    level_2a = tiles.copy()
    level_2a[:, positions(["B10"])] = 0
    kept = (eurosat_order(level_2a) > 0).any((0, 2, 3))
    assert [BAND_NAMES[place] for place in np.flatnonzero(kept)] == list(L2A_BANDS)


def test_a_swath_takes_a_tenth_to_nine_tenths_of_a_tile(tiles: DN) -> None:
    gone = (cut_off(np.maximum(tiles, 1)) == 0).mean((1, 2, 3))
    assert gone.min() == pytest.approx(0.1, abs=0.03)
    assert gone.max() == pytest.approx(0.9, abs=0.03)


def test_drawn_faults_change_every_tile_and_sound_draws_change_little(tiles: DN) -> None:
    random = np.random.default_rng(1)
    assert (draw_faults(tiles, random) != tiles).any((1, 2, 3)).all()
    ratio = draw_brightness(tiles, random)[:, :, 2:] / tiles[:, :, 2:]
    assert np.median(ratio, axis=(1, 2, 3)).min() > 0.6
    assert np.median(ratio, axis=(1, 2, 3)).max() < 1.6


def test_drawn_bands_are_never_none_and_mixed_lines_are_of_one_tile_each(tiles: DN) -> None:
    random = np.random.default_rng(1)
    assert (draw_bands(tiles, random) > 0).any((1, 2, 3)).all()
    plain = np.broadcast_to(np.arange(1, 13, dtype=np.uint16)[:, None, None, None], tiles.shape)
    mixed = mix_lines(plain, random)
    assert (mixed == mixed[:, :1, :, :1]).all()
    assert set(np.unique(mixed)) <= set(range(1, 13))
