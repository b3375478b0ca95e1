"""Real scenes of all kinds: read with the right options, refused with the right error without."""

from pathlib import Path

import numpy as np
import pytest
from rasterio.windows import Window

from tilewise.datasets.core.bands import BAND_NAMES, L2A_BANDS
from tilewise.datasets.core.errors import (
    BandsUnknownError,
    RadiometryUnknownError,
    TileShapeError,
    TilewiseError,
)
from tilewise.datasets.core.radiometry import Level, ReadOptions
from tilewise.datasets.scenes import SceneOptions, find_scenes, parse_clouds

pytestmark = pytest.mark.realdata
DN_L1C = ReadOptions(scale=1e-4, offset=0)
DN_L2A = ReadOptions(L2A_BANDS, Level.L2A, 1e-4, 0)


@pytest.mark.parametrize(
    ("folder", "options", "error", "way"),
    [
        ("lahinch_l1c", ReadOptions(), RadiometryUnknownError, "offset"),
        ("waterville_l1c", ReadOptions(), RadiometryUnknownError, "offset"),
        ("boadella_l2a", ReadOptions(), BandsUnknownError, "--bands"),
        ("boadella_l2a", DN_L2A, TileShapeError, "in degrees.*--warp"),
        ("small_l2a", DN_L2A, TileShapeError, "in degrees.*--warp"),
        ("safe_l2a", ReadOptions(), TileShapeError, "measure 60 m.*--warp"),
    ],
)
def test_without_the_right_options_each_kind_says_which_are_missing(
    real_data: Path, folder: str, options: ReadOptions, error: type[TilewiseError], way: str
) -> None:
    found = find_scenes([real_data / "scenes" / folder], SceneOptions(options))
    assert found
    for source in found:
        with pytest.raises(error, match=way), source.open():
            pass


@pytest.mark.parametrize(
    ("folder", "options", "bands", "epsg"),
    [
        ("lahinch_l1c", SceneOptions(DN_L1C, None), BAND_NAMES, 32629),
        ("waterville_l1c", SceneOptions(DN_L1C, None), BAND_NAMES, 32629),
        ("boadella_l2a", SceneOptions(DN_L2A, warp=True), L2A_BANDS, 32631),
        ("safe_l2a", SceneOptions(warp=True), tuple(b for b in L2A_BANDS if b != "B08"), 32629),
    ],
)
def test_with_them_it_is_read(
    real_data: Path, folder: str, options: SceneOptions, bands: tuple[str, ...], epsg: int
) -> None:
    for source in find_scenes([real_data / "scenes" / folder], options):
        with source.open() as scene:
            assert (scene.bands, scene.georeference.crs.to_epsg(), scene.grid.pixel_m) == (bands, epsg, 10)
            assert scene.taken is not None
            pixels = scene.read(Window(0, 0, min(scene.width, 512), min(scene.height, 512)))
            present = pixels[[BAND_NAMES.index(band) for band in bands]]
            assert 0.5 < (present > 0).mean() <= 1
            assert 100 < np.median(present[present > 0]) < 10_000
            assert scene.broken == 0


def test_all_small_scenes_in_degrees_are_warped(real_data: Path) -> None:
    found = find_scenes([real_data / "scenes" / "small_l2a"], SceneOptions(DN_L2A, warp=True))
    assert len(found) == 11
    for source in found:
        with source.open() as scene:
            pixels = scene.read(Window(0, 0, scene.width, scene.height))
            assert (pixels[1] > 0).mean() > 0.75


@pytest.mark.parametrize(
    ("clouds", "minimum", "maximum"), [("qa60", 0, 0), ("probability:90", 0, 0.05), ("none", 0.9, 1)]
)
def test_a_fully_cloudy_scene_is_no_data_by_either_mask(
    real_data: Path, clouds: str, minimum: float, maximum: float
) -> None:
    path = real_data / "scenes" / "lahinch_l1c" / "2017-10-18.tif"
    (source,) = find_scenes([path], SceneOptions(DN_L1C, parse_clouds(clouds)))
    with source.open() as scene:
        valid = (scene.read(Window(0, 0, scene.width, scene.height)) > 0).mean()
    assert minimum <= valid <= maximum


def test_the_product_s_offset_is_taken_off_and_its_clouds_are_cut_out(real_data: Path) -> None:
    window = Window(3000, 3000, 600, 600)
    (plain,) = find_scenes([real_data / "scenes" / "safe_l2a"], SceneOptions(clouds=None, warp=True))
    (masked,) = find_scenes(
        [real_data / "scenes" / "safe_l2a"], SceneOptions(clouds=parse_clouds("scl"), warp=True)
    )
    with plain.open() as scene:
        assert (scene.level, scene.platform) == (Level.L2A, "sentinel-2a")
        everything = scene.read(window)
    with masked.open() as scene:
        clear = scene.read(window)
    assert ((clear == everything) | (clear == 0)).all()
    assert (clear > 0).sum() < (everything > 0).sum()
    assert np.percentile(everything[4][everything[4] > 0], 1) < 1000, "with ESA's 1000 left in, none could be"
