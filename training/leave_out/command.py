"""`python -m training leave-out`: how well classes that were never seen are told from those that were."""

import json
import shlex
import sys
from pathlib import Path

import click
import numpy as np

from datasets.command import one_line_errors
from datasets.pack import Pack
from datasets.progress import shown
from training.assess.settings import DEFAULT, read_settings
from training.assess.tables import Table
from training.leave_out.folds import Figures, make_folds, measure

MARKDOWN, JSON = "leave-out.md", "leave-out.json"


@click.command(
    context_settings={
        "help_option_names": ["-h", "--help"],
        "ignore_unknown_options": True,
        "max_content_width": 110,
    }
)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Pack with a train and a val split.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for runs and figures.")
@click.option(
    "--folds", type=click.IntRange(1), default=5, show_default=True, help="Trainings; each class is left out once."
)
@click.option(
    "--hold", multiple=True, metavar="A,B", help="Leave these out together; can be said again. Default: --folds."
)
@click.option("--settings", type=click.Path(path_type=Path), default=DEFAULT, help="Default: configs/assess.yaml.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@one_line_errors
def leave_out(
    data: Path, out: Path, folds: int, hold: tuple[str, ...], settings: Path, options: tuple[str, ...]
) -> None:
    """Train the recipe without some classes, and measure how well the outlier score tells their tiles (AUROC).

    OPTIONS are options of `python -m training run`: --config, --trainer.max_epochs, … The same command again does only
    what is not done yet: finished folds are kept, and a training that was cut short goes on.

    \b
    python -m training leave-out --data data/packed --out artifacts/leave-out --config configs/experiments/eurosat.yaml
    """
    pack, asked = Pack(data), read_settings(settings)
    figures: Figures = {}
    every = make_folds(pack.summary.classes, hold, folds, out)
    for place, fold in enumerate(every, start=1):
        click.echo(f"fold {place} of {len(every)}: without {', '.join(fold.classes)}", err=True)
        with shown() as progress:
            figures |= measure(fold, pack, options, asked, progress)
    command = shlex.join(["python", "-m", "training", "leave-out", *sys.argv[2:]])
    table = as_table(figures, asked.targets.auroc)
    text = f"## Classes left out\n\n```bash\n{command}\n```\n\n{table.markdown()}\n"
    (out / MARKDOWN).write_text(text, encoding="utf-8")
    content = {"command": command, **table.as_json()}
    (out / JSON).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    click.echo(text)


def as_table(figures: Figures, target: float) -> Table:
    """Return the figures of every class that was left out, and their mean by source."""
    names = tuple(next(iter(figures.values())))
    rows: list[tuple[str | float, ...]] = [
        (title, *(found[name] for name in names)) for title, found in figures.items()
    ]
    for source in sorted({title.split(": ")[0] for title in figures}):
        of_source = [found for title, found in figures.items() if title.startswith(f"{source}: ")]
        rows.append((f"mean, {source}", *(float(np.mean([found[name] for found in of_source])) for name in names)))
    note = (
        "AUROC: the chance that a tile of the class that was left out scores higher than a tile of a class that was "
        f"not, both of the validation split. {target:g} is asked of the file's score on the mean."
    )
    return Table("leave_out", "AUROC of classes that training left out", note, ("left out", *names), tuple(rows))
