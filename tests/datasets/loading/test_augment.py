"""Augmentation on the device: no data stays no data, bands are hidden in sets, mixtures add up."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from tilewise.datasets.core.bands import BAND_NAMES, BAND_SETS, positions
from tilewise.datasets.core.errors import TrainingError, UnknownBandError
from tilewise.datasets.loading.atmosphere import AtmosphereOptions
from tilewise.datasets.loading.augment import (
    Augmentation,
    AugmentOptions,
    BandDropoutOptions,
    DropBands,
    HoleOptions,
    Mix,
    MixOptions,
    Noise,
    RadiometricJitter,
    RadiometryOptions,
    beta_quantiles,
)
from tilewise.datasets.loading.draws import Draws
from tilewise.datasets.loading.geometry import GeometryOptions
from tilewise.datasets.loading.mosaic import MosaicOptions

STILL = RadiometryOptions(gain=0.0, band_gain=0.0, haze=0.0, band_haze=0.0, noise=0.0)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def draws(count: int, seed: int = 0) -> Draws:
    return Draws(torch.arange(count), seed)


def jitter_radiometry(tiles: Tensor, options: RadiometryOptions, seed: int = 0) -> Tensor:
    drawn = draws(len(tiles), seed)
    return Noise(options)(RadiometricJitter(options)(tiles, drawn), drawn)


def drop_bands(tiles: Tensor, options: BandDropoutOptions, seed: int = 0) -> Tensor:
    return DropBands(options)(tiles, draws(len(tiles), seed))


def mix(tiles: Tensor, targets: Tensor, options: MixOptions, seed: int = 0) -> tuple[Tensor, Tensor]:
    mixed: tuple[Tensor, Tensor] = Mix(options)(tiles, targets, draws(len(tiles), seed))
    return mixed


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
    changed = jitter_radiometry(flat(2000), options)
    assert changed.std().item() == pytest.approx(100, rel=0.05)
    assert changed.mean().item() == pytest.approx(2000, abs=5)
    of_tiles = changed.std(dim=(1, 2, 3))
    assert (of_tiles < 50).float().mean().item() == pytest.approx(
        0.38, abs=0.05
    )  # half normal: many are nearly clean
    assert of_tiles.max() > 250


def test_only_the_asked_share_of_tiles_gets_noise() -> None:
    tiles = flat(2000)
    noisy = (
        (Noise(RadiometryOptions(noise=0.01, noise_fraction=0.3))(tiles, draws(2000)) != tiles)
        .flatten(1)
        .any(1)
    )
    assert noisy.float().mean().item() == pytest.approx(0.3, abs=0.04)


def test_noise_of_one_band_tells_nothing_of_anothers_nor_of_the_next_pixels() -> None:
    found = draws(40).grain(13, 64, 64)
    assert (found.mean().item(), found.std().item()) == pytest.approx((0, 1), abs=0.005)
    bands = torch.corrcoef(found.permute(1, 0, 2, 3).flatten(1))
    assert (bands - torch.eye(13)).abs().max() < 0.02
    assert (found[..., 1:] * found[..., :-1]).mean().abs() < 0.01
    assert (found[..., 1:, :] * found[..., :-1, :]).mean().abs() < 0.01


def test_no_disturbance_changes_nothing() -> None:
    tiles = torch.randint(0, 9000, (4, 13, 8, 8)).float()
    assert torch.equal(jitter_radiometry(tiles, STILL), tiles)


def test_the_same_seed_disturbs_the_same() -> None:
    def once(seed: int) -> Tensor:
        return drop_bands(jitter_radiometry(flat(32), RadiometryOptions(), seed), BandDropoutOptions(), seed)

    assert torch.equal(once(3), once(3))
    assert not torch.equal(once(3), once(4))


def test_gain_and_haze_are_those_of_a_calculation_by_hand() -> None:
    tiles = torch.randint(0, 9000, (5, 13, 4, 4)).float()
    changed = jitter_radiometry(tiles, RadiometryOptions(0.3, 0.2, 0.02, 0.01, 0.005)).numpy()
    again = draws(5)
    gain, band_gain, haze, band_haze = (again.normal(n, 1, 1).numpy() for n in (1, 13, 1, 13))
    noise = abs(again.normal(1, 1, 1).numpy()) * again.grain(13, 4, 4).numpy()
    array = tiles.numpy().astype(np.float64)
    brighter = array * np.exp(0.3 * gain + 0.2 * band_gain) + 1e4 * (0.02 * haze + 0.01 * band_haze)
    expected = np.maximum(brighter, 1) + 1e4 * 0.005 * noise
    np.testing.assert_allclose(changed, np.where(array > 0, np.maximum(expected, 1), 0), rtol=1e-4, atol=1e-2)


# Bands.


@pytest.mark.parametrize("name", ["l1c", "l2a", "10m", "rgb", "eurosat"])
def test_a_tile_keeps_the_bands_of_a_set_unaltered_and_no_others(name: str) -> None:
    tiles = torch.randint(1, 9000, (8, 13, 4, 4)).float()
    kept = drop_bands(tiles, BandDropoutOptions(sets={name: 1.0}, random=0.0))
    assert torch.equal(kept, only_bands(tiles, *BAND_SETS[name]))


def test_sets_are_drawn_as_often_as_they_weigh() -> None:
    kept = present(
        drop_bands(flat(4000, size=2), BandDropoutOptions(sets={"all": 3.0, "rgb": 1.0}, random=0.0))
    )
    assert set(kept) == {BAND_NAMES, ("B02", "B03", "B04")}
    assert kept.count(BAND_NAMES) / 4000 == pytest.approx(0.75, abs=0.03)


def test_random_sets_keep_the_share_of_bands_asked_for() -> None:
    options = BandDropoutOptions(sets={"all": 0.0}, random=1.0, keep=(0.5, 0.7), min_bands=1)
    counts = np.array([len(bands) for bands in present(drop_bands(flat(3000, size=2), options))])
    assert counts.mean() / 13 == pytest.approx(0.6, abs=0.02)
    assert len(set(counts.tolist())) > 6
    hidden = {
        name
        for bands in present(drop_bands(flat(100, size=2), options))
        for name in set(BAND_NAMES) - set(bands)
    }
    assert hidden == set(BAND_NAMES)


@pytest.mark.parametrize("fewest", [1, 3, 6])
def test_no_tile_is_left_with_fewer_bands_than_the_fewest(fewest: int) -> None:
    options = BandDropoutOptions(sets={"all": 0.0}, random=1.0, keep=(0.1, 0.5), min_bands=fewest)
    counts = [len(bands) for bands in present(drop_bands(flat(2000, size=2), options))]
    assert min(counts) == fewest


def test_a_tile_that_has_few_bands_of_a_set_keeps_all_it_has() -> None:
    tiles = only_bands(flat(8), "B04", "B11", "B12")
    assert torch.equal(drop_bands(tiles, BandDropoutOptions(sets={"rgb": 1.0}, random=0.0)), tiles)
    lone = only_bands(flat(8), "B11")
    assert torch.equal(drop_bands(lone, BandDropoutOptions()), lone)


def test_hidden_bands_are_not_invented_for_tiles_that_lack_them() -> None:
    tiles = only_bands(flat(500), *BAND_SETS["10m"])
    assert all(
        set(bands) <= set(BAND_SETS["10m"]) for bands in present(drop_bands(tiles, BandDropoutOptions()))
    )


def test_a_set_of_bands_that_does_not_exist_is_refused_with_a_list_of_those_that_do() -> None:
    with pytest.raises(
        UnknownBandError, match="is called 40m; the sets are all, l1c, l2a, 20m, 10m, rgb, eurosat"
    ):
        BandDropoutOptions(sets={"all": 1.0, "40m": 1.0})


# Mixing.


def numbered(count: int, size: int = 64) -> tuple[Tensor, Tensor]:
    """Tiles whose every pixel says which tile it is (1, 2, …), each of its own class."""
    tiles = torch.arange(1, count + 1).float()[:, None, None, None].expand(count, 13, size, size).clone()
    return tiles, torch.eye(count)


def test_targets_are_the_shares_of_the_area() -> None:
    shares = []
    for seed in range(30):
        mixed, targets = mix(*numbered(16, size=32), MixOptions(cutmix=1.0), seed)
        area = torch.stack([(mixed[:, 0] == n).float().mean(dim=(1, 2)) for n in range(1, 17)], dim=1)
        assert torch.allclose(targets, area, atol=1e-5)
        assert torch.allclose(targets.sum(dim=1), torch.ones(16))
        assert (mixed == mixed[:, :1]).all()  # all bands of a pixel come from one tile
        shares.append(float(targets.diagonal().min()))
    assert min(shares) < 0.2
    assert (
        np.mean([float(mix(*numbered(16, 32), MixOptions(1.0), n)[1].diagonal().mean()) for n in range(20)])
        < 0.7
    )


def test_what_is_pasted_is_one_rectangle_at_its_own_place_from_the_neighbour() -> None:
    tiles = (
        torch.arange(8 * 13 * 64 * 64).reshape(8, 13, 64, 64).float() + 1
    )  # every pixel is unlike all others
    mixed = mix(tiles, torch.eye(8), MixOptions(cutmix=1.0))[0].numpy()
    array, rectangles = tiles.numpy(), set()
    for n in range(8):
        foreign = (mixed[n] != array[n]).any(axis=0)
        rows, columns = np.flatnonzero(foreign.any(axis=1)), np.flatnonzero(foreign.any(axis=0))
        expected = array[n].copy()
        if len(rows):
            inside = np.s_[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            expected[inside] = array[n ^ 1][inside]
            rectangles.add((rows[0], rows[-1], columns[0], columns[-1]))
        assert np.array_equal(mixed[n], expected)
    assert len(rectangles) > 4  # each tile has its own


def test_mixup_is_a_weighted_mean_of_pixels_and_of_targets() -> None:
    tiles = torch.randint(1, 9000, (8, 13, 6, 6)).float()
    mixed, targets = mix(tiles, torch.eye(8), MixOptions(cutmix=0.0, mixup=1.0))
    array = tiles.numpy()
    for n in range(8):
        share = float(targets[n, n ^ 1])
        assert float(targets[n, n]) == pytest.approx(1 - share)
        np.testing.assert_allclose(mixed[n].numpy(), (1 - share) * array[n] + share * array[n ^ 1], rtol=1e-4)
    assert 0.1 < float(1 - targets.diagonal().mean()) < 0.9


def test_a_mean_with_a_hole_is_a_hole_and_a_rectangle_takes_its_holes_along() -> None:
    tiles = torch.full((4, 13, 8, 8), 500.0)
    tiles[0, :, :3] = 0
    blended, _ = mix(tiles, torch.eye(4), MixOptions(cutmix=0.0, mixup=1.0))
    assert torch.equal(blended == 0, (tiles == 0) | (tiles[[1, 0, 3, 2]] == 0))
    pasted, _ = mix(tiles, torch.eye(4), MixOptions(cutmix=1.0))
    assert set(pasted.flatten().tolist()) <= {0.0, 500.0}


def test_only_tiles_with_the_same_bands_mix() -> None:
    for seed in range(20):
        tiles, targets = numbered(12)
        tiles[5:] = only_bands(tiles[5:], "B02", "B03", "B04")  # the pair of 4 and 5 is unlike
        mixed, mixed_targets = mix(tiles, targets, MixOptions(cutmix=0.5, mixup=0.5), seed)
        assert torch.equal(mixed_targets[4:6], targets[4:6])
        assert present(mixed) == present(tiles)
        assert torch.allclose(mixed_targets.sum(dim=1), torch.ones(12))


def test_the_share_of_mixed_tiles_is_as_asked_for() -> None:
    tiles, targets = numbered(2000, size=8)
    _, mixed = mix(tiles, targets, MixOptions(cutmix=0.0, mixup=0.3))
    assert (mixed != targets).any(dim=1).float().mean() == pytest.approx(0.3, abs=0.04)
    assert mix(tiles, targets, MixOptions(cutmix=0.0))[0] is tiles


def test_mixing_leaves_the_batch_it_was_given_alone() -> None:
    tiles, targets = numbered(6)
    mix(tiles, targets, MixOptions(cutmix=1.0))
    assert torch.equal(tiles, numbered(6)[0])
    assert torch.equal(targets, torch.eye(6))


@pytest.mark.parametrize("count", [1, 7])
def test_the_last_of_an_odd_number_of_tiles_mixes_with_itself(count: int) -> None:
    tiles, targets = numbered(count)
    mixed, mixed_targets = mix(tiles, targets, MixOptions(cutmix=0.5, mixup=0.5))
    assert torch.allclose(mixed[-1], tiles[-1])
    assert torch.allclose(mixed_targets[-1], targets[-1])


@pytest.mark.parametrize("alpha", [0.5, 1.0, 4.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    expected = np.quantile(np.random.default_rng(0).beta(alpha, alpha, 200_000), np.linspace(0.02, 0.98, 9))
    found = np.interp(np.linspace(0.02, 0.98, 9), np.linspace(0, 1, 1024), beta_quantiles(alpha, 1024))
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_shares_that_add_up_to_more_than_all_tiles_are_refused() -> None:
    with pytest.raises(TrainingError, match="add up to 1 at most"):
        MixOptions(cutmix=0.7, mixup=0.6)


# All of it.


def whole(mosaics: float = 0.5) -> Augmentation:
    options = AugmentOptions(
        radiometry=RadiometryOptions(noise=0.004),
        mix=MixOptions(cutmix=0.4, mixup=0.3),
        atmosphere=AtmosphereOptions(fraction=0.5),
        holes=HoleOptions(0.5, striped=0.5),
        mosaic=MosaicOptions(mosaics),
    )
    return Augmentation([str(n) for n in range(10)], 5, options)


def only(**parts: Any) -> AugmentOptions:
    """Options that do nothing but `parts`."""
    off: dict[str, Any] = {
        "geometry": GeometryOptions(flips=False, warp=0.0),
        "radiometry": STILL,
        "band_dropout": BandDropoutOptions(sets={"all": 1.0}, random=0.0),
        "mix": MixOptions(cutmix=0.0),
    }
    return AugmentOptions(**{**off, **parts})


def test_without_mosaics_a_part_of_a_batch_is_augmented_as_it_is_within_the_batch() -> None:
    tiles = torch.randint(0, 9000, (16, 13, 64, 64), dtype=torch.int32).to(torch.uint16)
    labels, keys = torch.arange(16) % 10, torch.arange(16) + 1000
    together = whole(mosaics=0)(tiles, labels, keys)
    parts = [whole(mosaics=0)(tiles[part], labels[part], keys[part]) for part in (slice(0, 8), slice(8, 16))]
    for whole_one, halves in zip(together, zip(*parts, strict=True), strict=True):
        assert torch.allclose(whole_one, torch.cat(halves), rtol=1e-4, atol=1e-2)


@pytest.mark.slow
def test_the_whole_of_it_is_one_graph_and_batches_of_one_shape_need_no_other() -> None:
    counted = CompileCounter()
    augment = whole()
    compiled = torch.compile(
        augment, backend=counted, fullgraph=True, dynamic=False
    )  # a break in the graph raises
    for epoch in range(3):
        tiles = torch.randint(0, 9000, (8, 13, 64, 64), dtype=torch.int32).to(torch.uint16)
        arguments = tiles, torch.arange(8), torch.arange(8) + 8 * epoch
        for one, other in zip(compiled(*arguments), augment(*arguments), strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-2)
    assert counted.frame_count == 1


def test_the_whole_tiles_lack_what_was_cut_out_and_neither_lines_nor_noise() -> None:
    options = RadiometryOptions(0, 0, 0, 0, noise=0.01)
    augment = Augmentation(["a"], 5, only(radiometry=options, holes=HoleOptions(0.5, striped=0.5)))
    tiles = torch.full((64, 13, 64, 64), 2000, dtype=torch.int32).to(torch.uint16)
    seen, whole, _ = augment(tiles, torch.zeros(64, dtype=torch.int64), torch.arange(64))
    assert set(whole.unique().tolist()) == {0.0, 2000.0}
    holes = (whole == 0).flatten(1).any(1)
    assert 0.2 < holes.float().mean() < 0.8
    assert (seen[whole == 0] == 0).all()
    lines = ((seen == 0) & (whole > 0)).flatten(1).any(1)
    assert 0.2 < lines.float().mean() < 0.8
    assert (seen[seen > 0] != 2000).float().mean() > 0.9


def test_without_damage_the_whole_tiles_are_those_that_are_seen() -> None:
    tiles = torch.full((4, 13, 64, 64), 2000, dtype=torch.int32).to(torch.uint16)
    augment = Augmentation(["a"], 5, only(radiometry=RadiometryOptions(), holes=HoleOptions(1.0)))
    seen, whole, _ = augment(tiles, torch.zeros(4, dtype=torch.int64), torch.arange(4))
    assert torch.equal(seen, whole)


def test_nothing_in_it_asks_the_device_for_a_value() -> None:
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:  # asking a fake tensor raises
        tiles = mode.from_tensor(torch.ones(8, 13, 64, 64, dtype=torch.int32)).to(torch.uint16)
        changed, unhurt, targets = whole()(tiles, torch.arange(8), torch.arange(8))
        assert (changed.shape, unhurt.shape, targets.shape) == ((8, 13, 64, 64), (8, 13, 64, 64), (8, 10))
