"""Per-band statistics of a pack, and distances between histograms.

All values are DN (reflectance × 10 000) of valid pixels; band by band, since an RGB tile has only three.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.core.tile import DN, has_data

if TYPE_CHECKING:
    from tilewise.datasets.packs.pack import Pack
Counts = npt.NDArray[np.int64]
Fractions = npt.NDArray[np.float64]

EDGES: tuple[int, ...] = (*range(1, 101, 5), *range(101, 4001, 100), *range(4001, 10_001, 500), 65_536)
"""Histogram edges in DN: fine for water and the cirrus band (about 12 DN), coarser for land, one bin above
reflectance 1."""

_PERCENTILES = (1, 5, 50, 95, 99)
_BATCH = 256

N_GROUPS = 10  # PSI and KL compare ten groups of bins, each with about a tenth of the reference
MIN_FRACTION = 1e-4  # of an empty group: the logarithm of 0 has no use
STABLE, SHIFTED = 0.1, 0.25  # a PSI below the first is stable, above the second a shift, by custom


@dataclass(frozen=True, slots=True)
class BandStatistics:
    """One band's statistics, in DN.

    Attributes:
        band: canonical name.
        tiles: number of tiles that have the band.
        no_data: fraction of those tiles' pixels without data (0–1).
        mean, std: over valid pixels.
        low, high: extremes of valid pixels.
        percentiles: {"1": DN, "5": …, "50": …, "95": …, "99": …}, interpolated in the histogram.
        histogram: counts between `EDGES`.
    """

    band: str
    tiles: int
    no_data: float
    mean: float
    std: float
    low: int
    high: int
    percentiles: dict[str, float]
    histogram: list[int]


def measure(pack: Pack, split: str = "train") -> list[BandStatistics]:
    """Return the statistics of every band over the tiles of `split`; zeros for a band that no tile has."""
    sums = _Sums()
    for tiles in _batches(pack, pack.rows(split)):
        sums.add(tiles)
    return [sums.band(index, name) for index, name in enumerate(BAND_NAMES)]


def write_statistics(statistics: list[BandStatistics], path: Path) -> None:
    """Write the statistics as JSON: {"edges": […], "bands": [{…}, …]}."""
    content = {"edges": list(EDGES), "bands": [asdict(band) for band in statistics]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _batches(pack: Pack, rows: npt.NDArray[np.int64]) -> Iterator[DN]:
    for start in range(0, len(rows), _BATCH):
        yield pack.fetch(rows[start : start + _BATCH])


class _Sums:
    """Accumulate sums over batches, one entry a band."""

    def __init__(self) -> None:
        bands = len(BAND_NAMES)
        self.tiles = np.zeros(bands, np.int64)
        self.pixels = np.zeros(bands, np.int64)
        self.valid = np.zeros(bands, np.int64)
        self.total = np.zeros(bands)
        self.squares = np.zeros(bands)
        self.low = np.full(bands, 65_535, np.int64)
        self.high = np.zeros(bands, np.int64)
        self.histogram = np.zeros((bands, len(EDGES) - 1), np.int64)

    def add(self, tiles: DN) -> None:
        for index in range(len(BAND_NAMES)):
            band = tiles[:, index]
            band = band[band.any(axis=(1, 2))]  # tiles that have the band at all
            values = band[has_data(band)]
            if not values.size:
                continue
            exact = values.astype(np.float64)
            self.tiles[index] += len(band)
            self.pixels[index] += band.size
            self.valid[index] += values.size
            self.total[index] += exact.sum()
            self.squares[index] += np.square(exact).sum()
            self.low[index] = min(self.low[index], int(values.min()))
            self.high[index] = max(self.high[index], int(values.max()))
            self.histogram[index] += np.histogram(values, EDGES)[0]

    def band(self, index: int, name: str) -> BandStatistics:
        valid = max(int(self.valid[index]), 1)
        mean = self.total[index] / valid
        variance = max(self.squares[index] / valid - mean**2, 0.0)
        return BandStatistics(
            band=name,
            tiles=int(self.tiles[index]),
            no_data=1 - self.valid[index] / self.pixels[index] if self.pixels[index] else 0.0,
            mean=float(mean),
            std=float(variance**0.5),
            low=int(self.low[index]) if self.valid[index] else 0,
            high=int(self.high[index]),
            percentiles=_percentiles(self.histogram[index]),
            histogram=self.histogram[index].tolist(),
        )


def _percentiles(histogram: npt.NDArray[np.int64]) -> dict[str, float]:
    if not histogram.any():
        return dict.fromkeys(map(str, _PERCENTILES), 0.0)
    cumulative = np.concatenate([[0.0], np.cumsum(histogram) / histogram.sum()])
    return {str(p): float(np.interp(p / 100, cumulative, EDGES)) for p in _PERCENTILES}


def distances(counts: Counts, reference: Counts, edges: Sequence[int]) -> dict[str, float]:
    """Return the distances of the histogram `counts` from `reference`, both int64 (bins,), not empty.

    Args:
        counts: values in each bin.
        reference: the same of the reference.
        edges: edges of the bins, in DN.

    Returns:
        `psi` and `kl`, without unit, over groups of bins; `wasserstein` in DN.
    """
    starts = group_starts(reference)
    found, expected = (fractions(np.add.reduceat(c, starts), MIN_FRACTION) for c in (counts, reference))
    return {
        "psi": psi(found, expected),
        "kl": kl(found, expected),
        "wasserstein": wasserstein(fractions(counts), fractions(reference), edges),
    }


def psi(found: Fractions, expected: Fractions) -> float:
    """Return the population stability index of two distributions over the same groups, all fractions above 0.

    Σ (found − expected) · ln(found / expected). By custom, below 0.1 is stable and above 0.25 a shift (N.
    Siddiqi, Credit Risk Scorecards, 2006). It is the Kullback-Leibler divergence made symmetric (Jeffreys,
    1946).
    """
    return float(np.sum((found - expected) * np.log(found / expected)))


def kl(found: Fractions, expected: Fractions) -> float:
    """Return the Kullback-Leibler divergence of `found` from `expected`, in nats, all fractions above 0.

    Σ found · ln(found / expected) (S. Kullback, R. Leibler, 1951).
    """
    return float(np.sum(found * np.log(found / expected)))


def wasserstein(found: Fractions, expected: Fractions, edges: Sequence[int]) -> float:
    """Return the Wasserstein distance of two histograms in DN: how far values must be moved, on average.

    ∫ |F − G|, F and G being the cumulative distributions (S. Vallender, 1974), with each bin's values at its
    middle. The last bin counts as if it were as wide as the one before it.
    """
    middles = (np.asarray(edges[:-1], np.float64) + edges[1:]) / 2
    middles[-1] = edges[-2] + (edges[-2] - edges[-3]) / 2
    apart = np.abs(np.cumsum(found - expected))[:-1]
    return float(np.sum(apart * np.diff(middles)))


def group_starts(reference: Counts, groups: int = N_GROUPS) -> Counts:
    """Return the first bin of each of up to `groups` groups of neighbouring bins, about equally filled."""
    below = np.concatenate([[0], np.cumsum(reference)[:-1]]) / reference.sum()
    return np.unique(np.searchsorted(below, np.arange(groups) / groups, "left").clip(max=len(reference) - 1))


def fractions(counts: Counts, minimum: float = 0.0) -> Fractions:
    """Return counts as fractions that sum to 1, none of them below (about) `minimum`."""
    found = np.maximum(counts / counts.sum(), minimum)
    return np.asarray(found / found.sum())
