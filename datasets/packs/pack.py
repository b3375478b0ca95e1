"""Read a pack: many tiles in one memory-mapped array, and an index beside it.

    <pack>/planes.u16      every present band of every tile, one 64 × 64 uint16 (little-endian) after another
    <pack>/index.parquet   one row a tile: name, label, split, source, bands, first_plane, bounds, sha256, …
    <pack>/pack.json       version, classes, counts, data hash, how the splits were made
    <pack>/statistics.json per band, over the train split (`tilewise.datasets.packs.statistics`)

Only present bands are stored, in canonical order, so an RGB tile takes 3 planes and not 13. Reading a batch
is one gather from the memory map: no file is opened for it.

An array file serves as a pack on a machine that has torch and little else: an `.npz` with `tiles` uint16 (n,
13, 64, 64) in DN (0 = no data, canonical band order), `labels` int64 (n,) and `splits` (n,) as text;
`classes` and `names` as text are optional. It is held in memory.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tilewise.datasets.core.bands import BAND_NAMES, positions
from tilewise.datasets.core.errors import PackError
from tilewise.datasets.core.tile import BAND_COUNT, DN, TILE_SIZE
from tilewise.datasets.packs.statistics import measure

if TYPE_CHECKING:  # a machine that trains on an array file may have no pyarrow
    import pyarrow as pa

UNLABELLED = "unlabelled"
"""The split of tiles without a label: no split plan assigns it, only a folder's card."""

VERSION = 1
PLANES, INDEX, CARD, STATISTICS = "planes.u16", "index.parquet", "pack.json", "statistics.json"
PLANE_BYTES = TILE_SIZE * TILE_SIZE * 2
ARRAY_SUFFIX = ".npz"
_ARRAY_SOURCE = "array"


@dataclass(frozen=True, slots=True)
class SourceOrigin:
    """The card (`dataset.json`) of a folder of tiles when it was packed; texts may be empty."""

    name: str
    format: str
    licence: str
    origin: str
    notes: str = ""


@dataclass(frozen=True, slots=True)
class PackSummary:
    """The content of a pack's `pack.json`.

    Attributes:
        version: version of the pack's layout.
        classes: class names, in the order of labels.
        tiles: number of tiles.
        planes: number of planes, one for each present band of each tile.
        data_hash: SHA-256 of pixels, names, classes and splits.
        synthetic: whether any of its tiles were computed.
        sources: formats of the folders that were packed.
        split_method: how tiles were divided into splits.
        counts: {split: {class: tiles}}.
        relabelled: tiles whose class reviewed corrections changed.
        left_out: tiles that reviewed corrections left out.
        origins: one for each folder that was packed; older packs have none.
    """

    version: int
    classes: tuple[str, ...]
    tiles: int
    planes: int
    data_hash: str
    synthetic: bool
    sources: tuple[str, ...]
    split_method: str
    counts: dict[str, dict[str, int]]
    relabelled: int = 0
    left_out: int = 0
    origins: tuple[SourceOrigin, ...] = ()


class Pack:
    """A pack opened for reading. Pixels stay in the memory map until they are fetched.

    Attributes:
        summary: content of `pack.json`.
        index: the whole index as an Arrow table.
        labels: int64 (tiles,), indices into `summary.classes`.
        splits: str (tiles,).
        sources: str (tiles,).
        planes: uint16 (planes, 64, 64), the memory map.
        first_plane: int64 (tiles,), index in `planes` of each tile's first plane.
        band_indices: int (bands of the tile,) for each tile, the canonical index of each of its planes.

    Raises:
        PackError: no pack is in `root`, it is incomplete, or it has another version.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.summary = _read_summary(root)
        self.index = _read_index(root)
        try:
            self.labels = np.array(
                [self.summary.classes.index(label) for label in self.index["label"].to_pylist()], np.int64
            )
            self.splits = np.array(self.index["split"].to_pylist())
            self.sources = np.array(self.index["source"].to_pylist())
            self.first_plane = self.index["first_plane"].to_numpy()
            self.band_indices = [np.array(positions(bands)) for bands in self.index["bands"].to_pylist()]
        except (KeyError, ValueError) as error:  # a missing column, or a class that pack.json does not have
            raise _incomplete(root / INDEX) from error
        self.planes = self._map_planes()

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[type[Pack], tuple[Path]]:
        """Be sent to another process as a folder's name: a memory map would be sent with all its pixels."""
        return Pack, (self.root,)

    def rows(self, split: str | None = None, source: str | None = None) -> npt.NDArray[np.int64]:
        """Return int64: the rows of a split and a source (None: of all)."""
        chosen = np.ones(len(self), bool)
        if split is not None:
            chosen &= self.splits == split
        if source is not None:
            chosen &= self.sources == source
        return np.flatnonzero(chosen)

    def fetch(self, rows: npt.ArrayLike) -> DN:
        """Return uint16 (len(rows), 13, 64, 64): the tiles in `rows`, absent bands 0."""
        wanted = np.asarray(rows, np.int64)
        tiles = np.zeros((len(wanted), BAND_COUNT, TILE_SIZE, TILE_SIZE), np.uint16)
        for out, row in enumerate(wanted):
            bands, first = self.band_indices[row], self.first_plane[row]
            tiles[out, bands] = self.planes[first : first + len(bands)]
        return tiles

    def names(self, rows: npt.ArrayLike) -> list[str]:
        """Return the names of the tiles in `rows`."""
        return list(self.index["name"].take(np.asarray(rows, np.int64)).to_pylist())

    def bands(self, row: int) -> tuple[str, ...]:
        """Return the bands that the tile in `row` has, in canonical order."""
        return tuple(BAND_NAMES[index] for index in self.band_indices[row])

    def statistics(self) -> list[dict[str, Any]]:
        """Return the per-band statistics of the train split, in canonical order (see `BandStatistics`)."""
        path = self.root / STATISTICS
        try:
            return list(json.loads(path.read_text(encoding="utf-8"))["bands"])
        except (OSError, ValueError, KeyError) as error:
            raise _incomplete(path) from error

    def _map_planes(self) -> np.memmap[Any, np.dtype[np.uint16]]:
        path = self.root / PLANES
        if not path.is_file() or path.stat().st_size != self.summary.planes * PLANE_BYTES:
            raise _incomplete(path)
        return np.memmap(path, "<u2", "r", shape=(self.summary.planes, TILE_SIZE, TILE_SIZE))


class ArrayPack(Pack):
    """An array file (`.npz`), read as a pack.

    Raises:
        PackError: the file is not such an array file.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        arrays = _read_arrays(root)
        tiles, self.labels = arrays["tiles"], arrays["labels"].astype(np.int64)
        self.splits, self.sources = arrays["splits"].astype(str), np.full(len(tiles), _ARRAY_SOURCE)
        self.planes = tiles.reshape(-1, TILE_SIZE, TILE_SIZE)  # type: ignore[assignment]  # read like a memory map
        self.first_plane = np.arange(len(tiles)) * BAND_COUNT
        self.band_indices = [np.arange(BAND_COUNT)] * len(tiles)
        self._names = arrays.get("names", np.arange(len(tiles))).astype(str)
        count = int(self.labels.max()) + 1
        classes = tuple(
            arrays.get("classes", np.array([f"class {n}" for n in range(count)])).astype(str).tolist()
        )
        if count > len(classes) or self.labels.min() < 0:
            raise PackError(f"{root}: labels go up to {count - 1}, but it names {len(classes)} classes")
        self.summary = _summarise(self, classes)

    def __reduce__(self) -> tuple[type[ArrayPack], tuple[Path]]:
        """Be sent to another process as a file's name."""
        return ArrayPack, (self.root,)

    def names(self, rows: npt.ArrayLike) -> list[str]:
        """Return the names of the tiles in `rows`."""
        return [str(name) for name in self._names[np.asarray(rows, np.int64)]]

    def statistics(self) -> list[dict[str, Any]]:
        """Return the per-band statistics of the train split, measured now."""
        return [asdict(band) for band in measure(self)]


def open_pack(path: Path) -> Pack:
    """Open the pack in the folder `path`, or the array file `path` (`.npz`).

    Raises:
        PackError: `path` is neither.
    """
    return ArrayPack(path) if path.suffix == ARRAY_SUFFIX else Pack(path)


def parse_summary(content: bytes, name: str) -> PackSummary:
    """Return the summary in the bytes of a `pack.json`; `name` is the pack in error messages.

    Raises:
        PackError: it is not one, or of another version.
    """
    try:
        fields = dict(json.loads(content))
        if (version := fields.get("version")) != VERSION:
            raise PackError(
                f"{name}: a pack of version {version}, but version {VERSION} is needed; pack again"
            )
        origins = tuple(SourceOrigin(**item) for item in fields.get("origins", ()))
        lists = {"classes": tuple(fields["classes"]), "sources": tuple(fields["sources"]), "origins": origins}
        return PackSummary(**{**fields, **lists})
    except (ValueError, TypeError, KeyError) as error:
        raise _incomplete(f"{name}/{CARD}") from error


def parse_index(content: bytes, name: str) -> pa.Table:
    """Return the index in the bytes of an `index.parquet`; `name` is the pack in error messages.

    Raises:
        PackError: it is not one.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(pa.BufferReader(content))
    except (OSError, pa.ArrowException) as error:
        raise _incomplete(f"{name}/{INDEX}") from error


def spread(rows: npt.NDArray[np.int64], limit: int) -> npt.NDArray[np.int64]:
    """Return at most `limit` of `rows`, evenly spread over them."""
    return rows[np.linspace(0, len(rows) - 1, min(limit, len(rows))).astype(np.int64)]


def _read_summary(root: Path) -> PackSummary:
    path = root / CARD
    if not path.is_file():
        raise PackError(f"{root}: no pack is here; `tilewise data pack` makes one")
    return parse_summary(path.read_bytes(), str(root))


def _read_index(root: Path) -> pa.Table:
    path = root / INDEX
    if not path.is_file():
        raise _incomplete(path)
    return parse_index(path.read_bytes(), str(root))


def _incomplete(path: Path | str) -> PackError:
    return PackError(f"{path}: missing or incomplete; pack again with `tilewise data pack`")


def _read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise PackError(f"{path}: not a readable array file: {error}") from error
    missing = {"tiles", "labels", "splits"} - set(arrays)
    if missing:
        raise PackError(f"{path}: lacks {', '.join(sorted(missing))}")
    tiles, count = arrays["tiles"], len(arrays["tiles"])
    if tiles.dtype != np.uint16 or tiles.shape[1:] != (BAND_COUNT, TILE_SIZE, TILE_SIZE) or not count:
        raise PackError(f"{path}: tiles must be uint16 (n, 13, 64, 64), not {tiles.dtype} {tiles.shape}")
    if any(len(arrays[name]) != count for name in ("labels", "splits")):
        raise PackError(f"{path}: tiles, labels and splits must be equally many")
    return arrays


def _summarise(pack: ArrayPack, classes: tuple[str, ...]) -> PackSummary:
    counts: dict[str, Counter[str]] = {}
    for split, label in zip(pack.splits.tolist(), pack.labels.tolist(), strict=True):
        counts.setdefault(split, Counter())[classes[label]] += 1
    digest = hashlib.sha256(pack.planes.tobytes() + pack.labels.tobytes() + "\n".join(pack.splits).encode())
    return PackSummary(
        version=VERSION,
        classes=classes,
        tiles=len(pack.labels),
        planes=len(pack.planes),
        data_hash=digest.hexdigest(),
        synthetic=False,
        sources=(_ARRAY_SOURCE,),
        split_method="given",
        counts={split: dict(sorted(found.items())) for split, found in sorted(counts.items())},
    )
