"""Select served tiles that people should label, and write a review of them: a page, a table, the tiles.

    <review>/review.html        pictures; a click labels, a button saves decisions.csv
    <review>/review.csv         the same as a table, for a spreadsheet: fill in label and reviewer
    <review>/review.json        the classes that it offers
    <review>/tiles/served_….tif the tiles, since the log may delete them meanwhile

Only people label; `tilewise.datasets.quality.reviewed` keeps their decisions.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC
from pathlib import Path

from tilewise.datasets.core.bands import LEAVE_OUT
from tilewise.datasets.core.console import Report, silent
from tilewise.datasets.core.errors import ReviewError
from tilewise.datasets.core.radiometry import Level, ReadOptions
from tilewise.datasets.core.tile import Tile
from tilewise.datasets.packs.pack import CARD, Pack
from tilewise.datasets.quality.contact_sheet import SheetTile, render_review, tile_png
from tilewise.datasets.quality.reviewed import (
    AnswerOrigin,
    Decision,
    as_csv,
    read_reviewed,
    read_table,
    write_tile,
)
from tilewise.datasets.quality.served import Log, Served, by_doubt, fetch
from tilewise.datasets.readers.geotiff import read_tile

FILE = "decisions.csv"
TABLE, PAGE, SUMMARY, TILES = "review.csv", "review.html", "review.json", "tiles"
_LOCATION = ("file", "longitude", "latitude")
_ORIGIN = tuple(AnswerOrigin.__dataclass_fields__)
_DECISION = tuple(Decision.__dataclass_fields__)
_DIGITS = 4
_ADVICE = (
    "Tiles that a service answered: those flagged as unlike the training data and those least decided, in "
    "turn. Left in true colour, right vegetation in red. Choose what you see, not what was answered; leave "
    f"open what you are not sure of. Save {FILE} and run: tilewise data label {FILE}"
)


def known_pixels(pack: Path, reviewed: Path) -> set[str]:
    """Return the hashes of tiles that need no review: those of the pack, if any, and those reviewed."""
    of_pack = set(Pack(pack).index["sha256"].to_pylist()) if (pack / CARD).is_file() else set()
    return of_pack | {row.origin.sha256 for row in read_reviewed(reviewed).values()}


def choose(log: Log, known: Collection[str], level: Level | None, limit: int) -> list[Served]:
    """Return the `limit` tiles that a person should look at first, in that order.

    Args:
        log: the tiles that were served.
        known: hashes of tiles that are labelled already.
        level: level of tiles that were sent without one; None leaves those out, since they cannot train.
        limit: maximum number of tiles.
    """
    open_tiles = [
        tile if tile.level else replace(tile, level=level) for tile in log.tiles if tile.sha256 not in known
    ]
    return by_doubt([tile for tile in open_tiles if tile.level])[:limit]


def write_review(
    chosen: Sequence[Served], log: Path, folder: Path, reviewed: Path, progress: Report = silent
) -> list[Served]:
    """Write a review of the chosen tiles to `folder`, in their order.

    Returns:
        The tiles in the review: without any that a running service has deleted from its log since they were
        chosen.

    Raises:
        ReviewError: `folder` is not a review, or holds decisions that are not applied yet.
    """
    _refuse_other_folders(folder)
    _refuse_open_decisions(folder, reviewed)
    shutil.rmtree(folder / TILES, ignore_errors=True)
    (folder / TILES).mkdir(parents=True)
    pictures: dict[str, Tile] = {}
    for served, tile in fetch(log, {tile.sha256: tile for tile in chosen}, progress):
        pictures[served.sha256] = replace(tile, name=served.name, level=served.level)
        write_tile(pictures[served.sha256], folder / TILES / f"{served.name}.tif")
    chosen = [served for served in chosen if served.sha256 in pictures]
    classes = sorted({name for tile in chosen for name in tile.classes})
    (folder / SUMMARY).write_text(
        json.dumps({"classes": classes, "tiles": len(chosen)}) + "\n", encoding="utf-8"
    )
    (folder / TABLE).write_text(
        as_csv((*_DECISION, *_LOCATION, *_ORIGIN), map(_row, chosen)), encoding="utf-8"
    )
    shown = [(served, pictures[served.sha256]) for served in chosen]
    (folder / PAGE).write_text(_page(shown, classes), encoding="utf-8")
    return chosen


def read_decisions(path: Path, reviewer: str | None) -> list[Decision]:
    """Return people's decisions, from the page's file or the filled-in table, without open rows.

    Args:
        path: a CSV with the columns name, label, reviewer and why.
        reviewer: reviewer of rows that name none.

    Raises:
        ReviewError: no such table, a tile decided on twice, or a decision without a reviewer.
    """
    rows = [row for row in read_table(path, _DECISION) if row["label"]]
    decisions = [
        Decision(row["name"], row["label"], row["reviewer"] or (reviewer or ""), row["why"]) for row in rows
    ]
    seen: set[str] = set()
    for decision in decisions:
        if not decision.reviewer.strip():
            raise ReviewError(f"{path}: {decision.name} has no reviewer; name one with --reviewer NAME")
        if any(sign in decision.name + decision.label for sign in "/\\\n\r\0") or decision.label.startswith(
            "."
        ):
            raise ReviewError(
                f"{path}: {decision.name!r}, {decision.label!r}: names and classes have no folders"
            )
        if decision.name in seen:
            raise ReviewError(f"{path}: {decision.name} is decided on twice; keep the right line")
        seen.add(decision.name)
    return decisions


def with_tiles(
    decisions: Sequence[Decision], folder: Path, further: Collection[str] = ()
) -> Iterator[tuple[Decision, AnswerOrigin, Tile]]:
    """Return each decision with its tile's origin and pixels; all are checked before the first is returned.

    Args:
        decisions: people's decisions.
        folder: the review.
        further: classes that are allowed beside those that the review offers.

    Raises:
        ReviewError: a tile that is not under review, or an unknown class.
    """
    rows = read_table(folder / TABLE, ("name", *_ORIGIN))
    origins = {row["name"]: AnswerOrigin(*(row[key] for key in _ORIGIN)) for row in rows}
    offered = {*_offered(folder), *further}
    for decision in decisions:
        if decision.name not in origins:
            raise ReviewError(
                f"{decision.name} is not under review in {folder}; name its review with --review"
            )
        if decision.usable and decision.label not in offered:
            raise ReviewError(
                f"{decision.name}: no model knows a class {decision.label!r}; the classes are "
                f"{', '.join(sorted(offered))}; add a new one with --new-class"
            )
    return ((decision, origins[decision.name], _tile(folder, decision.name)) for decision in decisions)


def _page(tiles: Sequence[tuple[Served, Tile]], classes: Sequence[str]) -> str:
    """Return the page as HTML: each tile with a button for each class and one for none of them."""
    choices = (*((name, name) for name in classes), (LEAVE_OUT, "none of these"))
    shown = [
        SheetTile(served.name, tile_png(tile), _lines(served), choices=choices) for served, tile in tiles
    ]
    return render_review(f"{len(shown):,} tiles to label", _ADVICE, shown, FILE)


def _lines(served: Served) -> tuple[str, ...]:
    """Return lines of text for the reviewer: the answer, why the tile was selected, and its origin."""
    answer = (
        f"answered {served.answered} ({served.confidence:.2f}), next {served.second} ({served.p_second:.2f})"
    )
    origin = [f"{served.when:%Y-%m-%d %H:%M} UTC", f"model {served.version}"]
    if served.centre:
        origin.append(f"{served.centre[1]:.4f}, {served.centre[0]:.4f}")
    if served.file:
        origin.append(served.file)
    outlier = (
        (f"unlike the training data: outlier score {served.outlier_score:.3g}",) if served.outlier else ()
    )
    return (answer, *outlier, ", ".join(origin))


def _offered(folder: Path) -> list[str]:
    try:
        return [str(name) for name in json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["classes"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReviewError(
            f"{folder / SUMMARY}: missing or incomplete; run `tilewise data review` again"
        ) from error


def _tile(folder: Path, name: str) -> Tile:
    return read_tile(folder / TILES / f"{name}.tif", ReadOptions(), name)


def _row(served: Served) -> dict[str, object]:
    longitude, latitude = served.centre or ("", "")
    location = (_harmless(served.file), longitude, latitude)
    return {"name": served.name, **dict(zip(_LOCATION, location, strict=True)), **asdict(_origin(served))}


def _harmless(name: str) -> str:
    """Return a client's file name so that a spreadsheet does not take it for a formula."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name


def _origin(served: Served) -> AnswerOrigin:
    return AnswerOrigin(
        served=served.when.astimezone(UTC).isoformat(timespec="seconds"),
        request_id=served.request_id,
        answered=served.answered,
        confidence=f"{served.confidence:.{_DIGITS}f}",
        outlier_score="" if served.outlier_score is None else f"{served.outlier_score:.{_DIGITS}g}",
        model=served.model,
        version=served.version,
        model_sha256=served.model_sha256,
        sha256=served.sha256,
    )


def _refuse_other_folders(folder: Path) -> None:
    if (
        folder.exists()
        and not (folder / SUMMARY).is_file()
        and (not folder.is_dir() or any(folder.iterdir()))
    ):
        raise ReviewError(f"{folder}: exists and is not a review; name a new or an empty folder with --out")


def _refuse_open_decisions(folder: Path, reviewed: Path) -> None:
    """Refuse to overwrite a table that a person filled in."""
    if not (folder / TABLE).is_file():
        return
    applied = read_reviewed(reviewed)
    filled = [row["name"] for row in read_table(folder / TABLE, ("name", "label")) if row["label"]]
    waiting = [name for name in filled if name not in applied]
    if waiting:
        raise ReviewError(
            f"{folder / TABLE}: {len(waiting)} decisions wait in it; "
            f"apply them with `tilewise data label {folder / TABLE}`, or name another --out"
        )
