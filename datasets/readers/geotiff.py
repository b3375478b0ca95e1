"""Opening GeoTIFFs that may be hostile, and reading them into the one tile form.

Only GDAL's GTiff driver ever opens a file here; side-car files (`.aux.xml`, `.ovr`, `.msk`) and directory
listings are off, so that nothing outside the file itself is read. Sizes are checked on the header, before any
pixel is decoded.
"""

import io
import math
import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import Interleaving
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader, MemoryFile
from rasterio.windows import Window

from tilewise.datasets.core.bands import BAND_NAMES, LEAVE_OUT, band_of_description
from tilewise.datasets.core.errors import (
    BandsUnknownError,
    RadiometryUnknownError,
    TileShapeError,
    UnreadableImageError,
)
from tilewise.datasets.core.radiometry import FileFacts, Radiometry, ReadOptions, decide_radiometry
from tilewise.datasets.core.tile import DN, TILE_SIZE, Georeference, Tile, canonical_order, place_bands

GDAL_METADATA, SUB_DIRECTORIES = 42112, 330
MAX_DIRECTORIES = 256  # those beyond are not looked at
_MAX_ENTRIES = 4096  # of a directory; libtiff takes what has more for none
_BEYOND = 2**62  # the end of any file


@dataclass(frozen=True, slots=True)
class _Layout:
    """How numbers are written in a file: their order, and the sizes that differ in a BigTIFF."""

    order: str
    big: bool

    @property
    def place(self) -> struct.Struct:
        return struct.Struct(self.order + ("Q" if self.big else "I"))

    @property
    def count(self) -> struct.Struct:
        return struct.Struct(self.order + ("Q" if self.big else "H"))

    @property
    def entry(self) -> struct.Struct:
        return struct.Struct(self.order + ("HHQ8s" if self.big else "HHI4s"))


def count_text(file: BinaryIO) -> tuple[int, int]:
    """Return the number of directories in `file` and the bytes of GDAL's metadata in them; (0, 0): it is no sound TIFF.

    Directories are told up to one more than `MAX_DIRECTORIES`.
    """
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 16:
        return 0, 0
    layout = _Layout(order, struct.unpack(order + "H", head[2:4])[0] == 43)
    waiting, seen, text = [layout.place.unpack_from(head, 8 if layout.big else 4)[0]], set[int](), 0
    while waiting and len(seen) <= MAX_DIRECTORIES:
        place = waiting.pop()
        if place and place not in seen:
            seen.add(place)
            more, size = _read_directory(file, place, layout)
            waiting += more
            text += size
    return len(seen), text


def _read_directory(file: BinaryIO, place: int, layout: _Layout) -> tuple[list[int], int]:
    """Return where further directories are that this one names, and the bytes of its text."""
    file.seek(min(place, _BEYOND))
    first = file.read(layout.count.size)
    if len(first) < layout.count.size:
        return [], 0
    form = layout.entry
    size = layout.count.unpack(first)[0] * form.size
    if size > _MAX_ENTRIES * form.size:
        return [], 0
    content = file.read(size + layout.place.size)
    lines = list(form.iter_unpack(content[: min(size, len(content) - len(content) % form.size)]))
    following = content[size:]
    further = [layout.place.unpack(following)[0]] if len(following) == layout.place.size else []
    for tag, kind, count, value in lines:
        if tag == SUB_DIRECTORIES:
            further += _read_places(file, kind, count, value, layout)
    return further, sum(count for tag, _, count, _ in lines if tag == GDAL_METADATA)


def _read_places(file: BinaryIO, kind: int, count: int, value: bytes, layout: _Layout) -> list[int]:
    """Return the places that an entry holds, as 4 or 8 bytes each: in itself, or where it says."""
    number = struct.Struct(layout.order + ("Q" if kind in (16, 18) else "I"))
    size = min(count, MAX_DIRECTORIES + 1) * number.size
    if size > len(value):
        file.seek(min(layout.place.unpack(value)[0], _BEYOND))
        value = file.read(size)
    whole = min(size, len(value) - len(value) % number.size)
    return [place for (place,) in number.iter_unpack(value[:whole])]


NUMBER_TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
MAX_BANDS = 64  # Sentinel-2 has 13; some exports add masks and probabilities
MAX_BLOCK_BYTES = 512 * 2**20
MAX_PADDING_BYTES = 32 * 2**20  # decoded; a tile of 13 bands of float32 in a block of 512 × 512 takes 14 MB
MAX_TEXT_BYTES = 128 * 2**10  # of GDAL's metadata; a Sentinel-2 file has a few kilobytes

# Nothing but the bytes of the file itself may be read, and a corrupt block is an error, not a warning.
_CLOSED_WORLD = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_TIFF_INTERNAL_MASK": "YES",
    "GDAL_GEOREF_SOURCES": "INTERNAL",
    "GTIFF_SRS_SOURCE": "GEOKEYS",  # the CRS as the file has it; looking it up again takes as long as reading a tile
    "GTIFF_IGNORE_READ_ERRORS": "NO",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".none",  # no URL ends so: GDAL's network is off
    "VSI_CACHE": "NO",
}

warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # a tile need not lie anywhere


_THIS_THREAD = threading.local()


@dataclass(frozen=True, slots=True)
class ReadingPlan:
    """How one raster is brought to the tile form.

    Attributes:
        name: what the raster is called in errors.
        indexes: 1-based raster bands, in the order of `bands`.
        bands: canonical band names.
        radiometry: from the raster's numbers to DN.
        no_data: the raster's declared no-data value, if any; 0 and NaN are no data always.
    """

    name: str
    indexes: tuple[int, ...]
    bands: tuple[str, ...]
    radiometry: Radiometry
    no_data: float | None


@contextmanager
def closed_world() -> Iterator[None]:
    """Set GDAL up for files that may be hostile, in this thread, for the length of the block.

    `open_geotiff` does so for each file; one block around many files saves a tenth of the time that reading them takes.
    """
    if getattr(_THIS_THREAD, "closed", False):
        yield
        return
    with rasterio.Env(**_CLOSED_WORLD):
        _THIS_THREAD.closed = True
        try:
            yield
        finally:
            _THIS_THREAD.closed = False


@contextmanager
def open_geotiff(source: Path | bytes, name: str | None = None) -> Iterator[DatasetReader]:
    """Open a GeoTIFF, from a path or from bytes in memory, with GDAL's GTiff driver alone.

    Raises:
        UnreadableImageError: it is not a GeoTIFF, or its header is broken.
        TileShapeError: its data type, number of bands or blocks are none that Sentinel-2 files have.
    """
    label = name or (source.name if isinstance(source, Path) else "the upload")
    with closed_world(), ExitStack() as opened:
        try:
            _refuse_endless_text(source, label)
            dataset = opened.enter_context(_open(source, opened))
        except (RasterioError, ValueError, OSError) as error:
            raise UnreadableImageError(f"{label}: {why_unreadable(source)}") from error
        check_header(dataset, label)
        yield dataset


def _open(source: Path | bytes, opened: ExitStack) -> DatasetReader:
    if isinstance(source, bytes):
        if not source:  # rasterio would take it for a file to write
            raise ValueError
        return opened.enter_context(MemoryFile(source)).open(driver="GTiff")
    if not source.is_file():  # GDAL would take `/vsicurl/…` and the like for a path
        raise FileNotFoundError(source)
    return rasterio.open(source, driver="GTiff")


def _refuse_endless_text(source: Path | bytes, name: str) -> None:
    """Refuse a file with so much metadata that GDAL would not come to an end with it."""
    if isinstance(source, Path) and not source.is_file():
        return
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        directories, size = count_text(file)
    if directories > MAX_DIRECTORIES or size > MAX_TEXT_BYTES:
        raise UnreadableImageError(
            f"{name}: more than {MAX_DIRECTORIES} directories, or {MAX_TEXT_BYTES // 1024} KiB of metadata; "
            "delete what no reader needs"
        )


def check_header(dataset: DatasetReader, name: str) -> None:
    """Refuse an open raster whose header tells of what no Sentinel-2 file has, before a pixel of it is decoded.

    Raises:
        TileShapeError: its data type, number of bands or blocks are none that Sentinel-2 files have.
        UnreadableImageError: it names another file as its overviews.
    """
    _refuse_other_files(dataset, name)
    _refuse_odd_bands(dataset, name)
    _refuse_huge_blocks(dataset, name)
    _refuse_padding(dataset, name)


def _refuse_other_files(dataset: DatasetReader, name: str) -> None:
    """Refuse a file that names another one as its overviews: GDAL would open that with any driver, URLs included.

    GDAL itself writes the item into side-car files only (gcore/gdaldefaultoverviews.cpp).
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
    height, width = dataset.block_shapes[0]
    together = dataset.count if dataset.interleaving is Interleaving.pixel else 1
    size = height * width * together * np.dtype(dataset.dtypes[0]).itemsize
    if size > MAX_BLOCK_BYTES:
        raise TileShapeError(
            f"{name}: its blocks of {width} × {height} pixels take {size / 2**20:.0f} MiB each, "
            f"{MAX_BLOCK_BYTES / 2**20:.0f} MiB is the most; rewrite it with tiles of 512 × 512"
        )


def _refuse_padding(dataset: DatasetReader, name: str) -> None:
    """Refuse a small raster in blocks so large that decoding it would cost as much as a large one."""
    height, width = dataset.block_shapes[0]
    pixels = math.ceil(dataset.height / height) * height * math.ceil(dataset.width / width) * width
    size = pixels * dataset.count * np.dtype(dataset.dtypes[0]).itemsize
    if size > MAX_PADDING_BYTES and pixels > 4 * dataset.height * dataset.width:
        raise TileShapeError(
            f"{name}: {dataset.width} × {dataset.height} pixels in blocks of {width} × {height} "
            f"that take {size / 2**20:.0f} MiB when decoded; rewrite it with blocks of {TILE_SIZE} × {TILE_SIZE}"
        )


def plan_reading(dataset: DatasetReader, name: str, overrides: ReadOptions) -> ReadingPlan:
    """Decide how `dataset` is brought to the tile form, from its metadata and what the user says.

    Raises:
        BandsUnknownError: bands are neither named in the file nor said, or the two contradict each other.
        RadiometryUnknownError: level, scale or offset are neither in the file nor said.
        UnreadableImageError: its metadata are no UTF-8 text.
    """
    try:
        descriptions, tags = dataset.descriptions, dataset.tags()
    except UnicodeDecodeError as error:
        raise UnreadableImageError(
            f"{name}: its band descriptions or tags are not UTF-8 text; write them anew, or delete them"
        ) from error
    named = _named_in_file(descriptions, name)
    indexes, bands = _select_bands(named, dataset.count, name, overrides.bands)
    scale, offset = _declared_scale(dataset, name, indexes, overrides)
    facts = FileFacts(name, dataset.dtypes[0], tags, bands, scale, offset)
    radiometry = decide_radiometry(facts, overrides)
    return ReadingPlan(name, indexes, bands, radiometry, dataset.nodata)


def read_dn(dataset: DatasetReader, plan: ReadingPlan, window: Window | None = None) -> DN:
    """Return uint16 (13, height, width): `window` of `dataset` (all of it by default) in the tile form.

    Raises:
        UnreadableImageError: the file is truncated or a block is corrupt.
    """
    return place_bands(read_bands(dataset, plan, window), plan.bands)


def read_bands(dataset: DatasetReader, plan: ReadingPlan, window: Window | None = None) -> DN:
    """Return uint16 (len(plan.bands), height, width): the planned bands alone as DN, in the plan's order.

    Raises:
        UnreadableImageError: the file is truncated or a block is corrupt.
    """
    try:
        numbers = dataset.read(indexes=list(plan.indexes), window=window)
    except RasterioError as error:
        raise UnreadableImageError(f"{plan.name}: truncated or corrupt, its pixels cannot be decoded") from error
    if numbers.dtype == np.uint16 and plan.radiometry.is_identity and not plan.no_data:
        return numbers  # DN as they are, 0 where there is no data: nothing of a large scene need be touched
    return plan.radiometry.to_dn(numbers, _valid(numbers, plan.no_data))


def read_tile(source: Path | bytes, overrides: ReadOptions, name: str | None = None, size: int = TILE_SIZE) -> Tile:
    """Read one `size` × `size` tile from a GeoTIFF.

    Raises:
        TilewiseError: one of the kinds above, or TileShapeError where the size is another.
    """
    label = name or (source.name if isinstance(source, Path) else "the upload")
    with open_geotiff(source, label) as dataset:
        if (dataset.height, dataset.width) != (size, size):
            raise TileShapeError(
                f"{label}: {dataset.width} × {dataset.height} pixels, but a tile has {size} × {size}; "
                "cut it to size, or classify it as a scene"
            )
        plan = plan_reading(dataset, label, overrides)
        pixels = read_dn(dataset, plan)
        return Tile(label, pixels, canonical_order(plan.bands), plan.radiometry.level, georeference_of(dataset))


def georeference_of(dataset: DatasetReader) -> Georeference | None:
    """Return where `dataset` lies on Earth, or None where it does not say (a local CRS says nothing)."""
    if dataset.crs is None or dataset.transform.is_identity:
        return None
    place = Georeference(dataset.crs, dataset.transform)
    return place if place.footprint(dataset.width, dataset.height) else None


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
    named: dict[str, int], count: int, name: str, overrides: tuple[str, ...] | None
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    if overrides is None:
        if not named:
            raise BandsUnknownError(
                f"{name}: its {count} bands have no names; say which they are, in the file's order: "
                f"bands={','.join(BAND_NAMES[: max(count, 3)][:3])},… or l1c, l2a, 10m, rgb, eurosat "
                "(--bands on the command line, a field of a request)"
            )
        return tuple(named.values()), tuple(named)
    if len(overrides) != count:
        raise BandsUnknownError(
            f"{name}: {len(overrides)} band names were said, but the file has {count} bands ({LEAVE_OUT} leaves one out)"
        )
    chosen = {band: index for index, band in enumerate(overrides, start=1) if band != LEAVE_OUT}
    if not chosen:
        raise BandsUnknownError(f"{name}: the band list leaves every band out")
    wrong = {band: index for band, index in chosen.items() if named.get(band, index) != index}
    if wrong:
        raise BandsUnknownError(
            f"{name}: the file itself names its bands, and {', '.join(wrong)} stand elsewhere than was said; "
            "leave the band list out"
        )
    return tuple(chosen.values()), tuple(chosen)


def _declared_scale(
    dataset: DatasetReader, name: str, indexes: tuple[int, ...], overrides: ReadOptions
) -> tuple[float | None, float | None]:
    """Return the GDAL scale and offset (in reflectance) that all these bands declare, or None for both."""
    declared = {(dataset.scales[index - 1], dataset.offsets[index - 1]) for index in indexes}
    if len(declared) > 1 and (overrides.scale is None or overrides.offset is None):
        raise RadiometryUnknownError(
            f"{name}: its bands declare different scales or offsets; say one scale and offset for all"
        )
    scale, offset = declared.pop()
    sound = 0 < scale < math.inf and math.isfinite(offset) and (scale, offset) != (1.0, 0.0)
    return (scale, offset) if sound else (None, None)


def _valid(numbers: npt.NDArray[np.generic], no_data: float | None) -> npt.NDArray[np.bool_]:
    valid = np.isfinite(numbers) & (numbers != 0)
    if no_data is not None and np.isfinite(no_data):
        valid &= numbers != no_data
    return valid


def why_unreadable(source: Path | bytes) -> str:
    """Say in words what bytes that are no GeoTIFF look like."""
    if isinstance(source, Path) and not source.is_file():
        return "there is no such file"
    try:
        head = source[:4] if isinstance(source, bytes) else _head(source)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not head:
        return "an empty file"
    kinds = {b"\xff\xd8\xff": "a JPEG", b"\x89PNG": "a PNG", b"PK\x03\x04": "a zip archive"}
    kind = next((kind for magic, kind in kinds.items() if head.startswith(magic)), None)
    if kind:
        return f"not a GeoTIFF but {kind}; the multispectral GeoTIFF is needed"
    return "a truncated or corrupt GeoTIFF" if head[:2] in (b"II", b"MM") else "not a GeoTIFF"


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)
