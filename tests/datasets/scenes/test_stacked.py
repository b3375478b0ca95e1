"""Stacked GeoTIFFs: bands by name, any data type, cloud bands, damage kept to its blocks."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.windows import Window
from rasters import L1C_TAGS, noise, write_l1c, write_tiff
from scene_files import smooth

from tilewise.datasets.core.bands import BAND_NAMES, EUROSAT_MS_ORDER, L2A_BANDS, positions
from tilewise.datasets.core.errors import (
    BandsUnknownError,
    RadiometryUnknownError,
    SceneError,
    TilewiseError,
    UnreadableImageError,
)
from tilewise.datasets.core.radiometry import Level, ReadOptions
from tilewise.datasets.core.tile import DN
from tilewise.datasets.scenes import BrokenBlock, SceneOptions, SceneSource, find_scenes, parse_clouds
from tilewise.datasets.scenes.band_files import date_in, platform_in
from tilewise.datasets.scenes.rasters import open_raster

PLACE = (600_000, 5_000_000)


def source(
    path: Path, options: ReadOptions | None = None, clouds: str = "none", *, warp: bool = False
) -> SceneSource:
    (found,) = find_scenes([path], SceneOptions(options or ReadOptions(), parse_clouds(clouds), warp))
    return found


def pixels_of(found: SceneSource) -> DN:
    with found.open() as scene:
        return scene.read(Window(0, 0, scene.width, scene.height))


def test_bands_are_read_by_their_names_wherever_they_stand(tmp_path: Path) -> None:
    pixels = noise(1, size=100)
    path = write_tiff(tmp_path / "s.tif", pixels[positions(EUROSAT_MS_ORDER)], EUROSAT_MS_ORDER, corner=PLACE)
    np.testing.assert_array_equal(pixels_of(source(path)), pixels)


def test_a_window_is_the_same_part_of_the_whole(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "s.tif", noise(1, size=100), BAND_NAMES, corner=PLACE)
    with source(path).open() as scene:
        whole = scene.read(Window(0, 0, 100, 100))
        np.testing.assert_array_equal(scene.read(Window(13, 40, 50, 60)), whole[:, 40:100, 13:63])


@pytest.mark.parametrize(
    ("dtype", "factor", "options"),
    [
        ("int16", 1, ReadOptions(level=Level.L1C, scale=1e-4, offset=0)),
        ("float32", 1e-4, ReadOptions(level=Level.L1C, scale=1.0, offset=0)),
        ("uint16", 1, ReadOptions()),
    ],
)
def test_any_number_type_comes_to_the_same_dn(
    tmp_path: Path, dtype: str, factor: float, options: ReadOptions
) -> None:
    pixels = noise(2)
    tags = L1C_TAGS if options.scale is None else {}
    path = write_tiff(tmp_path / "s.tif", (pixels * factor).astype(dtype), BAND_NAMES, tags, corner=PLACE)
    np.testing.assert_array_equal(pixels_of(source(path, options)), pixels)


def test_nan_is_no_data(tmp_path: Path) -> None:
    pixels = noise(2).astype(np.float32)
    pixels[3, 10:20] = np.nan
    path = write_tiff(tmp_path / "s.tif", pixels, BAND_NAMES, {}, corner=PLACE)
    found = pixels_of(source(path, ReadOptions(scale=1e-4, offset=0)))
    assert not found[3, 10:20].any()
    assert (found[4] > 0).all()


@pytest.mark.parametrize(
    ("names", "tags", "error", "way"),
    [
        ((), L1C_TAGS, BandsUnknownError, "--bands"),
        (BAND_NAMES, {}, RadiometryUnknownError, "offset"),
    ],
)
def test_what_a_file_does_not_say_must_be_said(
    tmp_path: Path, names: tuple[str, ...], tags: dict[str, str], error: type[TilewiseError], way: str
) -> None:
    path = write_tiff(tmp_path / "s.tif", noise(), names, tags, corner=PLACE)
    with pytest.raises(error, match=way), source(path).open():
        pass


def test_a_scene_that_lies_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TilewiseError, match="gdal_edit"), source(write_l1c(tmp_path / "s.tif")).open():
        pass


def test_the_date_and_the_satellite_are_told_by_names_that_tell_them() -> None:
    assert date_in("Boadella_2020-01-13") == datetime(2020, 1, 13, tzinfo=UTC)
    assert date_in("T29UNU_20221005T115411_B02") == datetime(2022, 10, 5, 11, 54, 11, tzinfo=UTC)
    assert date_in("scene_12345678901") is None
    assert date_in("2023-02-31") is None
    assert platform_in("S2A_MSIL2A_20221005T115411") == "sentinel-2a"
    assert platform_in("my_scene") is None


# Clouds.


def with_mask(tmp_path: Path, name: str, values: list[int]) -> Path:
    """A scene whose last band is a mask: a column of 16 pixels for each value."""
    mask = np.repeat(np.array(values, np.uint16), 16)[None, None].repeat(64, axis=1)
    pixels = np.concatenate([smooth(13, 16 * len(values))[:, :64], mask])
    return write_tiff(tmp_path / "s.tif", pixels, (*BAND_NAMES, name), corner=PLACE)


@pytest.mark.parametrize(
    ("name", "values", "clouds", "kept"),
    [
        ("SCL", [4, 3, 8, 9, 10, 11], "scl", [1, 0, 0, 0, 0, 1]),
        ("QA60", [0, 1024, 2048, 3072], "qa60", [1, 0, 0, 0]),
        ("probability", [0, 39, 40, 100], "probability:40", [1, 1, 0, 0]),
        ("MSK_CLDPRB", [0, 49, 50, 100], "probability", [1, 1, 0, 0]),
        ("SCL", [4, 8, 9, 4], "none", [1, 1, 1, 1]),
    ],
)
def test_clouds_are_no_data_by_option(
    tmp_path: Path, name: str, values: list[int], clouds: str, kept: list[int]
) -> None:
    found = pixels_of(source(with_mask(tmp_path, name, values), clouds=clouds))
    assert [int(found[:, :, 16 * n : 16 * n + 16].all()) for n in range(len(values))] == kept
    assert [int(found[:, :, 16 * n : 16 * n + 16].any()) for n in range(len(values))] == kept


def test_a_mask_that_is_asked_for_and_missing_is_an_error(tmp_path: Path) -> None:
    path = with_mask(tmp_path, "SCL", [4, 8, 9, 4])
    with (
        pytest.raises(SceneError, match=r"no cloud mask QA60; .*--clouds auto.* name a mask"),
        source(path, clouds="qa60").open(),
    ):
        pass


def test_a_mask_in_a_file_beside_the_scene_is_brought_to_its_grid(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "s.tif", smooth(13, 96), BAND_NAMES, corner=PLACE)
    coarse = np.zeros((1, 48, 48), np.uint8)
    coarse[:, 12:24, :12] = 80
    write_tiff(
        tmp_path / "masks" / "s_clouds.tif",
        coarse,
        crs="EPSG:32632",
        transform=Affine(20, 0, PLACE[0], 0, -20, PLACE[1]),
        tags={},
    )
    found = pixels_of(source(path, clouds="file:masks/{stem}_clouds.tif:60"))
    expected = np.ones((96, 96), bool)
    expected[24:48, :24] = False
    np.testing.assert_array_equal(found.all(axis=0), expected)
    without = source(path, clouds="file:other.tif")
    with pytest.raises(SceneError, match=r"no file other\.tif beside the scene"), without.open():
        pass


# Damage.


def test_a_corrupt_block_is_no_data_and_is_counted(tmp_path: Path) -> None:
    pixels = smooth(13, 256)
    blocks = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate", "interleave": "pixel"}
    path = write_tiff(tmp_path / "s.tif", pixels, BAND_NAMES, corner=PLACE, **blocks)
    with rasterio.open(path) as dataset:
        first, size = (
            int(dataset.get_tag_item(f"BLOCK_{what}_1_2", "TIFF", bidx=1)) for what in ("OFFSET", "SIZE")
        )
    content = bytearray(path.read_bytes())
    content[first : first + size] = b"\xff" * size
    path.write_bytes(content)
    with source(path).open() as scene:
        found = scene.read(Window(0, 0, 256, 256))
        assert scene.broken_blocks == (BrokenBlock("s.tif", 2, 1),)
        again = scene.read(Window(0, 0, 256, 256))
        assert scene.broken == 1, "a block is counted once"
    hole = np.zeros((256, 256), bool)
    hole[128:192, 64:128] = True
    np.testing.assert_array_equal(found, np.where(hole, 0, pixels))
    np.testing.assert_array_equal(again, found)


def test_a_file_that_vanishes_is_an_error_and_no_hole(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "s.tif", smooth(13, 64), BAND_NAMES, corner=PLACE)
    with source(path).open() as scene:
        path.unlink()
        with pytest.raises(UnreadableImageError):
            scene.read(Window(0, 0, 64, 64))


def test_a_jpeg_2000_called_tif_and_nonsense_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "s.tif").write_bytes(b"nonsense")
    with pytest.raises(UnreadableImageError, match="not a GeoTIFF"), source(tmp_path / "s.tif").open():
        pass
    (tmp_path / "s.jp2").write_bytes(b"\x00\x00\x00\x0cjP  \r\n\x87\n" + b"x" * 50)
    with pytest.raises(UnreadableImageError, match="JPEG 2000"), source(tmp_path / "s.jp2").open():
        pass


# Fingerprints.


@pytest.mark.parametrize("quick", [False, True])
def test_a_fingerprint_changes_with_the_bytes_and_with_how_they_are_read(tmp_path: Path, quick: bool) -> None:
    path = write_tiff(tmp_path / "s.tif", smooth(13, 64), BAND_NAMES, corner=PLACE)

    def fingerprint(**options: object) -> str:
        (found,) = find_scenes([path], SceneOptions(ReadOptions(**options), quick_fingerprint=quick))  # type: ignore[arg-type]
        return found.fingerprint()

    first = fingerprint()
    assert first == fingerprint()
    assert first != fingerprint(offset=-1000.0)
    write_tiff(path, smooth(13, 64, seed=1), BAND_NAMES, corner=PLACE)
    assert first != fingerprint()


def test_bands_that_l2a_lacks_stay_empty(tmp_path: Path) -> None:
    pixels = noise(3)[positions(L2A_BANDS)]
    path = write_tiff(tmp_path / "s.tif", pixels, (), {}, corner=PLACE)
    found = source(path, ReadOptions(L2A_BANDS, Level.L2A, 1e-4, 0))
    with found.open() as scene:
        assert scene.bands == L2A_BANDS
        assert scene.level is Level.L2A
        assert not scene.read(Window(0, 0, 64, 64))[positions(["B10"])].any()


def test_a_file_of_which_every_block_is_broken_is_opened_as_often_as_a_sound_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have thousands of them, of a few bytes each."""
    opened: list[object] = []

    def noted(found: Path | str) -> rasterio.DatasetReader:
        opened.append(found)
        return open_raster(found)

    monkeypatch.setattr("tilewise.datasets.scenes.scene.open_raster", noted)
    blocks = {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate", "interleave": "pixel"}
    path = write_tiff(tmp_path / "s.tif", smooth(13, 128), BAND_NAMES, corner=PLACE, **blocks)
    content = bytearray(path.read_bytes())
    with rasterio.open(path) as dataset:
        for (row, column), _ in dataset.block_windows(1):
            first = int(dataset.get_tag_item(f"BLOCK_OFFSET_{column}_{row}", "TIFF", bidx=1))
            content[first : first + 8] = b"\xff" * 8
    path.write_bytes(content)
    with source(path).open() as scene:
        assert not scene.read(Window(0, 0, 128, 128)).any()
        assert scene.broken == 64
    assert len(opened) == 1
