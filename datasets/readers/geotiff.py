"""Open GeoTIFFs that may be hostile, and read them as tiles.

A tile in a plain file is read by `tilewise.datasets.readers.plain_tiff`, everything else by GDAL, with the
same result. Only GDAL's GTiff driver ever opens a file here; side-car files (`.aux.xml`, `.ovr`, `.msk`) and
directory listings are off, so that nothing outside the file itself is read. Sizes are checked on the header,
before any pixel is decoded.
"""

import io
import math
import struct
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import Interleaving
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader, MemoryFile
from rasterio.windows import Window

from tilewise.datasets.core.bands import BAND_NAMES, LEAVE_OUT, band_of_description, sets_of_length
from tilewise.datasets.core.errors import (
    BandsUnknownError,
    RadiometryUnknownError,
    TileShapeError,
    UnreadableImageError,
)
from tilewise.datasets.core.radiometry import FileFacts, Radiometry, ReadOptions, decide_radiometry
from tilewise.datasets.core.tile import DN, TILE_SIZE, Georeference, Tile, canonical_order, place_bands
from tilewise.datasets.readers.plain_tiff import (
    LAYOUTS,
    MAX_FILE_BYTES,
    Layout,
    NotPlainError,
    PlainTiff,
    parse_plain,
)

GDAL_METADATA, SUB_DIRECTORIES = 42112, 330
MAX_DIRECTORIES = 256  # further ones are not read
_MAX_ENTRIES = 4096  # of a directory; libtiff rejects one with more
_MAX_OFFSET = 2**62  # beyond the end of any file
NUMBER_TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
MAX_BANDS = 64  # Sentinel-2 has 13; some exports add masks and probabilities
MAX_BLOCK_BYTES = 512 * 2**20
MAX_PADDING_BYTES = 32 * 2**20  # decoded; a tile of 13 bands of float32 in a block of 512 × 512 takes 14 MB
MAX_TEXT_BYTES = 128 * 2**10  # of GDAL's metadata; a Sentinel-2 file has a few kilobytes

# GDAL reads only the file's own bytes, and a corrupt block is an error, not a warning.
_ISOLATED_GDAL = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_TIFF_INTERNAL_MASK": "YES",
    "GDAL_GEOREF_SOURCES": "INTERNAL",
    "GTIFF_SRS_SOURCE": "GEOKEYS",  # looking the CRS up takes as long as reading a tile
    "GTIFF_IGNORE_READ_ERRORS": "NO",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".none",  # no URL has this ending: GDAL's network is off
    "VSI_CACHE": "NO",
}

warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # a tile needs no georeference

_THIS_THREAD = threading.local()
_UNKNOWN = object()
_MAX_KNOWN_KEYS = 512
_CRS_OF_KEYS: dict[tuple[bytes, ...], Any] = {}
"""The CRS that GDAL read from the keys of plain files, or None: it takes GDAL as long as reading a tile."""


class Raster(Protocol):
    """What a reading plan is made from: a `DatasetReader` of rasterio, or a `PlainTiff`."""

    @property
    def count(self) -> int:
        """Number of bands."""
        ...

    @property
    def dtypes(self) -> Sequence[str]:
        """Their numpy types, of which the first decides."""
        ...

    @property
    def descriptions(self) -> Sequence[str | None]:
        """Their descriptions."""
        ...

    @property
    def scales(self) -> Sequence[float]:
        """Their GDAL scales."""
        ...

    @property
    def offsets(self) -> Sequence[float]:
        """Their GDAL offsets."""
        ...

    @property
    def nodata(self) -> float | None:
        """The declared no-data value."""
        ...

    def tags(self) -> Mapping[str, str]:
        """Return the metadata items of the file."""
        ...


@dataclass(frozen=True, slots=True)
class ReadingPlan:
    """How one raster's bands are read as DN.

    Attributes:
        name: the raster's name in error messages.
        indexes: 1-based raster bands, in the order of `bands`.
        bands: canonical band names.
        radiometry: conversion of the raster's numbers to DN.
        no_data: the raster's declared no-data value, if any; 0 and NaN are always no data.
    """

    name: str
    indexes: tuple[int, ...]
    bands: tuple[str, ...]
    radiometry: Radiometry
    no_data: float | None


@contextmanager
def isolated_gdal() -> Iterator[None]:
    """Set GDAL up for files that may be hostile, in this thread, for the length of the block.

    `open_geotiff` does so for each file; one block around many files makes reading them a tenth faster.
    """
    if getattr(_THIS_THREAD, "isolated", False):
        yield
        return
    with rasterio.Env(**_ISOLATED_GDAL):
        _THIS_THREAD.isolated = True
        try:
            yield
        finally:
            _THIS_THREAD.isolated = False


@contextmanager
def open_geotiff(source: Path | bytes, name: str | None = None) -> Iterator[DatasetReader]:
    """Open a GeoTIFF, from a path or from bytes in memory, with GDAL's GTiff driver alone.

    Raises:
        UnreadableImageError: it is not a GeoTIFF, or its header is broken.
        TileShapeError: no Sentinel-2 file has its data type, number of bands or blocks.
    """
    label = name or (source.name if isinstance(source, Path) else "the upload")
    with isolated_gdal(), ExitStack() as opened:
        try:
            _refuse_much_metadata(source, label)
            dataset = opened.enter_context(_open(source, opened))
        except (RasterioError, ValueError, OSError) as error:
            raise UnreadableImageError(f"{label}: {why_unreadable(source)}") from error
        check_header(dataset, label)
        yield dataset


def _open(source: Path | bytes, opened: ExitStack) -> DatasetReader:
    if isinstance(source, bytes):
        if not source:  # rasterio would open an empty file for writing
            raise ValueError
        return opened.enter_context(MemoryFile(source)).open(driver="GTiff")
    if not source.is_file():  # GDAL would accept `/vsicurl/…` and the like as a path
        raise FileNotFoundError(source)
    return rasterio.open(source, driver="GTiff")


def _refuse_much_metadata(source: Path | bytes, name: str) -> None:
    """Refuse a file with so much metadata that GDAL would not finish parsing it."""
    if isinstance(source, Path) and not source.is_file():
        return
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        directories, size = measure_metadata(file)
    if directories > MAX_DIRECTORIES or size > MAX_TEXT_BYTES:
        raise UnreadableImageError(
            f"{name}: more than {MAX_DIRECTORIES} directories, or {MAX_TEXT_BYTES // 1024} KiB of metadata; "
            "delete metadata that no reader needs"
        )


def check_header(dataset: DatasetReader, name: str) -> None:
    """Check an open raster's header before any of its pixels is decoded.

    Raises:
        TileShapeError: no Sentinel-2 file has its data type, number of bands or blocks.
        UnreadableImageError: it names another file as its overviews.
    """
    _refuse_other_files(dataset, name)
    _refuse_odd_bands(dataset, name)
    _refuse_huge_blocks(dataset, name)
    _refuse_padding(dataset, name)


def _refuse_other_files(dataset: DatasetReader, name: str) -> None:
    """Refuse a file that names another one as its overviews: GDAL would open it with any driver, even a URL.

    GDAL itself writes this metadata item into side-car files only (gcore/gdaldefaultoverviews.cpp).
    """
    try:
        named = "OVERVIEW_FILE" in dataset.tags(ns="OVERVIEWS")
    except UnicodeDecodeError:
        named = True
    if named:
        raise UnreadableImageError(
            f"{name}: names another file as its overviews; delete the metadata item OVERVIEW_FILE"
        )


def _refuse_odd_bands(dataset: DatasetReader, name: str) -> None:
    if dataset.dtypes[0] not in NUMBER_TYPES or dataset.count > MAX_BANDS:
        raise TileShapeError(
            f"{name}: {dataset.count} bands of {dataset.dtypes[0]}; "
            f"a Sentinel-2 file has at most {MAX_BANDS} bands of real numbers"
        )


def _refuse_huge_blocks(dataset: DatasetReader, name: str) -> None:
    """Refuse a header that would make GDAL allocate gigabytes to decode a single block."""
    (height, width), size = dataset.block_shapes[0], block_bytes(dataset)
    if size > MAX_BLOCK_BYTES:
        raise TileShapeError(
            f"{name}: its blocks of {width} × {height} pixels take {size / 2**20:.0f} MiB each, "
            f"{MAX_BLOCK_BYTES / 2**20:.0f} MiB is the maximum; rewrite it with tiles of 512 × 512"
        )


def _refuse_padding(dataset: DatasetReader, name: str) -> None:
    """Refuse a small raster in blocks so large that decoding them costs as much as a large raster."""
    height, width = dataset.block_shapes[0]
    size = decoded_bytes(dataset)
    if size > MAX_PADDING_BYTES and size > 4 * dataset.height * dataset.width * _pixel_bytes(dataset):
        raise TileShapeError(
            f"{name}: {dataset.width} × {dataset.height} pixels in blocks of {width} × {height} "
            f"that take {size / 2**20:.0f} MiB when decoded; "
            f"rewrite it with blocks of {TILE_SIZE} × {TILE_SIZE}"
        )


def block_bytes(dataset: DatasetReader) -> int:
    """Return the bytes that a block of a raster takes when decoded, of all the bands that lie in it."""
    height, width = dataset.block_shapes[0]
    bands = dataset.count if dataset.interleaving is Interleaving.pixel else 1
    return int(height * width * bands * np.dtype(dataset.dtypes[0]).itemsize)


def decoded_bytes(dataset: DatasetReader) -> int:
    """Return the bytes that all blocks of a raster take when decoded, their padding included."""
    height, width = dataset.block_shapes[0]
    pixels = math.ceil(dataset.height / height) * height * math.ceil(dataset.width / width) * width
    return pixels * _pixel_bytes(dataset)


def _pixel_bytes(dataset: DatasetReader) -> int:
    return dataset.count * np.dtype(dataset.dtypes[0]).itemsize


def plan_reading(dataset: Raster, name: str, options: ReadOptions) -> ReadingPlan:
    """Decide how `dataset` is read as DN, from its metadata and the user's options.

    Raises:
        BandsUnknownError: bands are neither named in the file nor given, or the two contradict each other.
        RadiometryUnknownError: level, scale or offset are neither in the file nor given.
        UnreadableImageError: its metadata are not UTF-8 text.
    """
    try:
        descriptions, tags = dataset.descriptions, dataset.tags()
    except UnicodeDecodeError as error:
        raise UnreadableImageError(
            f"{name}: its band descriptions or tags are not UTF-8 text; write them anew, or delete them"
        ) from error
    named = _named_in_file(descriptions, name)
    indexes, bands = _select_bands(named, dataset.count, name, options.bands)
    scale, offset = _declared_scale(dataset, name, indexes, options)
    facts = FileFacts(name, dataset.dtypes[0], tags, bands, scale, offset)
    radiometry = decide_radiometry(facts, options)
    return ReadingPlan(name, indexes, bands, radiometry, dataset.nodata)


def read_dn(dataset: DatasetReader, plan: ReadingPlan, window: Window | None = None) -> DN:
    """Return uint16 (13, height, width): the DN of `window` of `dataset` (all of it by default).

    Raises:
        UnreadableImageError: the file is truncated or a block is corrupt.
    """
    return place_bands(read_bands(dataset, plan, window), plan.bands)


def read_bands(dataset: DatasetReader, plan: ReadingPlan, window: Window | None = None) -> DN:
    """Return uint16 (len(plan.bands), height, width): the DN of the planned bands alone, in the plan's order.

    Raises:
        UnreadableImageError: the file is truncated or a block is corrupt.
    """
    try:
        numbers = dataset.read(indexes=list(plan.indexes), window=window)
    except RasterioError as error:
        raise UnreadableImageError(
            f"{plan.name}: truncated or corrupt, its pixels cannot be decoded"
        ) from error
    return _to_dn(numbers, plan)


def _to_dn(numbers: npt.NDArray[Any], plan: ReadingPlan) -> DN:
    """Return the DN of a raster's numbers, of any shape."""
    if numbers.dtype == np.uint16 and plan.radiometry.is_identity and not plan.no_data:
        return numbers  # they are DN already, 0 = no data: a large scene is not copied
    return plan.radiometry.to_dn(numbers, valid_numbers(numbers, plan.no_data))


def read_tile(
    source: Path | bytes,
    options: ReadOptions,
    name: str | None = None,
    size: int = TILE_SIZE,
    admit: Callable[[int], None] = lambda size: None,
    plain: PlainTiff | None = None,
) -> Tile:
    """Read one `size` × `size` tile from a GeoTIFF.

    Args:
        source: a file, or its bytes.
        options: bands and radiometry, where the file itself does not declare them.
        name: of the tile, for errors.
        size: pixels a side.
        admit: called before decoding with the result of `decoded_bytes`; it may raise to refuse the tile.
        plain: the header, where it is parsed already.

    Raises:
        TileShapeError: the raster has another size, or is not like a Sentinel-2 file.
        TilewiseError: as `open_geotiff`, `plan_reading` and `read_dn` raise.
    """
    label = name or (source.name if isinstance(source, Path) else "the upload")
    with suppress(NotPlainError):
        content = source if isinstance(source, bytes) else _read_file(source)
        plain = plain or parse_plain(content)
        return _read_plain(content, plain, options, label, size, admit)
    return read_tile_with_gdal(source, options, label, size, plain, admit)


def _read_file(path: Path) -> bytes:
    """Return the bytes of a file; raises NotPlainError where it is none, or a large one."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
            raise NotPlainError
        return path.read_bytes()
    except OSError as error:
        raise NotPlainError from error


def needs_gdal(plain: PlainTiff, size: int) -> bool:
    """Whether GDAL would read a plain file now, for its CRS or to say why it is refused."""
    return _crs_of_plain(plain, size) is _UNKNOWN


def _crs_of_plain(plain: PlainTiff, size: int) -> Any:
    """Return the CRS of a file, or None; `_UNKNOWN` where only GDAL can read it as a tile."""
    is_tile = (plain.height, plain.width) == (size, size)
    return _CRS_OF_KEYS.get(plain.geo_keys, _UNKNOWN) if is_tile else _UNKNOWN


def _read_plain(
    content: bytes,
    plain: PlainTiff,
    options: ReadOptions,
    label: str,
    size: int,
    admit: Callable[[int], None],
) -> Tile:
    """Read a tile without GDAL; raises NotPlainError where that is not possible."""
    crs = _crs_of_plain(plain, size)
    if crs is _UNKNOWN:
        raise NotPlainError
    plan = plan_reading(plain, label, options)
    admit(plain.decoded_bytes)
    numbers = plain.decode(content)
    if plan.indexes != tuple(range(1, plain.count + 1)):
        numbers = numbers[[index - 1 for index in plan.indexes]]
    georeference = _georeference(crs, plain.transform, size, size)
    pixels = place_bands(_to_dn(numbers, plan), plan.bands)
    return Tile(label, pixels, canonical_order(plan.bands), plan.radiometry.level, georeference)


def read_tile_with_gdal(
    source: Path | bytes,
    options: ReadOptions,
    name: str,
    size: int = TILE_SIZE,
    plain: PlainTiff | None = None,
    admit: Callable[[int], None] = lambda size: None,
) -> Tile:
    """Read one `size` × `size` tile with GDAL, plain or not, with the result of `read_tile`.

    The CRS is remembered for later files with the keys of `plain`, which is the file's header.
    """
    with open_geotiff(source, name) as dataset:
        if plain:
            _remember_crs(plain.geo_keys, dataset.crs)
        if (dataset.height, dataset.width) != (size, size):
            raise TileShapeError(
                f"{name}: {dataset.width} × {dataset.height} pixels, but a tile has {size} × {size}; "
                "cut it to size, or classify it as a scene"
            )
        plan = plan_reading(dataset, name, options)
        admit(decoded_bytes(dataset))
        pixels = read_dn(dataset, plan)
        return Tile(
            name, pixels, canonical_order(plan.bands), plan.radiometry.level, georeference_of(dataset)
        )


def _remember_crs(geo_keys: tuple[bytes, ...], crs: CRS | None) -> None:
    if len(_CRS_OF_KEYS) >= _MAX_KNOWN_KEYS:  # of honest files there are some hundred: two for each UTM zone
        _CRS_OF_KEYS.clear()
    _CRS_OF_KEYS[geo_keys] = crs


def georeference_of(dataset: DatasetReader, crs: CRS | None = None) -> Georeference | None:
    """Return the georeference of `dataset`, or None where it has none with longitude and latitude.

    `crs` is that of a raster which has none itself.
    """
    return _georeference(dataset.crs or crs, dataset.transform, dataset.width, dataset.height)


def _georeference(crs: CRS | None, transform: Affine, width: int, height: int) -> Georeference | None:
    if crs is None or transform.is_identity:
        return None
    georeference = Georeference(crs, transform)
    return georeference if georeference.footprint(width, height) else None


def valid_numbers(numbers: npt.NDArray[np.generic], no_data: float | None) -> npt.NDArray[np.bool_]:
    """Return bool, the shape of `numbers`: where a raster's numbers hold data.

    Args:
        numbers: numbers as they are in the file; 0, NaN and infinity are no data.
        no_data: the raster's declared no-data value, if any.
    """
    valid = np.isfinite(numbers) & (numbers != 0)
    if no_data is not None and np.isfinite(no_data):
        valid &= numbers != no_data
    return valid


def _named_in_file(descriptions: Sequence[str | None], name: str) -> dict[str, int]:
    """Return {band name: 1-based index} of the bands whose descriptions name a Sentinel-2 band."""
    named: dict[str, int] = {}
    for index, description in enumerate(descriptions, start=1):
        band = band_of_description(description)
        if band is None:
            continue
        if band in named:
            raise BandsUnknownError(f"{name}: bands {named[band]} and {index} are both described as {band}")
        named[band] = index
    return named


def _select_bands(
    named: dict[str, int], count: int, name: str, given: tuple[str, ...] | None
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the 1-based indexes and names of the bands to read: those `given`, else those `named`."""
    if given is None:
        if not named:
            sets = "".join(f" or {known}" for known in sets_of_length(count))
            raise BandsUnknownError(
                f"{name}: its {count} bands have no names; give them in the file's order: "
                f"bands={','.join(BAND_NAMES[: min(count, 3)])}{',…' if count > 3 else ''}{sets} "
                "(--bands on the command line, a field of a request)"
            )
        return tuple(named.values()), tuple(named)
    if len(given) != count:
        raise BandsUnknownError(
            f"{name}: {len(given)} band names were given, but the file has {count} bands "
            f"({LEAVE_OUT} leaves one out)"
        )
    chosen = {band: index for index, band in enumerate(given, start=1) if band != LEAVE_OUT}
    if not chosen:
        raise BandsUnknownError(f"{name}: the band list leaves every band out")
    wrong = {band: index for band, index in chosen.items() if named.get(band, index) != index}
    if wrong:
        raise BandsUnknownError(
            f"{name}: the file names its bands itself, and {', '.join(wrong)} are in other positions "
            "than in the band list; leave the band list out"
        )
    return tuple(chosen.values()), tuple(chosen)


def _declared_scale(
    dataset: Raster, name: str, indexes: tuple[int, ...], options: ReadOptions
) -> tuple[float | None, float | None]:
    """Return the GDAL scale and offset (in reflectance) that all these bands declare, or None for both."""
    declared = {(dataset.scales[index - 1], dataset.offsets[index - 1]) for index in indexes}
    if len(declared) > 1 and (options.scale is None or options.offset is None):
        raise RadiometryUnknownError(
            f"{name}: its bands declare different scales or offsets; give one scale and offset for all"
        )
    scale, offset = declared.pop()
    usable = 0 < scale < math.inf and math.isfinite(offset) and (scale, offset) != (1.0, 0.0)
    return (scale, offset) if usable else (None, None)


def why_unreadable(source: Path | bytes) -> str:
    """Return why bytes are not a readable GeoTIFF, in words."""
    if isinstance(source, Path) and not source.is_file():
        return "there is no such file"
    try:
        head = source[:4] if isinstance(source, bytes) else _head(source)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not head:
        return "an empty file"
    kinds = {
        b"\xff\xd8\xff": "a JPEG; the multispectral GeoTIFF is needed",
        b"\x89PNG": "a PNG; the multispectral GeoTIFF is needed",
        b"PK\x03\x04": "a zip archive; a whole product (.SAFE.zip) goes to `tilewise batch` as it is",
    }
    kind = next((kind for magic, kind in kinds.items() if head.startswith(magic)), None)
    if kind:
        return f"not a GeoTIFF but {kind}"
    return "a truncated or corrupt GeoTIFF" if head[:2] in (b"II", b"MM") else "not a GeoTIFF"


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def measure_metadata(file: BinaryIO) -> tuple[int, int]:
    """Return the number of directories and the bytes of GDAL's metadata in `file`; (0, 0): not a valid TIFF.

    Directories are counted up to one more than `MAX_DIRECTORIES`.
    """
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 16:
        return 0, 0
    layout = LAYOUTS[order, struct.unpack(order + "H", head[2:4])[0] == 43]
    waiting, seen, text = [layout.offset.unpack_from(head, 8 if layout.is_big else 4)[0]], set[int](), 0
    while waiting and len(seen) <= MAX_DIRECTORIES:
        offset = waiting.pop()
        if offset and offset not in seen:
            seen.add(offset)
            more, size = _read_directory(file, offset, layout)
            waiting += more
            text += size
    return len(seen), text


def _read_directory(file: BinaryIO, offset: int, layout: Layout) -> tuple[list[int], int]:
    """Return the offsets of further directories that this one names, and the bytes of its metadata."""
    file.seek(min(offset, _MAX_OFFSET))
    first = file.read(layout.number.size)
    if len(first) < layout.number.size:
        return [], 0
    form = layout.entry
    size = layout.number.unpack(first)[0] * form.size
    if size > _MAX_ENTRIES * form.size:
        return [], 0
    content = file.read(size + layout.offset.size)
    lines = list(form.iter_unpack(content[: min(size, len(content) - len(content) % form.size)]))
    following = content[size:]
    further = [layout.offset.unpack(following)[0]] if len(following) == layout.offset.size else []
    for tag, kind, count, value in lines:
        if tag == SUB_DIRECTORIES:
            further += _read_offsets(file, kind, count, value, layout)
    return further, sum(count for tag, _, count, _ in lines if tag == GDAL_METADATA)


def _read_offsets(file: BinaryIO, kind: int, count: int, value: bytes, layout: Layout) -> list[int]:
    """Return the offsets in an entry, 4 or 8 bytes each: in the entry itself, or where it points."""
    number = struct.Struct(layout.order + ("Q" if kind in (16, 18) else "I"))
    size = min(count, MAX_DIRECTORIES + 1) * number.size
    if size > len(value):
        file.seek(min(layout.offset.unpack(value)[0], _MAX_OFFSET))
        value = file.read(size)
    whole = min(size, len(value) - len(value) % number.size)
    return [offset for (offset,) in number.iter_unpack(value[:whole])]
