"""One fold: some classes are left out, the recipe is trained on the others, and scores are measured on both."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from datasets.errors import TrainingError
from datasets.pack import Pack
from datasets.progress import Report
from datasets.subset import without_classes
from models.modelfile import open_model
from training.assess.outputs import Case
from training.assess.settings import AssessSettings
from training.assess.strangers import scores_that_compete
from training.paths import RunFolder

PROJECT = Path(__file__).resolve().parents[2]
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
    """Run `python -m training` on the fold's pack; a run that was cut short goes on."""
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
    command = [sys.executable, "-m", "training", "run", *options, *own, *fixed]
    if subprocess.run(command, cwd=PROJECT, check=False).returncode:
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
