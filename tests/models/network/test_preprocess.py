import numpy as np
import pytest
import torch

from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.models.network.preprocess import HIGHEST, LOWEST, MIDDLE, STEPS, Preprocess

MEAN, STD = [1000.0 + i for i in range(13)], [100.0 + i for i in range(13)]
WIDE = [500.0 + i for i in range(13)]  # less than 128 steps of a 24th from 0 to the mean


def tiles(value: int) -> torch.Tensor:
    return torch.full((2, 13, 64, 64), value, dtype=torch.uint16)


def test_the_mean_of_a_band_becomes_zero_and_one_deviation_above_becomes_one() -> None:
    preprocess = Preprocess(MEAN, WIDE)
    batch = torch.tensor(MEAN).view(1, 13, 1, 1).expand(1, 13, 4, 4)
    above = batch + torch.tensor(WIDE).view(1, 13, 1, 1)
    half_a_step = 0.5 / STEPS + 1e-6  # the mean is moved to the nearest of the eight-bit steps
    assert preprocess(batch).abs().max() <= half_a_step
    assert (preprocess(above) - 1).abs().max() <= half_a_step


def test_an_absent_band_becomes_zero_and_a_hole_is_darker_than_any_data() -> None:
    preprocess = Preprocess(MEAN, WIDE)
    assert preprocess(tiles(0)).abs().max() < 1e-5
    holed = tiles(1)
    holed[:, :, :20] = 0
    seen = preprocess(holed)
    assert (seen[:, :, :20] < seen[:, :, 20:21]).all()
    assert (seen < -1).all()


def test_a_patch_of_data_of_eight_by_eight_pixels_makes_a_band_present_wherever_it_lies() -> None:
    preprocess = Preprocess(MEAN, WIDE)
    for row, column in ((0, 0), (3, 17), (56, 56), (49, 5)):
        patch = tiles(0)
        patch[:, :, row : row + 8, column : column + 8] = 1000
        assert (preprocess(patch)[:, :, row + 8 if row < 50 else 0, 0] < -1).all()


def test_eight_bits_hold_every_number_that_comes_out() -> None:
    dn = torch.from_numpy(np.random.default_rng(0).integers(0, 65_535, (2, 13, 64, 64)).astype(np.uint16))
    numbers = Preprocess(MEAN, STD)(dn) * STEPS + MIDDLE
    assert 0 <= numbers.min() <= numbers.max() <= 255
    absent = Preprocess(MEAN, STD)(torch.zeros(1, 13, 64, 64)) * STEPS + MIDDLE
    assert absent.round().unique().tolist() == [MIDDLE]


def test_a_band_that_training_never_saw_is_ignored_whatever_it_holds() -> None:
    preprocess = Preprocess(MEAN, [*STD[:12], 0.0])
    assert not preprocess(tiles(5000))[:, 12].any()
    assert preprocess(tiles(5000))[:, 11].any()


def test_uint16_and_float_tiles_give_the_same() -> None:
    preprocess = Preprocess(MEAN, STD)
    dn = np.random.default_rng(0).integers(0, 65_535, (2, 13, 8, 8)).astype(np.uint16)
    batch = torch.from_numpy(dn)
    torch.testing.assert_close(preprocess(batch), preprocess(batch.float()))


def test_it_is_torchgeos_normalisation_of_eurosat() -> None:
    """To half a step of eight bits, in the bands whose steps are a 24th of their deviation."""
    eurosat = pytest.importorskip("torchgeo.datamodules.eurosat")
    theirs = eurosat.EuroSATDataModule()
    names = list(eurosat.EuroSAT.all_band_names)
    mean, std = ([table[name] for name in BAND_NAMES] for table in (eurosat.MEAN, eurosat.STD))
    batch = torch.randint(1, 6000, (3, 13, 64, 64), generator=torch.Generator().manual_seed(0))
    in_their_order = batch[:, [BAND_NAMES.index(name) for name in names]].float()
    normalised = theirs.aug({"image": in_their_order})["image"]
    found = Preprocess(mean, std)(batch.to(torch.uint16))
    alike = [name for name, m, s in zip(BAND_NAMES, mean, std, strict=True) if s / STEPS >= m / MIDDLE]
    assert len(alike) == 12, "all but B01"
    for name in alike:
        ours, expected = found[:, BAND_NAMES.index(name)], normalised[:, names.index(name)]
        inside = (ours > LOWEST) & (ours < HIGHEST)  # eight bits end there
        assert (ours - expected)[inside].abs().max() <= 0.5 / STEPS + 1e-4, name
