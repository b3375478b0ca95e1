"""Clouds by default: the scene's own mask, the best first, and without one what its pixels show."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from rasterio.windows import Window
from rasters import L1C_TAGS, write_tiff
from scene_files import stac_item, write_band, write_json, write_safe

from tilewise.datasets.acquire.synthetic import synthesise_scene
from tilewise.datasets.core.bands import BAND_NAMES, L2A_BANDS, TEN_METRE_BANDS, positions
from tilewise.datasets.core.errors import SceneError
from tilewise.datasets.core.radiometry import Level, ReadOptions
from tilewise.datasets.scenes import Scene, SceneOptions, find_scenes, parse_clouds
from tilewise.datasets.scenes.clouds import TABLES, find_clouds, is_fill, table_for

# Medians of Lahinch's pixels, Level-1C: fields on a clear day, and a closed cloud.
FIELDS = (1374, 1055, 970, 724, 1176, 2382, 2957, 2881, 3461, 569, 16, 1929, 889)
CLOUD = (4957, 4737, 4240, 4392, 4426, 4723, 4928, 4713, 5071, 1886, 44, 3814, 2967)
SIDE = 96


def half_clouded(seed: int = 0) -> npt.NDArray[np.uint16]:
    """Fields (13, SIDE, SIDE) of which the upper half is under a cloud, with a little noise."""
    rng = np.random.default_rng(seed)
    pixels = np.empty((13, SIDE, SIDE))
    pixels[:, : SIDE // 2], pixels[:, SIDE // 2 :] = (np.array(x)[:, None, None] for x in (CLOUD, FIELDS))
    return (pixels * rng.normal(1, 0.02, pixels.shape)).astype(np.uint16)


def stack(path: Path, masks: dict[str, int] | None = None, bands: Sequence[str] = BAND_NAMES) -> Path:
    """Write a scene with masks among its bands that mark the lower half as cloud, so that one can tell."""
    planes = [half_clouded()[positions(bands)]]
    for value in (masks or {}).values():
        plane = np.full((1, SIDE, SIDE), 4 if value == 9 else 0, np.uint16)
        plane[:, SIDE // 2 :] = value
        planes.append(plane)
    return write_tiff(path, np.concatenate(planes), [*bands, *(masks or {})], L1C_TAGS, (600_000, 5_000_000))


def read(path: Path, clouds: str = "auto", options: ReadOptions | None = None) -> tuple[Scene, Any]:
    (found,) = find_scenes([path], SceneOptions(options or ReadOptions(), parse_clouds(clouds)))
    with found.open() as scene:
        return scene, scene.read(Window(0, 0, scene.width, scene.height))


def kept(pixels: npt.NDArray[np.uint16]) -> str:
    upper, lower = (part.mean() for part in np.split(pixels[3] > 0, 2))
    return {(True, False): "upper", (False, True): "lower", (True, True): "all"}[upper > 0.99, lower > 0.99]


SCL, PROBABILITY, QA60 = {"SCL": 9}, {"probability": 80}, {"QA60": 1024}


@pytest.mark.parametrize(
    ("masks", "source", "left"),
    [
        ({**QA60, **PROBABILITY, **SCL}, "scl", "upper"),
        ({**QA60, **PROBABILITY}, "probability", "upper"),
        (QA60, "qa60", "upper"),
        ({}, "pixels", "lower"),
    ],
)
def test_the_best_mask_that_a_scene_has_is_taken_and_without_one_its_pixels(
    tmp_path: Path, masks: dict[str, int], source: str, left: str
) -> None:
    scene, pixels = read(stack(tmp_path / "s_20200601.tif", masks))
    assert (scene.clouds, kept(pixels)) == (source, left)


@pytest.mark.parametrize(
    ("day", "source"),
    [("20220124", "qa60"), ("20220125", "pixels"), ("20240228", "pixels"), ("20240301", "qa60")],
)
def test_qa60_is_not_trusted_in_the_years_when_it_was_empty(tmp_path: Path, day: str, source: str) -> None:
    scene, _ = read(stack(tmp_path / f"s_{day}.tif", QA60))
    assert scene.clouds == source
    scene, _ = read(stack(tmp_path / f"s_{day}.tif", QA60), "qa60")
    assert scene.clouds == "qa60"


def test_all_kinds_of_scenes_look_for_their_masks(tmp_path: Path) -> None:
    pixels = half_clouded()[:, :60, :60]
    product = write_safe(tmp_path / "safe", "1C", pixels)
    inside = next(product.glob("GRANULE/*"))
    flags = np.zeros((2, 60, 60), np.uint8)
    write_tiff(inside / "QI_DATA" / "MSK_CLASSI_B00.jp2", flags, corner=(600_000, 5_000_000))
    write_band(tmp_path / "files" / "x_B02.tif", pixels[1])
    write_band(tmp_path / "files" / "x_B03.tif", pixels[2])
    write_band(tmp_path / "files" / "x_SCL.tif", np.full((60, 60), 4, np.uint8))
    for name, path in (("red", 3), ("green", 2)):
        write_band(tmp_path / "stac" / f"{name}.tif", pixels[path])
    write_band(tmp_path / "stac" / "cloud.tif", np.zeros((60, 60), np.uint8))
    assets = {name: {"href": f"{name}.tif"} for name in ("red", "green", "cloud")}
    item = write_json(tmp_path / "stac" / "item.json", stac_item(assets))
    dn = ReadOptions(level=Level.L2A, scale=1e-4, offset=0)
    for path, source in ((product, "qa60"), (tmp_path / "files", "scl"), (item, "probability")):
        scene, _ = read(path, options=dn)
        assert scene.clouds == source, path


def test_none_keeps_clouds_and_pixels_does_without_the_mask(tmp_path: Path) -> None:
    path = stack(tmp_path / "s.tif", SCL)
    scene, pixels = read(path, "none")
    assert (scene.clouds, kept(pixels)) == (None, "all")
    scene, pixels = read(path, "pixels")
    assert (scene.clouds, kept(pixels)) == ("pixels", "lower")


def test_a_scene_without_visible_bands_is_read_as_it_is_unless_pixels_are_asked_for(tmp_path: Path) -> None:
    path = stack(tmp_path / "s.tif", bands=("B08", "B11"))
    assert read(path)[0].clouds is None
    with pytest.raises(SceneError, match=r"clouds are found in B02, B03, B04.*leave --clouds out"):
        read(path, "pixels")


# What is cloud.


@pytest.mark.parametrize("bands", [BAND_NAMES, L2A_BANDS, TEN_METRE_BANDS, ("B02", "B03", "B04")])
def test_a_closed_cloud_is_found_whatever_bands_there_are(bands: tuple[str, ...]) -> None:
    table = table_for(bands)
    assert table is not None
    pixels = np.zeros((13, SIDE, SIDE), np.uint16)
    pixels[positions(bands)] = half_clouded()[positions(bands)]
    found = find_clouds(pixels, bands, Level.L1C, table)
    assert found[: SIDE // 2].mean() > 0.99
    assert found[SIDE // 2 :].mean() < 0.01


def test_as_many_bands_are_used_as_there_are_and_b8a_stands_for_an_absent_b08() -> None:
    assert table_for(BAND_NAMES) is TABLES[0]
    assert table_for(("B02", "B03", "B04", "B8A", "B11")) is TABLES[0]
    assert table_for(TEN_METRE_BANDS) is TABLES[1]
    assert table_for(("B02", "B03", "B04", "B11")) is TABLES[2]
    assert table_for(("B03", "B04", "B08")) is None


def test_a_pixel_is_cloud_whichever_window_it_is_read_with(tmp_path: Path) -> None:
    (found,) = find_scenes([stack(tmp_path / "s.tif")])
    with found.open() as scene:
        everything = scene.read(Window(0, 0, SIDE, SIDE))
        for window in (Window(3, 40, 50, 17), Window(60, 0, 36, 96)):
            np.testing.assert_array_equal(scene.read(window), everything[:, *window.toslices()])


def test_synthetic_land_has_no_clouds(tmp_path: Path) -> None:
    synthesise_scene(tmp_path / "s.tif", 3, 4, 4)
    scene, pixels = read(tmp_path / "s.tif")
    assert scene.clouds == "pixels"
    assert (pixels[3] > 0).mean() > 0.98


def test_undeclared_fill_is_no_data(tmp_path: Path) -> None:
    pixels = half_clouded()
    pixels[:, -8:, :8] = 65_535
    pixels[:, -8:, 8:16] = 1
    assert is_fill(pixels, BAND_NAMES).sum() == 128
    path = write_tiff(tmp_path / "s.tif", pixels, BAND_NAMES, L1C_TAGS, (600_000, 5_000_000))
    _, found = read(path)
    assert not found[:, -8:, :16].any()
    assert (found[:, -8:, 16:] > 0).all()


@pytest.mark.realdata
@pytest.mark.parametrize(("day", "least", "most"), [("2017-10-18", 0, 0.01), ("2017-09-26", 0.97, 1)])
def test_lahinch_is_clear_or_clouded_by_its_pixels_as_by_its_mask(
    real_data: Path, day: str, least: float, most: float
) -> None:
    path = real_data / "scenes" / "lahinch_l1c" / f"{day}.tif"
    for clouds in ("auto", "pixels"):
        scene, pixels = read(path, clouds, ReadOptions(scale=1e-4, offset=0))
        assert scene.clouds == ("probability" if clouds == "auto" else "pixels")
        assert scene.taken == datetime.fromisoformat(f"{day}T00:00:00+00:00")
        assert least <= (pixels[3] > 0).mean() <= most
