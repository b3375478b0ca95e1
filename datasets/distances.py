"""How far two histograms lie apart: the measures of drift, in the service and between versions of data."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Shares = npt.NDArray[np.float64]

GROUPS = 10  # PSI and KL compare ten groups of bins, each with about a tenth of the reference
LEAST_SHARE = 1e-4  # of a group, where there is nothing in it: the logarithm of 0 has no use
STABLE, SHIFTED = 0.1, 0.25  # PSI below the one, and above the other, by custom


def distances(counts: Counts, reference: Counts, edges: Sequence[int]) -> dict[str, float]:
    """Return how far `counts` between `edges` (DN) lie from `reference`, both int64 (bins,) with something in them.

    `psi` and `kl` have no unit and are taken over groups of bins; `wasserstein` is in DN.
    """
    starts = group_starts(reference)
    found, expected = (shares(np.add.reduceat(c, starts), LEAST_SHARE) for c in (counts, reference))
    return {
        "psi": psi(found, expected),
        "kl": kl(found, expected),
        "wasserstein": wasserstein(shares(counts), shares(reference), edges),
    }


def psi(found: Shares, expected: Shares) -> float:
    """Return the population stability index of two distributions over the same groups, all shares above 0.

    Σ (found − expected) · ln(found / expected). By custom, below 0.1 is stable and above 0.25 a shift (N. Siddiqi,
    Credit Risk Scorecards, 2006). It is the Kullback-Leibler divergence made symmetric (Jeffreys, 1946).
    """
    return float(np.sum((found - expected) * np.log(found / expected)))


def kl(found: Shares, expected: Shares) -> float:
    """Return the divergence of `found` from `expected`, in nats, all shares being above 0.

    Σ found · ln(found / expected) (S. Kullback, R. Leibler, 1951).
    """
    return float(np.sum(found * np.log(found / expected)))


def wasserstein(found: Shares, expected: Shares, edges: Sequence[int]) -> float:
    """Return how far, on average, DN must be moved to make one histogram of the other, in DN.

    ∫ |F − G|, F and G being the cumulative distributions (S. Vallender, 1974), with each bin's values at its middle.
    What is beyond the last edge but one counts as if that bin were as wide as the one before it.
    """
    middles = (np.asarray(edges[:-1], np.float64) + edges[1:]) / 2
    middles[-1] = edges[-2] + (edges[-2] - edges[-3]) / 2
    apart = np.abs(np.cumsum(found - expected))[:-1]
    return float(np.sum(apart * np.diff(middles)))


def group_starts(reference: Counts, groups: int = GROUPS) -> Counts:
    """Return the first bin of each of up to `groups` groups of neighbouring bins with about as much in each."""
    below = np.concatenate([[0], np.cumsum(reference)[:-1]]) / reference.sum()
    return np.unique(np.searchsorted(below, np.arange(groups) / groups, "left").clip(max=len(reference) - 1))


def shares(counts: Counts, least: float = 0.0) -> Shares:
    """Return counts as shares that sum to 1, none of them below (about) `least`."""
    found = np.maximum(counts / counts.sum(), least)
    return np.asarray(found / found.sum())
