import numpy as np
import torch

from models.preprocess import Preprocess

MEAN, STD = [1000.0 + i for i in range(13)], [100.0 + i for i in range(13)]


def tiles(value: int) -> torch.Tensor:
    return torch.full((2, 13, 64, 64), value, dtype=torch.uint16)


def test_the_mean_of_a_band_becomes_zero_and_one_deviation_above_becomes_one() -> None:
    preprocess = Preprocess(MEAN, STD)
    batch = torch.tensor(MEAN).view(1, 13, 1, 1).expand(1, 13, 4, 4)
    above = batch + torch.tensor(STD).view(1, 13, 1, 1)
    torch.testing.assert_close(preprocess(batch), torch.zeros(1, 13, 4, 4))
    torch.testing.assert_close(preprocess(above), torch.ones(1, 13, 4, 4))


def test_no_data_becomes_exactly_zero_and_dark_data_does_not() -> None:
    preprocess = Preprocess(MEAN, STD)
    assert not preprocess(tiles(0)).any()
    assert (preprocess(tiles(1)) < -5).all()


def test_a_band_that_training_never_saw_is_ignored_whatever_it_holds() -> None:
    preprocess = Preprocess(MEAN, [*STD[:12], 0.0])
    assert not preprocess(tiles(5000))[:, 12].any()
    assert preprocess(tiles(5000))[:, 11].any()


def test_uint16_and_float_tiles_give_the_same() -> None:
    preprocess = Preprocess(MEAN, STD)
    dn = np.random.default_rng(0).integers(0, 65_535, (2, 13, 8, 8)).astype(np.uint16)
    batch = torch.from_numpy(dn)
    torch.testing.assert_close(preprocess(batch), preprocess(batch.float()))
