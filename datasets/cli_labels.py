"""The commands of `tilewise data` that bring what a service was asked back as labelled tiles."""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from tilewise.datasets.core.bands import LEAVE_OUT
from tilewise.datasets.core.console import one_line_errors, shown
from tilewise.datasets.core.errors import ReviewError
from tilewise.datasets.core.radiometry import Level
from tilewise.datasets.packs.pack import Pack
from tilewise.datasets.quality.review import PAGE as REVIEW_PAGE
from tilewise.datasets.quality.review import choose, known_pixels, read_decisions, with_tiles, write_review
from tilewise.datasets.quality.reviewed import DEFAULT, Reviewed, begin, read_reviewed, take_up
from tilewise.datasets.quality.served import Log, Served, read_log
from tilewise.datasets.quality.suspects import PAGE, Suspect, find_suspects, read_predictions, write_suspects
from tilewise.datasets.readers.corrections import Correction, record

DEFAULT_CORRECTIONS = Path("configs/corrections.csv")
_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)
_SHOWN = 10


@click.command()
@click.argument("pack", type=_FOLDER, default=Path("data/packed"))
@click.option(
    "--predictions", type=_FILE, multiple=True, required=True, help="A model's answers; say it again to join several."
)
@click.option("--out", type=_FOLDER, default=Path("artifacts/suspects"), show_default=True)
@click.option("--limit", default=200, show_default=True, type=click.IntRange(1), help="Pictures on the page.")
@one_line_errors
def suspects(pack: Path, predictions: tuple[Path, ...], out: Path, limit: int) -> None:
    """List tiles whose label a model's answers speak against, as a table and as a page of pictures for review.

    The answers must be of a model that did not learn these labels: those of the val and test splits, or those of
    several runs with other splits, joined.

    \b
      tilewise predict artifacts/runs/NAME/model.onnx --out answers.csv
      tilewise data suspects --predictions answers.csv
      tilewise data correct Forest_12 --label River --reviewer Ada --why "the river fills it"
    """
    opened = Pack(pack)
    found = find_suspects(opened, read_predictions(predictions))
    write_suspects(found, opened, out, limit)
    _print_suspects(found)
    learned = sum(suspect.split == "train" for suspect in found)
    if learned:
        click.echo(f"{learned} of them are of the train split: a model that learned them hides others like them")
    click.echo(f"{len(found)} doubtful labels; look at {out / PAGE}")


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--label", required=True, help=f"The class that a person saw; {LEAVE_OUT} leaves the tile out.")
@click.option("--reviewer", required=True, help="Who looked.")
@click.option("--why", required=True, help="What was seen.")
@click.option("--file", "path", type=_FILE, default=DEFAULT_CORRECTIONS, show_default=True)
@one_line_errors
def correct(names: tuple[str, ...], label: str, reviewer: str, why: str, path: Path) -> None:
    """Write down the reviewed class of tiles, known by their file's name without ending; the next pack has it.

    A later decision on a tile takes the place of the earlier one; git keeps both.
    """
    record(path, [Correction(name, label, reviewer, why) for name in names])
    click.echo(
        f"{', '.join(names)}: {'left out' if label == LEAVE_OUT else label}, in {path}; commit it and pack again"
    )


def _print_suspects(found: list[Suspect]) -> None:
    if not found:
        return
    title = f"the {min(_SHOWN, len(found))} most doubtful of {len(found)}"
    table = Table("tile", "source", "split", "labelled", "answered", "quality", title=title)
    for item in found[:_SHOWN]:
        given, suggested = f"{item.given} ({item.p_given:.2f})", f"{item.suggested} ({item.p_suggested:.2f})"
        table.add_row(item.name, item.source, item.split, given, suggested, f"{item.quality:.3f}")
    Console(markup=False).print(table)


DEFAULT_REVIEW = Path("artifacts/review")
_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)
_REVIEWED = click.option(
    "--reviewed", type=_FOLDER, default=DEFAULT, show_default=True, help="Folder of tiles that people labelled."
)


@click.command()
@click.argument("log", type=_FOLDER)
@click.option("--out", type=_FOLDER, default=DEFAULT_REVIEW, show_default=True)
@click.option("--limit", default=200, show_default=True, type=click.IntRange(1), help="Tiles to look at.")
@click.option("--since", type=click.DateTime(), help="Only answers of this day or moment (UTC) and later.")
@click.option("--level", type=click.Choice(list(Level)), help="Processing level of tiles that were sent without one.")
@click.option("--pack", type=_FOLDER, default=Path("data/packed"), show_default=True, help="Whose tiles are known.")
@_REVIEWED
@one_line_errors
def review(
    log: Path, out: Path, limit: int, since: datetime | None, level: str | None, pack: Path, reviewed: Path
) -> None:
    """Lay out what a service was least sure of, and what it found unlike its training data, for people to label.

    LOG is the folder of its prediction log, kept with TILEWISE_PREDICTIONS_TILES=1.

    \b
      tilewise data review /var/lib/tilewise/predictions     # → artifacts/review/review.html
      tilewise data label decisions.csv                     # what the page saved → data/reviewed
      dvc repro                                                  # trains with it
    """
    with shown() as progress:
        found = read_log(log, since.replace(tzinfo=UTC) if since else None, progress)
        known = known_pixels(pack, reviewed)
        chosen = choose(found, known, Level(level) if level else None, limit)
        _refuse_nothing(found, chosen, log)
        chosen = write_review(chosen, log, out, reviewed, progress)
    _tell(found, known, chosen, level)
    click.echo(f"{len(chosen)} tiles to label; look at {out / REVIEW_PAGE}")


@click.command()
@click.argument("decisions", type=_FILE)
@click.option("--reviewer", help="Who looked, where the file does not say.")
@click.option("--review", "folder", type=_FOLDER, default=DEFAULT_REVIEW, show_default=True, help="What was laid out.")
@click.option("--new-class", "further", multiple=True, metavar="NAME", help="A class that no model knows yet.")
@_REVIEWED
@one_line_errors
def label(decisions: Path, reviewer: str | None, folder: Path, further: tuple[str, ...], reviewed: Path) -> None:
    """Take up labels that people gave on the page or in review.csv; the next `dvc repro` trains with them.

    DECISIONS is a CSV with the columns name, label, reviewer and why; rows without a label stay open, and _ says that a
    tile cannot be used. A later decision on a tile takes the place of the earlier one.
    """
    found = read_decisions(decisions, reviewer)
    if not found:
        raise ReviewError(f"{decisions}: no row has a label; fill in some, or choose on the page")
    changed = take_up(reviewed, with_tiles(found, folder, further))
    unusable = sum(not decision.usable for decision in found)
    click.echo(f"{len(found)} decisions, {changed} of them new or changed, {unusable} that a tile cannot be used")
    click.echo(f"the tiles are in {reviewed}; `dvc repro` trains with them, `dvc push` shares them")


@click.command()
@click.argument("folder", type=_FOLDER, default=DEFAULT)
@one_line_errors
def reviewed(folder: Path) -> None:
    """Tell what people have labelled; makes the folder where there is none (the pipeline's first stage)."""
    begin(folder)
    _print(list(read_reviewed(folder).values()), folder)


def _refuse_nothing(log: Log, chosen: list[Served], folder: Path) -> None:
    if chosen:
        return
    if log.without_pixels == log.rows:
        raise ReviewError(
            f"{folder}: {log.rows} answers, none with its tile; start the service with TILEWISE_PREDICTIONS_TILES=1"
        )
    raise ReviewError(
        f"{folder}: nothing to label: of {len(log.tiles)} different tiles, all are labelled already or of no known "
        "level; say theirs with --level"
    )


def _tell(log: Log, known: set[str], chosen: list[Served], level: str | None) -> None:
    done = sum(tile.sha256 in known for tile in log.tiles)
    vague = 0 if level else sum(tile.level is None and tile.sha256 not in known for tile in log.tiles)
    click.echo(f"{log.rows:,} answers, {len(log.tiles):,} different tiles, {done:,} of them labelled already")
    for count, what in (
        (log.without_pixels, "were kept without their tile; TILEWISE_PREDICTIONS_TILES=1 keeps it"),
        (log.broken, "hold bytes that are no tile, and were left out"),
        (vague, "are of no known level, and were left out; say it with --level"),
    ):
        if count:
            click.echo(f"{count:,} {what}")
    flagged = sum(tile.outlier for tile in chosen)
    click.echo(
        f"{flagged} flagged as unlike the training data, {len(chosen) - flagged} by how undecided the answer was"
    )


def _print(rows: list[Reviewed], folder: Path) -> None:
    counts = Counter(row.decision.label for row in rows)
    table = Table("class", "tiles", "answered otherwise", "reviewers", title=f"{folder}: {len(rows)} decisions")
    for name in sorted(counts):
        of_class = [row for row in rows if row.decision.label == name]
        otherwise = sum(row.origin.answered != name for row in of_class)
        people = ", ".join(sorted({row.decision.reviewer for row in of_class}))
        table.add_row("cannot be used" if name == LEAVE_OUT else name, str(counts[name]), str(otherwise), people)
    Console(markup=False).print(table)
