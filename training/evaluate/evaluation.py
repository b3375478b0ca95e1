"""Metrics of a classifier by source, set of bands and class; as numbers, tables and confusion matrices.

All figures are computed from the logits of every tile at once, so they do not depend on the batch size.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from tilewise.datasets.core.bands import BAND_NAMES, BAND_SETS, positions
from tilewise.datasets.packs.pack import UNLABELLED, Pack

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ALL = "all"
BAND_VIEWS = (ALL, "l2a", "10m", "rgb")
CALIBRATION_BINS = 15
METRICS_FILE = "metrics.json"
HELD_BACK = 3  # every third unlabelled tile is held back from fitting, for thresholds and figures


class LogitCollector:
    """Collects the logits of all tiles, per set of bands, with the tiles' rows and labels."""

    def __init__(self) -> None:
        self._logits: dict[str, list[Tensor]] = defaultdict(list)
        self._rows: list[Tensor] = []
        self._labels: list[Tensor] = []

    def add(self, view: str, logits: Tensor) -> None:
        """Add the logits of a batch seen through `view`."""
        self._logits[view].append(logits.detach().float())

    def add_truth(self, rows: Tensor, labels: Tensor) -> None:
        """Add the rows (in the pack) and labels of the batch that was added last; rows of −1 are padding."""
        self._rows.append(rows)
        self._labels.append(labels)

    def collect(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Gather the logits of all processes, each tile once, in the order of rows, on the CPU.

        Args:
            gather: maps a process's tensor (n, …) to those of all processes (processes × n, …).
        """
        rows = gather(torch.cat(self._rows)).cpu()
        order = torch.argsort(rows, stable=True)
        order = order[rows[order] >= 0]
        self._rows = [rows[order]]
        self._labels = [gather(torch.cat(self._labels)).cpu()[order]]
        for view, parts in self._logits.items():
            self._logits[view] = [gather(torch.cat(parts)).cpu()[order]]

    @property
    def rows(self) -> Tensor:
        """int64 (n,): rows in the pack, in the order of the logits."""
        return torch.cat(self._rows)

    @property
    def labels(self) -> Tensor:
        """int64 (n,): labels, in the same order."""
        return torch.cat(self._labels)

    def logits(self, view: str) -> Tensor:
        """Return float32 (n, classes): of all tiles seen through `view`."""
        return torch.cat(self._logits[view])


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """The metrics of one class; fractions 0-1."""

    name: str
    tiles: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The metrics of a classifier on one group of tiles.

    Attributes:
        group: source and set of bands, e.g. `eurosat-ms/rgb`.
        tiles: their number.
        accuracy, macro_f1: fractions 0-1.
        calibration_error: expected calibration error (15 bins), 0-1.
        classes: metrics of each class.
        confusion: tiles[true class][predicted class].
    """

    group: str
    tiles: int
    accuracy: float
    macro_f1: float
    calibration_error: float
    classes: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]

    def metrics(self, prefix: str) -> dict[str, float]:
        """Return the main figures, named for a tracker: `<prefix>/<group>/accuracy` and so on."""
        names = ("accuracy", "macro_f1", "calibration_error")
        return {f"{prefix}/{self.group}/{name}": float(getattr(self, name)) for name in names}


def evaluate(group: str, probabilities: Tensor, labels: Tensor, classes: Sequence[str]) -> Evaluation:
    """Compute the metrics of predictions.

    Args:
        group: name of the group.
        probabilities: float (n, classes).
        labels: int64 (n,).
        classes: names, in the order of `probabilities`.
    """
    predicted = probabilities.argmax(1).numpy()
    truth = labels.numpy()
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (truth, predicted), 1)
    correct, support, answers = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall = correct / np.maximum(answers, 1), correct / np.maximum(support, 1)
    f1 = 2 * correct / np.maximum(support + answers, 1)
    seen = support > 0  # a class without tiles has no recall and must not lower the mean
    error = multiclass_calibration_error(probabilities, labels, len(classes), n_bins=CALIBRATION_BINS)
    figures = zip(classes, support, precision, recall, f1, strict=True)
    return Evaluation(
        group=group,
        tiles=len(truth),
        accuracy=float((predicted == truth).mean()),
        macro_f1=float(f1[seen].mean()),
        calibration_error=float(error),
        classes=tuple(ClassFigures(n, int(s), float(p), float(r), float(f)) for n, s, p, r, f in figures),
        confusion=tuple(tuple(map(int, row)) for row in confusion),
    )


def views_of(bands: Sequence[str]) -> list[str]:
    """Return the sets of bands to evaluate tiles with `bands` on: all that they have, and proper subsets."""
    present = set(bands)
    return [view for view in BAND_VIEWS if view == ALL or set(BAND_SETS[view]) < present]


def see_through(tiles: Tensor, view: str) -> Tensor:
    """Return `tiles` (n, 13, height, width) with the bands outside `view` set to no data."""
    if view == ALL:
        return tiles
    keep = torch.zeros(len(BAND_NAMES), dtype=tiles.dtype, device=tiles.device)
    keep[positions(BAND_SETS[view])] = 1
    return tiles * keep[:, None, None]


def write_evaluations(
    evaluations: Sequence[Evaluation], folder: Path, checkpoint: str, symmetries: int = 1
) -> list[Path]:
    """Write METRICS_FILE, and each group's confusion matrix as CSV and PNG; return the paths.

    Args:
        evaluations: the groups.
        folder: the folder for all files.
        checkpoint: the checkpoint that was evaluated, for METRICS_FILE.
        symmetries: over how many of its eight symmetries each tile was averaged, for METRICS_FILE.
    """
    from tilewise.datasets.core.files import (
        atomic_write,
    )  # needs rasterio, which a machine that only fits may lack

    path = folder / METRICS_FILE
    groups = {e.group: _headline(e) for e in evaluations}
    content = {"checkpoint": checkpoint, "symmetries": symmetries, "groups": groups}
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    written = [path]
    for evaluation in evaluations:
        stem = f"confusion-{evaluation.group.replace('/', '-')}"
        written += [folder / f"{stem}.csv", folder / f"{stem}.png"]
        _write_table(evaluation, written[-2])
        draw_confusion(evaluation, written[-1])
    return written


def draw_confusion(evaluation: Evaluation, path: Path) -> None:
    """Draw the confusion matrix: fractions of the true class as colour, tiles as numbers."""
    from matplotlib.figure import Figure

    names = [figures.name for figures in evaluation.classes]
    counts = np.array(evaluation.confusion)
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(8.5, 7.5), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(fractions, vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"{evaluation.group}: {evaluation.tiles} tiles, accuracy {evaluation.accuracy:.1%}")
    _write_counts(axes, counts, fractions)
    figure.colorbar(picture, label="fraction of the true class")
    figure.savefig(path, dpi=120)


def as_markdown(evaluations: Sequence[Evaluation]) -> str:
    """Return the main figures as a Markdown table."""
    lines = [
        "| tiles, bands | tiles | accuracy | macro F1 | calibration error |",
        "|---|---:|---:|---:|---:|",
    ]
    for e in evaluations:
        lines.append(
            f"| {e.group} | {e.tiles} | {e.accuracy:.2%} | {e.macro_f1:.2%} | {e.calibration_error:.2%} |"
        )
    return "\n".join(lines)


def _headline(evaluation: Evaluation) -> dict[str, object]:
    content = asdict(evaluation)
    del content["group"], content["confusion"]
    return content


def _write_table(evaluation: Evaluation, path: Path) -> None:
    names = [figures.name for figures in evaluation.classes]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["true \\ predicted", *names])
        writer.writerows([name, *row] for name, row in zip(names, evaluation.confusion, strict=True))


def _write_counts(axes: Axes, counts: npt.NDArray[np.int64], fractions: npt.NDArray[np.float64]) -> None:
    for (row, column), count in np.ndenumerate(counts):
        if count:
            ink = "white" if fractions[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=ink, fontsize=8)


def held_back(pack: Pack) -> npt.NDArray[np.int64]:
    """Return the rows of every third unlabelled tile: held back from fitting, for thresholds and figures.

    Pretraining may have shown them to the network, without labels.
    """
    return pack.rows(UNLABELLED)[::HELD_BACK]


Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class Table:
    """A table of figures with a title and a note.

    Attributes:
        name: a short key for programs.
        title: the heading.
        note: what was measured, and how.
        header: column names; one that ends in ` %` has fractions (0-1), shown in percent.
        rows: each as long as the header.
    """

    name: str
    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def markdown(self) -> str:
        """Return the table as Markdown, with its title and note."""
        rule = "|".join("---" if column == 0 else "---:" for column in range(len(self.header)))
        lines = [f"### {self.title}", "", self.note, "", f"| {' | '.join(self.header)} |", f"|{rule}|"]
        for row in self.rows:
            cells = (_shown(cell, name) for cell, name in zip(row, self.header, strict=True))
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Return title, note and rows as an object."""
        rows = [dict(zip(self.header, row, strict=True)) for row in self.rows]
        return {"title": self.title, "note": self.note, "rows": rows}


def _shown(cell: Cell, column: str) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{100 * cell:.2f}" if column.endswith("%") else f"{cell:.3f}"
    return str(cell)
