"""Draws that a tile's key alone decides: reproducible, independent, and of the right distribution."""

import numpy as np
import pytest
import torch

from tilewise.datasets.loading.draws import Draws

WORD = 2**32 - 1


def reference(key: int, seed: int, number: int) -> float:
    """The number-th uniform draw of a key, in whole numbers of Python, which do not overflow."""

    def mix(word: int) -> int:
        word = ((word ^ (word >> 16)) * 0x21F0AAAD) & WORD
        word = ((word ^ (word >> 15)) * 0x735A2D97) & WORD
        return word ^ (word >> 15)

    own = mix(mix((key & WORD) ^ mix((seed * 0x9E3779B1 + 1) & WORD)) ^ (key >> 32))
    return (mix(own ^ mix((number * 0x9E3779B1) & WORD)) >> 8) / 2**24


def test_numbers_are_those_of_the_hash_worked_out_in_whole_numbers() -> None:
    keys = [0, 1, 27_000 * 50, 2**32 + 5]
    drawn = Draws(torch.tensor(keys), seed=7).uniform(3)
    expected = [[reference(key, 7, number) for number in (1, 2, 3)] for key in keys]
    assert drawn.tolist() == expected


def test_a_tile_draws_the_same_in_any_batch() -> None:
    keys = torch.arange(100, 164)
    whole = Draws(keys, seed=0)
    parts = [Draws(part, seed=0) for part in (keys[:40], keys[40:])]
    for shape in ((), (13,), (2, 3)):
        together = torch.cat([part.uniform(*shape) for part in parts])
        assert torch.equal(whole.uniform(*shape), together)


def test_another_seed_key_or_turn_draws_otherwise() -> None:
    keys = torch.arange(1000)
    first = Draws(keys, seed=0)
    columns = [
        first.uniform(),
        first.uniform(),
        Draws(keys, seed=1).uniform(),
        Draws(keys + 1000, seed=0).uniform(),
    ]
    assert np.abs(np.corrcoef(torch.stack(columns).numpy()) - np.eye(4)).max() < 0.1


def test_draws_are_even_over_0_to_1_and_between_neighbours_of_keys_unrelated() -> None:
    drawn = Draws(torch.arange(20_000), seed=3).uniform(5).numpy()
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts, _ = np.histogram(drawn, bins=50, range=(0, 1))
    expected = drawn.size / 50
    assert ((counts - expected) ** 2 / expected).sum() < 86  # the 99.9 % point of chi-square with 49 degrees
    assert abs(np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]) < 0.03


def test_normal_draws_have_mean_0_deviation_1_and_the_tails_of_the_bell() -> None:
    drawn = Draws(torch.arange(50_000), seed=3).normal(2).numpy().ravel()
    assert np.isfinite(drawn).all()
    assert drawn.mean() == pytest.approx(0, abs=0.02)
    assert drawn.std() == pytest.approx(1, abs=0.02)
    assert (np.abs(drawn) > 1.96).mean() == pytest.approx(0.05, abs=0.005)


def test_draws_between_limits_stay_there() -> None:
    drawn = Draws(torch.arange(1000), seed=0).between(-3.0, 5.0, 4)
    assert drawn.shape == (1000, 4)
    assert -3 <= drawn.min() < -2.5
    assert 4.5 < drawn.max() <= 5
