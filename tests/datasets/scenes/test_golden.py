"""Pixels whose numbers say where they lie, through every reader and kernel, against GDAL's own programs."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from gdal_tools import gdal, needs_gdal, warped
from rasterio.windows import Window
from rasters import L1C_TAGS, write_tiff
from scene_files import CRS, stac_item, write_band, write_json, write_safe

from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.core.radiometry import Level, ReadOptions
from tilewise.datasets.scenes import Scene, SceneOptions, SceneSource, find_scenes

pytestmark = needs_gdal
Pixels = npt.NDArray[Any]
DN = ReadOptions(level=Level.L2A, scale=1e-4, offset=0)
HEIGHT, WIDTH = 180, 240
CORNER = (600_000, 5_000_000)
WINDOWS = [Window(0, 0, 64, 64), Window(37, 51, 100, 64), Window(WIDTH - 65, HEIGHT - 33, 65, 33)]


def place_code(height: int = HEIGHT, width: int = WIDTH, step: float = 1.0) -> Pixels:
    """Numbers of which each says its pixel's row and column; a pixel further is at least seven more."""
    down, across = np.indices((height, width))
    return (1000 + step * (7 * across + 31 * down)).astype(np.uint16)


def with_holes(numbers: Pixels, no_data: int = 0) -> Pixels:
    """The same with single pixels, a block and an edge of no data."""
    made = numbers.copy()
    made[..., 20:24, 30:50] = made[..., ::41, ::53] = no_data
    made[..., :, -3:] = no_data
    return made


def far_from_holes(numbers: Pixels, reach: int) -> npt.NDArray[np.bool_]:
    """Where all pixels in `reach` have data: near holes GDAL's two ways to spread coarse pixels differ."""
    near = np.pad(numbers == 0, reach, constant_values=True)
    height, width = numbers.shape
    shifts = [(y, x) for y in range(2 * reach + 1) for x in range(2 * reach + 1)]
    return ~np.logical_or.reduce([near[y : y + height, x : x + width] for y, x in shifts])


def open_one(path: Path, *, warp: bool = False) -> SceneSource:
    (found,) = find_scenes([path], SceneOptions(DN, clouds=None, warp=warp))
    return found


def whole(scene: Scene) -> Pixels:
    return scene.read(Window(0, 0, scene.width, scene.height))


# Readers on their own grid: each window is what gdal_translate cuts out.


def stack(folder: Path) -> tuple[Path, dict[str, Path]]:
    numbers = np.stack([place_code(), place_code()[::-1]])
    path = write_tiff(folder / "stack.tif", numbers, ["B03", "B08"], L1C_TAGS, corner=CORNER)
    return path, {"B03": path}


def band_files(folder: Path) -> tuple[Path, dict[str, Path]]:
    paths = {band: write_band(folder / f"x_{band}.tif", place_code()) for band in ("B02", "B03")}
    return folder, paths


def jpeg_2000(folder: Path) -> tuple[Path, dict[str, Path]]:
    paths = {
        band: write_band(folder / f"x_{band}.jp2", place_code(), driver="JP2OpenJPEG")
        for band in ("B02", "B04")
    }
    return folder, paths


def safe(folder: Path) -> tuple[Path, dict[str, Path]]:
    product = write_safe(folder, "1C", np.stack([place_code()] * 13))
    return product, {"B04": next(product.rglob("*_B04.jp2")), "B08": next(product.rglob("*_B08.jp2"))}


def stac(folder: Path) -> tuple[Path, dict[str, Path]]:
    path = write_band(folder / "green.tif", place_code())
    item = stac_item({"green": {"href": "green.tif", "eo:bands": [{"name": "green"}]}})
    return write_json(folder / "item.json", item), {"B03": path}


@pytest.mark.parametrize("make", [stack, band_files, jpeg_2000, safe, stac])
def test_a_window_of_any_kind_of_scene_is_what_gdal_translate_cuts_out(tmp_path: Path, make: Any) -> None:
    path, bands = make(tmp_path / "scene")
    with open_one(path).open() as scene:
        for window in WINDOWS:
            found = scene.read(window)
            for band, raster in bands.items():
                cut = (window.col_off, window.row_off, window.width, window.height)
                gdal("gdal_translate", "-q", "-b", 1, "-srcwin", *cut, raster, tmp_path / "cut.tif")
                with rasterio.open(tmp_path / "cut.tif") as dataset:
                    np.testing.assert_array_equal(found[BAND_NAMES.index(band)], dataset.read(1))


@pytest.mark.parametrize("no_data", [65535, 7])
def test_declared_no_data_is_no_data_and_nothing_else_is(tmp_path: Path, no_data: int) -> None:
    expected = with_holes(place_code())
    numbers = with_holes(place_code(), no_data)
    by_reader = {
        "stack": write_tiff(tmp_path / "s.tif", numbers[None], ["B03"], L1C_TAGS, CORNER, nodata=no_data),
        "item": write_json(
            tmp_path / "i" / "item.json",
            stac_item({"green": {"href": "g.tif", "raster:bands": [{"nodata": no_data}]}}),
        ),
    }
    write_band(tmp_path / "i" / "g.tif", numbers)
    for name, path in by_reader.items():
        with open_one(path).open() as scene:
            np.testing.assert_array_equal(whole(scene)[2], expected, err_msg=name)


# Bands of other resolutions, and rasters that lie elsewhere.


@pytest.mark.parametrize(("metres", "shift"), [(20, 0), (60, 0), (20, -10), (60, 20), (10, 4), (10, -15)])
def test_a_band_on_another_grid_lies_where_gdalwarp_puts_it(tmp_path: Path, metres: int, shift: int) -> None:
    step = metres / 10
    size = (HEIGHT, WIDTH) if metres == 10 else (int(HEIGHT / step) + 4, int(WIDTH / step) + 4)
    lies = Affine(metres, 0, CORNER[0] + shift, 0, -metres, CORNER[1] - shift)
    write_band(tmp_path / "x_B02.tif", place_code())
    other = write_band(tmp_path / "x_B11.tif", place_code(*size, step), transform=lies)
    with open_one(tmp_path).open() as scene:
        found = whole(scene)[BAND_NAMES.index("B11")].astype(int)
        parts = [(window, scene.read(window)[BAND_NAMES.index("B11")].astype(int)) for window in WINDOWS]
        kernel = "cubicspline" if metres > 10 else "cubic"
        (expected,) = warped(other, scene, kernel).astype(int)
    margin = max(1, abs(shift) // 10 + 1) + 2 * int(step)
    inner = np.s_[margin:-margin, margin:-margin]
    assert (found[inner] > 0).all()
    assert np.abs(found - expected)[inner].max() <= 1
    for window, part in parts:
        assert np.abs(part - found[window.toslices()]).max() <= 1


# Warping: --warp gives what gdalwarp gives on the same grid.

DEGREES = ("EPSG:4326", Affine(0.000121, 0, 10.27, 0, -9e-5, 45.15), "cubic")
SOURCES: dict[str, tuple[str, Affine, str]] = {
    "degrees": DEGREES,
    "finer": (CRS, Affine(2.5, 0, 600_003, 0, -2.5, 5_000_004), "cubic"),
    "finer, in degrees": ("EPSG:4326", Affine(0.0000302, 0, 10.27, 0, -0.0000225, 45.15), "cubic"),
    "coarser": (CRS, Affine(20, 0, 600_007, 0, -20, 5_000_001), "cubicspline"),
    "neighbouring zone": ("EPSG:32631", Affine(20, 0, 1_070_000, 0, -20, 5_010_000), "cubicspline"),
    "web mercator": ("EPSG:3857", Affine(14, 0, 1_143_000, 0, -14, 5_640_000), "cubic"),
}


@pytest.mark.parametrize("case", SOURCES.values(), ids=SOURCES)
def test_a_warped_scene_lies_where_gdalwarp_puts_it(tmp_path: Path, case: tuple[str, Affine, str]) -> None:
    crs, lies, kernel = case
    reach = 0 if crs != CRS else 3 if lies.a == 2.5 else 8
    finer = lies.a == 2.5 or lies.a < 0.0001
    numbers = place_code(740, 750, 1.5) if finer else with_holes(place_code(260, 300, 0.7))
    source = write_tiff(
        tmp_path / "s.tif", numbers[None], ["B03"], L1C_TAGS, crs=crs, transform=lies, nodata=0
    )
    with open_one(source, warp=True).open() as scene:
        assert (scene.grid.pixel_m, scene.georeference.transform.b) == (10, 0)
        found = whole(scene)[2].astype(int)
        (expected,) = warped(source, scene, kernel).astype(int)
        parts = [(window, scene.read(window)[2]) for window in (Window(3, 5, 60, 40), Window(20, 9, 33, 50))]
    inner = np.s_[3:-3, 3:-3]  # along edges and holes the two differ in whether half a pixel is one
    assert (expected > 0).mean() > 0.4
    assert ((found > 0) != (expected > 0))[inner].mean() < 0.01
    both = (found > 0) & (expected > 0) & far_from_holes(found, reach)
    assert both.mean() > 0.1
    apart = np.abs(found - expected)[both]
    assert apart.mean() < 0.6
    assert apart.max() <= (3 if kernel == "cubic" else 6)
    for window, part in parts:
        assert np.abs(part - found[window.toslices()])[part > 0].max() <= 1


def test_a_cloud_mask_on_another_grid_lies_where_gdalwarp_puts_it(tmp_path: Path) -> None:
    mask = (np.indices((HEIGHT // 2, WIDTH // 2)).sum(axis=0) % 7 < 2).astype(np.uint8) * 5 + 4  # 4 or 9
    lies = Affine(20, 0, CORNER[0] - 40, 0, -20, CORNER[1] + 20)
    write_band(tmp_path / "x_B02.tif", place_code())
    write_band(tmp_path / "x_B03.tif", place_code())
    scl = write_band(tmp_path / "x_SCL.tif", mask, transform=lies)
    (source,) = find_scenes([tmp_path], SceneOptions(DN))
    with source.open() as scene:
        assert scene.clouds == "scl"
        found = whole(scene)[1]
        (expected,) = warped(scl, scene, "near")
    np.testing.assert_array_equal(found > 0, expected == 4)
