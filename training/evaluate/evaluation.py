"""Measuring a classifier: by source, by set of bands, by class; as numbers, table and picture.

All figures come from the logits of every tile at once, so they are the same for any batch size.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from tilewise.datasets.core.bands import BAND_NAMES, BAND_SETS, positions
from tilewise.datasets.packs.pack import UNLABELLED, Pack

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HELD_BACK = 3  # every third of these is for the limits and not for fitting


class Answers:
    """The logits of all tiles, per set of bands, beside the tiles' rows and labels."""

    def __init__(self) -> None:
        self._logits: dict[str, list[Tensor]] = defaultdict(list)
        self._rows: list[Tensor] = []
        self._labels: list[Tensor] = []

    def add(self, view: str, logits: Tensor) -> None:
        """Add the logits of a batch seen through `view`."""
        self._logits[view].append(logits.detach().float())

    def add_truth(self, rows: Tensor, labels: Tensor) -> None:
        """Add the rows (in the pack) and labels of the batch that was added last; a row of −1 is not counted."""
        self._rows.append(rows)
        self._labels.append(labels)

    def collect(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Bring the answers of all processes together, each tile's once, in the order of rows, on the CPU.

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
        """int64 (n,): rows in the pack, in the order of the answers."""
        return torch.cat(self._rows)

    @property
    def labels(self) -> Tensor:
        """int64 (n,)."""
        return torch.cat(self._labels)

    def logits(self, view: str) -> Tensor:
        """float32 (n, classes): of all tiles seen through `view`."""
        return torch.cat(self._logits[view])


ALL = "all"
BAND_VIEWS = (ALL, "l2a", "10m", "rgb")
CALIBRATION_BINS = 15
METRICS_FILE = "metrics.json"


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """One class's figures, shares 0-1."""

    name: str
    tiles: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How a classifier answers one group of tiles.

    Attributes:
        group: which tiles, seen through which bands, e.g. `eurosat-ms/rgb`.
        tiles: how many.
        accuracy, macro_f1: shares 0-1.
        calibration_error: expected calibration error (15 bins), share 0-1.
        classes: per class.
        confusion: tiles[true class][answered class].
    """

    group: str
    tiles: int
    accuracy: float
    macro_f1: float
    calibration_error: float
    classes: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]

    def metrics(self, prefix: str) -> dict[str, float]:
        """Return the headline figures, named for a tracker: `<prefix>/<group>/accuracy` and so on."""
        names = ("accuracy", "macro_f1", "calibration_error")
        return {f"{prefix}/{self.group}/{name}": float(getattr(self, name)) for name in names}


def evaluate(group: str, probabilities: Tensor, labels: Tensor, classes: Sequence[str]) -> Evaluation:
    """Measure answers.

    Args:
        probabilities: float (n, classes).
        labels: int64 (n,).
    """
    answers = probabilities.argmax(1).numpy()
    truth = labels.numpy()
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (truth, answers), 1)
    right, support, answered = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall = right / np.maximum(answered, 1), right / np.maximum(support, 1)
    f1 = 2 * right / np.maximum(support + answered, 1)
    seen = support > 0  # a class without tiles has no recall; it must not pull the mean down
    error = multiclass_calibration_error(probabilities, labels, len(classes), n_bins=CALIBRATION_BINS)
    figures = zip(classes, support, precision, recall, f1, strict=True)
    return Evaluation(
        group=group,
        tiles=len(truth),
        accuracy=float((answers == truth).mean()),
        macro_f1=float(f1[seen].mean()),
        calibration_error=float(error),
        classes=tuple(ClassFigures(n, int(s), float(p), float(r), float(f)) for n, s, p, r, f in figures),
        confusion=tuple(tuple(map(int, row)) for row in confusion),
    )


def views_of(bands: Sequence[str]) -> list[str]:
    """Return the sets of bands that tiles with `bands` can be seen through: all they have, and proper subsets."""
    present = set(bands)
    return [view for view in BAND_VIEWS if view == ALL or set(BAND_SETS[view]) < present]


def see_through(tiles: Tensor, view: str) -> Tensor:
    """Return `tiles` (n, 13, height, width) with the bands outside `view` made no data."""
    if view == ALL:
        return tiles
    keep = torch.zeros(len(BAND_NAMES), dtype=tiles.dtype, device=tiles.device)
    keep[positions(BAND_SETS[view])] = 1
    return tiles * keep[:, None, None]


def write_evaluations(
    evaluations: Sequence[Evaluation], folder: Path, checkpoint: str, symmetries: int = 1
) -> list[Path]:
    """Write METRICS_FILE, and for each group a confusion matrix as table and picture; return what was written.

    Args:
        evaluations: what was measured.
        folder: where it goes.
        checkpoint: what was measured, for METRICS_FILE.
        symmetries: in how many of the eight ways each tile was looked at, for METRICS_FILE.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / METRICS_FILE
    groups = {e.group: _headline(e) for e in evaluations}
    content = {"checkpoint": checkpoint, "symmetries": symmetries, "groups": groups}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    written = [path]
    for evaluation in evaluations:
        stem = f"confusion-{evaluation.group.replace('/', '-')}"
        written += [folder / f"{stem}.csv", folder / f"{stem}.png"]
        _write_table(evaluation, written[-2])
        draw_confusion(evaluation, written[-1])
    return written


def draw_confusion(evaluation: Evaluation, path: Path) -> None:
    """Draw the confusion matrix: shares of the true class as colour, tiles as numbers."""
    from matplotlib.figure import Figure

    names = [figures.name for figures in evaluation.classes]
    counts = np.array(evaluation.confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(8.5, 7.5), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("answered")
    axes.set_ylabel("true")
    axes.set_title(f"{evaluation.group}: {evaluation.tiles} tiles, accuracy {evaluation.accuracy:.1%}")
    _write_counts(axes, counts, shares)
    figure.colorbar(picture, label="share of the true class")
    figure.savefig(path, dpi=120)


def as_markdown(evaluations: Sequence[Evaluation]) -> str:
    """Return the headline figures as a table."""
    lines = [
        "| tiles, bands | tiles | accuracy | macro F1 | calibration error |",
        "|---|---:|---:|---:|---:|",
    ]
    for e in evaluations:
        lines.append(f"| {e.group} | {e.tiles} | {e.accuracy:.2%} | {e.macro_f1:.2%} | {e.calibration_error:.2%} |")
    return "\n".join(lines)


def _headline(evaluation: Evaluation) -> dict[str, object]:
    content = asdict(evaluation)
    del content["group"], content["confusion"]
    return content


def _write_table(evaluation: Evaluation, path: Path) -> None:
    names = [figures.name for figures in evaluation.classes]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["true \\ answered", *names])
        writer.writerows([name, *row] for name, row in zip(names, evaluation.confusion, strict=True))


def _write_counts(axes: Axes, counts: npt.NDArray[np.int64], shares: npt.NDArray[np.float64]) -> None:
    for (row, column), count in np.ndenumerate(counts):
        if count:
            ink = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=ink, fontsize=8)


def held_back(pack: Pack) -> npt.NDArray[np.int64]:
    """Return the unlabelled tiles that only limits are fitted on and figures measured on.

    A network that was pretrained may have seen them, without labels.
    """
    return pack.rows(UNLABELLED)[::HELD_BACK]
