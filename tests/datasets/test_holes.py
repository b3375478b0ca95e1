"""Holes in training tiles: as many and as large as was asked for, in all bands at once."""

import torch

from datasets.draws import Draws
from datasets.holes import HoleOptions, Holes


def pierced(share: float, most: float, count: int = 400) -> torch.Tensor:
    return Holes(HoleOptions(share, most))(torch.full((count, 13, 16, 16), 900.0), Draws(torch.arange(count), 0))


def test_about_the_asked_share_of_tiles_loses_less_than_the_most_in_all_bands_alike() -> None:
    gone = pierced(0.5, 0.4) == 0
    assert torch.equal(gone.any(dim=1), gone.all(dim=1))
    lost = gone[:, 0].float().mean(dim=(1, 2))
    assert lost.max() <= 0.4
    assert 0.4 < (lost > 0).float().mean() < 0.55


def test_what_is_not_lost_stays_as_it_is() -> None:
    assert set(pierced(1.0, 0.5).unique().tolist()) == {0.0, 900.0}


def test_a_share_of_0_makes_no_holes() -> None:
    assert (pierced(0.0, 0.9) == 900).all()
