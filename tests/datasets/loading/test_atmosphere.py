"""Level-2A simulated from Level-1C: darker in the blue, without band 10, no data kept."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tilewise.datasets.core.bands import BAND_NAMES, L2A_BANDS, positions
from tilewise.datasets.loading.atmosphere import Atmosphere, AtmosphereOptions
from tilewise.datasets.loading.draws import Draws

STILL = AtmosphereOptions(fraction=1.0, path=(1.0, 1.0), band_path=0.0, band_transmittance=0.0)


def corrected(tiles: Tensor, options: AtmosphereOptions = STILL) -> Tensor:
    changed: Tensor = Atmosphere(options)(tiles, Draws(torch.arange(len(tiles)), 0))
    return changed


def band(tiles: Tensor, name: str) -> Tensor:
    return tiles[:, BAND_NAMES.index(name)]


def test_the_air_is_taken_off_as_the_formula_says() -> None:
    changed = corrected(torch.full((2, 13, 4, 4), 2000.0))
    torch.testing.assert_close(band(changed, "B02"), torch.full((2, 4, 4), (2000 - 760) / 0.84))
    torch.testing.assert_close(band(changed, "B09"), torch.full((2, 4, 4), (2000 - 50) / 0.35))


def test_no_data_stay_no_data_and_data_never_become_it() -> None:
    tiles = torch.full((4, 13, 4, 4), 300.0)  # darker than the air is in band 1
    tiles[:, :, :2] = 0
    kept = corrected(tiles)[:, positions(L2A_BANDS)]
    assert not kept[:, :, :2].any()
    assert (kept[:, :, 2:] >= 1).all()


def test_band_10_is_gone_where_level_2a_was_made_and_only_there() -> None:
    changed = corrected(torch.full((600, 13, 2, 2), 2000.0), AtmosphereOptions(fraction=0.4))
    gone = ~band(changed, "B10").flatten(1).any(dim=1)
    assert 0.3 < gone.float().mean() < 0.5
    assert (changed[~gone] == 2000).all()
    assert (changed[gone][:, 0] != 2000).all()


def test_an_absent_band_stays_absent() -> None:
    tiles = torch.full((1, 13, 2, 2), 2000.0)
    tiles[:, BAND_NAMES.index("B05")] = 0
    assert not band(corrected(tiles), "B05").any()


def test_tiles_of_level_2a_stay_as_they_are_and_rgb_tiles_do_not() -> None:
    level_2a, rgb = torch.full((1, 13, 2, 2), 900.0), torch.zeros(1, 13, 2, 2)
    level_2a[:, BAND_NAMES.index("B10")] = 0
    rgb[:, positions(["B02", "B03", "B04"])] = 900.0
    assert torch.equal(corrected(level_2a), level_2a)
    assert band(corrected(rgb), "B02").max() < 200


@pytest.mark.realdata
def test_simulated_tiles_are_as_dark_in_the_blue_as_real_level_2a(real_data: Path) -> None:
    real = np.load(real_data / "l2a_unlabelled.npz")
    of = [str(name) for name in real["bands"]]
    # Means over EuroSAT's Level-1C tiles of the same land (../shared/data/README.md: 1,366 and 376 in B01).
    simulated = corrected(torch.full((1, 13, 2, 2), 1366.0))
    assert abs(float(band(simulated, "B01").mean()) - real["tiles"][:, of.index("B01")].mean()) < 150
