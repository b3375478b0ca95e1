"""`tilewise train leave-out`: train without some classes and measure how well outlier scores detect their
tiles."""

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
from tilewise.datasets.core.files import atomic_write
from tilewise.datasets.core.locations import checkout
from tilewise.datasets.packs.pack import Pack
from tilewise.datasets.packs.packing import without_classes
from tilewise.models.model_file import open_model
from tilewise.training.evaluate.assess_settings import DEFAULT, AssessSettings, read_assess_settings
from tilewise.training.evaluate.evaluation import Cell, Table
from tilewise.training.evaluate.out_of_distribution import outlier_scores
from tilewise.training.evaluate.outputs import PackEvaluator
from tilewise.training.settings import RunFolder

SPLIT = "val"
_KEPT_SPLITS = ("train", SPLIT)  # not tiles without labels: they may show the classes that are left out

Figures = dict[str, dict[str, float]]
"""AUROC (0-1) by left-out class (`<source>: <class>`), by score."""


@dataclass(frozen=True, slots=True)
class Fold:
    """Classes that are left out together, and the folder of their training."""

    classes: tuple[str, ...]
    folder: Path

    @property
    def run(self) -> RunFolder:
        """The training run without these classes."""
        return RunFolder(self.folder / "run")

    @property
    def recipe(self) -> Path:
        """The options and data of the training, so that figures of another recipe are not taken for this
        one's."""
        return self.folder / "recipe.json"

    @property
    def result(self) -> Path:
        """The file of figures."""
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
        raise TrainingError(f"{count} folds of {len(classes)} classes; use {len(classes)} or fewer")
    groups = groups or [classes[number::count] for number in range(count)]
    return [Fold(group, out / f"without-{'-'.join(group)}") for group in groups]


def measure(
    fold: Fold, pack: Pack, options: tuple[str, ...], settings: AssessSettings, progress: Report
) -> Figures:
    """Train without the fold's classes and return the figures; finished steps are not repeated.

    Raises:
        TrainingError: training failed, or the folder has a fold of other options or other data.
    """
    _claim(fold, {"options": list(options), "data": pack.summary.data_hash})
    if fold.result.is_file():
        return dict(json.loads(fold.result.read_text(encoding="utf-8")))
    if not fold.run.model.is_file():
        without_classes(pack, fold.classes, fold.folder / "pack", _KEPT_SPLITS)
        _train(fold, options)
    found = _figures(fold, pack, settings, progress)
    with atomic_write(fold.result) as partial:
        partial.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def _claim(fold: Fold, recipe: dict[str, object]) -> None:
    """Record options and data of the fold's training; refuse a folder that was begun with others."""
    if not fold.recipe.is_file():
        with atomic_write(fold.recipe) as partial:
            partial.write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
    elif json.loads(fold.recipe.read_text(encoding="utf-8")) != recipe:
        raise TrainingError(
            f"{fold.folder} was begun with other options or data ({fold.recipe.name}); name another --out"
        )


def _train(fold: Fold, options: tuple[str, ...]) -> None:
    """Run `tilewise train` on the fold's pack; an interrupted run is resumed."""
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
        raise TrainingError(f"training without {', '.join(fold.classes)} failed; the same command resumes it")


def _figures(fold: Fold, pack: Pack, settings: AssessSettings, progress: Report) -> Figures:
    model, rows = open_model(fold.run.model), pack.rows(SPLIT)
    by_name = outlier_scores(PackEvaluator(model, Pack(fold.folder / "pack"), SPLIT, progress), settings)
    evaluator = PackEvaluator(model, pack, SPLIT, progress)
    outputs = evaluator.run(rows, step=f"without {', '.join(fold.classes)}")
    scores = {name: score(outputs) for name, score in by_name.items()}
    names = np.array(pack.summary.classes)[pack.labels[rows]]
    known = ~np.isin(names, fold.classes)
    found: Figures = {}
    for source in np.unique(pack.sources[rows]):
        of_source = pack.sources[rows] == source
        for left_out in fold.classes:
            unknown = of_source & (names == left_out)
            both = unknown | (of_source & known)
            if unknown.any() and (of_source & known).any():
                found[f"{source}: {left_out}"] = {
                    name: float(roc_auc_score(unknown[both], score[both])) for name, score in scores.items()
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
@click.option(
    "--data", type=click.Path(path_type=Path), required=True, help="Pack with a train and a val split."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for runs and figures.")
@click.option(
    "--folds",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Trainings; each class is left out once.",
)
@click.option(
    "--hold", multiple=True, metavar="A,B", help="Leave these out together; repeatable. Default: --folds."
)
@click.option(
    "--settings", type=click.Path(path_type=Path), default=DEFAULT, help="Default: configs/assess.yaml."
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@one_line_errors
def leave_out(
    data: Path, out: Path, folds: int, hold: tuple[str, ...], settings: Path, options: tuple[str, ...]
) -> None:
    """Train the recipe without some classes, and measure how well the outlier score tells their tiles
    (AUROC).

    OPTIONS are options of `tilewise train run`: --config, --trainer.max_epochs, … The same command run again
        keeps
    finished folds and resumes an interrupted training.

    \b
    tilewise train leave-out --data data/packed --out artifacts/leave-out --config
    configs/experiments/eurosat.yaml
    """
    pack, parsed = Pack(data), read_assess_settings(settings)
    figures: Figures = {}
    every = make_folds(pack.summary.classes, hold, folds, out)
    for number, fold in enumerate(every, start=1):
        click.echo(f"fold {number} of {len(every)}: without {', '.join(fold.classes)}", err=True)
        with shown() as progress:
            figures |= measure(fold, pack, options, parsed, progress)
    command = shlex.join(["tilewise", "train", "leave-out", *sys.argv[2:]])
    table = as_table(figures, parsed.targets.auroc)
    text = f"## Classes left out\n\n```bash\n{command}\n```\n\n{table.markdown()}\n"
    content = {"command": command, **table.as_json()}
    for name, written in ((MARKDOWN, text), (JSON, json.dumps(content, indent=2) + "\n")):
        with atomic_write(out / name) as partial:
            partial.write_text(written, encoding="utf-8")
    click.echo(text)


def as_table(figures: Figures, target: float) -> Table:
    """Return a table of the figures of every left-out class, and their mean by source."""
    names = tuple(next(iter(figures.values())))
    rows: list[tuple[Cell, ...]] = [
        (title, *(found[name] for name in names)) for title, found in figures.items()
    ]
    for source in sorted({title.split(": ")[0] for title in figures}):
        of_source = [found for title, found in figures.items() if title.startswith(f"{source}: ")]
        rows.append(
            (f"mean, {source}", *(float(np.mean([found[name] for found in of_source])) for name in names))
        )
    note = (
        "AUROC: the probability that a tile of the left-out class scores higher than a tile of a trained "
        "class, both "
        f"of the validation split. The target is {target:g} for the mean of the file's score."
    )
    return Table(
        "leave_out", "AUROC of classes that training left out", note, ("left out", *names), tuple(rows)
    )
