"""`tilewise data suspects|correct|review|label|reviewed`: correct labels, and label tiles from a service."""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.table import Table

from tilewise.datasets.core.bands import LEAVE_OUT
from tilewise.datasets.core.console import (
    CONTEXT,
    FILE,
    FOLDER,
    one_line_errors,
    out_option,
    print_table,
    shown,
)
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
_SHOWN = 10


@click.command(context_settings=CONTEXT)
@click.argument("pack", metavar="[PACK]", type=FOLDER, default=Path("data/packed"))
@click.option(
    "--predictions",
    "predictions",
    type=FILE,
    multiple=True,
    required=True,
    help="A model's answers (`tilewise predict`), repeatable to join several.",
)
@out_option(FOLDER, "Folder of the table and the page.", Path("artifacts/suspects"))
@click.option(
    "--limit", "limit", default=200, show_default=True, type=click.IntRange(1), help="Pictures on the page."
)
@one_line_errors
def suspects(pack: Path, predictions: tuple[Path, ...], out: Path, limit: int) -> None:
    """List tiles whose label is probably wrong by a model's answers, as a table and as a page of pictures.

    The model must not have been trained on these labels: use its answers on the val and test splits, or join
    the answers of several runs with different splits. PACK is data/packed by default.

    \b
      tilewise predict --model artifacts/runs/NAME/model.onnx --out answers.csv
      tilewise data suspects --predictions answers.csv
      tilewise data correct Forest_12 --label River --reviewer Ada --why "the river fills it"
    """
    opened = Pack(pack)
    found = find_suspects(opened, read_predictions(predictions))
    write_suspects(found, opened, out, limit)
    _print_suspects(found)
    learned = sum(suspect.split == "train" for suspect in found)
    if learned:
        click.echo(
            f"{learned} of them are in the train split: a model trained on wrong labels hides others like "
            f"them"
        )
    click.echo(f"{len(found)} doubtful labels; look at {out / PAGE}")


@click.command(context_settings=CONTEXT)
@click.argument("names", nargs=-1, required=True)
@click.option("--label", "label", required=True, help=f"The correct class; {LEAVE_OUT} leaves the tile out.")
@click.option("--reviewer", "reviewer", required=True, help="Name of the person who looked.")
@click.option("--why", "why", required=True, help="Reason for the correction.")
@out_option(FILE, "The CSV file of corrections.", DEFAULT_CORRECTIONS)
@one_line_errors
def correct(names: tuple[str, ...], label: str, reviewer: str, why: str, out: Path) -> None:
    """Record the correct class of tiles, NAMES: their file names without suffix. The next pack applies it.

    A later correction of a tile replaces the earlier one; git keeps both.

    \b
      tilewise data correct Forest_12 --label River --reviewer Ada --why "the river fills it"
    """
    record(out, [Correction(name, label, reviewer, why) for name in names])
    click.echo(
        f"{', '.join(names)}: {'left out' if label == LEAVE_OUT else label}, in {out}; commit it and pack "
        f"again"
    )


def _print_suspects(found: list[Suspect]) -> None:
    if not found:
        return
    title = f"the {min(_SHOWN, len(found))} most doubtful of {len(found)}"
    table = Table("tile", "source", "split", "labelled", "answered", "quality", title=title)
    for item in found[:_SHOWN]:
        given, suggested = f"{item.given} ({item.p_given:.2f})", f"{item.suggested} ({item.p_suggested:.2f})"
        table.add_row(item.name, item.source, item.split, given, suggested, f"{item.quality:.3f}")
    print_table(table)


DEFAULT_REVIEW = Path("artifacts/review")
_REVIEWED = click.option(
    "--reviewed",
    "reviewed",
    type=FOLDER,
    default=DEFAULT,
    show_default=True,
    help="Folder of tiles that people labelled.",
)


@click.command(context_settings=CONTEXT)
@click.argument("log", type=FOLDER)
@out_option(FOLDER, "Folder of the page and its tiles.", DEFAULT_REVIEW)
@click.option(
    "--limit", "limit", default=200, show_default=True, type=click.IntRange(1), help="Tiles to look at."
)
@click.option(
    "--since", "since", type=click.DateTime(), help="Only answers of this day or time (UTC) and later."
)
@click.option(
    "--level", "level", type=click.Choice(list(Level)), help="Processing level of tiles sent without one."
)
@click.option(
    "--data",
    "data",
    type=FOLDER,
    default=Path("data/packed"),
    show_default=True,
    help="Pack of tiles to leave out.",
)
@_REVIEWED
@one_line_errors
def review(
    log: Path, out: Path, limit: int, since: datetime | None, level: str | None, data: Path, reviewed: Path
) -> None:
    """Make a page of tiles to label: outliers, and tiles that a service was least certain of.

    LOG is the folder of the service's prediction log, written with TILEWISE_PREDICTIONS_TILES=1.

    \b
      tilewise data review /var/lib/tilewise/predictions     # → artifacts/review/review.html
      tilewise data label decisions.csv                     # the file that the page saves → data/reviewed
      dvc repro                                             # trains with it
    """
    with shown() as progress:
        found = read_log(log, since.replace(tzinfo=UTC) if since else None, progress)
        known = known_pixels(data, reviewed)
        chosen = choose(found, known, Level(level) if level else None, limit)
        _refuse_nothing(found, chosen, log)
        chosen = write_review(chosen, log, out, reviewed, progress)
    _print_counts(found, known, chosen, level)
    click.echo(f"{len(chosen)} tiles to label; look at {out / REVIEW_PAGE}")


@click.command(context_settings=CONTEXT)
@click.argument("decisions", type=FILE)
@click.option("--reviewer", "reviewer", help="Name of the person who looked, for rows without one.")
@click.option(
    "--review", "folder", type=FOLDER, default=DEFAULT_REVIEW, show_default=True, help="Folder of the page."
)
@click.option(
    "--new-class", "new", multiple=True, metavar="NAME", help="A class that no model knows yet, repeatable."
)
@_REVIEWED
@one_line_errors
def label(decisions: Path, reviewer: str | None, folder: Path, new: tuple[str, ...], reviewed: Path) -> None:
    """Add the labels that people gave on the page or in review.csv; the next `dvc repro` trains with them.

    DECISIONS is a CSV with the columns name, label, reviewer and why; rows without a label stay open, and the
    label _ marks a tile that cannot be used. A later decision on a tile replaces the earlier one.
    """
    found = read_decisions(decisions, reviewer)
    if not found:
        raise ReviewError(f"{decisions}: no row has a label; fill in some, or choose on the page")
    changed = take_up(reviewed, with_tiles(found, folder, new))
    unusable = sum(not decision.usable for decision in found)
    click.echo(
        f"{len(found)} decisions, {changed} of them new or changed, {unusable} that a tile cannot be used"
    )
    click.echo(f"the tiles are in {reviewed}; `dvc repro` trains with them, `dvc push` shares them")


@click.command(context_settings=CONTEXT)
@click.argument("folder", metavar="[FOLDER]", type=FOLDER, default=DEFAULT)
@one_line_errors
def reviewed(folder: Path) -> None:
    """Print how many tiles people have labelled; make FOLDER if missing (the pipeline's first stage)."""
    begin(folder)
    _print(list(read_reviewed(folder).values()), folder)


def _refuse_nothing(log: Log, chosen: list[Served], folder: Path) -> None:
    if chosen:
        return
    if log.without_pixels == log.rows:
        raise ReviewError(
            f"{folder}: {log.rows} answers, none with its tile; start the service with "
            f"TILEWISE_PREDICTIONS_TILES=1"
        )
    raise ReviewError(
        f"{folder}: nothing to label: of {len(log.tiles)} different tiles, all are labelled already or of "
        f"no known "
        "level; state theirs with --level"
    )


def _print_counts(log: Log, known: set[str], chosen: list[Served], level: str | None) -> None:
    done = sum(tile.sha256 in known for tile in log.tiles)
    unknown = 0 if level else sum(tile.level is None and tile.sha256 not in known for tile in log.tiles)
    click.echo(f"{log.rows:,} answers, {len(log.tiles):,} different tiles, {done:,} of them labelled already")
    for count, text in (
        (log.without_pixels, "were logged without their tile; TILEWISE_PREDICTIONS_TILES=1 logs it"),
        (log.broken, "hold bytes that are not a tile, and were left out"),
        (unknown, "are of no known level, and were left out; state it with --level"),
    ):
        if count:
            click.echo(f"{count:,} {text}")
    flagged = sum(tile.outlier for tile in chosen)
    click.echo(
        f"{flagged} flagged as unlike the training data, {len(chosen) - flagged} by how uncertain the answer "
        f"was"
    )


def _print(rows: list[Reviewed], folder: Path) -> None:
    counts = Counter(row.decision.label for row in rows)
    table = Table(
        "class", "tiles", "answered differently", "reviewers", title=f"{folder}: {len(rows)} decisions"
    )
    for name in sorted(counts):
        of_class = [row for row in rows if row.decision.label == name]
        different = sum(row.origin.answered != name for row in of_class)
        people = ", ".join(sorted({row.decision.reviewer for row in of_class}))
        table.add_row(
            "cannot be used" if name == LEAVE_OUT else name, str(counts[name]), str(different), people
        )
    print_table(table)
