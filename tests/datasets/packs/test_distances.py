"""The measures of drift, against figures worked out by hand."""

import numpy as np
import pytest

from tilewise.datasets.packs.statistics import fractions, group_starts, kl, psi, wasserstein


def test_equal_distributions_are_no_distance_apart() -> None:
    same = np.array([0.2, 0.3, 0.5])
    assert psi(same, same) == kl(same, same) == 0
    assert wasserstein(same, same, (1, 101, 201, 301)) == 0


def test_the_measures_are_those_of_the_books() -> None:
    found, expected = np.array([0.5, 0.5]), np.array([0.25, 0.75])
    assert kl(found, expected) == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3))
    assert psi(found, expected) == pytest.approx(0.25 * np.log(2) - 0.25 * np.log(2 / 3))
    assert psi(found, expected) == pytest.approx(kl(found, expected) + kl(expected, found))


def test_wasserstein_is_how_far_values_were_moved() -> None:
    rng = np.random.default_rng(0)
    edges = tuple(range(1, 10_002, 100))
    values = rng.normal(3000, 400, 50_000)
    before, after = (fractions(np.histogram(v, edges)[0]) for v in (values, values + 1000))
    assert wasserstein(after, before, edges) == pytest.approx(1000, rel=1e-3)
    spread = fractions(
        np.histogram(3000 + 2 * (values - 3000), edges)[0]
    )  # a normal distribution twice as wide
    assert wasserstein(spread, before, edges) == pytest.approx(400 * np.sqrt(2 / np.pi), rel=0.02)


def test_groups_hold_about_as_much_each_and_every_bin_belongs_to_one() -> None:
    counts = np.random.default_rng(1).integers(1, 20, 72)
    sums = np.add.reduceat(counts, group_starts(counts))
    assert len(sums) == 10
    assert sums.sum() == counts.sum()
    assert sums.max() < 2 * sums.min()


def test_an_empty_group_counts_as_little_but_not_as_nothing() -> None:
    found = fractions(np.array([0, 100]), minimum=1e-4)
    assert found[0] == pytest.approx(1e-4, rel=1e-3)
    assert found.sum() == pytest.approx(1)
