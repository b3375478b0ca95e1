"""Writing a pack (see `tilewise.datasets.packs.pack` for what it is): whole, or not at all."""

import errno
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tilewise.datasets.core.bands import positions
from tilewise.datasets.core.console import Report, silent
from tilewise.datasets.core.errors import PackError
from tilewise.datasets.core.tile import TILE_SIZE, Tile
from tilewise.datasets.packs.pack import CARD, INDEX, PLANES, STATISTICS, VERSION, Origin, Pack, PackSummary
from tilewise.datasets.packs.splits import SplitPlan, assign
from tilewise.datasets.packs.statistics import measure, write_statistics
from tilewise.datasets.readers.corrections import Correction, Tally, tally
from tilewise.datasets.readers.records import TileRecord, Unreadable, read_all
from tilewise.datasets.readers.sources import Source, fixed_splits, read_card

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_pack(
    sources: Sequence[Source],
    out: Path,
    plan: SplitPlan,
    progress: Report = silent,
    corrections: Sequence[Correction] = (),
) -> PackSummary:
    """Read every tile of `sources` and write the pack `out`; an old pack stays whole until the new one is.

    Tiles have the classes that `corrections` give them.

    Raises:
        PackError: a tile is unreadable, the disk is full (nothing half-written stays), or `out` is something
            else than a pack.
        SplitError: the plan does not fit the tiles.
        CorrectionsError: the corrections do not fit the tiles.
    """
    _spare_what_is_no_pack(out)
    assign([], plan)  # shares and lists that cannot be are said before every tile is read
    corrected = tally(sources, corrections)
    target = out.resolve()
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        records = _write_planes(read_all(sources, progress, "packing", corrections), partial / PLANES)
        summary = _write_index(records, assign(records, plan, fixed_splits(sources)), sources, plan, corrected, partial)
        write_statistics(measure(Pack(partial)), partial / STATISTICS)
        _replace(partial, target)
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise PackError(f"{out}: no space left on the disk while packing; free some and pack again") from error
        raise PackError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return summary


def _spare_what_is_no_pack(out: Path) -> None:
    """Refuse to replace a folder of something else: `--out data` must not delete the data."""
    if out.exists() and not (out / CARD).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise PackError(f"{out}: exists and is no pack; pack into a new or an empty folder, or delete it first")


def _write_planes(outcomes: Iterable[tuple[TileRecord, Tile] | Unreadable], path: Path) -> list[TileRecord]:
    records = []
    with path.open("wb") as file:
        for outcome in outcomes:
            if isinstance(outcome, Unreadable):
                raise PackError(f"{outcome.reason}; `tilewise data validate` lists every such tile")
            record, tile = outcome
            if tile.pixels.shape[1:] != (TILE_SIZE, TILE_SIZE):
                raise PackError(f"{record.name}: a packed tile has {TILE_SIZE} × {TILE_SIZE} pixels")
            file.write(tile.pixels[positions(record.bands)].astype("<u2").tobytes())
            records.append(record)
    return records


def _write_index(
    records: list[TileRecord],
    splits: list[str],
    sources: Sequence[Source],
    plan: SplitPlan,
    corrected: Tally,
    folder: Path,
) -> PackSummary:
    table = index_table(records, splits)
    pq.write_table(table, folder / INDEX)
    summary = PackSummary(
        version=VERSION,
        classes=tuple(sorted({record.label for record in records})),
        tiles=len(records),
        planes=sum(len(record.bands) for record in records),
        data_hash=data_hash(records, splits),
        synthetic=any(source.synthetic for source in sources),
        sources=tuple(sorted({record.source for record in records})),
        split_method=plan.method.value,
        counts=_counts(records, splits),
        relabelled=corrected.relabelled,
        left_out=corrected.left_out,
        origins=tuple(map(_origin, sources)),
    )
    (folder / CARD).write_text(json.dumps(asdict(summary), indent=2) + "\n", encoding="utf-8")
    return summary


def _origin(source: Source) -> Origin:
    overrides = read_card(source.root)
    name, licence, origin, notes = (str(overrides.get(key, "")) for key in ("name", "licence", "origin", "notes"))
    return Origin(name or source.root.name, source.format.value, licence, origin, notes)


def index_table(records: Sequence[TileRecord], splits: Sequence[str]) -> pa.Table:
    """Return the index: the fields of TileRecord (bounds as four columns), the split and the first plane."""
    columns: dict[str, Any] = {
        item.name: [getattr(record, item.name) for record in records]
        for item in fields(TileRecord)
        if item.name != "bounds"
    }
    for place, side in enumerate(("left", "bottom", "right", "top")):
        columns[side] = pa.array([r.bounds[place] if r.bounds else None for r in records], pa.float64())
    planes = np.cumsum([0, *(len(record.bands) for record in records)])[:-1]
    return pa.table({**columns, "split": list(splits), "first_plane": planes.astype(np.int64)})


def data_hash(records: Sequence[TileRecord], splits: Sequence[str]) -> str:
    """Return a SHA-256 that changes with any pixel, name, class or split, not with the order of files."""
    rows = sorted(f"{r.name}\t{r.source}\t{r.label}\t{s}\t{r.sha256}" for r, s in zip(records, splits, strict=True))
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def _counts(records: Sequence[TileRecord], splits: Sequence[str]) -> dict[str, dict[str, int]]:
    counted: dict[str, Counter[str]] = {}
    for record, split in zip(records, splits, strict=True):
        counted.setdefault(split, Counter())[record.label] += 1
    return {split: dict(sorted(counts.items())) for split, counts in sorted(counted.items())}


def _replace(new: Path, old: Path) -> None:
    """Put the folder `new` in the place of `old`, which is deleted only once it has been replaced."""
    aside = new.with_suffix(".old")
    shutil.rmtree(aside, ignore_errors=True)
    if old.exists():
        old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside, ignore_errors=True)
