"""Write packs, whole or not at all: from folders of tiles, or from some classes of another pack."""

import errno
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tilewise.datasets.core.bands import positions
from tilewise.datasets.core.console import Report, silent
from tilewise.datasets.core.errors import PackError
from tilewise.datasets.core.tile import TILE_SIZE, Tile
from tilewise.datasets.packs.pack import (
    CARD,
    INDEX,
    PLANES,
    STATISTICS,
    VERSION,
    Pack,
    PackSummary,
    SourceOrigin,
)
from tilewise.datasets.packs.splits import SplitPlan, assign
from tilewise.datasets.packs.statistics import measure, write_statistics
from tilewise.datasets.readers.corrections import Correction, CorrectionCounts, count_corrections
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
    """Read every tile of `sources` and write the pack `out`; a former pack stays whole until the new one is.

    Tiles have the classes that `corrections` give them.

    Raises:
        PackError: a tile is unreadable, the disk is full (nothing half-written stays), or `out` is not a
            pack.
        SplitError: the plan does not fit the tiles.
        CorrectionsError: the corrections do not fit the tiles.
    """
    _refuse_other_folders(out)
    assign([], plan)  # wrong fractions and lists are reported before every tile is read
    counts = count_corrections(sources, corrections)
    with _new_folder(out) as folder:
        records = _write_planes(read_all(sources, progress, "packing", corrections), folder / PLANES)
        summary = _write_index(
            records, assign(records, plan, fixed_splits(sources)), sources, plan, counts, folder
        )
        write_statistics(measure(Pack(folder)), folder / STATISTICS)
    return summary


def without_classes(pack: Pack, left_out: tuple[str, ...], out: Path, splits: tuple[str, ...]) -> PackSummary:
    """Write the pack `out`: the tiles of `pack` in `splits` that are in none of the classes `left_out`.

    Pixels are linked, not copied. Statistics are measured anew, so that they do not depend on what was left
    out.

    Raises:
        PackError: the pack is not one on disk, has no such class, or would keep fewer than two classes.
    """
    classes = tuple(name for name in pack.summary.classes if name not in left_out)
    unknown = sorted(set(left_out) - set(pack.summary.classes))
    if unknown:
        raise PackError(
            f"{pack.root}: no class {', '.join(unknown)}; it has {', '.join(pack.summary.classes)}"
        )
    if len(classes) < 2:
        raise PackError(
            f"{pack.root}: of {len(pack.summary.classes)} classes two must be left; leave out fewer"
        )
    if not (pack.root / PLANES).is_file():
        raise PackError(f"{pack.root}: not a pack on disk; `tilewise data pack` makes one")
    with _new_folder(out) as folder:
        _link(pack.root / PLANES, folder / PLANES)
        summary = _write_part_of_index(pack, classes, folder, splits)
        write_statistics(measure(Pack(folder)), folder / STATISTICS)
    return summary


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Give a temporary folder beside `out`; when the block ends well it replaces `out`, else it is removed.

    Raises:
        PackError: the disk is full, or fails in another way.
    """
    target = out.resolve()
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        _replace(partial, target)
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise PackError(
                f"{out}: no space left on the disk while packing; free some and pack again"
            ) from error
        raise PackError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(new: Path, old: Path) -> None:
    """Rename the folder `new` to `old`, which is deleted only once it has been replaced."""
    aside = new.with_suffix(".old")
    shutil.rmtree(aside, ignore_errors=True)
    if old.exists():
        old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside, ignore_errors=True)


def _link(file: Path, link: Path) -> None:
    """Link a file hard, or by a symbolic link where the file system cannot."""
    try:
        os.link(file, link)
    except OSError:
        link.symlink_to(file.resolve())


def _refuse_other_folders(out: Path) -> None:
    """Refuse to replace a folder of something else: `--out data` must not delete the data."""
    if out.exists() and not (out / CARD).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise PackError(
            f"{out}: exists and is not a pack; pack into a new or an empty folder, or delete it first"
        )


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
    corrections: CorrectionCounts,
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
        counts=_counts([record.label for record in records], splits),
        relabelled=corrections.relabelled,
        left_out=corrections.left_out,
        origins=tuple(map(_origin, sources)),
    )
    _write_summary(summary, folder)
    return summary


def _write_part_of_index(
    pack: Pack, classes: tuple[str, ...], folder: Path, splits: tuple[str, ...]
) -> PackSummary:
    names = np.array(pack.summary.classes)[pack.labels]
    kept = np.flatnonzero(np.isin(names, classes) & np.isin(pack.splits, splits))
    table = pack.index.take(kept)
    pq.write_table(table, folder / INDEX)
    hashed = f"{pack.summary.data_hash} {','.join(classes)} {','.join(splits)}"
    summary = replace(
        pack.summary,
        classes=classes,
        tiles=len(kept),
        data_hash=hashlib.sha256(hashed.encode()).hexdigest(),
        sources=tuple(sorted(pc.unique(table["source"]).to_pylist())),
        counts=_counts(names[kept].tolist(), pack.splits[kept].tolist()),
    )
    _write_summary(summary, folder)
    return summary


def _write_summary(summary: PackSummary, folder: Path) -> None:
    (folder / CARD).write_text(json.dumps(asdict(summary), indent=2) + "\n", encoding="utf-8")


def _origin(source: Source) -> SourceOrigin:
    card = read_card(source.root)
    name, licence, origin, notes = (str(card.get(key, "")) for key in ("name", "licence", "origin", "notes"))
    return SourceOrigin(name or source.root.name, source.format.value, licence, origin, notes)


def index_table(records: Sequence[TileRecord], splits: Sequence[str]) -> pa.Table:
    """Return the index: the fields of TileRecord (bounds as four columns), the split and the first plane."""
    columns: dict[str, Any] = {
        item.name: [getattr(record, item.name) for record in records]
        for item in fields(TileRecord)
        if item.name != "bounds"
    }
    for index, side in enumerate(("left", "bottom", "right", "top")):
        columns[side] = pa.array([r.bounds[index] if r.bounds else None for r in records], pa.float64())
    planes = np.cumsum([0, *(len(record.bands) for record in records)])[:-1]
    return pa.table({**columns, "split": list(splits), "first_plane": planes.astype(np.int64)})


def data_hash(records: Sequence[TileRecord], splits: Sequence[str]) -> str:
    """Return a SHA-256 that changes with any pixel, name, class or split, and not with the order of files."""
    rows = sorted(
        f"{r.name}\t{r.source}\t{r.label}\t{s}\t{r.sha256}" for r, s in zip(records, splits, strict=True)
    )
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def _counts(labels: Sequence[str], splits: Sequence[str]) -> dict[str, dict[str, int]]:
    counted: dict[str, Counter[str]] = {}
    for label, split in zip(labels, splits, strict=True):
        counted.setdefault(split, Counter())[label] += 1
    return {split: dict(sorted(counts.items())) for split, counts in sorted(counted.items())}
