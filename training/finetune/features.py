"""The tiles that fine-tuning learns from: their pack, their places, and their embeddings by a model file."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tilewise.datasets.core.console import Report
from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.core.files import atomic_write
from tilewise.datasets.core.tile import DN
from tilewise.datasets.packs.pack import ARRAY_SUFFIX, CARD, Pack
from tilewise.datasets.packs.packing import write_pack
from tilewise.datasets.packs.splits import SplitPlan, tile_centres
from tilewise.datasets.readers.sources import Source
from tilewise.models.model_file import INPUT, ModelFile

Embeddings = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

TEST = "test"
_LEARNED = ("train", "val")
_MAX_ROWS = 8192  # views of tiles that a head is fitted to: fewer views of each where there are many tiles
_SYMMETRIES = 8
_BATCH = 64
_SIDES_KM = (50, 20, 10, 5, 2, 1)  # of the blocks that stay in one fold: the widest that can be divided
_MAX_BLOCK = 0.4  # of the tiles, in one block


def is_pack(path: Path) -> bool:
    """Return whether `path` is a pack or an array file, and not a folder of class folders."""
    return path.suffix == ARRAY_SUFFIX or (path / CARD).is_file()


def pack_tiles(sources: Sequence[Source], test: Sequence[Source], out: Path, progress: Report) -> Pack:
    """Pack folders of tiles to learn from, and others to test on, into the folder `out`.

    Raises:
        TrainingError: a name is in both, so that it cannot be told whether it is one place.
        TilewiseError: a tile is unreadable, or there is none.
    """
    tested = [replace(source, split=TEST) for source in test]
    names = [{file.name for source in part for file in source.files()} for part in (sources, tested)]
    if both := sorted(names[0] & names[1]):
        raise TrainingError(
            f"{len(both)} names are in --data and in --test, {both[0]} first; a name is one place, which "
            f"either trains or tests: rename or remove them in one folder"
        )
    write_pack([*sources, *tested], out, SplitPlan(fractions=(1, 0, 0)), progress)
    return Pack(out)


def learned_rows(pack: Pack) -> Ids:
    """Return the rows of the tiles to learn from: those of the splits train and val."""
    return np.flatnonzero(np.isin(pack.splits, _LEARNED))


def views_of_each(tiles: int) -> int:
    """Return how many of its eight rotations and reflections each of so many tiles is embedded in."""
    return int(np.clip(_MAX_ROWS // tiles, 1, _SYMMETRIES))


def embed(
    model: ModelFile, pack: Pack, rows: Ids, cache: Path, progress: Callable[[int], None]
) -> Embeddings:
    """Return float32 (views, n, features): the embeddings of the tiles in `rows`, the tile as it is first.

    Args:
        cache: a file (`.npz`) that is read if it is of the same tiles and the same model, else written.
        progress: called with the number of tiles that are done.
    """
    key = f"{pack.summary.data_hash} {model.sha256} {len(rows)}"
    if (known := _read(cache, key)) is not None:
        progress(len(rows))
        return known
    parts = []
    for start in range(0, len(rows), _BATCH):
        tiles = pack.fetch(rows[start : start + _BATCH])
        parts.append(_embed_views(model, tiles, views_of_each(len(rows))))
        progress(start + len(tiles))
    found = np.concatenate(parts, axis=1)
    with atomic_write(cache) as partial, partial.open("wb") as file:
        np.savez(file, key=np.array(key), embeddings=found)
    return found


def _read(cache: Path, key: str) -> Embeddings | None:
    try:
        with np.load(cache, allow_pickle=False) as stored:
            return stored["embeddings"] if str(stored["key"]) == key else None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # none, or a broken one
        return None


def _embed_views(model: ModelFile, tiles: DN, views: int) -> Embeddings:
    seen = [_turned(tiles, number) for number in range(views)]
    return np.stack([model.session.run(["embedding"], {INPUT: view})[0] for view in seen])


def _turned(tiles: DN, number: int) -> DN:
    """Return one of the symmetries of tiles (n, 13, 64, 64); 0: as they are."""
    mirrored = tiles[..., ::-1] if number % 2 else tiles
    return np.ascontiguousarray(np.rot90(mirrored, number // 2, axes=(2, 3)))


def places(pack: Pack, rows: Ids, folds: int) -> tuple[Ids, str]:
    """Return which tiles must stay in one fold, int64 (n,), and in words what they share.

    Tiles of one block of land do: the widest blocks that hold each class in `folds` places or more. Where
    tiles have no coordinates, or are too close to each other, only tiles of one name do.
    """
    names = np.unique(pack.names(rows), return_inverse=True)[1]
    centres = tile_centres(pack, rows)
    if np.isnan(centres).any():
        return names, "single tiles: they have no coordinates, so neighbours may be in different folds"
    for side in _SIDES_KM:
        blocks = np.unique(centres // (side * 1000), axis=0, return_inverse=True)[1].reshape(-1)
        if _divisible(blocks, pack.labels[rows], folds):
            return _joined(blocks, names), f"blocks of {side} km"
    return names, "single tiles: they are too close together for blocks, so neighbours are in different folds"


def _divisible(blocks: Ids, labels: Ids, folds: int) -> bool:
    spread = min(len(np.unique(blocks[labels == label])) for label in np.unique(labels))
    return spread >= folds and np.bincount(blocks).max() <= _MAX_BLOCK * len(blocks)


def _joined(blocks: Ids, names: Ids) -> Ids:
    """Return the blocks, with all tiles of a name in the block of its first."""
    first = np.unique(names, return_index=True)[1]
    return np.asarray(blocks[first][names])
