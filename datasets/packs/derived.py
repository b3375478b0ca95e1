"""One array file instead of a pack: what a machine needs that has torch and little else.

An `.npz` with `tiles` uint16 (n, 13, 64, 64) in DN (0 = no data, canonical band order), `labels` int64 (n,) and
`splits` (n,) as text; `classes` and `names` as text are optional. It is held in memory.
"""

import hashlib
import json
import os
import shutil
import zipfile
from collections import Counter
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewise.datasets.core.errors import PackError
from tilewise.datasets.core.tile import BAND_COUNT, TILE_SIZE
from tilewise.datasets.packs.pack import CARD, INDEX, PLANES, STATISTICS, VERSION, Pack, PackSummary
from tilewise.datasets.packs.statistics import measure, write_statistics


def without_classes(pack: Pack, left_out: tuple[str, ...], out: Path, splits: tuple[str, ...]) -> PackSummary:
    """Write the pack `out`: the tiles of `pack` in `splits` that are of none of the classes `left_out`.

    Pixels are linked, not copied. Statistics are measured anew, so that nothing tells of what was left out.

    Raises:
        PackError: the pack is not one on disk, has no such class, or would keep fewer than two classes.
    """
    classes = tuple(name for name in pack.summary.classes if name not in left_out)
    unknown = sorted(set(left_out) - set(pack.summary.classes))
    if unknown:
        raise PackError(f"{pack.root}: no class {', '.join(unknown)}; it has {', '.join(pack.summary.classes)}")
    if len(classes) < 2:
        raise PackError(f"{pack.root}: of {len(pack.summary.classes)} classes two must be left; leave out fewer")
    if not (pack.root / PLANES).is_file():
        raise PackError(f"{pack.root}: not a pack on disk; `tilewise data pack` makes one")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _link(pack.root / PLANES, partial / PLANES)
    summary = _write_index(pack, classes, partial, splits)
    write_statistics(measure(Pack(partial)), partial / STATISTICS)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return summary


def _write_index(pack: Pack, classes: tuple[str, ...], folder: Path, splits: tuple[str, ...]) -> PackSummary:
    import pyarrow.compute as pc  # a machine that only fits may have no pyarrow
    import pyarrow.parquet as pq

    names = np.array(pack.summary.classes)[pack.labels]
    kept = np.flatnonzero(np.isin(names, classes) & np.isin(pack.splits, splits))
    table = pack.index.take(kept)
    pq.write_table(table, folder / INDEX)
    counts = {
        split: dict(sorted(Counter(names[kept][pack.splits[kept] == split].tolist()).items()))
        for split in np.unique(pack.splits[kept]).tolist()
    }
    summary = replace(
        pack.summary,
        classes=classes,
        tiles=len(kept),
        data_hash=sha256(f"{pack.summary.data_hash} {','.join(classes)} {','.join(splits)}".encode()).hexdigest(),
        sources=tuple(sorted(pc.unique(table["source"]).to_pylist())),
        counts=counts,
    )
    (folder / CARD).write_text(json.dumps(asdict(summary), indent=2) + "\n", encoding="utf-8")
    return summary


def _link(file: Path, link: Path) -> None:
    """Give a file a second name, or point to it where the file system cannot."""
    try:
        os.link(file, link)
    except OSError:
        link.symlink_to(file.resolve())


SUFFIX = ".npz"
_SOURCE = "array"


class ArrayPack(Pack):
    """An array file, seen as a pack.

    Raises:
        PackError: the file is not such an array file.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        arrays = _read(root)
        tiles, self.labels = arrays["tiles"], arrays["labels"].astype(np.int64)
        self.splits, self.sources = arrays["splits"].astype(str), np.full(len(tiles), _SOURCE)
        self.planes = tiles.reshape(-1, TILE_SIZE, TILE_SIZE)  # type: ignore[assignment]  # as good as a map
        self.first_plane = np.arange(len(tiles)) * BAND_COUNT
        self.places = [np.arange(BAND_COUNT)] * len(tiles)
        self._names = arrays.get("names", np.arange(len(tiles))).astype(str)
        count = int(self.labels.max()) + 1
        classes = tuple(arrays.get("classes", np.array([f"class {n}" for n in range(count)])).astype(str).tolist())
        if count > len(classes) or self.labels.min() < 0:
            raise PackError(f"{root}: labels go up to {count - 1}, but it names {len(classes)} classes")
        self.summary = _summarise(self, classes)

    def __reduce__(self) -> tuple[type["ArrayPack"], tuple[Path]]:
        """Be sent to another process as a file's name."""
        return ArrayPack, (self.root,)

    def names(self, rows: npt.ArrayLike) -> list[str]:
        """Return the names of the tiles in `rows`."""
        return [str(name) for name in self._names[np.asarray(rows, np.int64)]]

    def statistics(self) -> list[dict[str, Any]]:
        """Return the per-band statistics of the train split, measured now."""
        return [asdict(band) for band in measure(self)]


def open_pack(path: Path) -> Pack:
    """Open the pack in the folder `path`, or the array file `path` (`.npz`)."""
    return ArrayPack(path) if path.suffix == SUFFIX else Pack(path)


def _read(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise PackError(f"{path}: not an array file that can be read: {error}") from error
    lacking = {"tiles", "labels", "splits"} - set(arrays)
    if lacking:
        raise PackError(f"{path}: lacks {', '.join(sorted(lacking))}")
    tiles, count = arrays["tiles"], len(arrays["tiles"])
    if tiles.dtype != np.uint16 or tiles.shape[1:] != (BAND_COUNT, TILE_SIZE, TILE_SIZE) or not count:
        raise PackError(f"{path}: tiles must be uint16 (n, 13, 64, 64), not {tiles.dtype} {tiles.shape}")
    if any(len(arrays[name]) != count for name in ("labels", "splits")):
        raise PackError(f"{path}: tiles, labels and splits are not equally many")
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
        sources=(_SOURCE,),
        split_method="given",
        counts={split: dict(sorted(found.items())) for split, found in sorted(counts.items())},
    )
