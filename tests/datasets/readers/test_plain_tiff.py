"""Plain GeoTIFFs: read without GDAL as GDAL reads them, or left to GDAL."""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hostile import plausible, tiffs
from hostile.sound import sound_files
from rasterio.io import MemoryFile
from rasters import noise, write_l1c, write_tiff

from tilewise.bento.api.middleware import silence_libraries
from tilewise.datasets.core.bands import BAND_NAMES, RGB_BANDS
from tilewise.datasets.core.errors import TilewiseError
from tilewise.datasets.core.radiometry import Level, ReadOptions
from tilewise.datasets.core.tile import Tile
from tilewise.datasets.readers import geotiff
from tilewise.datasets.readers.eurosat import MS_READ_OPTIONS
from tilewise.datasets.readers.geotiff import read_tile, read_tile_with_gdal
from tilewise.datasets.readers.plain_tiff import MAX_DECODED_BYTES, NotPlainError, PlainTiff, parse_plain

TOLD = ReadOptions(None, Level.L1C, 1e-4, 0.0)
COMPRESSIONS = ("none", "deflate", "zstd", "lzw", "packbits")
PLAIN_COMPRESSIONS = COMPRESSIONS[:3]
LAYOUTS = (
    {},
    {"blockysize": 7},
    {"blockysize": 64},
    {"tiled": True, "blockxsize": 16, "blockysize": 32},
    {"tiled": True, "blockxsize": 64, "blockysize": 64},
    {"tiled": True, "blockxsize": 256, "blockysize": 256},
)
TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
HOSTILE_FILES = 1500


def parse(content: bytes) -> PlainTiff | None:
    """The header of a plain file, or None."""
    try:
        return parse_plain(content)
    except NotPlainError:
        return None


def outcome(content: bytes, options: ReadOptions, gdal: bool) -> tuple[Any, ...]:
    """What is read, to be compared: the tile, or the error with its message."""
    try:
        tile = (read_tile_with_gdal if gdal else read_tile)(content, options, "a.tif")
    except TilewiseError as error:
        return type(error), str(error)
    return (tile.pixels.tobytes(), *described(tile))


def described(tile: Tile) -> tuple[Any, ...]:
    return tile.pixels.shape, tile.pixels.dtype, tile.bands, tile.level, tile.georeference, tile.footprint


def same_by_both(content: bytes, options: ReadOptions) -> bool:
    """Whether both readers give the same, the second time too, when the CRS is known."""
    by_gdal = outcome(content, options, gdal=True)
    return all(outcome(content, options, gdal=False) == by_gdal for _ in range(2))


@pytest.fixture
def without_gdal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let whatever is left to GDAL fail."""

    def fail(*arguments: object) -> Tile:
        raise AssertionError("the file was left to GDAL")

    monkeypatch.setattr(geotiff, "read_tile_with_gdal", fail)
    return


# The same as by GDAL.


@pytest.mark.parametrize("compress", COMPRESSIONS)
def test_every_layout_reads_as_by_gdal(tmp_path: Path, compress: str) -> None:
    kinds = product(LAYOUTS, ("pixel", "band"), ("uint16", "float32"), ("LITTLE", "BIG"), ("NO", "YES"))
    for layout, interleave, dtype, order, big in kinds:
        pixels = noise().astype(dtype)
        form = {"compress": compress, "interleave": interleave, "ENDIANNESS": order, "BIGTIFF": big, **layout}
        path = write_tiff(tmp_path / "a.tif", pixels, BAND_NAMES, corner=(5e5, 5e6), **form)
        content = path.read_bytes()
        assert (parse(content) is not None) == (compress in PLAIN_COMPRESSIONS), form
        assert same_by_both(content, TOLD), form


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("predictor", [1, 2, 3])
def test_every_type_and_predictor_reads_as_by_gdal(tmp_path: Path, dtype: str, predictor: int) -> None:
    if predictor == 3 and not dtype.startswith("float"):
        pytest.skip("predictor 3 is for floats")
    pixels = (noise() % 100 if "8" in dtype else noise() * 1.25).astype(dtype)
    forms = product(("deflate", "zstd"), ("pixel", "band"), ("LITTLE", "BIG"), LAYOUTS[2:5])
    for compress, interleave, order, layout in forms:
        form = {"compress": compress, "interleave": interleave, "ENDIANNESS": order, "predictor": predictor}
        path = write_tiff(tmp_path / "a.tif", pixels, BAND_NAMES, corner=(5e5, 5e6), **form, **layout)
        plain = parse(path.read_bytes())
        assert plain is not None, form
        assert np.array_equal(plain.decode(path.read_bytes()), pixels), form
        assert same_by_both(path.read_bytes(), TOLD), form


@pytest.mark.parametrize(
    "metadata",
    [
        {"names": ("B4, central wavelength 665 nm", "nir08", "Red Edge 1")},
        {"names": ("red", "B03", "B4")},
        {"names": ("B02", None, "QA60")},
        {"names": ()},
        {"names": RGB_BANDS, "tags": {}},
        {"names": RGB_BANDS, "tags": {"PROCESSING_LEVEL": "L2A", "BOA_ADD_OFFSET": "-1000"}},
        {"names": RGB_BANDS, "tags": {"PROCESSING_LEVEL": "L2A & more <b>", "BOA_ADD_OFFSET": "0"}},
        {"names": ("B04 0.665 µm", "B03", "B02")},
        {"names": RGB_BANDS, "scaling": [(2e-4, -0.1)] * 3},
        {"names": RGB_BANDS, "scaling": [(2e-4, -0.1), (1e-4, 0.0), (1.0, 0.0)]},
        {"names": RGB_BANDS, "nodata": 7},
        {"names": RGB_BANDS, "nodata": 0},
    ],
)
@pytest.mark.parametrize("options", [ReadOptions(), TOLD, ReadOptions(RGB_BANDS, Level.L2A, 1e-4, -1000.0)])
def test_metadata_and_refusals_are_those_of_gdal(
    tmp_path: Path, metadata: dict[str, Any], options: ReadOptions
) -> None:
    path = write_tiff(tmp_path / "a.tif", noise(bands=3), corner=(5e5, 5e6), **metadata)
    assert same_by_both(path.read_bytes(), options)
    plain = parse(path.read_bytes())
    if plain is None:
        assert metadata.get("tags", {}).get("PROCESSING_LEVEL", "") == "L2A & more <b>"
        return
    with rasterio.open(path) as dataset:
        assert plain.descriptions == dataset.descriptions
        assert (plain.scales, plain.offsets, plain.nodata) == (
            dataset.scales,
            dataset.offsets,
            dataset.nodata,
        )
        assert plain.items.items() <= dataset.tags().items()
        assert plain.transform == dataset.transform


def test_no_data_of_floats_is_as_by_gdal(tmp_path: Path) -> None:
    pixels = np.full((3, 64, 64), 0.25, np.float32)
    pixels[0, 0, :4] = (np.nan, 0, -9999, np.inf)
    for value in (-9999, np.nan, 0.25, 0.1, -3.4028234663852886e38, None):
        path = write_tiff(tmp_path / "a.tif", pixels, RGB_BANDS, nodata=value)
        assert same_by_both(path.read_bytes(), ReadOptions(None, Level.L2A, 1.0, 0.0))


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        (None, Affine(10, 0, 5e5, 0, -10, 5e6)),
        ("EPSG:32701", Affine(10, 0, 5e5, 0, -10, 9e6)),
        ("EPSG:32660", Affine(10, 0, 833_000, 0, -10, 10_000)),
        ("EPSG:4326", Affine(1e-4, 0, 9, 0, -1e-4, 45)),
        ("EPSG:3035", Affine(10, 0, 4_000_000, 0, -10, 3_000_000)),
        ("EPSG:3857", Affine(10, 0, 1e6, 0, -10, 6e6)),
        ("EPSG:32632", Affine(10, 1, 5e5, 1, -10, 5e6)),
        ("EPSG:32632", Affine(10, 0, 5e5, 0, 10, 5e6)),
        ("+proj=utm +zone=30 +ellps=intl +units=m", Affine(10, 0, 5e5, 0, -10, 5e6)),
    ],
)
@pytest.mark.parametrize("point", ["Area", "Point"])
def test_every_place_is_that_of_gdal(tmp_path: Path, crs: str | None, transform: Affine, point: str) -> None:
    path = write_l1c(tmp_path / "a.tif", crs=crs, transform=transform)
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(AREA_OR_POINT=point)
    assert same_by_both(path.read_bytes(), ReadOptions())


def test_files_of_one_zone_lie_where_each_says(tmp_path: Path, without_gdal: None) -> None:
    first = write_l1c(tmp_path / "a.tif", corner=(500_000, 5_500_000))
    read_tile_with_gdal(first, ReadOptions(), "a.tif", plain=parse_plain(first.read_bytes()))
    second = read_tile(write_l1c(tmp_path / "b.tif", corner=(600_000, 5_400_000)), ReadOptions())
    assert second.georeference is not None
    assert second.georeference.crs.to_epsg() == 32632
    assert second.georeference.bounds(64, 64) == (600_000, 5_399_360, 600_640, 5_400_000)


def test_a_file_of_another_zone_does_not_get_the_crs_of_the_one_before(tmp_path: Path) -> None:
    zones = [
        read_tile(
            write_l1c(tmp_path / "a.tif", crs=f"EPSG:{code}", transform=Affine(10, 0, 5e5, 0, -10, 5e6)), TOLD
        )
        for code in (32632, 32732, 32633, 32632)
    ]
    assert [tile.georeference and tile.georeference.crs.to_epsg() for tile in zones] == [
        32632,
        32732,
        32633,
        32632,
    ]


@pytest.mark.realdata
def test_every_real_tile_reads_as_by_gdal(real_data: Path) -> None:
    with zipfile.ZipFile(real_data / "EuroSAT_MS.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".tif")]
        assert len(names) > 900
        for name in names:
            content = archive.read(name)
            assert parse(content) is not None
            assert same_by_both(content, MS_READ_OPTIONS), name


@pytest.mark.realdata
def test_real_tiles_in_other_forms_read_as_by_gdal(real_data: Path) -> None:
    with zipfile.ZipFile(real_data / "EuroSAT_MS.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".tif")][::24]
        for name, compress, predictor in product(names, ("deflate", "zstd", "lzw"), (1, 2)):
            content = rewrite(archive.read(name), compress=compress, predictor=predictor)
            assert same_by_both(content, MS_READ_OPTIONS), (name, compress, predictor)


def rewrite(content: bytes, **form: Any) -> bytes:
    with MemoryFile(content) as source, source.open() as dataset, MemoryFile() as target:
        with target.open(**{**dataset.profile, **form}) as written:
            written.write(dataset.read())
        return bytes(target.read())


# Hostile files.


@pytest.mark.parametrize("change", [tiffs.mutate, plausible.alter])
def test_hostile_files_have_the_same_outcome_as_by_gdal(change: Any) -> None:
    silence_libraries()
    sound = [tiffs.parse(file) for file in sound_files()]
    plain = 0
    for seed in range(HOSTILE_FILES):
        random = Random(f"{change.__name__}:{seed}")  # noqa: S311 - to be repeated
        arguments = (random.choice(sound), random, *(("/nowhere",) if change is tiffs.mutate else ()))
        content = change(*arguments)
        if parse(content) is None:
            continue  # it is GDAL's anyway
        plain += 1
        assert same_by_both(content, (ReadOptions(), TOLD)[seed % 2]), seed
    assert plain > (10 if change is tiffs.mutate else 300)


@pytest.mark.parametrize("form", [{}, {"compress": "deflate", "predictor": 2}, {"compress": "zstd"}])
def test_a_file_cut_anywhere_has_the_same_outcome_as_by_gdal(tmp_path: Path, form: dict[str, Any]) -> None:
    content = write_l1c(tmp_path / "a.tif", corner=(5e5, 5e6), **form).read_bytes()
    for length in (*range(0, 200, 7), *range(200, len(content), 4001), len(content) - 1):
        assert same_by_both(content[:length], ReadOptions()), length


def test_a_changed_byte_has_the_same_outcome_as_by_gdal(tmp_path: Path) -> None:
    content = write_l1c(tmp_path / "a.tif", corner=(5e5, 5e6), compress="deflate").read_bytes()
    random = Random(1)  # noqa: S311 - to be repeated
    for _ in range(300):
        damaged = bytearray(content)
        damaged[random.randrange(len(content) if random.random() < 0.5 else 3000)] = random.randrange(256)
        assert parse(bytes(damaged)) is None or same_by_both(bytes(damaged), ReadOptions())


# Bounds: nothing is decoded or allocated beyond what a tile needs.


def strips(size: int, stored: bytes, compression: int = 8, rows: int = 64, repeat: int = 1) -> bytes:
    """A file of one band of `size` × `size` bytes whose strips are all the bytes `stored`."""
    numbers = {256: size, 257: size, 258: 8, 259: compression, 262: 1, 277: 1, 278: rows}
    head = struct.pack("<2sHI", b"II", 42, 8)
    place = 8 + 2 + 12 * (len(numbers) + 2) + 4
    arrays = struct.pack(f"<{2 * repeat}I", *[place + 8 * repeat] * repeat, *[len(stored)] * repeat)
    entries = [(tag, 4 if value > 65_535 else 3, 1, value) for tag, value in numbers.items()]
    inline = repeat == 1
    entries += [
        (273, 4, repeat, place + 8 if inline else place),
        (279, 4, repeat, len(stored) if inline else place + 4 * repeat),
    ]
    lines = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return head + struct.pack("<H", len(entries)) + lines + bytes(4) + arrays + stored


def test_a_block_that_decodes_to_more_or_less_than_its_size_is_left_to_gdal() -> None:
    for length in (0, 4095, 4097, 10**7):
        content = strips(64, zlib.compress(bytes(length), 9))
        plain = parse_plain(content)
        with pytest.raises(NotPlainError):
            plain.decode(content)
    sound = strips(64, zlib.compress(bytes(4096)))
    assert not parse_plain(sound).decode(sound).any()


def test_a_file_that_would_decode_to_more_than_the_limit_is_left_to_gdal() -> None:
    side = int((MAX_DECODED_BYTES * 1.1) ** 0.5)
    assert parse(strips(side, zlib.compress(b"x"), rows=side)) is None
    assert parse(strips(4096, zlib.compress(b"x"), rows=4096)) is not None


@pytest.mark.parametrize("change", ["one less", "one more", "beyond the end"])
def test_the_number_and_the_places_of_blocks_must_be_right(change: str) -> None:
    stored = zlib.compress(bytes(512))
    assert parse(strips(64, stored, rows=8, repeat=8)) is not None
    wrong = {
        "one less": strips(64, stored, rows=8, repeat=7),
        "one more": strips(64, stored, rows=8, repeat=9),
        "beyond the end": strips(64, stored, rows=8, repeat=8)[:-1],
    }
    assert parse(wrong[change]) is None


def test_a_file_of_several_images_is_left_to_gdal(tmp_path: Path) -> None:
    path = write_l1c(tmp_path / "a.tif")
    assert parse(path.read_bytes()) is not None
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2])
    assert parse(path.read_bytes()) is None
    assert np.array_equal(read_tile(path, ReadOptions()).pixels, noise())


def test_a_large_file_is_left_to_gdal_unread(tmp_path: Path) -> None:
    path = write_l1c(tmp_path / "a.tif")
    with path.open("ab") as file:
        file.truncate(2**31)
    assert np.array_equal(read_tile(path, ReadOptions()).pixels, noise())
