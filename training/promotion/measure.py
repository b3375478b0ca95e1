"""What a model file answers on the tiles of a pack, as its users would get it: through onnxruntime, not torch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from sklearn.metrics import f1_score

from datasets.errors import TrainingError
from datasets.pack import Pack
from datasets.tile import DN, TILE_SIZE
from models.modelfile import INPUT, ModelFile, open_model

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
