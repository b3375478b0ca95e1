"""What a model file answers on the tiles of a pack, as its users would get it: through onnxruntime, not torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sklearn.metrics import f1_score

from tilewise.datasets.core.console import Report, silent
from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.core.locations import CONFIGS
from tilewise.datasets.core.tile import DN, TILE_SIZE
from tilewise.datasets.packs.pack import Pack
from tilewise.models.model_file import INPUT, OUTPUTS, ModelFile, open_model
from tilewise.training.evaluate.disturbances import DISTURBANCES
from tilewise.training.evaluate.evaluation import ALL

DEFAULT = CONFIGS / "assess.yaml"


class Targets(BaseModel):
    """What is asked of a model file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    calibration_error: float = Field(0.015, ge=0, le=1)
    coverage_within: float = Field(0.01, ge=0, le=1)
    flagged: float = Field(0.95, ge=0, le=1)
    auroc: float = Field(0.95, ge=0, le=1)


class AssessSettings(BaseModel):
    """The whole file; see there for what each number means."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(0, ge=0)
    halves: int = Field(20, ge=1, le=1000)
    coverages: tuple[float, ...] = Field((0.9, 0.95, 0.99), min_length=1)
    raps_penalty: float = Field(0.01, ge=0)
    false_alarms: float = Field(0.05, gt=0, lt=1)
    neighbours: int = Field(10, ge=1)
    fitted: int = Field(4000, ge=2)
    zone_degrees: float = Field(5, gt=0)
    zone_tiles: int = Field(20, ge=1)
    cloudy: float = Field(0.5, gt=0, le=1)
    cloud_percent: float = Field(50, ge=0, le=100)
    cloud_step: int = Field(16, ge=1)
    targets: Targets = Field(default_factory=lambda: Targets.model_validate({}))


def read_settings(path: Path) -> AssessSettings:
    """Return the settings in a file.

    Raises:
        TrainingError: it cannot be read, or says what nobody knows.
    """
    try:
        return AssessSettings.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (OSError, yaml.YAMLError) as error:
        raise TrainingError(f"{path}: cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise TrainingError(f"{path}: {where}: {first['msg']}; configs/assess.yaml shows every setting") from error


Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class Table:
    """Figures with a title, what they mean, and a header.

    Attributes:
        name: a short key for programs.
        title: for people.
        note: what was measured, and how.
        header: of the columns; a name that ends in ` %` holds shares (0-1), shown in percent.
        rows: as long as the header each.
    """

    name: str
    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def markdown(self) -> str:
        """Return the table under its title."""
        rule = "|".join("---" if place == 0 else "---:" for place in range(len(self.header)))
        lines = [f"### {self.title}", "", self.note, "", f"| {' | '.join(self.header)} |", f"|{rule}|"]
        for row in self.rows:
            cells = (_shown(cell, name) for cell, name in zip(row, self.header, strict=True))
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Return the same as an object."""
        rows = [dict(zip(self.header, row, strict=True)) for row in self.rows]
        return {"title": self.title, "note": self.note, "rows": rows}


def _shown(cell: Cell, column: str) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{100 * cell:.2f}" if column.endswith("%") else f"{cell:.3f}"
    return str(cell)


Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
_BATCH = 64


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs for n tiles: float32 (n, classes), (n, classes), (n, features), (n,)."""

    probabilities: Floats
    logits: Floats
    embedding: Floats
    outlier_score: Floats

    def __len__(self) -> int:
        return len(self.outlier_score)

    def take(self, rows: npt.NDArray[np.generic]) -> Outputs:
        """Return the outputs for some of the tiles."""
        return Outputs(self.probabilities[rows], self.logits[rows], self.embedding[rows], self.outlier_score[rows])


@dataclass(frozen=True)
class Case:
    """A model file and the tiles that it is measured on.

    Attributes:
        model: the model file.
        pack: the pack.
        split: whose tiles are measured.
        progress: told of long work.
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
            TrainingError: there is none, or the model does not know all classes of the pack.
        """
        found = [source for source in self.pack.summary.sources if len(self.rows(source))]
        if not found:
            have = ", ".join(f"{name} ({sum(c.values())})" for name, c in self.pack.summary.counts.items())
            raise TrainingError(f"{self.pack.root}: no tile is in the split {self.split!r}; it has {have}")
        return found

    def labels(self, rows: Rows) -> Rows:
        """Return the tiles' classes as positions in the model's classes, int64 (n,); -1 where it does not know one."""
        known = self.model.metadata.classes
        places = np.array([known.index(name) if name in known else -1 for name in self.pack.summary.classes])
        return np.asarray(places[self.pack.labels[rows]], np.int64)

    def ask(self, rows: Rows, change: Callable[[DN], DN] | None = None, step: str = "answering") -> Outputs:
        """Return the outputs for the tiles in `rows`, each batch changed by `change` first."""
        parts = []
        for start in range(0, len(rows), _BATCH):
            tiles = self.pack.fetch(rows[start : start + _BATCH])
            parts.append(self._run(tiles if change is None else change(tiles)))
            self.progress(step, min(start + _BATCH, len(rows)), len(rows))
        return _joined(parts)

    def ask_through(self, view: str, rows: Rows, step: str) -> Outputs:
        """Return the outputs for the tiles in `rows`, seen through all bands, or those of a set of `BAND_SETS`."""
        return self.ask(rows, None if view == ALL else DISTURBANCES[f"{view}_bands"], step)

    def ask_tiles(self, tiles: DN) -> Outputs:
        """Return the outputs for uint16 (n, 13, 64, 64), n >= 1."""
        return _joined([self._run(tiles[start : start + _BATCH]) for start in range(0, len(tiles), _BATCH)])

    def flagged(self, found: Outputs) -> float | None:
        """Return the share (0-1) that the file's own threshold flags; None where it has none."""
        limits = self.model.metadata.outliers
        return None if limits is None else float((found.outlier_score > limits.threshold).mean())

    def _run(self, tiles: DN) -> Outputs:
        return Outputs(*self.model.session.run(list(OUTPUTS), {INPUT: np.ascontiguousarray(tiles)}))


def _joined(parts: list[Outputs]) -> Outputs:
    names = ("probabilities", "logits", "embedding", "outlier_score")
    return Outputs(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


Shares = npt.NDArray[np.float32]

NOWHERE = "none"  # the zone of tiles without coordinates
_BATCH = 64
_LATENCY_BATCHES = (1, 16)
_LATENCY_RUNS = 30


@dataclass(frozen=True, slots=True)
class Answers:
    """A model's answers to n tiles, and what is true of these.

    Attributes:
        classes: class names, in the order of `probabilities`.
        probabilities: float32 (n, classes).
        outlier_scores: float32 (n,).
        labels: int64 (n,), positions in `classes`.
        zones: str (n,), the CRS that each tile's coordinates are in, e.g. `EPSG:32632`.
    """

    classes: tuple[str, ...]
    probabilities: Shares
    outlier_scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    zones: npt.NDArray[np.str_]

    @property
    def answered(self) -> npt.NDArray[np.int64]:
        """The most probable classes, int64 (n,)."""
        return self.probabilities.argmax(1)

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Whether each answer is true, bool (n,)."""
        return self.answered == self.labels

    @property
    def accuracy(self) -> float:
        """Share (0-1) of true answers."""
        return float(self.right.mean())

    @property
    def macro_f1(self) -> float:
        """Mean F1 (0-1) of the classes that the tiles have."""
        seen = np.unique(self.labels)
        return float(f1_score(self.labels, self.answered, labels=seen, average="macro", zero_division=0.0))


def open_single_threaded(path: Path) -> ModelFile:
    """Open a model file with one thread, so that latencies compare."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return open_model(path, options)


def answers_of(
    model: ModelFile, pack: Pack, rows: npt.NDArray[np.int64], change: Callable[[DN], DN] | None = None
) -> Answers:
    """Return the model's answers to the tiles in `rows`, each batch changed by `change` first.

    Raises:
        TrainingError: no rows, or classes of the pack that the model does not know.
    """
    if not len(rows):
        raise TrainingError(f"{pack.root}: no tile is in this split; pack with another --split")
    names = model.metadata.classes
    unknown = sorted(set(pack.summary.classes) - set(names))
    if unknown:
        raise TrainingError(f"{model.path}: it does not know the classes {', '.join(unknown)} of {pack.root}")
    outputs: list[tuple[Shares, npt.NDArray[np.float32]]] = []
    for start in range(0, len(rows), _BATCH):
        tiles = pack.fetch(rows[start : start + _BATCH])
        tiles = tiles if change is None else change(tiles)
        outputs.append(tuple(model.session.run(["probabilities", "outlier_score"], {INPUT: tiles})))
    probabilities, scores = (np.concatenate(parts) for parts in zip(*outputs, strict=True))
    places = np.array([names.index(name) for name in pack.summary.classes])
    zones = np.array([zone or NOWHERE for zone in pack.index["crs"].take(rows).to_pylist()])
    return Answers(names, probabilities, scores, places[pack.labels[rows]], zones)


def milliseconds_a_tile(models: dict[str, ModelFile], seed: int = 0) -> dict[str, dict[int, float]]:
    """Return the median CPU time of each model, in ms a tile, by batch size; measured in turn, so that they compare."""
    random = np.random.default_rng(seed)
    found: dict[str, dict[int, float]] = {name: {} for name in models}
    for size in _LATENCY_BATCHES:
        tiles = random.integers(1, 6000, (size, 13, TILE_SIZE, TILE_SIZE), np.uint16)
        times: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(_LATENCY_RUNS):
            for name, model in models.items():
                started = perf_counter()
                model.session.run(["probabilities"], {INPUT: tiles})
                times[name].append((perf_counter() - started) / size * 1000)
        for name, taken in times.items():
            found[name][size] = float(np.median(taken))
    return found


def graph_difference(model: ModelFile, tiles: DN) -> float:
    """Return the largest difference of probabilities between the graph as onnxruntime optimises it, in one batch, and
    the graph as it was exported, tile by tile."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = open_model(model.path, options).session
    together = model.session.run(["probabilities"], {INPUT: tiles})[0]
    single = np.concatenate([plain.run(["probabilities"], {INPUT: tiles[i : i + 1]})[0] for i in range(len(tiles))])
    return float(np.abs(together - single).max())
