"""Which of a service's answers people should look at, laid out for them: pictures to label, a table, the tiles.

    <review>/review.html        pictures; a click labels, a button saves decisions.csv
    <review>/review.csv         the same as a table: whoever prefers a spreadsheet fills in label and reviewer
    <review>/review.json        which classes it offers
    <review>/tiles/served_….tif the tiles, so that the log may forget them meanwhile

Nothing is labelled but by a person; `tilewise.datasets.quality.reviewed` takes up what they decided.
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
from tilewise.datasets.core.pictures import Card, Form, draw_sheet, picture_of
from tilewise.datasets.core.radiometry import Level, ReadOptions
from tilewise.datasets.core.tile import Tile
from tilewise.datasets.packs.pack import CARD, Pack
from tilewise.datasets.quality.reviewed import Decision, Origin, as_csv, read_reviewed, read_table, write_tile
from tilewise.datasets.quality.served import Log, Served, by_doubt, fetch
from tilewise.datasets.readers.geotiff import read_tile

FILE = "decisions.csv"

_FORM = f"""<form>
<label>Reviewer <input id="reviewer" autocomplete="name" required></label>
<output id="count" aria-live="polite"></output>
<button id="save" type="button">Save {FILE}</button>
<noscript>This browser runs no scripts: fill in label and reviewer in review.csv instead.</noscript>
</form>"""

_SCRIPT = f"""
"use strict";
const groups = [...document.querySelectorAll("fieldset[data-tile]")];
const reviewer = document.getElementById("reviewer");
const key = name => "tilewise.review." + name;
const kept = {{
  get(name) {{ try {{ return localStorage.getItem(key(name)); }} catch {{ return null; }} }},
  set(name, value) {{ try {{ localStorage.setItem(key(name), value); }} catch {{ /* a private window */ }} }},
}};
const chosen = group => group.querySelector("input:checked")?.value ?? "";
function show() {{
  const decided = groups.filter(chosen);
  for (const group of groups) group.closest("figure").classList.toggle("decided", decided.includes(group));
  document.getElementById("count").textContent = `${{decided.length}} of ${{groups.length}} decided`;
}}
for (const group of groups) {{
  const before = kept.get(group.dataset.tile);
  for (const input of group.querySelectorAll("input")) input.checked = input.value === before;
  group.addEventListener("change", () => {{ kept.set(group.dataset.tile, chosen(group)); show(); }});
}}
reviewer.value = kept.get("reviewer") ?? "";
reviewer.addEventListener("change", () => kept.set("reviewer", reviewer.value));
const cell = text => `"${{text.replaceAll('"', '""')}}"`;
document.getElementById("save").addEventListener("click", () => {{
  if (!reviewer.reportValidity()) return;
  const rows = groups.filter(chosen).map(group => [group.dataset.tile, chosen(group), reviewer.value, ""]);
  const text = [["name", "label", "reviewer", "why"], ...rows].map(row => row.map(cell).join(",")).join("\\n") + "\\n";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {{type: "text/csv"}}));
  link.download = "{FILE}";
  link.click();
  URL.revokeObjectURL(link.href);
}});
document.querySelector("form").addEventListener("submit", event => event.preventDefault());
show();
"""


def draw_review(tiles: Sequence[tuple[Served, Tile]], classes: Sequence[str]) -> str:
    """Return the page as HTML: a card a tile, with a button for each class and one for what fits none."""
    choices = (*((name, name) for name in classes), (LEAVE_OUT, "none of these"))
    cards = [Card(served.name, picture_of(tile), words_of(served), choices=choices) for served, tile in tiles]
    return draw_sheet(f"{len(cards):,} tiles to label", _advice(), cards, Form(_FORM, _SCRIPT))


def words_of(served: Served) -> tuple[str, ...]:
    """Return what a reviewer should know of a tile, a line each: the answer, why it is here, and where it came from."""
    answer = f"answered {served.answered} ({served.confidence:.2f}), next {served.second} ({served.p_second:.2f})"
    origin = [f"{served.when:%Y-%m-%d %H:%M} UTC", f"model {served.version}"]
    if served.place:
        origin.append(f"{served.place[1]:.4f}, {served.place[0]:.4f}")
    if served.file:
        origin.append(served.file)
    strange = (f"unlike the training data: outlier score {served.outlier_score:.3g}",) if served.outlier else ()
    return (answer, *strange, ", ".join(origin))


def _advice() -> str:
    return (
        "Tiles that a service answered: those flagged as unlike the training data and those least decided, in turn. "
        "Left as the eye sees them, right vegetation in red. Choose what you see, not what was answered; leave open "
        f"what you are not sure of. Save {FILE} and hand it to: tilewise data label {FILE}"
    )


TABLE, PAGE, NOTES, TILES = "review.csv", "review.html", "review.json", "tiles"
_PLACE = ("file", "longitude", "latitude")
_ORIGIN = tuple(Origin.__dataclass_fields__)
_DECISION = tuple(Decision.__dataclass_fields__)
_DIGITS = 4


def known_pixels(pack: Path, reviewed: Path) -> set[str]:
    """Return the hashes of tiles that need no review: those of the pack, if there is one, and those decided on."""
    of_pack = set(Pack(pack).index["sha256"].to_pylist()) if (pack / CARD).is_file() else set()
    return of_pack | {row.origin.sha256 for row in read_reviewed(reviewed).values()}


def choose(log: Log, known: Collection[str], level: Level | None, limit: int) -> list[Served]:
    """Return the `most` tiles that a person should look at first, in that order.

    Args:
        known: hashes of tiles that are labelled already.
        level: of tiles that were sent without one; None leaves those out: nobody could train on them.
    """
    fit = [tile if tile.level else replace(tile, level=level) for tile in log.tiles if tile.sha256 not in known]
    return by_doubt([tile for tile in fit if tile.level])[:limit]


def write_review(
    chosen: Sequence[Served], log: Path, folder: Path, reviewed: Path, progress: Report = silent
) -> list[Served]:
    """Lay the chosen tiles out in `folder`, in their order.

    Returns:
        Those that were laid out: not any that a running service has deleted from its log since they were chosen.

    Raises:
        ReviewError: `folder` is something else, or holds decisions that nobody took up.
    """
    _spare_what_others_made(folder)
    _spare_decisions(folder, reviewed)
    shutil.rmtree(folder / TILES, ignore_errors=True)
    (folder / TILES).mkdir(parents=True)
    pictures: dict[str, Tile] = {}
    for served, tile in fetch(log, {tile.sha256: tile for tile in chosen}, progress):
        pictures[served.sha256] = replace(tile, name=served.name, level=served.level)
        write_tile(pictures[served.sha256], folder / TILES / f"{served.name}.tif")
    chosen = [served for served in chosen if served.sha256 in pictures]
    classes = sorted({name for tile in chosen for name in tile.classes})
    (folder / NOTES).write_text(json.dumps({"classes": classes, "tiles": len(chosen)}) + "\n", encoding="utf-8")
    (folder / TABLE).write_text(as_csv((*_DECISION, *_PLACE, *_ORIGIN), map(_row, chosen)), encoding="utf-8")
    shown = [(served, pictures[served.sha256]) for served in chosen]
    (folder / PAGE).write_text(draw_review(shown, classes), encoding="utf-8")
    return chosen


def read_decisions(path: Path, reviewer: str | None) -> list[Decision]:
    """Return what people decided, from the page's file or from the table that they filled in; open rows are left out.

    Args:
        reviewer: of rows that name none.

    Raises:
        ReviewError: no such table, a tile decided on twice, or a decision that nobody signed.
    """
    rows = [row for row in read_table(path, _DECISION) if row["label"]]
    decisions = [Decision(row["name"], row["label"], row["reviewer"] or (reviewer or ""), row["why"]) for row in rows]
    seen: set[str] = set()
    for decision in decisions:
        if not decision.reviewer.strip():
            raise ReviewError(f"{path}: nobody signed for {decision.name}; say who looked with --reviewer NAME")
        if any(sign in decision.name + decision.label for sign in "/\\\n\r\0") or decision.label.startswith("."):
            raise ReviewError(f"{path}: {decision.name!r}, {decision.label!r}: names and classes have no folders")
        if decision.name in seen:
            raise ReviewError(f"{path}: {decision.name} is decided on twice; keep the line that holds")
        seen.add(decision.name)
    return decisions


def with_tiles(
    decisions: Sequence[Decision], folder: Path, further: Collection[str] = ()
) -> Iterator[tuple[Decision, Origin, Tile]]:
    """Return each decision with the answer and the tile in `folder` that it is about; all are checked before the first.

    Args:
        further: classes that may be said beside those that the review offers.

    Raises:
        ReviewError: a tile that is not under review, or a class that nobody knows.
    """
    rows = read_table(folder / TABLE, ("name", *_ORIGIN))
    origins = {row["name"]: Origin(*(row[key] for key in _ORIGIN)) for row in rows}
    offered = {*_offered(folder), *further}
    for decision in decisions:
        if decision.name not in origins:
            raise ReviewError(f"{decision.name} is not under review in {folder}; name its review with --review")
        if decision.usable and decision.label not in offered:
            raise ReviewError(
                f"{decision.name}: no model knows a class {decision.label!r}; the classes are "
                f"{', '.join(sorted(offered))}, and a new one is said by --new-class"
            )
    return ((decision, origins[decision.name], _tile(folder, decision.name)) for decision in decisions)


def _offered(folder: Path) -> list[str]:
    try:
        return [str(name) for name in json.loads((folder / NOTES).read_text(encoding="utf-8"))["classes"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReviewError(f"{folder / NOTES}: missing or not whole; run `tilewise data review` again") from error


def _tile(folder: Path, name: str) -> Tile:
    return read_tile(folder / TILES / f"{name}.tif", ReadOptions(), name)


def _row(served: Served) -> dict[str, object]:
    longitude, latitude = served.place or ("", "")
    place = (_harmless(served.file), longitude, latitude)
    return {"name": served.name, **dict(zip(_PLACE, place, strict=True)), **asdict(_origin(served))}


def _harmless(name: str) -> str:
    """Return a client's file name as a spreadsheet takes it for text and not for a formula."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name


def _origin(served: Served) -> Origin:
    return Origin(
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


def _spare_what_others_made(folder: Path) -> None:
    if folder.exists() and not (folder / NOTES).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ReviewError(f"{folder}: exists and is no review; name a new or an empty folder with --out")


def _spare_decisions(folder: Path, reviewed: Path) -> None:
    """Refuse to lay out anew over what a person filled in."""
    if not (folder / TABLE).is_file():
        return
    taken = read_reviewed(reviewed)
    filled = [row["name"] for row in read_table(folder / TABLE, ("name", "label")) if row["label"]]
    waiting = [name for name in filled if name not in taken]
    if waiting:
        raise ReviewError(
            f"{folder / TABLE}: {len(waiting)} decisions wait in it; "
            f"`tilewise data label {folder / TABLE}` takes them up, or name another --out"
        )
