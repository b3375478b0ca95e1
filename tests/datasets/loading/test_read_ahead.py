"""Reading ahead: the right bytes, in the order of the file, in the background."""

import time
from pathlib import Path

import numpy as np

from tilewise.datasets.loading.loaders import ReadAhead, byte_ranges
from tilewise.datasets.packs.pack import PLANE_BYTES, Pack


def test_ranges_are_where_the_tiles_lie_in_the_order_of_the_file(pack: Pack, pack_folder: Path) -> None:
    ranges = byte_ranges(pack, np.array([50, 3, 9, 3]), gap=0)
    size = 13 * PLANE_BYTES
    assert ranges == [(row * size, (row + 1) * size) for row in (3, 9, 50)]
    with (pack_folder / "planes.u16").open("rb") as file:
        file.seek(ranges[1][0])
        tile = np.frombuffer(file.read(size), "<u2").reshape(13, 64, 64)
    assert np.array_equal(tile, pack.fetch([9])[0])


def test_neighbours_are_read_in_one_go_and_small_gaps_read_through(pack: Pack) -> None:
    size = 13 * PLANE_BYTES
    assert byte_ranges(pack, np.array([4, 6, 5]), gap=0) == [(4 * size, 7 * size)]
    assert byte_ranges(pack, np.array([4, 7, 40]), gap=2 * size) == [
        (4 * size, 8 * size),
        (40 * size, 41 * size),
    ]


def test_requested_tiles_are_read_in_the_background(pack: Pack) -> None:
    reader = ReadAhead(pack)
    reader.request(np.arange(0, 10))
    reader.request(np.array([], np.int64))
    reader.request(np.arange(100, 105))
    reader.close()
    assert reader.bytes_read == 15 * 13 * PLANE_BYTES


def test_a_reader_that_is_behind_drops_requests_and_never_blocks(pack: Pack) -> None:
    reader = ReadAhead(pack)
    started = time.monotonic()
    for _ in range(5000):
        reader.request(np.arange(len(pack)))
    assert time.monotonic() - started < 30
    reader.close()
    assert 0 < reader.bytes_read < 5000 * len(pack) * 13 * PLANE_BYTES
