"""Run a model file on the tiles of a pack through onnxruntime, as its users do: outputs, labels, latency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import thread_time

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from sklearn.metrics import f1_score

from tilewise.datasets.core.console import Report, silent
from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.core.tile import DN, TILE_SIZE
from tilewise.datasets.packs.pack import Pack
from tilewise.models.model_file import INPUT, OUTPUTS, ModelFile, open_model
from tilewise.training.evaluate.disturbances import DISTURBANCES
from tilewise.training.evaluate.evaluation import ALL

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Transform = Callable[[DN], DN]

NO_ZONE = "none"  # the zone of tiles without coordinates
_BATCH = 64
_LATENCY_BATCHES = (1, 16)
_LATENCY_RUNS = 30


@dataclass(frozen=True, slots=True)
class ModelOutputs:
    """The outputs of a model file for n tiles: float32 (n, classes), (n, classes), (n, features), (n,)."""

    probabilities: Floats
    logits: Floats
    embedding: Floats
    outlier_score: Floats

    def __len__(self) -> int:
        return len(self.outlier_score)

    def take(self, rows: npt.NDArray[np.generic]) -> ModelOutputs:
        """Return the outputs for some of the tiles."""
        return ModelOutputs(
            self.probabilities[rows], self.logits[rows], self.embedding[rows], self.outlier_score[rows]
        )


SourceOutputs = dict[str, ModelOutputs]
"""The outputs for the undisturbed tiles of each source, by its name."""


def open_single_threaded(path: Path) -> ModelFile:
    """Open a model file with one thread, so that latencies compare."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return open_model(path, options)


def run_model(model: ModelFile, tiles: DN) -> ModelOutputs:
    """Return the outputs for uint16 (n, 13, 64, 64), n >= 1, in batches of 64."""
    return _concatenated(
        [_run(model, tiles[start : start + _BATCH]) for start in range(0, len(tiles), _BATCH)]
    )


def run_rows(
    model: ModelFile,
    pack: Pack,
    rows: Rows,
    transform: Transform | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> ModelOutputs:
    """Return the outputs for the tiles in `rows`, at least one, batch by batch.

    Args:
        transform: applied to each batch first, uint16 (n, 13, 64, 64).
        report: called with the number of tiles that are done, after each batch.
    """
    parts = []
    for start in range(0, len(rows), _BATCH):
        tiles = pack.fetch(rows[start : start + _BATCH])
        parts.append(_run(model, tiles if transform is None else transform(tiles)))
        report(min(start + _BATCH, len(rows)))
    return _concatenated(parts)


def labels_of(model: ModelFile, pack: Pack, rows: Rows) -> Rows:
    """Return the tiles' labels as indices into the model's classes, int64 (n,); -1: a class it does not
    know."""
    known = model.metadata.classes
    indices = np.array([known.index(name) if name in known else -1 for name in pack.summary.classes])
    return np.asarray(indices[pack.labels[rows]], np.int64)


def _run(model: ModelFile, tiles: DN) -> ModelOutputs:
    return ModelOutputs(*model.session.run(list(OUTPUTS), {INPUT: np.ascontiguousarray(tiles)}))


def _concatenated(parts: Sequence[ModelOutputs]) -> ModelOutputs:
    names = ("probabilities", "logits", "embedding", "outlier_score")
    return ModelOutputs(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True)
class PackEvaluator:
    """A model file and the split of a pack that it is measured on.

    Attributes:
        model: the model file.
        pack: the pack.
        split: whose tiles are measured.
        progress: reports long work.
    """

    model: ModelFile
    pack: Pack
    split: str
    progress: Report = silent

    def rows(self, source: str) -> Rows:
        """Return the rows of a source in the split."""
        return self.pack.rows(self.split, source)

    @property
    def sources(self) -> list[str]:
        """The sources that have tiles in the split.

        Raises:
            TrainingError: there is none.
        """
        found = [source for source in self.pack.summary.sources if len(self.rows(source))]
        if not found:
            have = ", ".join(f"{name} ({sum(c.values())})" for name, c in self.pack.summary.counts.items())
            raise TrainingError(f"{self.pack.root}: no tile is in the split {self.split!r}; it has {have}")
        return found

    def labels(self, rows: Rows) -> Rows:
        """Return labels as `labels_of` does."""
        return labels_of(self.model, self.pack, rows)

    def run(self, rows: Rows, transform: Transform | None = None, step: str = "classifying") -> ModelOutputs:
        """Return the outputs for the tiles in `rows`, as `run_rows` does; `step` names the work for
        `progress`."""
        return run_rows(
            self.model, self.pack, rows, transform, lambda done: self.progress(step, done, len(rows))
        )

    def run_view(self, view: str, rows: Rows, step: str) -> ModelOutputs:
        """Return the outputs for the tiles in `rows` with all their bands, or those of a set of `BAND_SETS`
        only."""
        return self.run(rows, None if view == ALL else DISTURBANCES[f"{view}_bands"], step)

    def flagged(self, outputs: ModelOutputs) -> float | None:
        """Return the fraction (0-1) above the file's own outlier threshold; None where it has none."""
        limits = self.model.metadata.outliers
        return None if limits is None else float((outputs.outlier_score > limits.threshold).mean())


@dataclass(frozen=True, slots=True)
class Predictions:
    """A model's predictions for n tiles, with their labels.

    Attributes:
        classes: class names, in the order of `probabilities`.
        probabilities: float32 (n, classes).
        outlier_scores: float32 (n,).
        labels: int64 (n,), indices into `classes`.
        zones: str (n,), the CRS of each tile's coordinates, e.g. `EPSG:32632`.
    """

    classes: tuple[str, ...]
    probabilities: Floats
    outlier_scores: Floats
    labels: Rows
    zones: npt.NDArray[np.str_]

    @property
    def predicted(self) -> Rows:
        """The most probable classes, int64 (n,)."""
        return self.probabilities.argmax(1)

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Whether each prediction is the label, bool (n,)."""
        return self.predicted == self.labels

    @property
    def of_label(self) -> Floats:
        """The probability of each tile's label, float32 (n,)."""
        return np.asarray(self.probabilities[np.arange(len(self.labels)), self.labels])

    @property
    def accuracy(self) -> float:
        """Fraction (0-1) of correct predictions."""
        return float(self.correct.mean())

    @property
    def macro_f1(self) -> float:
        """Mean F1 (0-1) of the classes that the tiles have."""
        seen = np.unique(self.labels)
        return float(f1_score(self.labels, self.predicted, labels=seen, average="macro", zero_division=0.0))


def predict_rows(model: ModelFile, pack: Pack, rows: Rows, transform: Transform | None = None) -> Predictions:
    """Return the model's predictions for the tiles in `rows`, each batch transformed first.

    Raises:
        TrainingError: no rows, or classes of the pack that the model does not know.
    """
    if not len(rows):
        raise TrainingError(f"{pack.root}: no tile is in this split; pack with another --split")
    classes = model.metadata.classes
    if unknown := sorted(set(pack.summary.classes) - set(classes)):
        raise TrainingError(f"{model.path}: it does not know the classes {', '.join(unknown)} of {pack.root}")
    outputs = run_rows(model, pack, rows, transform)
    zones = np.array([zone or NO_ZONE for zone in pack.index["crs"].take(rows).to_pylist()])
    labels = labels_of(model, pack, rows)
    return Predictions(classes, outputs.probabilities, outputs.outlier_score, labels, zones)


def cpu_milliseconds(models: dict[str, ModelFile], seed: int = 0) -> dict[str, dict[int, float]]:
    """Return the median CPU time of each model, in ms a tile, by batch size (1 and 16); measured in turn.

    CPU time is the calling thread's: models must be opened by `open_single_threaded`. Other work on the
    machine then does not count.
    """
    random = np.random.default_rng(seed)
    found: dict[str, dict[int, float]] = {name: {} for name in models}
    for size in _LATENCY_BATCHES:
        tiles = random.integers(1, 6000, (size, 13, TILE_SIZE, TILE_SIZE), np.uint16)
        times: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(_LATENCY_RUNS):
            for name, model in models.items():
                started = thread_time()
                model.session.run(["probabilities"], {INPUT: tiles})
                times[name].append((thread_time() - started) / size * 1000)
        for name, durations in times.items():
            found[name][size] = float(np.median(durations))
    return found


def graph_difference(model: ModelFile, tiles: DN) -> float:
    """Return the largest difference of probabilities between the graph as onnxruntime optimises it, in one
    batch, and the graph as it was exported, tile by tile."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = open_model(model.path, options).session
    together = model.session.run(["probabilities"], {INPUT: tiles})[0]
    single = np.concatenate(
        [plain.run(["probabilities"], {INPUT: tiles[i : i + 1]})[0] for i in range(len(tiles))]
    )
    return float(np.abs(together - single).max())
