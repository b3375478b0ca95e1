"""Divide tiles into train, val and test splits.

By published lists of names; stratified at random, by a hash of the name, so that the order of files does not
matter; or by spatial blocks, so that near neighbours never straddle a split.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from rasterio.warp import transform

from tilewise.datasets.core.errors import SplitError
from tilewise.datasets.packs.pack import UNLABELLED, Pack
from tilewise.datasets.readers.records import TileRecord

SPLITS = ("train", "val", "test")
KNOWN_SPLITS = (*SPLITS, UNLABELLED)
EQUAL_AREA = "EPSG:6933"  # metres, the whole Earth: blocks have one size everywhere
_SIDES = ("left", "bottom", "right", "top")


class SplitMethod(StrEnum):
    """How tiles are divided into splits."""

    LISTS = "lists"
    RANDOM = "random"
    SPATIAL = "spatial"


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """How to divide tiles into train, val and test.

    Attributes:
        method: by published lists, at random, or by spatial blocks.
        lists: folder of lists (`*train*.txt`, `*val*.txt`, `*test*.txt`, one name a line), for `lists`.
        fractions: fractions of train, val and test, for the others; they sum to 1.
        seed: seed of the draw of the others.
        block_km: side of a spatial block in km, above 0.
    """

    method: SplitMethod = SplitMethod.RANDOM
    lists: Path | None = None
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2)
    seed: int = 0
    block_km: float = 50.0


def shown_splits(counts: Mapping[str, Mapping[str, int]]) -> tuple[str, ...]:
    """Return the splits to show of `counts`, {split: {class: tiles}}: the usual ones, others if used."""
    return tuple(split for split in KNOWN_SPLITS if split in SPLITS or counts.get(split))


def assign(
    records: Sequence[TileRecord], plan: SplitPlan, fixed: Mapping[str, str] = MappingProxyType({})
) -> list[str]:
    """Return the split of each record, in order. A name is always in one split, whatever its source.

    Args:
        records: the tiles.
        plan: how they are divided.
        fixed: {name: split} of tiles whose split is fixed (`tilewise.datasets.readers.sources.fixed_splits`).

    Raises:
        SplitError: a tile is in no list or in two, or has no coordinates; or fractions or blocks are out of
            range.
    """
    if wrong := set(fixed.values()) - set(KNOWN_SPLITS):
        raise SplitError(
            f"a folder's card puts its tiles into the split {min(wrong)!r}; "
            f"it is one of {', '.join(KNOWN_SPLITS)}"
        )
    planned = [record for record in records if record.name not in fixed]
    split_of = {**dict(zip([r.name for r in planned], _planned(planned, plan), strict=True)), **fixed}
    return [split_of[record.name] for record in records]


def _planned(records: Sequence[TileRecord], plan: SplitPlan) -> list[str]:
    if plan.method is SplitMethod.LISTS:
        split_of = read_lists(plan.lists)
        return [_listed(record.name, split_of, plan.lists) for record in records]
    if not (min(plan.fractions) >= 0 and abs(sum(plan.fractions) - 1) <= 1e-6):
        raise SplitError(
            f"shares of train, val and test must be 0 or more and sum to 1, not {plan.fractions}"
        )
    if not 0 < plan.block_km < math.inf:
        raise SplitError(f"the side of a spatial block must be above 0 km, not {plan.block_km:g}")
    groups = _blocks(records, plan) if plan.method is SplitMethod.SPATIAL else _strata(records)
    return _assign_groups(records, groups, plan)


def read_lists(folder: Path | None) -> dict[str, str]:
    """Return {tile name: split} from the list files in `folder`; names may carry an extension.

    Raises:
        SplitError: a list is missing or empty, or a name is in two lists.
    """
    if folder is None or not folder.is_dir():
        raise SplitError(
            f"{folder}: no folder of split lists; `tilewise data fetch eurosat-splits` makes one"
        )
    split_of: dict[str, str] = {}
    for split in SPLITS:
        for name in _read_list(folder, split):
            if split_of.setdefault(name, split) != split:
                raise SplitError(f"{folder}: {name} is in the lists of {split_of[name]} and {split}")
    return split_of


def _read_list(folder: Path, split: str) -> list[str]:
    paths = sorted(folder.glob(f"*{split}*.txt"))
    if len(paths) != 1:
        raise SplitError(f"{folder}: one list *{split}*.txt is needed, but there are {len(paths)}")
    lines = paths[0].read_text(encoding="utf-8-sig").splitlines()
    names = [line.strip().rsplit(".", 1)[0] for line in lines if line.strip()]
    if not names:
        raise SplitError(f"{paths[0]}: the list is empty")
    return names


def _listed(name: str, split_of: Mapping[str, str], folder: Path | None) -> str:
    if name not in split_of:
        raise SplitError(f"{name} is in none of the lists in {folder}")
    return split_of[name]


def _strata(records: Sequence[TileRecord]) -> dict[str, dict[str, list[str]]]:
    """Group names as {class: {name: [name]}}: within a class, each name is assigned by itself.

    The class is the one before review: a corrected label must not move other tiles into another split.
    """
    strata: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for record in records:
        strata[record.given or record.label][record.name] = [record.name]
    return strata


def _blocks(records: Sequence[TileRecord], plan: SplitPlan) -> dict[str, dict[str, list[str]]]:
    """Group names as {"": {block: names}}: whole blocks are assigned."""
    blocks: dict[str, list[str]] = defaultdict(list)
    for record in records:
        blocks[_block_of(record, plan.block_km * 1000)].append(record.name)
    return {"": {block: sorted(set(names)) for block, names in blocks.items()}}


def _block_of(record: TileRecord, side: float) -> str:
    if record.bounds is None:
        raise SplitError(
            f"{record.name}: no coordinates, so it has no spatial block; split by lists or at random"
        )
    left, bottom, right, top = record.bounds
    xs, ys = transform(record.crs, EQUAL_AREA, [(left + right) / 2], [(bottom + top) / 2])
    return f"{int(xs[0] // side)}/{int(ys[0] // side)}"


def tile_centres(pack: Pack, rows: npt.NDArray[np.int64], crs: str = EQUAL_AREA) -> npt.NDArray[np.float64]:
    """Return float64 (rows, 2): x and y of the tiles' centres in `crs`; NaN where one has no coordinates."""
    found = np.full((len(rows), 2), np.nan)
    if not hasattr(pack, "index"):  # an array file has no coordinates
        return found
    table = pack.index.select(["crs", *_SIDES]).take(rows).to_pydict()
    codes = np.array([text or "" for text in table["crs"]])
    sides = np.array([table[side] for side in _SIDES], np.float64)  # None becomes NaN
    centres = np.stack([(sides[0] + sides[2]) / 2, (sides[1] + sides[3]) / 2], axis=1)
    located = (codes != "") & np.isfinite(centres).all(axis=1)
    for code in np.unique(codes[located]):
        of_code = located & (codes == code)
        found[of_code] = np.stack(transform(str(code), crs, *centres[of_code].T)[:2], axis=1)
    return found


def _assign_groups(
    records: Sequence[TileRecord], groups: dict[str, dict[str, list[str]]], plan: SplitPlan
) -> list[str]:
    """Assign the groups of each stratum to the splits, in the order of their hashes, by the fractions."""
    split_of: dict[str, str] = {}
    for stratum in groups.values():
        total, done = sum(map(len, stratum.values())), 0
        for group in sorted(stratum, key=lambda group: _hash(group, plan.seed)):
            middle = (done + len(stratum[group]) / 2) / total
            split = _split_at(middle, plan.fractions)
            split_of.update(dict.fromkeys(stratum[group], split))
            done += len(stratum[group])
    return [split_of[record.name] for record in records]


def _split_at(position: float, fractions: tuple[float, float, float]) -> str:
    if position < fractions[0]:
        return "train"
    return "val" if position < fractions[0] + fractions[1] else "test"


def _hash(text: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()
