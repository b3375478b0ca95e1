"""`tilewise train leave-out`: how well classes that were never seen are told from those that were."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from sklearn.metrics import roc_auc_score

from tilewise.datasets.core.console import Report, one_line_errors, shown
from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.core.locations import checkout
from tilewise.datasets.packs.pack import Pack
from tilewise.datasets.packs.packing import without_classes
from tilewise.models.model_file import open_model
from tilewise.training.evaluate.out_of_distribution import scores_that_compete
from tilewise.training.evaluate.outputs import DEFAULT, AssessSettings, Case, Table, read_settings
from tilewise.training.settings import RunFolder

SPLIT = "val"
_KEPT_SPLITS = ("train", SPLIT)  # not tiles without labels: they may show the classes that are left out

Figures = dict[str, dict[str, float]]
"""AUROC (0-1) by what was left out (`<source>: <class>`), by score."""


@dataclass(frozen=True, slots=True)
class Fold:
    """Classes that are left out together, and the folder for it."""

    classes: tuple[str, ...]
    folder: Path

    @property
    def run(self) -> RunFolder:
        """The training run without these classes."""
        return RunFolder(self.folder / "run")

    @property
    def recipe(self) -> Path:
        """What the training was told: another recipe's figures must not be taken for this one's."""
        return self.folder / "recipe.json"

    @property
    def result(self) -> Path:
        """Where the figures are kept."""
        return self.folder / "auroc.json"


def make_folds(classes: tuple[str, ...], hold: tuple[str, ...], count: int, out: Path) -> list[Fold]:
    """Return the folds that `hold` names (`A,B` each), or `count` folds that leave out every class once.

    Raises:
        TrainingError: `hold` names an unknown class, or there are more folds than classes.
    """
    groups = [tuple(part.strip() for part in text.split(",")) for text in hold]
    unknown = sorted({name for group in groups for name in group} - set(classes))
    if unknown:
        raise TrainingError(f"no class {', '.join(unknown)}; the pack has {', '.join(classes)}")
    if not groups and count > len(classes):
        raise TrainingError(f"{count} folds of {len(classes)} classes; say {len(classes)} or fewer")
    groups = groups or [classes[place::count] for place in range(count)]
    return [Fold(group, out / f"without-{'-'.join(group)}") for group in groups]


def measure(fold: Fold, pack: Pack, options: tuple[str, ...], settings: AssessSettings, progress: Report) -> Figures:
    """Train without the fold's classes and return the figures; what is done already is not done again.

    Raises:
        TrainingError: training failed, or the folder holds a fold of other options or other data.
    """
    _claim(fold, {"options": list(options), "data": pack.summary.data_hash})
    if fold.result.is_file():
        return dict(json.loads(fold.result.read_text(encoding="utf-8")))
    if not fold.run.model.is_file():
        without_classes(pack, fold.classes, fold.folder / "pack", _KEPT_SPLITS)
        _train(fold, options)
    found = _figures(fold, pack, settings, progress)
    fold.result.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def _claim(fold: Fold, recipe: dict[str, object]) -> None:
    """Write down what the fold's training is told; refuse a folder where it was told something else."""
    if not fold.recipe.is_file():
        fold.folder.mkdir(parents=True, exist_ok=True)
        fold.recipe.write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
    elif json.loads(fold.recipe.read_text(encoding="utf-8")) != recipe:
        raise TrainingError(
            f"{fold.folder} was begun with other options or data ({fold.recipe.name}); name another --out"
        )


def _train(fold: Fold, options: tuple[str, ...]) -> None:
    """Run `tilewise train` on the fold's pack; a run that was cut short goes on."""
    own = ["--data.pack", str((fold.folder / "pack").resolve()), "--out", str(fold.run.root.resolve())]
    fixed = [
        "--data.test_split",
        SPLIT,
        "--ckpt_path",
        "last",
        "--tracking.enabled",
        "false",
        "--quantisation.enabled",
        "false",
    ]
    command = [sys.executable, "-m", "tilewise", "train", "run", *options, *own, *fixed]
    if subprocess.run(command, cwd=checkout(), check=False).returncode:
        raise TrainingError(f"training without {', '.join(fold.classes)} failed; the same command goes on from here")


def _figures(fold: Fold, pack: Pack, settings: AssessSettings, progress: Report) -> Figures:
    model, rows = open_model(fold.run.model), pack.rows(SPLIT)
    by_name = scores_that_compete(Case(model, Pack(fold.folder / "pack"), SPLIT, progress), settings)
    outputs = Case(model, pack, SPLIT, progress).ask(rows, step=f"without {', '.join(fold.classes)}")
    scores = {name: score(outputs) for name, score in by_name.items()}
    names = np.array(pack.summary.classes)[pack.labels[rows]]
    known = ~np.isin(names, fold.classes)
    found: Figures = {}
    for source in np.unique(pack.sources[rows]):
        there = pack.sources[rows] == source
        for left_out in fold.classes:
            strange = there & (names == left_out)
            both = strange | (there & known)
            if strange.any() and (there & known).any():
                found[f"{source}: {left_out}"] = {
                    name: float(roc_auc_score(strange[both], score[both])) for name, score in scores.items()
                }
    return found


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

    OPTIONS are options of `tilewise train run`: --config, --trainer.max_epochs, … The same command again does only
    what is not done yet: finished folds are kept, and a training that was cut short goes on.

    \b
    tilewise train leave-out --data data/packed --out artifacts/leave-out --config configs/experiments/eurosat.yaml
    """
    pack, asked = Pack(data), read_settings(settings)
    figures: Figures = {}
    every = make_folds(pack.summary.classes, hold, folds, out)
    for place, fold in enumerate(every, start=1):
        click.echo(f"fold {place} of {len(every)}: without {', '.join(fold.classes)}", err=True)
        with shown() as progress:
            figures |= measure(fold, pack, options, asked, progress)
    command = shlex.join(["tilewise", "train", "leave-out", *sys.argv[2:]])
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
