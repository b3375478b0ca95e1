"""Directories and text of TIFFs are counted before GDAL sees them, in files of all layouts, sound or not."""

import io
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hostile import tiffs
from hostile.sound import sound_files
from rasterio.enums import Resampling

from tilewise.datasets.core.errors import UnreadableImageError
from tilewise.datasets.readers.geotiff import MAX_DIRECTORIES, MAX_TEXT_BYTES, measure_metadata, open_geotiff

FILES = sound_files()
SOUND = tiffs.parse(FILES[1])


def count(content: bytes) -> tuple[int, int]:
    return measure_metadata(io.BytesIO(content))


def with_text(size: int) -> bytes:
    items = tiffs.gdal_metadata([("N", "", "v" * size)])
    return tiffs.build(SOUND, tiffs.put(list(SOUND.entries), tiffs.text(tiffs.GDAL_METADATA, items)))


def chained(number: int, text: int = 0) -> bytes:
    """A sound file followed by small directories, as overviews are, which share a text."""
    content = bytearray(tiffs.build(SOUND, list(SOUND.entries)))
    (first,) = struct.unpack_from("<I", content, 4)
    (entries,) = struct.unpack_from("<H", content, first)
    link, place = first + 2 + 12 * entries, len(content)
    content += b"x" * text
    for _ in range(number):
        lines = [
            (254, 4, 1, 1),
            (256, 3, 1, 32),
            (257, 3, 1, 32),
            (258, 3, 1, 16),
            (tiffs.GDAL_METADATA, 2, text, place),
        ]
        struct.pack_into("<I", content, link, len(content))
        content += (
            struct.pack("<H", len(lines)) + b"".join(struct.pack("<HHII", *line) for line in lines) + bytes(4)
        )
        link = len(content) - 4
    return bytes(content)


@pytest.mark.parametrize("content", FILES, ids=range(len(FILES)))
def test_files_as_gdal_writes_them_have_one_directory_and_little_text(content: bytes) -> None:
    (written,) = (entry for entry in tiffs.parse(content).entries if entry.tag == tiffs.GDAL_METADATA)
    assert count(content) == (1, written.count)


@pytest.mark.parametrize("big", ["NO", "YES"])
def test_overviews_are_counted(tmp_path: Path, big: str) -> None:
    path = tmp_path / "scene.tif"
    form = {"driver": "GTiff", "count": 1, "height": 256, "width": 256, "dtype": "uint8", "BIGTIFF": big}
    with rasterio.open(path, "w", **form) as dataset:
        dataset.write(np.ones((1, 256, 256), np.uint8))
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4], Resampling.nearest)
    assert count(path.read_bytes())[0] == 3


def test_text_is_summed_over_all_directories_and_sub_directories() -> None:
    assert count(chained(5, 1000)) == (6, count(chained(0))[1] + 5000)
    below = tiffs.number(SOUND, tiffs.SUB_IFDS, struct.unpack_from("<I", chained(0), 4)[0])
    content = tiffs.build(tiffs.parse(chained(0)), tiffs.put(list(SOUND.entries), below))
    assert count(content)[0] == 2


def test_circles_come_to_an_end() -> None:
    assert count(tiffs.build(SOUND, list(SOUND.entries), None))[0] == 1
    assert count(chained(10_000))[0] == MAX_DIRECTORIES + 1


@pytest.mark.parametrize(
    "content", [b"", b"II*\0", b"not a TIFF at all", b"II*\0" + b"\xff" * 60, FILES[0][:100]]
)
def test_what_is_no_sound_tiff_holds_nothing(content: bytes) -> None:
    assert count(content)[1] == 0


def test_what_has_more_entries_than_a_directory_may_have_is_none_to_gdal_either() -> None:
    entries = [*SOUND.entries, *([tiffs.Entry(65000, 3, 1, b"\1\0")] * 5000)]
    content = tiffs.build(SOUND, entries)
    assert count(content) == (1, 0)
    with pytest.raises(UnreadableImageError, match="corrupt"), open_geotiff(content):
        pass


def test_a_file_whose_chain_ends_in_nonsense_is_read_as_before() -> None:
    with open_geotiff(tiffs.build(SOUND, list(SOUND.entries), following=2**32 - 1)) as dataset:
        assert dataset.count == 13


def test_much_text_and_many_directories_are_refused_at_once_from_bytes_and_from_files(tmp_path: Path) -> None:
    began = time.monotonic()
    for content in (with_text(MAX_TEXT_BYTES), chained(MAX_DIRECTORIES), chained(20, MAX_TEXT_BYTES // 10)):
        path = tmp_path / "tile.tif"
        path.write_bytes(content)
        for source in (content, path):
            with pytest.raises(UnreadableImageError, match="128 KiB of metadata"), open_geotiff(source):
                pass
    assert time.monotonic() - began < 60  # GDAL would need longer


def test_as_much_as_real_files_have_is_read() -> None:
    for content in (with_text(50_000), chained(12, 1000)):
        with open_geotiff(content) as dataset:
            assert dataset.count == 13
