"""GeoTIFFs: bands by name, hostile and broken files refused, no data masked."""

import os
import struct
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import rasterio
from affine import Affine
from http_server import serving
from rasterio.windows import Window
from rasters import L1C_TAGS, noise, write_jpeg, write_l1c, write_tiff

from tilewise.datasets.core.bands import BAND_NAMES, EUROSAT_MS_ORDER, RGB_BANDS, positions
from tilewise.datasets.core.errors import (
    BandsUnknownError,
    RadiometryUnknownError,
    TileShapeError,
    TilewiseError,
    UnreadableImageError,
)
from tilewise.datasets.core.radiometry import Level, ReadOptions
from tilewise.datasets.readers.geotiff import open_geotiff, plan_reading, read_dn, read_tile

NOTHING = ReadOptions()
TOLD = ReadOptions(bands=RGB_BANDS, level=Level.L2A, scale=1e-4, offset=0.0)


def read(path: Path, options: ReadOptions = NOTHING) -> np.ndarray[Any, np.dtype[np.uint16]]:
    return read_tile(path, options).pixels


def patch_tag(content: bytes, tag: int, value: int) -> bytes:
    """Return a little-endian classic TIFF with the value of a tag of its first directory replaced."""
    patched = bytearray(content)
    (directory,) = struct.unpack_from("<I", patched, 4)
    (entries,) = struct.unpack_from("<H", patched, directory)
    for entry in range(directory + 2, directory + 2 + 12 * entries, 12):
        if struct.unpack_from("<H", patched, entry)[0] == tag:
            struct.pack_into("<HII", patched, entry + 2, 4, 1, value)
            return bytes(patched)
    raise AssertionError(f"no tag {tag}")


# Bands.


def test_bands_are_taken_by_name_wherever_b8a_stands(tmp_path: Path) -> None:
    pixels = noise()
    canonical = write_tiff(tmp_path / "a.tif", pixels, BAND_NAMES)
    b8a_last = write_tiff(tmp_path / "b.tif", pixels[positions(EUROSAT_MS_ORDER)], EUROSAT_MS_ORDER)
    assert np.array_equal(read(canonical), pixels)
    assert np.array_equal(read(b8a_last), pixels)
    assert read_tile(b8a_last, NOTHING).bands == BAND_NAMES


def test_descriptions_may_be_aliases_and_free_text(tmp_path: Path) -> None:
    names = ("B4, central wavelength 665 nm", "nir08", "Red Edge 1")
    tile = read_tile(write_tiff(tmp_path / "a.tif", noise(bands=3), names), NOTHING)
    assert tile.bands == ("B04", "B05", "B8A")
    assert np.array_equal(tile.pixels[[3, 8, 4]], noise(bands=3))
    assert not tile.pixels[[0, 1, 2, 5, 6, 7, 9, 10, 11, 12]].any()


def test_extra_bands_of_an_export_are_left_out(tmp_path: Path) -> None:
    names = (*BAND_NAMES, "QA60", "probability", None)
    tile = read_tile(write_tiff(tmp_path / "a.tif", noise(bands=16), names), NOTHING)
    assert tile.bands == BAND_NAMES
    assert np.array_equal(tile.pixels, noise(bands=16)[:13])


def test_bands_without_names_must_be_said(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", noise(bands=3))
    with pytest.raises(BandsUnknownError, match=r"a.tif: its 3 bands have no names.*--bands"):
        read(path, ReadOptions(level=Level.L2A))
    tile = read_tile(path, TOLD)
    assert tile.bands == ("B02", "B03", "B04")
    assert np.array_equal(tile.pixels[[3, 2, 1]], noise(bands=3))


def test_a_band_that_is_said_to_be_left_out_is_left_out(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", noise(bands=4))
    tile = read_tile(path, ReadOptions(("_", "B08", "_", "B02"), Level.L2A, 1e-4, 0.0))
    assert tile.bands == ("B02", "B08")
    assert np.array_equal(tile.pixels[[7, 1]], noise(bands=4)[[1, 3]])


def test_a_list_that_leaves_every_band_out_is_refused(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", noise(bands=2))
    with pytest.raises(BandsUnknownError, match="leaves every band out"):
        read(path, ReadOptions(("_", "_"), Level.L2A, 1e-4, 0.0))


@pytest.mark.parametrize("count", [2, 4, 13])
def test_a_list_of_another_length_than_the_file_is_refused(tmp_path: Path, count: int) -> None:
    path = write_tiff(tmp_path / "a.tif", noise(bands=count))
    with pytest.raises(BandsUnknownError, match=f"3 band names were given, but the file has {count} bands"):
        read(path, TOLD)


def test_a_list_that_contradicts_the_names_in_the_file_is_refused(tmp_path: Path) -> None:
    path = write_l1c(tmp_path / "a.tif")
    with pytest.raises(BandsUnknownError, match="B09, B10, B11, B12, B8A are in other positions"):
        read(path, ReadOptions(bands=EUROSAT_MS_ORDER))
    assert np.array_equal(read(path, ReadOptions(bands=BAND_NAMES)), noise())


def test_two_bands_of_one_name_are_refused(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", noise(bands=3), ("red", "B03", "B4"))
    with pytest.raises(BandsUnknownError, match="bands 1 and 3 are both described as B04"):
        read(path)


# Radiometry.


def test_the_offset_in_the_tags_is_taken_off(tmp_path: Path) -> None:
    tags = {"PROCESSING_LEVEL": "L2A", "BOA_ADD_OFFSET": "-1000"}
    pixels = np.full((2, 64, 64), 1500, np.uint16)
    pixels[0, 0, :3] = (0, 1, 1000)
    tile = read_tile(write_tiff(tmp_path / "a.tif", pixels, ("B02", "B03"), tags), NOTHING)
    assert tile.level is Level.L2A
    assert tile.pixels[1, 0, :4].tolist() == [0, 1, 1, 500]


def test_gdals_scale_and_offset_are_applied(tmp_path: Path) -> None:
    tags = {"PROCESSING_LEVEL": "L2A"}
    pixels = np.full((2, 64, 64), 3000, np.int16)
    path = write_tiff(tmp_path / "a.tif", pixels, ("B02", "B03"), tags, scaling=[(2e-4, -0.1)] * 2)
    assert (read(path)[[1, 2]] == 5000).all()


def test_bands_of_different_scales_are_refused_unless_the_user_says_one(tmp_path: Path) -> None:
    tags = {"PROCESSING_LEVEL": "L2A", "BOA_ADD_OFFSET": "0"}
    scaling = [(1e-4, 0.0), (1e-3, 0.0), (1.0, 0.0)]
    names = ("B02", "B03", "QA60")
    path = write_tiff(tmp_path / "a.tif", noise(bands=3), names, tags, scaling=scaling)
    with pytest.raises(RadiometryUnknownError, match="different scales"):
        read(path)
    assert np.array_equal(read(path, ReadOptions(scale=1e-4, offset=0.0))[1:3], noise(bands=3)[:2])


def test_a_file_that_says_nothing_needs_to_be_told(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", noise(bands=1), ("B02",), {})
    with pytest.raises(RadiometryUnknownError, match=r"a\.tif: its metadata have no level and no scale"):
        read(path)


# No data.


def test_nan_0_and_the_declared_value_are_no_data(tmp_path: Path) -> None:
    pixels = np.full((2, 64, 64), 0.25, np.float32)
    pixels[0, 0, :4] = (np.nan, 0, -9999, np.inf)
    tags = {**L1C_TAGS, "QUANTIFICATION_VALUE": "1"}
    tile = read_tile(write_tiff(tmp_path / "a.tif", pixels, ("B02", "B8A"), tags, nodata=-9999), NOTHING)
    assert tile.pixels[1, 0, :5].tolist() == [0, 0, 0, 0, 2500]
    assert (tile.pixels[8] == 2500).all()
    assert tile.valid_fraction == 1 - 4 / 64**2


def test_a_declared_no_data_value_of_nan_changes_nothing(tmp_path: Path) -> None:
    pixels = np.full((1, 64, 64), 0.25, np.float32)
    pixels[0, 0, 0] = np.nan
    tags = {**L1C_TAGS, "QUANTIFICATION_VALUE": "1"}
    path = write_tiff(tmp_path / "a.tif", pixels, ("B02",), tags, nodata=np.nan)
    assert np.count_nonzero(read(path)[1] == 2500) == 64**2 - 1


# Places.


def test_a_tile_knows_where_it_lies(tmp_path: Path) -> None:
    tile = read_tile(write_l1c(tmp_path / "a.tif", corner=(500_000, 5_500_000)), NOTHING)
    assert tile.georeference is not None
    assert tile.georeference.bounds(64, 64) == (500_000, 5_499_360, 500_640, 5_500_000)
    assert tile.footprint is not None
    longitudes, latitudes = np.array(tile.footprint["coordinates"][0]).T
    assert longitudes.min() == pytest.approx(9.0, abs=1e-5)  # the central meridian of zone 32
    assert longitudes.max() - longitudes.min() == pytest.approx(640 / 71_700, rel=0.01)
    assert latitudes.max() - latitudes.min() == pytest.approx(640 / 111_200, rel=0.01)


@pytest.mark.parametrize(
    ("crs", "corner"),
    [
        (None, None),
        ("EPSG:32632", None),
        ('LOCAL_CS["my field",UNIT["metre",1]]', (10.0, 20.0)),
        ("EPSG:4326", (500_000.0, 5_500_000.0)),
        ("EPSG:4326", (10.0, 95.0)),
    ],
)
def test_a_tile_that_lies_nowhere_on_earth_is_read_without_a_place(
    tmp_path: Path, crs: str | None, corner: tuple[float, float] | None
) -> None:
    transform = Affine(10, 0, corner[0], 0, -10, corner[1]) if corner else None
    tile = read_tile(write_l1c(tmp_path / "a.tif", crs=crs, transform=transform), NOTHING)
    assert tile.georeference is None
    assert tile.footprint is None
    assert np.array_equal(tile.pixels, noise())


# Ways of reading.


def test_bytes_read_as_the_file_does(tmp_path: Path) -> None:
    path = write_l1c(tmp_path / "a.tif", compress="deflate", corner=(500_000, 5_500_000))
    from_bytes = read_tile(path.read_bytes(), NOTHING, "mine")
    from_path = read_tile(path, NOTHING)
    assert np.array_equal(from_bytes.pixels, from_path.pixels)
    assert from_bytes.georeference == from_path.georeference
    assert (from_bytes.name, from_path.name) == ("mine", "a.tif")


def test_a_window_of_a_scene_is_read_as_the_scene_is(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", noise(size=100), BAND_NAMES)
    with open_geotiff(path) as dataset:
        plan = plan_reading(dataset, "a", NOTHING)
        part = read_dn(dataset, plan, Window(20, 30, 40, 50))
    assert np.array_equal(part, noise(size=100)[:, 30:80, 20:60])


# Files that are refused.


@pytest.mark.parametrize("shape", [(63, 64), (64, 63), (128, 128), (1, 1)])
def test_a_tile_of_another_size_is_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    path = write_tiff(tmp_path / "a.tif", np.ones((13, *shape), np.uint16), BAND_NAMES)
    with pytest.raises(
        TileShapeError, match=f"a.tif: {shape[1]} × {shape[0]} pixels, but a tile has 64 × 64"
    ):
        read(path)


@pytest.mark.parametrize("options", [{}, {"compress": "deflate", "predictor": 2}, {"compress": "zstd"}])
@pytest.mark.parametrize("share", [0.001, 0.02, 0.3, 0.7, 0.95])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float, options: dict[str, Any]) -> None:
    content = write_l1c(tmp_path / "whole.tif", **options).read_bytes()
    cut = tmp_path / "cut.tif"
    cut.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UnreadableImageError, match=r"cut\.tif: .*truncated or corrupt"):
        read(cut)


def test_a_file_that_has_lost_its_metadata_alone_is_refused(tmp_path: Path) -> None:
    content = write_l1c(tmp_path / "whole.tif").read_bytes()
    for lost in (1, 100, 1000):
        with pytest.raises(TilewiseError):
            read_tile(content[:-lost], NOTHING)


def test_a_damaged_file_is_read_or_refused_but_nothing_worse(tmp_path: Path) -> None:
    path = write_l1c(tmp_path / "a.tif", corner=(500_000, 5_500_000), compress="deflate")
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(1000):
        damaged = bytearray(content)
        for place in rng.integers(0, 4000, rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        try:
            _ = read_tile(bytes(damaged), NOTHING).footprint
            outcomes["read"] += 1
        except TilewiseError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 100


def as_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tile.tif", b"x")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: write_jpeg(path, np.ones((3, 64, 64), np.uint8)), "not a GeoTIFF but a JPEG"),
        (lambda path: write_jpeg(path, np.ones((3, 64, 64), np.uint8), "PNG"), "not a GeoTIFF but a PNG"),
        (
            as_zip,
            r"not a GeoTIFF but a zip archive; a whole product \(.SAFE.zip\) goes to `tilewise batch` as it",
        ),
        (lambda path: path.write_bytes(b""), "an empty file"),
        (lambda path: path.write_bytes(b"II*\0"), "a truncated or corrupt GeoTIFF"),
        (lambda path: path.write_text("<html>not found</html>"), "not a GeoTIFF$"),
        (lambda path: path.mkdir(), "there is no such file"),
        (lambda path: None, "there is no such file"),
    ],
)
def test_what_is_no_geotiff_is_refused_with_what_it_is(
    tmp_path: Path, make: Callable[[Path], object], reason: str
) -> None:
    path = tmp_path / "tile.tif"
    make(path)
    with pytest.raises(UnreadableImageError, match=f"^tile.tif: {reason}"):
        read(path, TOLD)
    if path.is_file():
        with pytest.raises(UnreadableImageError, match=f"^the upload: {reason}"):
            read_tile(path.read_bytes(), TOLD)


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="a file that opens but does not read")  # noqa: PTH110
def test_a_file_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(UnreadableImageError, match="mem: cannot be read: Input/output error"):
        read(Path("/proc/self/mem"), TOLD)


def test_a_vrt_that_names_another_file_is_refused(tmp_path: Path) -> None:
    target = write_tiff(tmp_path / "secret.tif", noise(bands=3))
    vrt = f"""<VRTDataset rasterXSize="64" rasterYSize="64"><VRTRasterBand dataType="UInt16" band="1">
    <SimpleSource><SourceFilename>{target}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"""
    path = tmp_path / "tile.tif"
    path.write_text(vrt)
    with rasterio.open(path) as dataset:
        assert dataset.count == 1  # GDAL itself would follow it
    with pytest.raises(UnreadableImageError, match="not a GeoTIFF"):
        read(path, TOLD)
    with pytest.raises(UnreadableImageError, match="not a GeoTIFF"):
        read_tile(vrt.encode(), TOLD)


def test_gdals_virtual_paths_are_refused_and_nothing_is_asked_of_the_network(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", noise(bands=3))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(path, "a.tif")
    with serving(path.read_bytes()) as server:
        address = f"{server.url}/a.tif"
        virtual = (
            f"/vsicurl/{address}",
            f"/vsicurl?url={quote(address, safe='')}",
            address,
            f"/vsizip/{tmp_path}/a.zip/a.tif",
            f"zip://{tmp_path}/a.zip!a.tif",
            f"GTIFF_DIR:1:{path}",
        )
        for name in virtual:
            with pytest.raises(UnreadableImageError, match="there is no such file"):
                read(Path(name), TOLD)
        assert server.requests == []


def test_a_side_car_file_is_not_honoured(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", noise(bands=3), tags={})
    bands = "".join(
        f'<PAMRasterBand band="{index}"><Description>{name}</Description><Scale>5</Scale></PAMRasterBand>'
        for index, name in enumerate(RGB_BANDS, start=1)
    )
    metadata = '<Metadata><MDI key="PROCESSING_LEVEL">L2A</MDI></Metadata>'
    metadata += "<SRS>EPSG:32632</SRS><GeoTransform>5e5,10,0,5e6,0,-10</GeoTransform>"
    (tmp_path / "a.tif.aux.xml").write_text(f"<PAMDataset>{metadata}{bands}</PAMDataset>")
    with rasterio.open(path) as dataset:
        assert dataset.descriptions == RGB_BANDS  # GDAL itself would believe it

    def read_in_thread(_: int) -> str:
        try:
            return str(read(path))
        except BandsUnknownError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        assert all("have no names" in outcome for outcome in pool.map(read_in_thread, range(200)))
    tile = read_tile(path, TOLD)
    assert np.array_equal(tile.pixels[[3, 2, 1]], noise(bands=3))
    assert tile.georeference is None


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "complex_int16", "int64", "uint64"])
def test_numbers_that_no_sentinel_2_file_has_are_refused(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "a.tif"
    size = {"count": 3, "height": 64, "width": 64}
    with rasterio.open(path, "w", driver="GTiff", dtype=dtype, **size):
        pass
    with pytest.raises(TileShapeError, match=rf"a\.tif: 3 bands of {dtype}; .* real numbers"):
        read(path, TOLD)


def test_a_file_of_a_hundred_bands_is_refused(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", np.ones((65, 64, 64), np.uint8))
    with pytest.raises(TileShapeError, match="65 bands of uint8; a Sentinel-2 file has at most 64"):
        read(path, TOLD)


def test_blocks_that_would_take_gigabytes_are_refused_by_the_header(tmp_path: Path) -> None:
    path = write_l1c(tmp_path / "a.tif", tiled=True, blockxsize=64, blockysize=64)
    huge = patch_tag(patch_tag(path.read_bytes(), 322, 65_536), 323, 65_536)
    with pytest.raises(
        TileShapeError, match="blocks of 65536 × 65536 pixels take 106496 MiB each, 512 MiB is"
    ):
        read_tile(huge, NOTHING)
    with pytest.raises(TileShapeError, match="blocks of 524288 × 64 pixels take 832 MiB each"):
        read_tile(patch_tag(path.read_bytes(), 322, 524_288), NOTHING)


def test_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", noise(bands=2), ("B04 0.665 um", "B08"))
    path.write_bytes(path.read_bytes().replace(b"B04 0.665 um", "B04 0.665 µm".encode("latin-1")))
    with pytest.raises(UnreadableImageError, match="its band descriptions or tags are not UTF-8"):
        read(path)
