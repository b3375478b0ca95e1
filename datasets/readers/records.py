"""Read labelled tiles with their records: the metadata that the index keeps and validation checks."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tilewise.datasets.core.bands import positions
from tilewise.datasets.core.console import Report, silent
from tilewise.datasets.core.errors import TilewiseError
from tilewise.datasets.core.tile import DN, Tile, has_data
from tilewise.datasets.readers.corrections import Correction, correct
from tilewise.datasets.readers.eurosat import class_of
from tilewise.datasets.readers.sources import Source, TileFile

Bounds = tuple[float, float, float, float]
_READ_AHEAD = 256  # tiles in flight: 27 MB of 13-band tiles at most
_READERS = 4  # GDAL releases the interpreter lock while it decodes


@dataclass(frozen=True, slots=True)
class TileRecord:
    """One labelled tile without its pixels.

    Attributes:
        name: the file's stem; a name in two sources is the same location.
        label: its class, after corrections (`tilewise.datasets.readers.corrections`).
        source: format of its folder (`eurosat-ms`, …).
        level: processing level.
        bands: canonical names of the present bands.
        crs: its CRS as `EPSG:n` or WKT; empty where the file has none.
        bounds: (left, bottom, right, top) in CRS units, or None.
        sha256: hash of its present bands' names and DN: equal tiles have equal hashes, whatever their file.
        valid_fraction: fraction of pixels (0–1) that hold data in every present band.
        low: minimum DN of valid pixels (0 if there is none).
        high: maximum DN.
        given: the class of its folder, before corrections.
    """

    name: str
    label: str
    source: str
    level: str
    bands: tuple[str, ...]
    crs: str
    bounds: Bounds | None
    sha256: str
    valid_fraction: float
    low: int
    high: int
    given: str = ""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file that could not be read, and the reason."""

    name: str
    label: str
    source: str
    reason: str


def read_all(
    sources: Sequence[Source],
    progress: Report = silent,
    step: str = "reading tiles",
    corrections: Sequence[Correction] = (),
) -> Iterator[tuple[TileRecord, Tile] | Unreadable]:
    """Read every tile of `sources` in order, several at a time in threads; failures are yielded, not raised.

    Tiles have their corrected classes, and those that `corrections` leave out are not read.
    """
    jobs = [(source, file) for source in sources for file in correct(source.files(), corrections)]
    done = 0
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(jobs), _READ_AHEAD):
            for outcome in pool.map(_read_one, jobs[start : start + _READ_AHEAD]):
                done += 1
                progress(step, done, len(jobs))
                yield outcome


def content_hash(pixels: DN, bands: tuple[str, ...]) -> str:
    """Return the SHA-256 of the present bands of `pixels` (13, height, width) and their names."""
    digest = hashlib.sha256(",".join(bands).encode())
    digest.update(pixels[positions(bands)].astype("<u2").tobytes())
    return digest.hexdigest()


def _read_one(job: tuple[Source, TileFile]) -> tuple[TileRecord, Tile] | Unreadable:
    source, file = job
    try:
        tile = source.read(file.path)
    except TilewiseError as error:
        return Unreadable(file.name, file.label, source.format, str(error))
    return _describe(source, file, tile), tile


def _describe(source: Source, file: TileFile, tile: Tile) -> TileRecord:
    present = tile.pixels[positions(tile.bands)]
    valid = present[has_data(present)]
    georeference = tile.georeference
    return TileRecord(
        name=file.name,
        label=file.label,
        source=source.format,
        level=tile.level or "",
        bands=tile.bands,
        crs=georeference.crs.to_string() if georeference else "",
        bounds=georeference.bounds(*tile.pixels.shape[:0:-1]) if georeference else None,
        sha256=content_hash(tile.pixels, tile.bands),
        valid_fraction=tile.valid_fraction,
        low=int(valid.min(initial=65_535)) if valid.size else 0,
        high=int(valid.max(initial=0)),
        given=class_of(file.path),
    )
