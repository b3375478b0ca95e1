"""Per-band statistics are those of the valid pixels of the tiles that have the band."""

import json
from pathlib import Path

import numpy as np
import pytest
from rasters import write_tiff
from scipy.stats import entropy, wasserstein_distance

from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.packs.pack import Pack
from tilewise.datasets.packs.packing import write_pack
from tilewise.datasets.packs.splits import SplitPlan
from tilewise.datasets.packs.statistics import (
    EDGES,
    BandStatistics,
    kl,
    measure,
    psi,
    wasserstein,
    write_statistics,
)
from tilewise.datasets.readers.sources import find_source

EVERYTHING_TRAINS = SplitPlan(fractions=(1.0, 0.0, 0.0))


def packed(root: Path, plan: SplitPlan = EVERYTHING_TRAINS) -> Pack:
    write_pack([find_source(root)], root.parent / "pack", plan)
    return Pack(root.parent / "pack")


def by_band(statistics: list[BandStatistics]) -> dict[str, BandStatistics]:
    assert [band.band for band in statistics] == list(BAND_NAMES)
    return {band.band: band for band in statistics}


def test_statistics_are_those_of_numpy_over_the_same_pixels(pack: Pack) -> None:
    tiles = pack.fetch(pack.rows("train"))
    for place, band in enumerate(measure(pack)):
        values = tiles[:, place].astype(np.float64)
        assert band.tiles == 70
        assert band.no_data == 0
        assert band.mean == pytest.approx(values.mean(), rel=1e-12)
        assert band.std == pytest.approx(values.std(), rel=1e-9)
        assert (band.low, band.high) == (values.min(), values.max())
        assert sum(band.histogram) == values.size
        assert band.histogram == np.histogram(values, EDGES)[0].tolist()


def test_percentiles_are_right_within_a_bin(pack: Pack) -> None:
    tiles = pack.fetch(pack.rows("train"))
    for place, band in enumerate(measure(pack)):
        for percent, found in band.percentiles.items():
            exact = np.percentile(tiles[:, place], float(percent))
            width = np.diff(EDGES)[np.searchsorted(EDGES, exact, "right") - 1]
            assert abs(found - exact) <= width


def test_each_split_has_its_own_statistics(pack: Pack) -> None:
    train, test = measure(pack), measure(pack, "test")
    assert test[3].tiles == 20
    assert test[3].mean == pytest.approx(pack.fetch(pack.rows("test"))[:, 3].mean(), rel=1e-12)
    assert test[3].mean != train[3].mean


def test_no_data_counts_as_no_data_and_nowhere_else(tmp_path: Path) -> None:
    pixels = np.full((2, 64, 64), 3000, np.uint16)
    pixels[0, :16] = 0
    pixels[0, 16:32] = 1000
    write_tiff(tmp_path / "data" / "A" / "a.tif", pixels, ("B02", "B8A"))
    bands = by_band(measure(packed(tmp_path / "data")))
    assert bands["B02"].no_data == 0.25
    assert bands["B02"].mean == pytest.approx((1000 + 2 * 3000) / 3)
    assert (bands["B02"].low, bands["B02"].high) == (1000, 3000)
    assert (bands["B8A"].no_data, bands["B8A"].mean, bands["B8A"].std) == (0, 3000, 0)
    assert bands["B8A"].percentiles["50"] == pytest.approx(3000, abs=100)


def test_tiles_without_a_band_do_not_count_for_it(tmp_path: Path) -> None:
    write_tiff(tmp_path / "data" / "A" / "a.tif", np.full((1, 64, 64), 500, np.uint16), ("B02",))
    write_tiff(tmp_path / "data" / "B" / "b.tif", np.full((2, 64, 64), 700, np.uint16), ("B02", "B03"))
    bands = by_band(measure(packed(tmp_path / "data")))
    assert (bands["B02"].tiles, bands["B02"].mean, bands["B02"].no_data) == (2, 600, 0)
    assert (bands["B03"].tiles, bands["B03"].mean, bands["B03"].no_data) == (1, 700, 0)


def test_a_band_that_no_tile_has_gets_zeros(tmp_path: Path) -> None:
    write_tiff(tmp_path / "data" / "A" / "a.tif", np.full((1, 64, 64), 500, np.uint16), ("B02",))
    pack = packed(tmp_path / "data")
    nothing = dict.fromkeys(("1", "5", "50", "95", "99"), 0.0)
    for band in (by_band(measure(pack))["B12"], by_band(measure(pack, "test"))["B02"]):
        assert (band.tiles, band.no_data, band.mean, band.std, band.low, band.high) == (0,) * 6
        assert band.percentiles == nothing
        assert not any(band.histogram)


def test_extreme_values_fall_into_the_histogram(tmp_path: Path) -> None:
    pixels = np.full((1, 64, 64), 65_535, np.uint16)
    pixels[0, :32] = 1
    write_tiff(tmp_path / "data" / "A" / "a.tif", pixels, ("B02",))
    band = by_band(measure(packed(tmp_path / "data")))["B02"]
    assert (band.histogram[0], band.histogram[-1]) == (2048, 2048)
    assert band.std == pytest.approx(32_767)


def test_the_file_has_the_edges_and_every_band(pack: Pack, tmp_path: Path) -> None:
    write_statistics(measure(pack), tmp_path / "statistics.json")
    written = json.loads((tmp_path / "statistics.json").read_text())
    assert written["edges"] == list(EDGES)
    assert [band["band"] for band in written["bands"]] == list(BAND_NAMES)
    assert all(len(band["histogram"]) == len(EDGES) - 1 for band in written["bands"])
    assert written["bands"] == pack.statistics()


@pytest.mark.parametrize("seed", range(5))
def test_distances_of_histograms_are_those_of_scipy(seed: int) -> None:
    """Which takes the values themselves, each in the middle of its bin."""
    draw = np.random.default_rng(seed)
    edges = np.sort(draw.choice(np.arange(1, 10_000), 12, replace=False))
    found, expected = draw.integers(1, 500, 11), draw.integers(1, 500, 11)
    middles = (edges[:-1] + edges[1:]) / 2
    middles[-1] = edges[-2] + (edges[-2] - edges[-3]) / 2
    p, q = found / found.sum(), expected / expected.sum()
    assert wasserstein(p, q, edges.tolist()) == pytest.approx(wasserstein_distance(middles, middles, p, q))
    assert kl(p, q) == pytest.approx(entropy(p, q))
    assert psi(p, q) == pytest.approx(entropy(p, q) + entropy(q, p))
