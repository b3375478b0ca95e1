from pathlib import Path

import pytest

from tilewise.training.evaluate.assess_settings import AssessSettings
from tilewise.training.evaluate.out_of_distribution import cut_tiles


@pytest.mark.realdata
def test_real_cloudy_and_clear_tiles_are_told_apart_and_whole(real_data: Path) -> None:
    tiles, shares = cut_tiles(real_data / "scenes", AssessSettings())
    assert tiles.shape == (len(shares), 13, 64, 64)
    cloudy, clear = tiles[shares >= 0.9], tiles[shares == 0]
    assert len(cloudy) > 20
    assert len(clear) > 20
    assert (tiles > 0).mean() > 0.98
    assert cloudy[:, 1].mean() > 2 * clear[:, 1].mean()  # B02
