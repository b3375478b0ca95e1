"""Products in EOPF Zarr: read in place, at the resolution of each band, by their own attributes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from eopf_product import NAME, write_eopf
from rasterio.crs import CRS
from rasterio.transform import from_origin
from rasterio.windows import Window
from rasters import write_tiff
from scene_files import CORNER, smooth, write_safe

from tilewise.datasets.core.bands import BAND_NAMES, L2A_BANDS
from tilewise.datasets.core.errors import TilewiseError
from tilewise.datasets.core.radiometry import Level
from tilewise.datasets.core.tile import DN, Georeference
from tilewise.datasets.scenes import Kind, SceneOptions, find_scenes, parse_clouds

PIXELS = smooth(13, 240)
RED = BAND_NAMES.index("B04")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_eopf(tmp_path_factory.mktemp("eopf") / NAME, PIXELS)


@pytest.fixture
def product(written: Path, tmp_path: Path) -> Path:
    """A product of one's own to change."""
    return Path(shutil.copytree(written, tmp_path / NAME))


def read(path: Path, clouds: str = "none") -> DN:
    (found,) = find_scenes([path], SceneOptions(clouds=parse_clouds(clouds)))
    with found.open() as scene:
        return scene.read(Window(0, 0, scene.width, scene.height))


def test_the_bands_of_10_m_are_read_to_the_number_and_the_others_are_brought_to_10_m(product: Path) -> None:
    found = read(product)
    for index, band in enumerate(BAND_NAMES):
        if band == "B10":
            assert not found[index].any()
            continue
        inner = (slice(18, -18), slice(18, -18))
        assert np.abs(found[index].astype(int) - PIXELS[index])[inner].max() < 60, band
    for band in ("B02", "B03", "B04", "B08"):
        np.testing.assert_array_equal(found[BAND_NAMES.index(band)], PIXELS[BAND_NAMES.index(band)])


def test_a_product_says_its_place_its_time_and_its_level(product: Path) -> None:
    (found,) = find_scenes([product])
    assert (found.name, found.kind) == (NAME.removesuffix(".zarr"), Kind.EOPF)
    with found.open() as scene:
        assert scene.georeference == Georeference(CRS.from_epsg(32632), from_origin(*CORNER, 10, 10))
        assert (scene.height, scene.width) == (240, 240)
        assert (scene.level, scene.platform, scene.bands) == (Level.L2A, "sentinel-2b", L2A_BANDS)
        assert scene.taken is not None
        assert scene.taken.isoformat() == "2026-07-01T10:36:29.024000+00:00"


@pytest.mark.parametrize("clouds", ["auto", "scl", "probability:40"])
def test_the_masks_of_a_product_are_no_data(product: Path, clouds: str) -> None:
    found = read(product, clouds)
    assert not found[:, :64, :64].any()
    np.testing.assert_array_equal(found[RED, 64:], PIXELS[RED, 64:])
    assert read(product, "probability:90")[RED, :64, :64].all()


def test_the_bands_are_those_that_xarray_eopf_opens(written: Path) -> None:
    pytest.importorskip("xarray_eopf")
    opened = xr.open_dataset(str(written), engine="eopf-zarr", resolution=10)
    found = read(written)
    for band in ("B02", "B03", "B04", "B08"):
        theirs = np.rint(opened[band.lower()].values * 10_000)
        np.testing.assert_array_equal(found[BAND_NAMES.index(band)], theirs)


def test_a_band_that_no_resolution_has_is_left_out(product: Path) -> None:
    shutil.rmtree(product / "measurements/reflectance/r60m/b09")
    (found,) = find_scenes([product])
    with found.open() as scene:
        assert scene.bands == tuple(band for band in L2A_BANDS if band != "B09")


def test_of_a_band_in_two_resolutions_the_finest_is_read(product: Path) -> None:
    group = product / "measurements/reflectance"
    shutil.copytree(group / "r20m/b05", group / "r60m/b05")
    shutil.copytree(group / "r10m/b04", group / "r20m/b04", dirs_exist_ok=True)
    np.testing.assert_array_equal(read(product)[RED], PIXELS[RED])


def test_products_are_found_in_folders_and_other_stores_are_not_searched(product: Path) -> None:
    other = product.parent / "chunks.zarr"
    other.mkdir()
    write_tiff(other / "inside.tif", PIXELS)
    write_tiff(product / "inside.tif", PIXELS)
    assert [found.name for found in find_scenes([product.parent])] == [NAME.removesuffix(".zarr")]


def test_the_fingerprint_of_a_product_changes_with_its_chunks_and_with_their_places(product: Path) -> None:
    def fingerprint() -> str:
        return find_scenes([product])[0].fingerprint()

    before = fingerprint()
    assert fingerprint() == before
    bands = product / "measurements/reflectance/r10m"
    (bands / "b02/0.0").rename(bands / "b02/0.1")
    moved = fingerprint()
    (bands / "b02/0.1").rename(bands / "b03/0.1")
    assert len({before, moved, fingerprint()}) == 3


def test_a_chunk_that_cannot_be_decoded_is_no_data_and_is_counted(product: Path) -> None:
    chunk = product / "measurements/reflectance/r10m/b04/0.0"
    chunk.write_bytes(chunk.read_bytes()[:100])
    (found,) = find_scenes([product], SceneOptions(clouds=None))
    with found.open() as scene:
        pixels = scene.read(Window(0, 0, scene.width, scene.height))
        assert scene.broken == 1
        assert scene.broken_blocks[0].raster == f"{NAME}/measurements/reflectance/r10m/b04"
    assert not pixels[RED].any()
    np.testing.assert_array_equal(pixels[RED - 1], PIXELS[RED - 1])


def _change(product: Path, change: Callable[[dict[str, object]], object]) -> None:
    content = json.loads((product / ".zattrs").read_text())
    change(content)
    (product / ".zattrs").write_text(json.dumps(content))


def test_without_one_of_its_two_places_the_crs_comes_from_the_other(product: Path) -> None:
    _change(product, lambda attributes: attributes.pop("other_metadata"))
    np.testing.assert_array_equal(read(product)[RED], PIXELS[RED])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda p: _change(p, dict.clear),
            "proj:code of stac_discovery is a CRS; download the product",
        ),
        (lambda p: _change(p, lambda a: a.update(stac_discovery=[], other_metadata=7)), "is a CRS"),
        (
            lambda p: _change(
                p, lambda a: a.update(other_metadata={"horizontal_CRS_code": {"init": []}}, stac_discovery=0)
            ),
            "is a CRS",
        ),
        (
            lambda p: _change(
                p, lambda a: a.update(other_metadata={"horizontal_CRS_code": "here"}, stac_discovery=0)
            ),
            "is a CRS",
        ),
        (lambda p: (p / ".zattrs").write_text("{"), "missing, or not valid JSON; download"),
        (lambda p: (p / ".zattrs").write_text("[" * 99_999), "missing, or not valid JSON; download"),
        (lambda p: [shutil.rmtree(g) for g in (p / "measurements/reflectance").glob("r*m")], "no band under"),
        (lambda p: _break_arrays(p), "r60m/b01: an array that is no readable Zarr; download"),
        (lambda p: (p / ".zattrs").rename(p / "zarr.json"), "version 3 is not read; open it with xarray"),
        (lambda p: shutil.rmtree(p / "measurements"), "without measurements/reflectance, where products"),
    ],
)
def test_a_product_that_cannot_be_read_says_why(
    product: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(product)
    (found,) = find_scenes([product])
    with pytest.raises(TilewiseError, match=message), found.open():
        pass


def _break_arrays(product: Path) -> None:
    """Break the metadata of an array, of which the product keeps another copy."""
    (product / ".zmetadata").unlink()
    (product / "measurements/reflectance/r60m/b01/.zarray").write_text("{}")


def test_a_mask_that_a_product_does_not_have_is_refused(product: Path) -> None:
    with pytest.raises(TilewiseError, match="it has no cloud mask QA60"):
        read(product, "qa60")


def test_a_product_is_read_as_the_same_product_in_safe(product: Path, tmp_path: Path) -> None:
    safe = write_safe(tmp_path / "safe", "2A", PIXELS, dict.fromkeys(BAND_NAMES, -1000))
    np.testing.assert_array_equal(read(product), read(safe))
