"""A pack without some of its classes: an index of its own over the same pixels."""

import json
import os
import shutil
from collections import Counter
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datasets.errors import PackError
from datasets.pack import CARD, INDEX, PLANES, STATISTICS, Pack, PackSummary
from datasets.statistics import measure, write_statistics


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
        raise PackError(f"{pack.root}: not a pack on disk; `python -m datasets pack` makes one")
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
