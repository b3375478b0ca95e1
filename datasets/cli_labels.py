"""The commands of `python -m datasets` that concern labels: which are doubtful, and what a person decided."""

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from datasets.bands import LEAVE_OUT
from datasets.command import one_line_errors
from datasets.corrections import Correction, record
from datasets.pack import Pack
from datasets.predictions import read_predictions
from datasets.suspects import PAGE, Suspect, find_suspects, write_suspects

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
@click.option("--most", default=200, show_default=True, type=click.IntRange(1), help="Pictures on the page.")
@one_line_errors
def suspects(pack: Path, predictions: tuple[Path, ...], out: Path, most: int) -> None:
    """List tiles whose label a model's answers speak against, as a table and as a page of pictures for review.

    The answers must be of a model that did not learn these labels: those of the val and test splits, or those of
    several runs with other splits, joined.

    \b
      python -m models.predict artifacts/runs/NAME/model.onnx --out answers.csv
      python -m datasets suspects --predictions answers.csv
      python -m datasets correct Forest_12 --label River --reviewer Ada --why "the river fills it"
    """
    opened = Pack(pack)
    found = find_suspects(opened, read_predictions(predictions))
    write_suspects(found, opened, out, most)
    _print(found)
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


def _print(found: list[Suspect]) -> None:
    if not found:
        return
    title = f"the {min(_SHOWN, len(found))} most doubtful of {len(found)}"
    table = Table("tile", "source", "split", "labelled", "answered", "quality", title=title)
    for item in found[:_SHOWN]:
        given, suggested = f"{item.given} ({item.p_given:.2f})", f"{item.suggested} ({item.p_suggested:.2f})"
        table.add_row(item.name, item.source, item.split, given, suggested, f"{item.quality:.3f}")
    Console(markup=False).print(table)
