"""Holes in training tiles: as many and as large as was asked for, in all bands at once."""

import pytest
import torch

from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.loading.augment import HoleOptions, Holes, Stripes
from tilewise.datasets.loading.draws import Draws


def pierced(fraction: float, max_area: float, count: int = 400) -> torch.Tensor:
    options = HoleOptions(fraction, max_area)
    return Holes(options)(torch.full((count, 13, 16, 16), 900.0), Draws(torch.arange(count), 0))


def test_about_the_requested_fraction_of_tiles_loses_less_than_the_max_in_all_bands_alike() -> None:
    gone = pierced(0.5, 0.4) == 0
    assert torch.equal(gone.any(dim=1), gone.all(dim=1))
    lost = gone[:, 0].float().mean(dim=(1, 2))
    assert lost.max() <= 0.4
    assert 0.4 < (lost > 0).float().mean() < 0.55


def test_what_is_not_lost_stays_as_it_is() -> None:
    assert set(pierced(1.0, 0.5).unique().tolist()) == {0.0, 900.0}


def test_a_fraction_of_0_makes_no_holes() -> None:
    assert (pierced(0.0, 0.9) == 900).all()


def striped(fraction: float, periods: tuple[int, int] = (3, 5), count: int = 400) -> torch.Tensor:
    options = HoleOptions(fraction=0.0, striped=fraction, periods=periods)
    return Stripes(options)(torch.full((count, 13, 24, 24), 900.0), Draws(torch.arange(count), 0))


def test_about_the_requested_fraction_of_tiles_loses_whole_lines_in_all_bands_alike() -> None:
    gone = striped(0.5) == 0
    assert torch.equal(gone.any(dim=1), gone.all(dim=1))
    lost = gone[:, 0].any(dim=(1, 2))
    assert 0.4 < lost.float().mean() < 0.6
    rows, columns = gone[:, 0].all(dim=2), gone[:, 0].all(dim=1)
    assert torch.equal(gone[:, 0], rows[:, :, None] | columns[:, None, :])
    assert 0.3 < rows.any(dim=1)[lost].float().mean() < 0.7  # from side to side, or from top to bottom


def test_every_nth_line_is_lost_and_begins_anywhere() -> None:
    gone = striped(1.0, (4, 4))[:, 0] == 0
    firsts = {tuple(tile.nonzero()[0].tolist()) for tile in gone}
    assert firsts == {(0, 0), (1, 0), (2, 0), (3, 0), (0, 1), (0, 2), (0, 3)}
    assert (gone.float().mean(dim=(1, 2)) == 0.25).all()


@pytest.mark.parametrize("periods", [(1, 4), (5, 3)])
def test_impossible_periods_are_refused(periods: tuple[int, int]) -> None:
    with pytest.raises(TrainingError, match="periods"):
        HoleOptions(periods=periods)
