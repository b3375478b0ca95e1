"""One array file instead of a pack: what a machine needs that has torch and little else.

An `.npz` with `tiles` uint16 (n, 13, 64, 64) in DN (0 = no data, canonical band order), `labels` int64 (n,) and
`splits` (n,) as text; `classes` and `names` as text are optional. It is held in memory.
"""

import hashlib
import zipfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datasets.errors import PackError
from datasets.pack import VERSION, Pack, PackSummary
from datasets.statistics import measure
from datasets.tile import BAND_COUNT, TILE_SIZE

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
