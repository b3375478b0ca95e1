"""SAFE products: radiometry band by band from their own metadata, which are not trusted."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.shutil import copy as copy_raster
from rasterio.windows import Window
from rasters import write_tiff
from scene_files import smooth, write_band, write_safe

from tilewise.datasets.core.bands import BAND_NAMES, L2A_BANDS
from tilewise.datasets.core.errors import SceneError, TileShapeError, TilewiseError, UnreadableImageError
from tilewise.datasets.core.radiometry import Level, ReadOptions
from tilewise.datasets.core.tile import DN
from tilewise.datasets.scenes import Kind, SceneOptions, find_scenes, parse_clouds

PIXELS = smooth(13, 120)
OFFSETS = dict.fromkeys(BAND_NAMES, -1000) | {"B8A": -900, "B09": 0, "B12": -1100}


def read(folder: Path, options: SceneOptions | None = None) -> DN:
    (found,) = find_scenes([folder], options or SceneOptions(clouds=None))
    assert found.kind is Kind.SAFE
    with found.open() as scene:
        return scene.read(Window(0, 0, scene.width, scene.height))


@pytest.mark.parametrize("level", ["1C", "2A"])
@pytest.mark.parametrize("offsets", [None, OFFSETS])
def test_products_of_both_levels_with_and_without_offsets_come_to_the_same_dn(
    tmp_path: Path, level: str, offsets: dict[str, int] | None
) -> None:
    found = read(write_safe(tmp_path, level, PIXELS, offsets))
    for index, band in enumerate(BAND_NAMES):
        if level == "2A" and band == "B10":
            assert not found[index].any()
            continue
        inner = (slice(18, -18), slice(18, -18))
        assert np.abs(found[index].astype(int) - PIXELS[index])[inner].max() < 60, band
    np.testing.assert_array_equal(found[1], PIXELS[1])


def test_what_a_product_says_of_itself_is_told(tmp_path: Path) -> None:
    (found,) = find_scenes([write_safe(tmp_path, "2A", PIXELS, OFFSETS)])
    with found.open() as scene:
        assert (scene.level, scene.platform, scene.bands) == (Level.L2A, "sentinel-2b", L2A_BANDS)
        assert scene.taken is not None
        assert scene.taken.isoformat() == "2023-06-07T10:25:59.024000+00:00"


def test_what_is_said_for_other_files_does_not_overrule_a_product(tmp_path: Path) -> None:
    folder = write_safe(tmp_path, "2A", PIXELS, OFFSETS)
    np.testing.assert_array_equal(
        read(folder), read(folder, SceneOptions(ReadOptions(None, Level.L1C, 1.0, 0), clouds=None))
    )


def test_a_product_is_found_by_its_folder_by_its_metadata_and_in_folders_above(tmp_path: Path) -> None:
    product = write_safe(tmp_path / "deep" / "er", "2A", PIXELS)
    for place in (product, product / "MTD_MSIL2A.xml", tmp_path, f"{tmp_path}/*/*/*.SAFE"):
        (found,) = find_scenes([place])
        assert (found.name, found.kind) == (product.stem, Kind.SAFE)


def test_only_the_images_that_are_there_are_read(tmp_path: Path) -> None:
    product = write_safe(tmp_path, "2A", PIXELS)
    for path in product.rglob("*_B11_20m.jp2"):
        path.unlink()
    (found,) = find_scenes([product])
    with found.open() as scene:
        assert "B11" not in scene.bands
    for path in product.rglob("*.jp2"):
        path.unlink()
    with pytest.raises(SceneError, match="none of the image files"), found.open():
        pass


def test_a_product_of_60_m_alone_is_refused_or_warped_by_option(tmp_path: Path) -> None:
    product = write_safe(tmp_path, "2A", PIXELS)
    for path in [*product.rglob("*_10m.jp2"), *product.rglob("*_20m.jp2")]:
        path.unlink()
    with pytest.raises(TileShapeError, match=r"measure 60 m, .*--warp"):
        read(product)
    assert read(product, SceneOptions(warp=True)).shape == (13, 120, 120)


def test_clouds_come_from_the_scene_classification_and_from_the_probability(tmp_path: Path) -> None:
    product = write_safe(tmp_path, "2A", PIXELS)
    granule = next(product.glob("GRANULE/*"))
    scl = np.full((60, 60), 5, np.uint8)
    scl[:30] = 8
    image = granule / "IMG_DATA" / "R20m" / "T32TPR_20230607T102559_SCL_20m"
    write_band(image.with_suffix(".jp2"), scl, 20, "JP2OpenJPEG")
    text = (product / "MTD_MSIL2A.xml").read_text()
    listed = f"<IMAGE_FILE>{image.relative_to(product)}</IMAGE_FILE></Granule>"
    (product / "MTD_MSIL2A.xml").write_text(text.replace("</Granule>", listed))
    write_band(
        granule / "QI_DATA" / "MSK_CLDPRB_20m.jp2", (scl == 8).T.astype(np.uint8) * 70, 20, "JP2OpenJPEG"
    )
    found = read(product, SceneOptions(clouds=parse_clouds("scl")))
    assert not found[:, :60].any()
    assert (found[1, 60:] > 0).all()
    found = read(product, SceneOptions(clouds=parse_clouds("probability:60")))
    assert not found[:, :, :60].any()
    assert (found[1, :, 60:] > 0).all()


# Metadata that are broken, or made to harm.


def test_a_product_without_metadata_says_so(tmp_path: Path) -> None:
    product = write_safe(tmp_path, "2A", PIXELS)
    (product / "MTD_MSIL2A.xml").unlink()
    with pytest.raises(SceneError, match=r"MTD_MSIL1C\.xml or MTD_MSIL2A\.xml is missing; download"):
        read(product)


@pytest.mark.parametrize(
    "text",
    ["", "<open>", "no xml", '<?xml version="1.0" encoding="nonsense"?><a/>'],
)
def test_broken_xml_is_an_error_of_one_line(tmp_path: Path, text: str) -> None:
    product = write_safe(tmp_path, "2A", PIXELS)
    (product / "MTD_MSIL2A.xml").write_text(text)
    with pytest.raises(UnreadableImageError, match="not valid XML"):
        read(product)


def test_entities_and_dtds_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("S3CRET")
    for head in (
        f'<!DOCTYPE a [<!ENTITY x SYSTEM "file://{secret}">]>',
        '<!DOCTYPE a [<!ENTITY l "lol"><!ENTITY m "&l;&l;&l;&l;">]>',
        '<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd">',
    ):
        product = write_safe(tmp_path, "2A", PIXELS, head=head)
        with pytest.raises(UnreadableImageError, match="not valid XML") as caught:
            read(product)
        assert "S3CRET" not in str(caught.value)


@pytest.mark.parametrize(
    "where", ["../../outside_B02_10m", "/{root}/outside_B02_10m", "link/outside_B02_10m"]
)
def test_images_outside_the_product_are_not_read(tmp_path: Path, where: str) -> None:
    write_band(tmp_path / "outside_B02_10m.jp2", PIXELS[1], 10, "JP2OpenJPEG")
    images = (where.replace("/{root}", str(tmp_path)),)
    product = write_safe(tmp_path / "in", "2A", PIXELS, images=images)
    (product / "link").symlink_to(tmp_path)
    with pytest.raises(SceneError, match="none of the image files"):
        read(product)


def test_a_product_of_several_granules_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SceneError, match="several granules"):
        read(write_safe(tmp_path, "1C", PIXELS, granules=2))


# Products as they are downloaded: in a zip.


def zipped(product: Path, name: str | None = None, extra: dict[str, bytes] | None = None) -> Path:
    """Zip a product as the archives do, with its folder inside."""
    path = product.parent / "in" / (name or f"{product.name}.zip")
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(product.rglob("*")):
            archive.write(file, f"{product.name}/{file.relative_to(product).as_posix()}")
        for member, content in (extra or {}).items():
            archive.writestr(member, content)
    return path


@pytest.mark.parametrize("level", ["1C", "2A"])
def test_a_zipped_product_is_read_in_place_as_if_it_were_unpacked(tmp_path: Path, level: str) -> None:
    product = write_safe(tmp_path, level, PIXELS, OFFSETS)
    path = zipped(product)
    before = sorted(tmp_path.rglob("*"))
    for place in (path, path.parent):
        np.testing.assert_array_equal(read(place), read(product))
    assert sorted(tmp_path.rglob("*")) == before, "nothing is unpacked"
    (found,) = find_scenes([path])
    assert found.name == product.name.removesuffix(".SAFE")
    assert find_scenes([zipped(product, f"{product.stem}.zip")])[0].name == found.name


def test_the_masks_of_a_zipped_product_are_found(tmp_path: Path) -> None:
    product = write_safe(tmp_path, "1C", PIXELS)
    inside = next(product.glob("GRANULE/*"))
    flags = np.zeros((2, 120, 120), np.uint8)
    flags[0, :60] = 1
    write_tiff(inside / "QI_DATA" / "MSK_CLASSI_B00.tif", flags, corner=(600_000, 5_000_000))
    jp2 = inside / "QI_DATA" / "MSK_CLASSI_B00.jp2"
    with rasterio.open(inside / "QI_DATA" / "MSK_CLASSI_B00.tif") as dataset:
        copy_raster(dataset, jp2, driver="JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES")
    found = read(zipped(product), SceneOptions())
    assert not found[:, :60].any()
    assert (found[1, 60:] > 0).all()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"../../escape.jp2": b"x"}, "could lead elsewhere"),
        ({"/etc/x.jp2": b"x"}, "could lead elsewhere"),
        ({"other.SAFE/MTD_MSIL1C.xml": b"<x/>"}, "2 SAFE products; unpack it"),
        ({"bomb": b"0" * 60_000_000}, "bytes are allowed|are allowed"),
    ],
)
def test_an_archive_that_leads_elsewhere_or_swells_is_refused(
    tmp_path: Path, extra: dict[str, bytes], message: str
) -> None:
    path = zipped(write_safe(tmp_path, "1C", PIXELS), extra=extra)
    (found,) = find_scenes([path])
    with pytest.raises(TilewiseError, match=message), found.open():
        pass


def test_an_archive_that_is_none_or_truncated_is_refused(tmp_path: Path) -> None:
    path = zipped(write_safe(tmp_path, "1C", PIXELS))
    path.write_bytes(path.read_bytes()[:-500])
    (found,) = find_scenes([path])
    with pytest.raises(TilewiseError, match="not a readable zip"), found.open():
        pass
