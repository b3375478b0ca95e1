"""What is known of a tile apart from its pixels, and reading many of them."""

from pathlib import Path

import numpy as np
import pytest
from rasters import noise, write_folder, write_l1c, write_tiff

from tilewise.datasets.core.bands import BAND_NAMES, EUROSAT_MS_ORDER, positions
from tilewise.datasets.readers.records import TileRecord, Unreadable, read_all
from tilewise.datasets.readers.sources import find_source


def record_of(path: Path) -> TileRecord:
    (outcome,) = read_all([find_source(path.parent.parent)])
    assert not isinstance(outcome, Unreadable)
    return outcome[0]


def test_a_record_describes_its_tile(tmp_path: Path) -> None:
    pixels = noise(bands=2).clip(100, 9000)
    pixels[0, :32] = 0
    path = write_tiff(tmp_path / "River" / "River_7.tif", pixels, ("B8A", "B02"), corner=(500_000, 5_500_000))
    record = record_of(path)
    assert (record.name, record.label, record.source) == ("River_7", "River", "geotiff")
    assert (record.level, record.bands) == ("L1C", ("B02", "B8A"))
    assert (record.crs, record.bounds) == ("EPSG:32632", (500_000, 5_499_360, 500_640, 5_500_000))
    assert (record.valid_fraction, record.low, record.high) == (0.5, 100, 9000)


def test_a_tile_without_data_has_no_extremes(tmp_path: Path) -> None:
    record = record_of(
        write_tiff(tmp_path / "A" / "a.tif", np.zeros((3, 64, 64), np.uint16), ("B02", "B03", "B04"))
    )
    assert (record.valid_fraction, record.low, record.high) == (0, 0, 0)
    assert (record.crs, record.bounds) == ("", None)


def test_equal_pixels_have_equal_hashes_whatever_their_file(tmp_path: Path) -> None:
    pixels = noise()
    one = write_l1c(tmp_path / "1" / "A" / "a.tif")
    other = write_tiff(
        tmp_path / "2" / "B" / "b.tif",
        pixels[positions(EUROSAT_MS_ORDER)],
        EUROSAT_MS_ORDER,
        corner=(500_000, 5_500_000),
        compress="deflate",
    )
    assert record_of(one).sha256 == record_of(other).sha256


def test_any_pixel_and_any_band_changes_the_hash(tmp_path: Path) -> None:
    pixels = noise()
    changed = pixels.copy()
    changed[12, 63, 63] += 1
    paths = [
        write_l1c(tmp_path / "1" / "A" / "a.tif"),
        write_tiff(tmp_path / "2" / "A" / "a.tif", changed, BAND_NAMES),
        write_tiff(tmp_path / "3" / "A" / "a.tif", pixels[:12], BAND_NAMES[:12]),
        write_tiff(tmp_path / "4" / "A" / "a.tif", pixels[:12], (*BAND_NAMES[:11], "B12")),
    ]
    assert len({record_of(path).sha256 for path in paths}) == 4


def test_every_tile_is_read_in_order_and_what_fails_is_said(tmp_path: Path) -> None:
    tiles = {f"{label}/{label}_{n}": n for label in ("A", "B") for n in range(5)}
    write_folder(tmp_path / "one", tiles)
    write_folder(tmp_path / "two", {"C/c": 9})
    (tmp_path / "one" / "A" / "A_3.tif").write_bytes(b"II*\0")
    outcomes = list(read_all([find_source(tmp_path / "one"), find_source(tmp_path / "two")]))
    names = [o.name if isinstance(o, Unreadable) else o[0].name for o in outcomes]
    assert names == [Path(path).name for path in tiles] + ["c"]
    failed = outcomes[3]
    assert isinstance(failed, Unreadable)
    assert (failed.label, failed.source) == ("A", "geotiff")
    assert "truncated or corrupt" in failed.reason
    first = outcomes[0]
    assert not isinstance(first, Unreadable)
    assert np.array_equal(first[1].pixels, noise(0))


def test_progress_counts_every_tile_to_the_end(tmp_path: Path) -> None:
    write_folder(tmp_path, {f"A/{n}": n for n in range(3)})
    seen: list[tuple[str, int, int | None]] = []
    list(read_all([find_source(tmp_path)], lambda *what: seen.append(what), "checking"))
    assert seen == [("checking", n, 3) for n in (1, 2, 3)]


def test_more_tiles_than_are_read_ahead_are_all_read(tmp_path: Path) -> None:
    content = write_tiff(tmp_path / "A" / "0.tif", noise(bands=1), ("B02",)).read_bytes()
    for n in range(1, 300):
        (tmp_path / "A" / f"{n}.tif").write_bytes(content)
    outcomes = list(read_all([find_source(tmp_path)]))
    assert len({o.name if isinstance(o, Unreadable) else o[0].name for o in outcomes}) == 300


@pytest.mark.parametrize("crs", ["EPSG:3035", "EPSG:32733"])
def test_a_record_keeps_the_crs_of_its_file(tmp_path: Path, crs: str) -> None:
    corner = (4_000_000, 3_000_000) if crs == "EPSG:3035" else (300_000, 9_000_000)
    assert record_of(write_l1c(tmp_path / "A" / "a.tif", corner=corner, crs=crs)).crs == crs
