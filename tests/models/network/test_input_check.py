from pathlib import Path

import numpy as np
import pytest
import torch

from tilewise.datasets.acquire.synthetic import render
from tilewise.datasets.core.tile import DN
from tilewise.datasets.readers.eurosat import CLASSES
from tilewise.models.network.outliers import InputCheck, statistics
from tilewise.models.network.preprocess import LINES, sample
from tilewise.training.evaluate.disturbances import DISTURBANCES, FAULTS
from tilewise.training.fit.calibrate import exposures


def tiles(first: int, each: int) -> DN:
    return np.stack([render(name, first + n, seed=11) for name in CLASSES for n in range(each)])


@pytest.fixture(scope="module")
def fitted() -> InputCheck:
    check = InputCheck()
    check.fit(exposures([np.ascontiguousarray(tiles(0, 20)[:, :, LINES])]))
    return check


def odds(check: InputCheck, some: DN) -> np.ndarray:
    with torch.no_grad():
        return check(sample(torch.from_numpy(some)))[0].numpy()


@pytest.mark.parametrize("fault", ["offset", "scale", "order"])
def test_faulty_tiles_score_above_sound_ones(fitted: InputCheck, fault: str) -> None:
    sound = tiles(100, 8)
    limit = np.quantile(odds(fitted, sound), 0.95)
    assert (odds(fitted, FAULTS[fault].apply(sound)) > limit).mean() >= 0.95


def test_noise_that_hides_what_is_shown_scores_above_sound_tiles(fitted: InputCheck) -> None:
    sound = tiles(100, 8)
    limit = np.quantile(odds(fitted, sound), 0.95)
    assert (odds(fitted, DISTURBANCES["noise"](sound)) > limit).mean() >= 0.9


def test_before_it_is_fitted_every_score_is_zero() -> None:
    assert not odds(InputCheck(), tiles(0, 1)).any()


def test_the_same_tiles_give_the_same_weights(fitted: InputCheck) -> None:
    again = InputCheck()
    again.fit(exposures([np.ascontiguousarray(tiles(0, 20)[:, :, LINES])]))
    np.testing.assert_array_equal(odds(again, tiles(50, 1)), odds(fitted, tiles(50, 1)))


def test_statistics_are_those_of_the_valid_pixels() -> None:
    pixels = np.zeros((1, 13, 9, 64), np.float32)
    pixels[0, 3, :, :32] = np.arange(1, 33) * 100
    values, share, _ = statistics(torch.from_numpy(pixels))
    valid = pixels[0, 3][pixels[0, 3] > 0]
    assert share[0].tolist() == [0.5 if band == 3 else 0.0 for band in range(13)]
    expected = [np.log(valid.mean()), np.log(valid.var() + 100) / 2, np.log(100)]
    np.testing.assert_allclose(values[0, 3].numpy(), expected, rtol=1e-4)


def test_bands_are_as_alike_as_their_valid_pixels_are_correlated() -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(500, 3000, (1, 13, 9, 64)).astype(np.float32)
    pixels[0, 4] = 5000 - pixels[0, 3] + random.integers(0, 500, (9, 64))
    pixels[0, 8] = 0
    pixels[0, :, 2:5] = 0
    alike = statistics(torch.from_numpy(pixels)).correlation[0].numpy()
    expected = [
        np.corrcoef(pixels[0, n][pixels[0, 0] > 0], pixels[0, n + 1][pixels[0, 0] > 0])[0, 1]
        for n in range(7)
    ]
    np.testing.assert_allclose(alike[:7], expected, atol=1e-3)
    assert expected[3] < -0.9
    assert not alike[7:9].any(), "a band that is absent is like none"


def test_a_pixel_that_one_band_lacks_and_bright_flat_bands_change_next_to_nothing() -> None:
    random = np.random.default_rng(0)
    pixels = (2500 + random.normal(0, 60, (1, 1, 9, 64)) + random.normal(0, 20, (1, 13, 9, 64))).astype(
        np.float32
    )
    sound = statistics(torch.from_numpy(pixels)).correlation
    assert sound.min() > 0.8
    pixels[0, 3, 4, 20] = 0
    assert (statistics(torch.from_numpy(pixels)).correlation - sound).abs().max() < 0.01
    assert statistics(torch.full((1, 13, 9, 64), 40_000.0)).correlation.abs().max() < 0.01


def test_a_tile_without_any_data_has_a_finite_score(fitted: InputCheck) -> None:
    assert np.isfinite(odds(fitted, np.zeros((1, 13, 64, 64), np.uint16))).all()


@pytest.mark.realdata
def test_real_level_2a_tiles_with_the_offset_are_told_from_those_without(real_data: Path) -> None:
    with np.load(real_data / "l2a_unlabelled.npz") as archive:
        real = np.insert(archive["tiles"], 10, 0, axis=1)  # Level-2A has no B10
    check = InputCheck()
    check.fit(exposures([np.ascontiguousarray(real[::2, :, LINES])]))
    others = real[1::2]
    limit = np.quantile(odds(check, others), 0.95)
    assert (odds(check, FAULTS["offset"].apply(others)) > limit).mean() >= 0.95


@pytest.mark.realdata
def test_red_and_blue_exchanged_are_mostly_told_in_real_level_2a_tiles(real_data: Path) -> None:
    with np.load(real_data / "l2a_unlabelled.npz") as archive:
        real = np.insert(archive["tiles"], 10, 0, axis=1)
    fourth = np.arange(len(real)) % 4 == 0
    check = InputCheck()
    check.fit(exposures([np.ascontiguousarray(real[~fourth][:, :, LINES])]))
    limit = np.quantile(odds(check, real[fourth]), 0.95)
    told = (odds(check, FAULTS["red_blue"].apply(real[fourth])) > limit).mean()
    assert told >= 0.85, "0.8 without what neighbouring bands have in common"
