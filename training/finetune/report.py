"""What fine-tuning measured, in words and tables: for the terminal and `report.md`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from tilewise.datasets.core.files import atomic_write
from tilewise.models.network.calibration import COVERAGES
from tilewise.models.network.outliers import FALSE_ALARMS
from tilewise.training.evaluate.evaluation import Evaluation, Table
from tilewise.training.finetune.heads import MIN_TEMPERATURE, UnknownClass, tiles_for

ENOUGH = 25  # tiles of a class; with fewer, its recall is known to about ± 15 points or worse
SURE = 0.99
MARKDOWN, JSON = "report.md", "report.json"


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured.

    Attributes:
        folds: number of folds, and in words what stays together in one.
        out_of_fold: of the tiles that were learned from, each by a head that has not seen its group.
        test: of the test split, by the model file; None: there is none.
        temperature: of the model file.
        sure_errors: the fraction (0-1) of out-of-fold errors with a probability of 0.99 or more.
        coverages: of the prediction sets in the model file (0-1).
        false_alarms: the fraction (0-1) of known tiles that the outlier threshold is fitted to flag; None:
            too few tiles for a threshold.
        unknown: one for each class that was left out; empty for two classes.
        test_flagged: the fraction (0-1) of the test split that is flagged; None: no threshold, or no test.
    """

    folds: tuple[int, str]
    out_of_fold: Evaluation
    test: Evaluation | None
    temperature: float
    sure_errors: float
    coverages: tuple[float, ...]
    false_alarms: float | None
    unknown: tuple[UnknownClass, ...]
    test_flagged: float | None

    def metrics(self) -> dict[str, float]:
        """Return the figures, named for a tracker."""
        found = metrics(self.out_of_fold) | (metrics(self.test) if self.test else {})
        for name in ("auroc", "flagged") if self.unknown else ():
            found[f"unknown/{name}"] = float(np.mean([getattr(each, name) for each in self.unknown]))
        return found

    def warnings(self) -> list[str]:
        """Return what the tiles are too few for, one sentence each."""
        few = [f"{each.name} ({each.tiles})" for each in self.out_of_fold.classes if each.tiles < ENOUGH]
        absent = [c for c in COVERAGES if c not in self.coverages]
        found = []
        if few:
            found.append(
                f"fewer than {ENOUGH} tiles of {', '.join(few)}: the intervals are wide, add tiles before "
                f"you rely on these classes"
            )
        if absent:
            found.append(
                f"no prediction sets of {_levels(absent)}: {100 * absent[0]:g} % needs "
                f"{tiles_for(absent[0])} tiles, there are {self.out_of_fold.tiles}"
            )
        if self.false_alarms is None:
            found.append(
                f"no outlier threshold, so unknown classes are not flagged: it needs "
                f"{tiles_for(1 - FALSE_ALARMS)} tiles"
            )
        if self.temperature < 1.01 * MIN_TEMPERATURE:
            found.append(f"the temperature is at its floor of {MIN_TEMPERATURE}: probabilities are cautious")
        return found

    def tables(self) -> list[Table]:
        """Return the tables of the report."""
        tables = [accuracy_table(self.out_of_fold, f"{self.folds[0]} folds of {self.folds[1]}")]
        if self.test is not None:
            tables.append(accuracy_table(self.test, "the test tiles, which took no part in training"))
        return [*tables, *([self._unknown_table()] if self.unknown else [])]

    def sentences(self) -> list[str]:
        """Return the other figures, one sentence each."""
        found = [
            f"temperature {self.temperature:.2f}; calibration error "
            f"{self.out_of_fold.calibration_error:.1%}; {self.sure_errors:.0%} of the errors have a "
            f"probability of {SURE} or more",
            f"prediction sets of {_levels(self.coverages)}",
        ]
        if self.false_alarms is not None:
            found.append(
                f"the outlier threshold flags {self.false_alarms:.0%} of known tiles"
                + (
                    f", and {self.test_flagged:.0%} of the test tiles"
                    if self.test_flagged is not None
                    else ""
                )
            )
        return found

    def markdown(self, command: str) -> str:
        """Return the whole report."""
        lines = [f"# Fine-tuning\n\n```bash\n{command}\n```"]
        lines += [f"**Warning**: {text}." for text in self.warnings()]
        lines += [table.markdown() for table in self.tables()]
        return "\n\n".join([*lines, "\n".join(f"- {text}" for text in self.sentences())]) + "\n"

    def write(self, folder: Path, command: str) -> list[Path]:
        """Write the report as Markdown and as JSON into `folder`, and return the paths."""
        content = {
            "command": command,
            "warnings": self.warnings(),
            "metrics": self.metrics(),
            "tables": {table.name: table.as_json() for table in self.tables()},
        }
        texts = {MARKDOWN: self.markdown(command), JSON: json.dumps(content, indent=2) + "\n"}
        for name, text in texts.items():
            with atomic_write(folder / name) as partial:
                partial.write_text(text, encoding="utf-8")
        return [folder / name for name in texts]

    def _unknown_table(self) -> Table:
        note = (
            "Each class is left out once. AUROC: the probability that one of its tiles is further from the "
            "training tiles than a tile of the other classes. Flagged: above the limit that "
            f"{self.false_alarms or 0:.0%} of the other classes' tiles exceed."
        )
        rows = tuple((each.name, each.tiles, each.auroc, each.flagged) for each in self.unknown)
        mean = tuple(float(np.mean([row[column] for row in rows])) for column in (2, 3))
        header = ("class left out", "tiles", "AUROC", "flagged %")
        total = sum(each.tiles for each in self.unknown)
        return Table("unknown", "Unknown classes", note, header, (*rows, ("mean", total, *mean)))


def accuracy_table(evaluation: Evaluation, measured_on: str) -> Table:
    """Return accuracy and the recall of each class, with 95 % intervals (Wilson 1927)."""
    confusion = np.array(evaluation.confusion)
    cells = [
        (figures.name, confusion[n, n], confusion[n].sum()) for n, figures in enumerate(evaluation.classes)
    ]
    rows = [_row(name, int(right), int(tiles)) for name, right, tiles in cells if tiles]
    total = _row("all", int(confusion.trace()), evaluation.tiles)
    note = (
        f"Measured on {measured_on}. The intervals hold the true figure with 95 % if tiles are independent."
    )
    header = ("class", "tiles", "right %", "from %", "to %")
    return Table(evaluation.group, f"Accuracy: {evaluation.tiles} tiles", note, header, (*rows, total))


def metrics(evaluation: Evaluation) -> dict[str, float]:
    """Return the main figures with the 95 % interval of the accuracy, named `<group>/accuracy` and so on."""
    low, high = _wilson(int(np.array(evaluation.confusion).trace()), evaluation.tiles)
    names = ("accuracy", "macro_f1", "calibration_error")
    found = {name: float(getattr(evaluation, name)) for name in names}
    found |= {"accuracy_low": low, "accuracy_high": high}
    return {f"{evaluation.group}/{name}": value for name, value in found.items()}


def sure_errors(probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.integer]) -> float:
    """Return the fraction (0-1) of errors with a probability of 0.99 or more; 0 without errors."""
    wrong = probabilities.argmax(1) != labels
    return float((probabilities.max(1)[wrong] >= SURE).mean()) if wrong.any() else 0.0


def _levels(coverages: Sequence[float]) -> str:
    return ", ".join(f"{100 * coverage:g} %" for coverage in coverages)


def _row(name: str, right: int, tiles: int) -> tuple[str, int, float, float, float]:
    return (name, tiles, right / tiles, *_wilson(right, tiles))


def _wilson(right: int, tiles: int) -> tuple[float, float]:
    found = binomtest(right, tiles).proportion_ci(method="wilson")
    return float(found.low), float(found.high)
