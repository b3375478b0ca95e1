"""Read small, plain GeoTIFFs without GDAL, several times as fast (docs/decisions/0030).

A file is plain if it holds one image in strips or tiles, uncompressed or compressed by deflate or Zstandard,
of integers or floats in either byte order, in a classic TIFF or a BigTIFF, and if every entry of its
directory is known here and in order. Whatever is not plain is left to GDAL: this module never refuses a file,
it reads it exactly as GDAL does, or not at all.

Layout of files: TIFF 6.0 and http://bigtiff.org; tags of GDAL:
https://gdal.org/en/stable/drivers/raster/gtiff.html. Nothing is allocated by what a header announces: blocks
lie inside the file, and their decoded size is bounded.
"""

import math
import re
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import deflate
import numpy as np
import numpy.typing as npt
from affine import Affine

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_FILE_BYTES = 32 * 2**20
MAX_DECODED_BYTES = 32 * 2**20  # of all blocks with their padding
_MAX_ENTRIES = 64
_MAX_VALUE_BYTES = 64 * 2**10  # of an entry
_MAX_XML_BYTES = 16 * 2**10  # of GDAL's metadata; those of 13 named bands take one kilobyte
_ZSTD_OPTIONS: Mapping[int, int] = {zstd.DecompressionParameter.window_log_max: 25}  # 32 MiB


class NotPlainError(Exception):
    """The file is not plain: let GDAL read it."""


class Layout(NamedTuple):
    """How a TIFF writes numbers.

    Attributes:
        order: `<` or `>`, the byte order as `struct` has it.
        offset, number, entry: the offset of a directory, the number of its entries, and one entry, of which
            the last field is the value or the offset of the values.
    """

    order: str
    offset: struct.Struct
    number: struct.Struct
    entry: struct.Struct

    @property
    def is_big(self) -> bool:
        """Whether it is a BigTIFF."""
        return self.offset.size == 8


def _layout(order: str, big: bool) -> Layout:
    forms = ("Q", "Q", "HHQ8s") if big else ("I", "H", "HHI4s")
    return Layout(order, *(struct.Struct(order + form) for form in forms))


LAYOUTS = {(order, big): _layout(order, big) for order in "<>" for big in (False, True)}


class _Tag:
    """Numbers of the known tags."""

    SUBFILE, WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
    DESCRIPTION, STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS, STRIP_SIZES = 270, 273, 274, 277, 278, 279
    X_RESOLUTION, Y_RESOLUTION, PLANAR, RESOLUTION_UNIT, SOFTWARE, DATE, ARTIST = (
        282,
        283,
        284,
        296,
        305,
        306,
        315,
    )
    PREDICTOR, TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_SIZES, EXTRA, FORMAT = (
        317,
        322,
        323,
        324,
        325,
        338,
        339,
    )
    PIXEL_SCALE, TIE_POINTS, GEO_KEYS, GEO_DOUBLES, GEO_ASCII = 33550, 33922, 34735, 34736, 34737
    GDAL_METADATA, GDAL_NO_DATA = 42112, 42113


_ASCII, _SHORT, _LONG, _RATIONAL, _DOUBLE, _LONG8 = 2, 3, 4, 5, 12, 16
_SIZES = {_ASCII: 1, _SHORT: 2, _LONG: 4, _RATIONAL: 8, _DOUBLE: 8, _LONG8: 8}
_FORMS = {_SHORT: "H", _LONG: "I", _DOUBLE: "d", _LONG8: "Q"}
_KINDS: dict[int, tuple[int, ...]] = {
    **dict.fromkeys((_Tag.SUBFILE,), (_LONG,)),
    **dict.fromkeys((_Tag.WIDTH, _Tag.LENGTH, _Tag.ROWS, _Tag.TILE_WIDTH, _Tag.TILE_LENGTH), (_SHORT, _LONG)),
    **dict.fromkeys(
        (_Tag.STRIP_OFFSETS, _Tag.STRIP_SIZES, _Tag.TILE_OFFSETS, _Tag.TILE_SIZES), (_SHORT, _LONG, _LONG8)
    ),
    **dict.fromkeys(
        (_Tag.BITS, _Tag.COMPRESSION, _Tag.PHOTOMETRIC, _Tag.ORIENTATION, _Tag.SAMPLES), (_SHORT,)
    ),
    **dict.fromkeys((_Tag.PLANAR, _Tag.PREDICTOR, _Tag.EXTRA, _Tag.FORMAT, _Tag.RESOLUTION_UNIT), (_SHORT,)),
    **dict.fromkeys((_Tag.X_RESOLUTION, _Tag.Y_RESOLUTION), (_RATIONAL,)),
    **dict.fromkeys((_Tag.DESCRIPTION, _Tag.SOFTWARE, _Tag.DATE, _Tag.ARTIST), (_ASCII,)),
    **dict.fromkeys((_Tag.PIXEL_SCALE, _Tag.TIE_POINTS, _Tag.GEO_DOUBLES), (_DOUBLE,)),
    **dict.fromkeys((_Tag.GEO_KEYS,), (_SHORT,)),
    **dict.fromkeys((_Tag.GEO_ASCII, _Tag.GDAL_METADATA, _Tag.GDAL_NO_DATA), (_ASCII,)),
}
_STRIP_TAGS = (_Tag.ROWS, _Tag.STRIP_OFFSETS, _Tag.STRIP_SIZES)
_TILE_TAGS = (_Tag.TILE_WIDTH, _Tag.TILE_LENGTH, _Tag.TILE_OFFSETS, _Tag.TILE_SIZES)
_TEXTS = (_Tag.DESCRIPTION, _Tag.SOFTWARE, _Tag.DATE, _Tag.ARTIST)

# (SampleFormat, BitsPerSample): the types that a Sentinel-2 file may have.
_DTYPES = {
    (1, 8): "u1",
    (1, 16): "u2",
    (1, 32): "u4",
    (2, 8): "i1",
    (2, 16): "i2",
    (2, 32): "i4",
    (3, 32): "f4",
    (3, 64): "f8",
}
_NONE, _ZSTD = 1, 50000
_DEFLATE = (8, 32946)
_MAX_SAMPLES = 64
_RASTER_TYPE_KEY, _PIXEL_IS_AREA = 1025, 1
_NUMBER = re.compile(r"[-+]?\d{1,30}(\.\d{0,30})?([eE][-+]?\d{1,3})?", re.ASCII)
_ROLE = 'role="(description|scale|offset|unittype|colorinterp)"'
_IGNORED_DOMAIN = 'domain="(rio_creation_kwds)"'  # how rasterio was told to write the file
_ITEM = re.compile(
    rf'\s*<Item name="([\w.-]{{1,100}})"(?: sample="(\d{{1,2}})"(?: {_ROLE})?| {_IGNORED_DOMAIN})?>'
    r"([^<&>\x00-\x1f\x7f]{1,500})</Item>",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Where the strips or tiles of an image lie, and how they become numbers.

    Attributes:
        compression, predictor: as in the file.
        planes: 1 if the bands of a pixel lie side by side, else the number of bands.
        samples: bands in a plane.
        down, across: tiles in each direction; 1 and 1 for strips, which follow one another without padding.
        height, width: of a tile; of the image for strips.
        places: offset and size in the file, and decoded size, of each block, in bytes.
    """

    compression: int
    predictor: int
    planes: int
    samples: int
    down: int
    across: int
    height: int
    width: int
    places: Sequence[tuple[int, int, int]]


@dataclass(frozen=True, slots=True)
class PlainTiff:
    """The header of a plain GeoTIFF; the names are those of rasterio's `DatasetReader`.

    Attributes:
        width, height, count: pixels, and bands.
        dtype: in the file's byte order.
        descriptions, scales, offsets: of each band.
        nodata: the declared no-data value, if any.
        items: GDAL's metadata of the file.
        transform: pixels to CRS coordinates.
        geo_keys: bytes that decide the CRS: equal ones mean the same.
        blocks: where the pixels lie.
    """

    width: int
    height: int
    count: int
    dtype: np.dtype[Any]
    descriptions: tuple[str | None, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    nodata: float | None
    items: Mapping[str, str]
    transform: Affine
    geo_keys: tuple[bytes, ...]
    blocks: _Blocks

    @property
    def dtypes(self) -> tuple[str]:
        """The numpy name of the bands' type, once for all."""
        return (self.dtype.name,)

    @property
    def decoded_bytes(self) -> int:
        """The bytes that all blocks take when decoded."""
        return sum(size for _, _, size in self.blocks.places)

    def tags(self) -> Mapping[str, str]:
        """Return GDAL's metadata of the file."""
        return self.items

    def decode(self, content: bytes) -> npt.NDArray[Any]:
        """Return the numbers (count, height, width) of the file whose bytes are `content`; maybe a view.

        Raises:
            NotPlainError: a block does not decode to exactly its size.
        """
        blocks = self.blocks
        raw = np.frombuffer(_decode_blocks(content, blocks), np.uint8)
        shape = (blocks.planes * blocks.down * blocks.across * blocks.height, blocks.width, blocks.samples)
        numbers = _undo_predictor(raw, self.dtype, shape, blocks.predictor)
        tiles = numbers.reshape(
            blocks.planes, blocks.down, blocks.across, blocks.height, blocks.width, blocks.samples
        )
        bands = tiles.transpose(0, 5, 1, 3, 2, 4).reshape(
            self.count, blocks.down * blocks.height, blocks.across * blocks.width
        )
        cropped = bands[:, : self.height, : self.width]
        return cropped.astype(cropped.dtype.newbyteorder("="), copy=False)


def parse_plain(content: bytes) -> PlainTiff:
    """Return the header of the GeoTIFF whose bytes are `content`.

    Raises:
        NotPlainError: it is not a plain one, or not one at all.
    """
    layout, start = _read_head(content)
    values = _Values(layout.order, _read_entries(content, layout, start))
    width, height, count = values.one(_Tag.WIDTH), values.one(_Tag.LENGTH), values.one(_Tag.SAMPLES, 1)
    _require(0 < width <= 65_535 and 0 < height <= 65_535 and 0 < count <= _MAX_SAMPLES)
    _check_pixels(values, count)
    dtype = _dtype(values, count)
    blocks = _blocks(values, (count, height, width), dtype.itemsize, len(content))
    descriptions, scales, offsets, items = _read_metadata(values.text(_Tag.GDAL_METADATA), count)
    return PlainTiff(
        width=width,
        height=height,
        count=count,
        dtype=dtype,
        descriptions=descriptions,
        scales=scales,
        offsets=offsets,
        nodata=_no_data(values.text(_Tag.GDAL_NO_DATA), dtype),
        items=items,
        transform=_transform(values),
        geo_keys=_geo_keys(values),
        blocks=blocks,
    )


def _require(condition: bool) -> None:
    if not condition:
        raise NotPlainError


# The directory.


def _read_head(content: bytes) -> tuple[Layout, int]:
    """Return the layout of a file and the offset of its first directory."""
    _require(16 < len(content) <= MAX_FILE_BYTES)
    order = {b"II": "<", b"MM": ">"}.get(content[:2])
    if order is None:
        raise NotPlainError
    version, size, zero = struct.unpack_from(order + "HHH", content, 2)
    big = version == 43
    _require(version == 42 or (big and (size, zero) == (8, 0)))
    # A cloud-optimised GeoTIFF has hints here, which GDAL follows.
    _require(b"GDAL_STRUCTURAL_METADATA" not in content[:48])
    layout = LAYOUTS[order, big]
    return layout, layout.offset.unpack_from(content, 8 if big else 4)[0]


def _read_entries(content: bytes, layout: Layout, start: int) -> dict[int, tuple[int, bytes]]:
    """Return {tag: (kind, bytes of its values)} of the only directory."""
    begin = start + layout.number.size
    _require(start >= 8 and begin <= len(content))
    count = layout.number.unpack_from(content, start)[0]
    end = begin + min(count, _MAX_ENTRIES + 1) * layout.entry.size
    _require(count <= _MAX_ENTRIES and end + layout.offset.size <= len(content))
    _require(layout.offset.unpack_from(content, end)[0] == 0)
    found: dict[int, tuple[int, bytes]] = {}
    last = 0
    for tag, kind, number, value in layout.entry.iter_unpack(content[begin:end]):
        if tag <= last or kind not in _KINDS.get(tag, ()) or not 0 < number <= _MAX_VALUE_BYTES:
            raise NotPlainError
        last, size = tag, _SIZES[kind] * number
        if size > len(value):
            (place,) = layout.offset.unpack(value)
            _require(size <= _MAX_VALUE_BYTES and place + size <= len(content))
            value = content[place : place + size]
        found[tag] = kind, value[:size]
    return found


class _Values:
    """The values of a directory's entries, by tag."""

    def __init__(self, order: str, entries: Mapping[int, tuple[int, bytes]]) -> None:
        self.order = order
        self._entries = entries

    def __contains__(self, tag: int) -> bool:
        return tag in self._entries

    def all(self, tag: int) -> tuple[Any, ...]:
        """Return all numbers of a tag; none where it is absent."""
        if tag not in self._entries:
            return ()
        kind, data = self._entries[tag]
        return struct.unpack(f"{self.order}{len(data) // _SIZES[kind]}{_FORMS[kind]}", data)

    def one(self, tag: int, default: int | None = None) -> int:
        """Return the only number of a tag, or `default` where the tag is absent."""
        numbers = self.all(tag) or (default,)
        if len(numbers) != 1 or numbers[0] is None:
            raise NotPlainError
        return int(numbers[0])

    def raw(self, tag: int) -> bytes:
        """Return the bytes of a tag; empty where it is absent."""
        return self._entries[tag][1] if tag in self._entries else b""

    def text(self, tag: int) -> str:
        """Return the text of a tag, in UTF-8, without the zero that ends it; empty where it is absent."""
        data = self.raw(tag)
        if not data:
            return ""
        _require(data.find(b"\0") == len(data) - 1)
        try:
            return data[:-1].decode()
        except UnicodeDecodeError:
            raise NotPlainError from None


# Pixels.


def _check_pixels(values: _Values, count: int) -> None:
    """Check the entries by which GDAL would change the numbers, or add bands to them."""
    _require(values.one(_Tag.SUBFILE, 0) == 0 and values.one(_Tag.ORIENTATION, 1) == 1)
    photometric, extra = values.one(_Tag.PHOTOMETRIC), values.all(_Tag.EXTRA)
    _require(photometric == 1 or (photometric == 2 and count >= 3))
    _require(len(extra) <= count and all(kind <= 2 for kind in extra))
    _require(all(values.raw(tag).isascii() and b"ImageJ" not in values.raw(tag) for tag in _TEXTS))


def _dtype(values: _Values, count: int) -> np.dtype[Any]:
    bits, formats = values.all(_Tag.BITS), values.all(_Tag.FORMAT) or (1,) * count
    _require(len(bits) == len(formats) == count and len(set(bits)) == len(set(formats)) == 1)
    name = _DTYPES.get((formats[0], bits[0]))
    if name is None:
        raise NotPlainError
    return np.dtype(values.order + name)


def _blocks(values: _Values, shape: tuple[int, int, int], itemsize: int, file_size: int) -> _Blocks:
    """Return where the blocks of an image of `shape` (count, height, width) lie."""
    count, height, width = shape
    compression, predictor = values.one(_Tag.COMPRESSION), values.one(_Tag.PREDICTOR, 1)
    planar = values.one(_Tag.PLANAR, 1)
    _require(compression in (_NONE, _ZSTD, *_DEFLATE) and planar in (1, 2))
    _check_predictor(predictor, compression, values)
    planes, samples = (1, count) if planar == 1 else (count, 1)
    tiled = _Tag.TILE_WIDTH in values
    _require(not any(tag in values for tag in (_STRIP_TAGS if tiled else _TILE_TAGS)))
    if tiled:
        block_height, block_width = values.one(_Tag.TILE_LENGTH), values.one(_Tag.TILE_WIDTH)
        _require(block_height > 0 < block_width and block_height % 16 == 0 == block_width % 16)
        down, across = math.ceil(height / block_height), math.ceil(width / block_width)
        sizes = [block_height * block_width * samples * itemsize] * min(down * across, 2**16)
    else:
        block_height, block_width, down, across = height, width, 1, 1
        sizes = _strip_sizes(values.one(_Tag.ROWS), height, width * samples * itemsize)
    padded = planes * down * across * block_height * block_width * samples * itemsize
    _require(padded <= MAX_DECODED_BYTES)
    offsets = values.all(_Tag.TILE_OFFSETS if tiled else _Tag.STRIP_OFFSETS)
    stored = values.all(_Tag.TILE_SIZES if tiled else _Tag.STRIP_SIZES)
    places = _places(offsets, stored, sizes * planes, compression, file_size)
    return _Blocks(compression, predictor, planes, samples, down, across, block_height, block_width, places)


def _check_predictor(predictor: int, compression: int, values: _Values) -> None:
    """Check that libtiff has this predictor for this compression and type."""
    _require(predictor == 1 or (compression != _NONE and predictor in (2, 3)))
    _require(predictor != 3 or values.all(_Tag.FORMAT)[:1] == (3,))


def _strip_sizes(rows: int, height: int, row_bytes: int) -> list[int]:
    """Return the decoded bytes of each strip of a plane; the last one may have fewer rows."""
    _require(rows > 0)
    rows = min(rows, height)
    return [min(rows, height - start) * row_bytes for start in range(0, height, rows)]


def _places(
    offsets: Sequence[int], sizes: Sequence[int], decoded: Sequence[int], compression: int, file_size: int
) -> list[tuple[int, int, int]]:
    """Return offset, size and decoded size of each block, all of which lie in the file."""
    _require(len(offsets) == len(sizes) == len(decoded))
    places = list(zip(offsets, sizes, decoded, strict=True))
    for offset, size, expected in places:
        if not (offset > 0 < size and offset + size <= file_size):
            raise NotPlainError
        if compression == _NONE and size != expected:
            raise NotPlainError
    return places


def _decode_blocks(content: bytes, blocks: _Blocks) -> bytes | bytearray | memoryview:
    """Return the decoded bytes of all blocks, one after another."""
    places, view = blocks.places, memoryview(content)
    if blocks.compression == _NONE:
        first, last = places[0], places[-1]
        if all(offset + size == following for (offset, size, _), (following, _, _) in pairwise(places)):
            return view[first[0] : last[0] + last[1]]
        return b"".join(view[offset : offset + size] for offset, size, _ in places)
    inflate = _inflate if blocks.compression in _DEFLATE else _decompress_zstd
    parts = [inflate(view[offset : offset + size], decoded) for offset, size, decoded in places]
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _inflate(data: memoryview, size: int) -> bytearray:
    try:
        decoded = deflate.zlib_decompress(data, size)
    except deflate.DeflateError:
        raise NotPlainError from None
    _require(len(decoded) == size)
    return decoded


def _decompress_zstd(data: memoryview, size: int) -> bytes:
    decompressor = zstd.ZstdDecompressor(options=_ZSTD_OPTIONS)
    try:
        decoded = decompressor.decompress(data, size)
    except zstd.ZstdError:
        raise NotPlainError from None
    _require(len(decoded) == size)
    return decoded


def _undo_predictor(
    raw: npt.NDArray[np.uint8], dtype: np.dtype[Any], shape: tuple[int, int, int], predictor: int
) -> npt.NDArray[Any]:
    """Return the numbers in decoded bytes as an array of `shape` (rows, width, samples).

    TIFF 6.0, section 14, and Adobe's Technical Note 3 for floats, whose bytes are in planes, the highest
    first.
    """
    rows, width, samples = shape
    if predictor == 3:
        summed = _running_sums(raw.reshape(rows, width * dtype.itemsize, samples))
        planes = summed.reshape(rows, dtype.itemsize, width * samples)
        return planes.transpose(0, 2, 1).copy().view(dtype.newbyteorder(">")).reshape(shape)
    numbers = raw.view(dtype).reshape(shape)
    if predictor == 1:
        return numbers
    native = numbers.view(f"{dtype.byteorder}u{dtype.itemsize}").astype(f"u{dtype.itemsize}")
    return _running_sums(native).view(dtype.newbyteorder("="))


def _running_sums(numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the sums along axis 1, modulo the range of the type: numpy's cumsum takes twice as long."""
    columns = numbers.transpose(1, 0, 2).copy()
    for left, right in pairwise(columns):
        right += left
    return columns.transpose(1, 0, 2)


# Place.


def _transform(values: _Values) -> Affine:
    """Return the transform of a north-up image whose upper left corner is its only tie point."""
    scale, tie = values.all(_Tag.PIXEL_SCALE), values.all(_Tag.TIE_POINTS)
    if not scale and not tie:
        return Affine.identity()
    _require(len(scale) == 3 and len(tie) == 6 and all(map(math.isfinite, (*scale, *tie))))
    _require(scale[0] > 0 and scale[1] > 0 and scale[2] == 0)
    _require(tie[0] == tie[1] == tie[2] == tie[5] == 0)
    return Affine(scale[0], 0.0, tie[3], 0.0, -scale[1], tie[4])


def _geo_keys(values: _Values) -> tuple[bytes, ...]:
    """Return all bytes that decide the CRS; a transform must be of the pixels' corners, not their centres."""
    keys = values.all(_Tag.GEO_KEYS)
    _require(not keys or (len(keys) >= 4 and len(keys) == 4 + 4 * keys[3]))
    lines = zip(*(keys[start::4] for start in (4, 5, 6, 7)), strict=True)
    _require(
        all(line == (_RASTER_TYPE_KEY, 0, 1, _PIXEL_IS_AREA) for line in lines if line[0] == _RASTER_TYPE_KEY)
    )
    tags = (_Tag.GEO_KEYS, _Tag.GEO_DOUBLES, _Tag.GEO_ASCII)
    found = (values.order.encode(), *(values.raw(tag) for tag in tags))
    _require(sum(map(len, found)) <= 4096)
    return found


# GDAL's metadata.


def _read_metadata(
    text: str, count: int
) -> tuple[tuple[str | None, ...], tuple[float, ...], tuple[float, ...], dict[str, str]]:
    """Return descriptions, scales and offsets of the bands, and the items of the file, from GDAL's XML."""
    descriptions: list[str | None] = [None] * count
    scales, offsets = [1.0] * count, [0.0] * count
    items: dict[str, str] = {}
    for name, sample, role, value in _parse_items(text):
        _require(not sample or int(sample) < count)
        if not sample:
            items[name] = value
        elif role == "description":
            descriptions[int(sample)] = value
        elif role in ("scale", "offset"):
            _require(_NUMBER.fullmatch(value) is not None)
            (scales if role == "scale" else offsets)[int(sample)] = float(value)
    _require(len({name.lower() for name in items}) == len(items))
    return tuple(descriptions), tuple(scales), tuple(offsets), items


def _parse_items(text: str) -> Iterable[tuple[str, str, str, str]]:
    """Return (name, sample, role, value) of each item, in the only form that GDAL itself writes.

    This is no parser of XML: entities, declarations, nesting and domains are all not plain.
    """
    if not text:
        return []
    _require(len(text) <= _MAX_XML_BYTES and text.startswith("<GDALMetadata>"))
    body, end, rest = text.removeprefix("<GDALMetadata>").partition("</GDALMetadata>")
    _require(bool(end) and not rest.strip("\n"))
    found, place = [], 0
    while match := _ITEM.match(body, place):
        name, sample, role, ignored, value = match.groups("")
        _require(value == value.strip())
        if not ignored:
            found.append((name, sample, role, value))
        place = match.end()
    _require(not body[place:].strip())
    written = [item[:3] for item in found]
    _require(len(set(written)) == len(written))
    return found


def _no_data(text: str, dtype: np.dtype[Any]) -> float | None:
    """Return the declared no-data value: one that the type holds exactly, so that nothing is rounded."""
    if not text:
        return None
    if text == "nan" and dtype.kind == "f":
        return math.nan
    _require(_NUMBER.fullmatch(text) is not None)
    value = float(text)
    _require(abs(value) < 1e30)
    if dtype.kind in "iu":
        _require(value.is_integer() and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max)
    else:
        _require(float(dtype.type(value)) == value)
    return value
