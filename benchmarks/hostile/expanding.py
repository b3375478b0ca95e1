"""TIFF files that are small and decode to much: all blocks lie at the same compressed bytes."""

import lzma
import math
import struct
import zlib
from collections.abc import Callable
from functools import cache
from random import Random

import numpy as np

from hostile import tiffs


def _pack_bits(content: bytes) -> bytes:
    """Compress a multiple of 128 bytes that are all the same by PackBits (TIFF 6.0, section 9)."""
    return bytes([129, content[0]]) * (len(content) // 128)


CODECS: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "deflate": (8, zlib.compress),
    "lzma": (34925, lambda content: lzma.compress(content, preset=1)),
    "packbits": (32773, _pack_bits),
}


@cache
def expanding_tiff(size: int, block: int, bands: int, kind: str, codec: str = "lzma") -> bytes:
    """Return a TIFF of `size` × `size` pixels.

    Args:
        size: pixels a side.
        block: pixels a side of a block.
        bands: number of bands, in one plane.
        kind: NumPy's name of the type of the numbers.
        codec: one of CODECS.
    """
    width = np.dtype(kind).itemsize
    compression, compress = CODECS[codec]
    packed = compress(bytes([3]) * (block * block * bands * width))
    count = math.ceil(size / block) ** 2
    sample_format = {"u": 1, "f": 3}[np.dtype(kind).kind]
    shorts = {
        tiffs.WIDTH: [size], tiffs.LENGTH: [size], tiffs.BITS: [8 * width] * bands, tiffs.COMPRESSION: [compression],
        tiffs.PHOTOMETRIC: [1], tiffs.SAMPLES: [bands], tiffs.PLANAR: [1], tiffs.TILE_WIDTH: [block],
        tiffs.TILE_LENGTH: [block], tiffs.EXTRA: [0] * (bands - 1), tiffs.FORMAT: [sample_format] * bands,
    }  # fmt: skip
    entries = [tiffs.Entry(tag, 3, len(v), struct.pack(f"<{len(v)}H", *v)) for tag, v in shorts.items() if v]
    for tag, value in ((tiffs.TILE_OFFSETS, 8), (tiffs.TILE_COUNTS, len(packed))):
        entries.append(tiffs.Entry(tag, 4, count, struct.pack("<I", value) * count))
    return _assemble(packed, sorted(entries, key=lambda entry: entry.tag))


def draw_expanding(random: Random) -> bytes:
    """Return one of some hundred such files, of at most 32 MiB a block."""
    bands, kind = random.choice(((13, "uint16"), (3, "uint8"), (64, "float64"), (1, "uint16")))
    size, block = random.choice(
        ((64, 64), (64, 256), (64, 1024 if bands < 64 else 256), (300, 256), (2048, 256))
    )
    return expanding_tiff(size, block, bands, kind, random.choice(list(CODECS)))


def _assemble(first: bytes, entries: list[tiffs.Entry]) -> bytes:
    """Return a TIFF: its head, `first` at byte 8, the entries' long values, and the directory."""
    content = bytearray(b"II*\0\0\0\0\0" + first)
    lines = b""
    for entry in entries:
        value = entry.data.ljust(4, b"\0")
        if len(entry.data) > 4:
            content += b"\0" * (len(content) % 2)
            value = struct.pack("<I", len(content))
            content += entry.data
        lines += struct.pack("<HHI", entry.tag, entry.kind, entry.count) + value
    content += b"\0" * (len(content) % 2)
    struct.pack_into("<I", content, 4, len(content))
    return bytes(content) + struct.pack("<H", len(entries)) + lines + b"\0\0\0\0"
