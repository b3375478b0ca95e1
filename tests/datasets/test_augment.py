"""Augmentation on the device: no data stays no data, bands are hidden in sets, mixtures add up."""

import numpy as np
import pytest
import torch
from torch import Tensor

from datasets.augment import (
    BandDropout,
    MixOptions,
    RadiometryOptions,
    cutmix,
    drop_bands,
    jitter_radiometry,
)
from datasets.bands import BAND_NAMES, BAND_SETS, positions
from datasets.errors import UnknownBandError

STILL = RadiometryOptions(gain=0.0, band_gain=0.0, haze=0.0, band_haze=0.0, noise=0.0)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def flat(count: int, value: float = 2000.0, size: int = 8) -> Tensor:
    return torch.full((count, 13, size, size), value)


def only_bands(tiles: Tensor, *bands: str) -> Tensor:
    kept = torch.zeros(13)
    kept[positions(bands)] = 1
    return tiles * kept[:, None, None]


def present(tiles: Tensor) -> list[tuple[str, ...]]:
    has = tiles.amax(dim=(2, 3)) > 0
    return [tuple(name for name, there in zip(BAND_NAMES, row, strict=True) if there) for row in has]


# Radiometry.


def test_no_data_stay_0_and_data_stay_above_however_strong_the_disturbance() -> None:
    tiles = torch.randint(0, 3, (16, 13, 8, 8)).float()
    strong = RadiometryOptions(gain=2.0, band_gain=2.0, haze=0.5, band_haze=0.5, noise=0.5)
    changed = jitter_radiometry(tiles, strong)
    assert torch.equal(changed == 0, tiles == 0)
    assert changed[tiles > 0].min() >= 1
    assert changed.isfinite().all()


def test_gains_of_tiles_and_bands_are_as_strong_as_asked_for() -> None:
    options = RadiometryOptions(gain=0.2, band_gain=0.05, haze=0.0, band_haze=0.0)
    log_gain = torch.log(jitter_radiometry(flat(3000), options) / 2000)
    assert log_gain.std(dim=(2, 3)).max() < 1e-5  # one factor for all pixels of a band
    of_band = log_gain[:, :, 0, 0]
    of_tile = of_band.mean(dim=1)
    assert of_tile.std().item() == pytest.approx(0.2, rel=0.06)
    assert (of_band - of_tile[:, None]).std().item() == pytest.approx(0.05, rel=0.06)
    assert of_tile.mean().item() == pytest.approx(0, abs=0.015)


def test_haze_is_added_in_reflectance() -> None:
    options = RadiometryOptions(gain=0.0, band_gain=0.0, haze=0.02, band_haze=0.005)
    added = (jitter_radiometry(flat(3000, 5000.0), options) - 5000)[:, :, 0, 0] / 10_000
    of_tile = added.mean(dim=1)
    assert of_tile.std().item() == pytest.approx(0.02, rel=0.06)
    assert (added - of_tile[:, None]).std().item() == pytest.approx(0.005, rel=0.06)


def test_noise_differs_from_pixel_to_pixel() -> None:
    options = RadiometryOptions(gain=0.0, band_gain=0.0, haze=0.0, band_haze=0.0, noise=0.01)
    changed = jitter_radiometry(flat(20), options)
    assert changed.std().item() == pytest.approx(100, rel=0.05)
    assert changed.mean().item() == pytest.approx(2000, abs=5)


def test_no_disturbance_changes_nothing() -> None:
    tiles = torch.randint(0, 9000, (4, 13, 8, 8)).float()
    assert torch.equal(jitter_radiometry(tiles, STILL), tiles)


def test_the_same_seed_disturbs_the_same() -> None:
    def once(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return drop_bands(jitter_radiometry(flat(32), RadiometryOptions()), BandDropout())

    assert torch.equal(once(3), once(3))
    assert not torch.equal(once(3), once(4))


# Bands.


@pytest.mark.parametrize("name", ["l1c", "l2a", "10m", "rgb", "eurosat"])
def test_a_tile_keeps_the_bands_of_a_set_unaltered_and_no_others(name: str) -> None:
    tiles = torch.randint(1, 9000, (8, 13, 4, 4)).float()
    kept = drop_bands(tiles, BandDropout(sets={name: 1.0}, random=0.0))
    assert torch.equal(kept, only_bands(tiles, *BAND_SETS[name]))


def test_sets_are_drawn_as_often_as_they_weigh() -> None:
    kept = present(drop_bands(flat(4000, size=2), BandDropout(sets={"all": 3.0, "rgb": 1.0}, random=0.0)))
    assert set(kept) == {BAND_NAMES, ("B02", "B03", "B04")}
    assert kept.count(BAND_NAMES) / 4000 == pytest.approx(0.75, abs=0.03)


def test_random_sets_keep_the_share_of_bands_asked_for() -> None:
    options = BandDropout(sets={"all": 0.0}, random=1.0, keep=(0.5, 0.7), fewest=1)
    counts = np.array([len(bands) for bands in present(drop_bands(flat(3000, size=2), options))])
    assert counts.mean() / 13 == pytest.approx(0.6, abs=0.02)
    assert len(set(counts.tolist())) > 6
    hidden = {
        name for bands in present(drop_bands(flat(100, size=2), options)) for name in set(BAND_NAMES) - set(bands)
    }
    assert hidden == set(BAND_NAMES)


@pytest.mark.parametrize("fewest", [1, 3, 6])
def test_no_tile_is_left_with_fewer_bands_than_the_fewest(fewest: int) -> None:
    options = BandDropout(sets={"all": 0.0}, random=1.0, keep=(0.1, 0.5), fewest=fewest)
    counts = [len(bands) for bands in present(drop_bands(flat(2000, size=2), options))]
    assert min(counts) == fewest


def test_a_tile_that_has_few_bands_of_a_set_keeps_all_it_has() -> None:
    tiles = only_bands(flat(8), "B04", "B11", "B12")
    assert torch.equal(drop_bands(tiles, BandDropout(sets={"rgb": 1.0}, random=0.0)), tiles)
    lone = only_bands(flat(8), "B11")
    assert torch.equal(drop_bands(lone, BandDropout()), lone)


def test_hidden_bands_are_not_invented_for_tiles_that_lack_them() -> None:
    tiles = only_bands(flat(500), *BAND_SETS["10m"])
    assert all(set(bands) <= set(BAND_SETS["10m"]) for bands in present(drop_bands(tiles, BandDropout())))


def test_a_set_of_bands_that_does_not_exist_is_refused_with_a_list_of_those_that_do() -> None:
    with pytest.raises(UnknownBandError, match="is called 20m; the sets are all, l1c, l2a, 10m, rgb, eurosat"):
        BandDropout(sets={"all": 1.0, "20m": 1.0})


# Mixing.


def numbered(count: int, size: int = 64) -> tuple[Tensor, Tensor]:
    """Tiles whose every pixel says which tile it is (1, 2, …), each of its own class."""
    tiles = torch.arange(1, count + 1).float()[:, None, None, None].expand(count, 13, size, size).clone()
    return tiles, torch.eye(count)


def test_targets_are_the_shares_of_the_area() -> None:
    shares = []
    for _ in range(30):
        mixed, targets = cutmix(*numbered(16, size=32), MixOptions(cutmix=1.0))
        area = torch.stack([(mixed[:, 0] == n).float().mean(dim=(1, 2)) for n in range(1, 17)], dim=1)
        assert torch.allclose(targets, area, atol=1e-5)
        assert torch.allclose(targets.sum(dim=1), torch.ones(16))
        assert (mixed == mixed[:, :1]).all()  # all bands of a pixel come from one tile
        shares.append(float(targets.diagonal().min()))
    assert min(shares) < 0.2
    assert max(shares) > 0.8


def test_what_is_pasted_is_one_rectangle_at_its_own_place() -> None:
    tiles = torch.arange(8 * 13 * 64 * 64).reshape(8, 13, 64, 64).float() + 1  # every pixel is unlike all others
    mixed, _ = cutmix(tiles, torch.eye(8), MixOptions(cutmix=1.0))
    foreign = (mixed != tiles).any(dim=1)
    assert foreign.any()
    rows, columns = foreign.any(dim=0).any(dim=1), foreign.any(dim=0).any(dim=0)
    for tile, strange in zip(mixed, foreign, strict=True):
        if strange.any():
            assert int(strange.sum()) == int(rows.sum()) * int(columns.sum())
            place = (tile - 1).long() % (13 * 64 * 64)
            assert torch.equal(place, torch.arange(13 * 64 * 64).reshape(13, 64, 64))


def test_only_tiles_with_the_same_bands_mix() -> None:
    for _ in range(20):
        tiles, targets = numbered(12)
        tiles[6:] = only_bands(tiles[6:], "B02", "B03", "B04")
        mixed, mixed_targets = cutmix(tiles, targets, MixOptions(cutmix=1.0))
        assert not mixed_targets[:6, 6:].any()
        assert not mixed_targets[6:, :6].any()
        assert present(mixed) == present(tiles)
        assert torch.allclose(mixed_targets.sum(dim=1), torch.ones(12))


def test_the_share_of_mixed_batches_is_as_asked_for() -> None:
    tiles, targets = numbered(16, size=8)
    mixed = sum(not torch.equal(cutmix(tiles, targets, MixOptions(cutmix=0.3))[1], targets) for _ in range(300))
    assert 0.15 < mixed / 300 < 0.4
    assert all(cutmix(tiles, targets, MixOptions(cutmix=0.0))[0] is tiles for _ in range(20))


def test_mixing_leaves_the_batch_it_was_given_alone() -> None:
    tiles, targets = numbered(6)
    cutmix(tiles, targets, MixOptions(cutmix=1.0))
    assert torch.equal(tiles, numbered(6)[0])
    assert torch.equal(targets, torch.eye(6))


def test_a_batch_of_one_tile_mixes_with_itself() -> None:
    tiles, targets = numbered(1)
    mixed, mixed_targets = cutmix(tiles, targets, MixOptions(cutmix=1.0))
    assert torch.equal(mixed, tiles)
    assert torch.allclose(mixed_targets, targets)
