"""Reading a pack: many tiles in one memory-mapped array, and an index beside it.

    <pack>/planes.u16      every present band of every tile, one 64 × 64 uint16 (little-endian) after another
    <pack>/index.parquet   one row a tile: name, label, split, source, bands, first_plane, bounds, sha256, …
    <pack>/pack.json       version, classes, counts, data hash, how the splits were made
    <pack>/statistics.json per band, over the train split (`tilewise.datasets.packs.statistics`)

Only present bands are stored, in canonical order, so an RGB tile takes 3 planes and not 13. Reading a batch
is one gather from the memory map: no file is opened for it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tilewise.datasets.core.bands import BAND_NAMES, positions
from tilewise.datasets.core.errors import PackError
from tilewise.datasets.core.tile import BAND_COUNT, DN, TILE_SIZE

if TYPE_CHECKING:  # a machine that trains on an array file (`tilewise.datasets.packs.derived`) may have no pyarrow
    import pyarrow as pa

UNLABELLED = "unlabelled"  # tiles that are known and have no label: no plan deals them, a folder's card puts them here
VERSION = 1
PLANES, INDEX, CARD, STATISTICS = "planes.u16", "index.parquet", "pack.json", "statistics.json"
PLANE_BYTES = TILE_SIZE * TILE_SIZE * 2


@dataclass(frozen=True, slots=True)
class Origin:
    """What a folder of tiles said of itself when it was packed: its `dataset.json`, texts that may be empty."""

    name: str
    format: str
    licence: str
    origin: str
    notes: str = ""


@dataclass(frozen=True, slots=True)
class PackSummary:
    """What a pack holds: the content of its `pack.json`.

    `relabelled` and `left_out` count the tiles whose class reviewed corrections changed, and that they took out.
    `origins` has an entry for each folder that was packed; packs of before have none.
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
    origins: tuple[Origin, ...] = ()


class Pack:
    """A pack opened for reading. Pixels stay in the memory map until they are fetched.

    Attributes:
        summary: what `pack.json` says.
        index: the whole index as an Arrow table.
        labels: int64 (tiles,), positions in `summary.classes`.
        splits: str (tiles,).
        sources: str (tiles,).
        planes: uint16 (planes, 64, 64), the memory map.
        first_plane: int64 (tiles,), where each tile begins in `planes`.
        places: int (bands of the tile,) for each tile, the positions of its planes in the canonical order.
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
            self.places = [np.array(positions(bands)) for bands in self.index["bands"].to_pylist()]
        except (KeyError, ValueError) as error:  # a column that is not there, a class that the card does not name
            raise _not_whole(root / INDEX) from error
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
            places, first = self.places[row], self.first_plane[row]
            tiles[out, places] = self.planes[first : first + len(places)]
        return tiles

    def names(self, rows: npt.ArrayLike) -> list[str]:
        """Return the names of the tiles in `rows`."""
        return list(self.index["name"].take(np.asarray(rows, np.int64)).to_pylist())

    def bands(self, row: int) -> tuple[str, ...]:
        """Return the bands that the tile in `row` has, in canonical order."""
        return tuple(BAND_NAMES[place] for place in self.places[row])

    def statistics(self) -> list[dict[str, Any]]:
        """Return the per-band statistics of the train split, in canonical order (see `BandStatistics`)."""
        path = self.root / STATISTICS
        try:
            return list(json.loads(path.read_text(encoding="utf-8"))["bands"])
        except (OSError, ValueError, KeyError) as error:
            raise _not_whole(path) from error

    def _map_planes(self) -> np.memmap[Any, np.dtype[np.uint16]]:
        path = self.root / PLANES
        if not path.is_file() or path.stat().st_size != self.summary.planes * PLANE_BYTES:
            raise _not_whole(path)
        return np.memmap(path, "<u2", "r", shape=(self.summary.planes, TILE_SIZE, TILE_SIZE))


def parse_summary(content: bytes, where: str) -> PackSummary:
    """Return what a `pack.json` says; `where` names its pack in errors.

    Raises:
        PackError: it is none, or of another version.
    """
    try:
        overrides = dict(json.loads(content))
        if (version := overrides.get("version")) != VERSION:
            raise PackError(f"{where}: a pack of version {version}, this is version {VERSION}; pack again")
        origins = tuple(Origin(**item) for item in overrides.get("origins", ()))
        lists = {"classes": tuple(overrides["classes"]), "sources": tuple(overrides["sources"]), "origins": origins}
        return PackSummary(**{**overrides, **lists})
    except (ValueError, TypeError, KeyError) as error:
        raise _not_whole(f"{where}/{CARD}") from error


def parse_index(content: bytes, where: str) -> pa.Table:
    """Return the index in the bytes of an `index.parquet`; `where` names its pack in errors.

    Raises:
        PackError: it is none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(pa.BufferReader(content))
    except (OSError, pa.ArrowException) as error:
        raise _not_whole(f"{where}/{INDEX}") from error


def spread(rows: npt.NDArray[np.int64], limit: int) -> npt.NDArray[np.int64]:
    """Return `most` of `rows` at most, evenly spread over them."""
    return rows[np.linspace(0, len(rows) - 1, min(limit, len(rows))).astype(np.int64)]


def _read_summary(root: Path) -> PackSummary:
    path = root / CARD
    if not path.is_file():
        raise PackError(f"{root}: no pack is here; `tilewise data pack` makes one")
    return parse_summary(path.read_bytes(), str(root))


def _read_index(root: Path) -> pa.Table:
    path = root / INDEX
    if not path.is_file():
        raise _not_whole(path)
    return parse_index(path.read_bytes(), str(root))


def _not_whole(path: Path | str) -> PackError:
    return PackError(f"{path}: missing or not whole; pack again with `tilewise data pack`")
