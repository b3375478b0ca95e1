"""Labels that a person has reviewed: a CSV that git versions, and that validation and packing apply.

    name,label,reviewer,why
    Forest_12,River,Ada,the river fills the tile
    Forest_99,_,Ada,nothing but cloud

A tile is known by its name (the file's stem), whatever its source: a name in two sources is the same place. Its
class is `label` in the place of its folder's name; `_` leaves it out. Newly labelled tiles go the same way: they lie
in a folder named for what a model answered, and the file says what a person saw.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from tilewise.datasets.core.bands import LEAVE_OUT
from tilewise.datasets.core.errors import CorrectionsError
from tilewise.datasets.readers.sources import Source, TileFile


@dataclass(frozen=True, slots=True)
class Correction:
    """What one person decided of one tile: its class (`_`: leave it out), who, and why."""

    name: str
    label: str
    reviewer: str
    why: str

    @property
    def leaves_out(self) -> bool:
        """Whether the tile is not to be used."""
        return self.label == LEAVE_OUT


@dataclass(frozen=True, slots=True)
class Tally:
    """What corrections do to a set of tiles.

    Attributes:
        relabelled: files whose class they change.
        left_out: files that they take out.
        unmet: names that they hold and no file has.
    """

    relabelled: int = 0
    left_out: int = 0
    unmet: tuple[str, ...] = ()


COLUMNS = tuple(item.name for item in fields(Correction))


def read_corrections(path: Path | None) -> tuple[Correction, ...]:
    """Return what the file says, in its order; nothing where there is no path.

    Raises:
        CorrectionsError: no such file, other columns, an empty cell, or a name said twice.
    """
    if path is None:
        return ()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise CorrectionsError(f"{path}: there is no such file; `tilewise data correct` begins one") from None
    except UnicodeDecodeError:
        raise CorrectionsError(f"{path}: not UTF-8; save the table as CSV in UTF-8") from None
    try:
        return _parse(text, path)
    except csv.Error as error:
        raise CorrectionsError(f"{path}: no CSV ({error}); the columns are {','.join(COLUMNS)}") from None


def write_corrections(path: Path, corrections: Iterable[Correction]) -> None:
    """Write the file, sorted by name so that two people's changes merge; whole, or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(item) for item in sorted(corrections, key=lambda item: item.name))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text.getvalue(), encoding="utf-8")
    partial.replace(path)


def record(path: Path, decided: Iterable[Correction]) -> None:
    """Write down decisions; a later one on the same tile takes the place of the earlier one.

    Raises:
        CorrectionsError: an empty cell, or the file is none of corrections.
    """
    known = {item.name: item for item in (read_corrections(path) if path.exists() else ())}
    for item in decided:
        known[item.name] = _sound(item, str(path))
    write_corrections(path, known.values())


def correct(files: Iterable[TileFile], corrections: Sequence[Correction]) -> list[TileFile]:
    """Return the files with their reviewed classes, in order, without those that are left out."""
    by_name = {item.name: item for item in corrections}
    kept = []
    for file in files:
        decided = by_name.get(file.name)
        if decided is None:
            kept.append(file)
        elif not decided.leaves_out:
            kept.append(replace(file, label=decided.label))
    return kept


def tally(sources: Sequence[Source], corrections: Sequence[Correction]) -> Tally:
    """Return what the corrections do to the files of `sources`.

    Raises:
        CorrectionsError: a class that no folder is named for, or a name under two classes of one source.
    """
    if not corrections:
        return Tally()
    found = [(source.root, file) for source in sources for file in source.files()]
    by_name = {item.name: item for item in corrections}
    _refuse_unknown_classes(corrections, {file.label for _, file in found})
    _refuse_ambiguous([(root, file.name) for root, file in found if file.name in by_name])
    met = [(file, by_name[file.name]) for _, file in found if file.name in by_name]
    names = {file.name for file, _ in met}
    return Tally(
        relabelled=sum(not overrides.leaves_out and overrides.label != file.label for file, overrides in met),
        left_out=sum(overrides.leaves_out for _, overrides in met),
        unmet=tuple(item.name for item in corrections if item.name not in names),
    )


def _parse(text: str, path: Path) -> tuple[Correction, ...]:
    reader = csv.DictReader(io.StringIO(text))
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise CorrectionsError(f"{path}: its columns are {reader.fieldnames}; they must be {','.join(COLUMNS)}")
    found: dict[str, Correction] = {}
    for row in reader:
        where = f"{path}: line {reader.line_num}"
        if None in row or None in row.values():
            raise CorrectionsError(f"{where}: {len(COLUMNS)} cells are wanted; put quotes around a text with commas")
        item = _sound(Correction(**{key: value.strip() for key, value in row.items()}), where)
        if item.name in found:
            raise CorrectionsError(f"{where}: {item.name} is said twice; keep the line that holds")
        found[item.name] = item
    return tuple(found.values())


def _sound(item: Correction, where: str) -> Correction:
    empty = [name for name, value in asdict(item).items() if not value.strip()]
    if empty:
        raise CorrectionsError(f"{where}: no {' and no '.join(empty)}; every cell is filled in, so that others can ask")
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
