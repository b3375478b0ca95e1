"""Corrected labels: a CSV that git versions, and that validation and packing apply.

    name,label,reviewer,why
    Forest_12,River,Ada,the river fills the tile
    Forest_99,_,Ada,nothing but cloud

A tile is identified by its name (the file's stem), whatever its source: a name in two sources is the same
location. Its class is `label` instead of its folder's name; `_` leaves it out.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from tilewise.datasets.core.bands import LEAVE_OUT
from tilewise.datasets.core.errors import CorrectionsError
from tilewise.datasets.core.files import atomic_write
from tilewise.datasets.readers.sources import Source, TileFile


@dataclass(frozen=True, slots=True)
class Correction:
    """One person's decision on one tile: its class (`_`: leave it out), the reviewer and the reason."""

    name: str
    label: str
    reviewer: str
    why: str

    @property
    def leaves_out(self) -> bool:
        """Whether the tile is left out."""
        return self.label == LEAVE_OUT


@dataclass(frozen=True, slots=True)
class CorrectionCounts:
    """How corrections apply to a set of tiles.

    Attributes:
        relabelled: number of files whose class they change.
        left_out: number of files that they leave out.
        unmatched: corrected names that no file has.
    """

    relabelled: int = 0
    left_out: int = 0
    unmatched: tuple[str, ...] = ()


COLUMNS = tuple(item.name for item in fields(Correction))


def read_corrections(path: Path | None) -> tuple[Correction, ...]:
    """Return the corrections in a file, in its order; none where `path` is None.

    Raises:
        CorrectionsError: no such file, other columns, an empty cell, or a name that occurs twice.
    """
    if path is None:
        return ()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise CorrectionsError(
            f"{path}: there is no such file; `tilewise data correct` creates one"
        ) from None
    except UnicodeDecodeError:
        raise CorrectionsError(f"{path}: not UTF-8; save the table as CSV in UTF-8") from None
    try:
        return _parse(text, path)
    except csv.Error as error:
        raise CorrectionsError(f"{path}: not a CSV ({error}); the columns are {','.join(COLUMNS)}") from None


def write_corrections(path: Path, corrections: Iterable[Correction]) -> None:
    """Write a file of corrections, sorted by name so that git can merge; whole, or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(item) for item in sorted(corrections, key=lambda item: item.name))
    with atomic_write(path) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8")


def record(path: Path, decided: Iterable[Correction]) -> None:
    """Add decisions to a file of corrections; a later one on the same tile replaces the earlier one.

    Raises:
        CorrectionsError: an empty cell, or the file is not one of corrections.
    """
    known = {item.name: item for item in (read_corrections(path) if path.exists() else ())}
    for item in decided:
        known[item.name] = _checked(item, str(path))
    write_corrections(path, known.values())


def correct(files: Iterable[TileFile], corrections: Sequence[Correction]) -> list[TileFile]:
    """Return the files with their corrected classes, in order, without those that are left out."""
    by_name = {item.name: item for item in corrections}
    kept = []
    for file in files:
        correction = by_name.get(file.name)
        if correction is None:
            kept.append(file)
        elif not correction.leaves_out:
            kept.append(replace(file, label=correction.label))
    return kept


def count_corrections(sources: Sequence[Source], corrections: Sequence[Correction]) -> CorrectionCounts:
    """Return how the corrections apply to the files of `sources`.

    Raises:
        CorrectionsError: a class that no folder has, or a name under two classes of one source.
    """
    if not corrections:
        return CorrectionCounts()
    found = [(source.root, file) for source in sources for file in source.files()]
    by_name = {item.name: item for item in corrections}
    _refuse_unknown_classes(corrections, {file.label for _, file in found})
    _refuse_ambiguous([(root, file.name) for root, file in found if file.name in by_name])
    matched = [(file, by_name[file.name]) for _, file in found if file.name in by_name]
    names = {file.name for file, _ in matched}
    return CorrectionCounts(
        relabelled=sum(not item.leaves_out and item.label != file.label for file, item in matched),
        left_out=sum(item.leaves_out for _, item in matched),
        unmatched=tuple(item.name for item in corrections if item.name not in names),
    )


def _parse(text: str, path: Path) -> tuple[Correction, ...]:
    reader = csv.DictReader(io.StringIO(text))
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise CorrectionsError(
            f"{path}: its columns are {reader.fieldnames}; they must be {','.join(COLUMNS)}"
        )
    found: dict[str, Correction] = {}
    for row in reader:
        where = f"{path}: line {reader.line_num}"
        if None in row or None in row.values():
            raise CorrectionsError(
                f"{where}: {len(COLUMNS)} cells are needed; put quotes around a text with commas"
            )
        item = _checked(Correction(**{key: value.strip() for key, value in row.items()}), where)
        if item.name in found:
            raise CorrectionsError(f"{where}: {item.name} occurs twice; keep the right line")
        found[item.name] = item
    return tuple(found.values())


def _checked(item: Correction, where: str) -> Correction:
    """Return the correction; raise CorrectionsError where a cell is empty, or a name leads into a folder."""
    empty = [name for name, value in asdict(item).items() if not value.strip()]
    if empty:
        raise CorrectionsError(
            f"{where}: no {' and no '.join(empty)}; every cell is filled in, so that others can ask"
        )
    if any(sign in item.name + item.label for sign in "/\\\n\r\0"):
        raise CorrectionsError(f"{where}: {item.name!r}, {item.label!r}: a name has no folder")
    return item


def _refuse_unknown_classes(corrections: Sequence[Correction], classes: set[str]) -> None:
    for item in corrections:
        if not item.leaves_out and item.label not in classes:
            raise CorrectionsError(
                f"{item.name} is corrected to {item.label!r}, but no folder has that class; "
                f"the classes are {', '.join(sorted(classes))}"
            )


def _refuse_ambiguous(files: Sequence[tuple[Path, str]]) -> None:
    twice = sorted(f"{name} in {root}" for (root, name), count in Counter(files).items() if count > 1)
    if twice:
        raise CorrectionsError(f"{twice[0]}: a name under two classes cannot be corrected; rename the files")
