"""Per-band statistics of a pack: what normalisation, drift checks and people need to know of the values.

All numbers are DN (reflectance × 10 000) of valid pixels; band by band, since an RGB tile has only three.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datasets.bands import BAND_NAMES
from datasets.pack import Pack
from datasets.tile import DN

# Histogram edges in DN: fine where water and the cirrus band (about 12 DN) lie, coarser where land does, and
# one bin for all that is brighter than reflectance 1.
EDGES: tuple[int, ...] = (*range(1, 101, 5), *range(101, 4001, 100), *range(4001, 10_001, 500), 65_536)
_PERCENTILES = (1, 5, 50, 95, 99)
_BATCH = 256


@dataclass(frozen=True, slots=True)
class BandStatistics:
    """One band's statistics, in DN.

    Attributes:
        band: canonical name.
        tiles: how many tiles have the band.
        no_data: share of those tiles' pixels without data.
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
    """Return the statistics of every band over the tiles of `split`; a band no tile has gets zeros."""
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
    """Running sums over batches, one entry a band."""

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
            values = band[band > 0]
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
    shares = np.concatenate([[0.0], np.cumsum(histogram) / histogram.sum()])
    return {str(p): float(np.interp(p / 100, shares, EDGES)) for p in _PERCENTILES}
