"""The gates that a model must pass before it serves: each is a function from a context to results with
figures."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from mlflow.entities.model_registry import ModelVersion
from pydantic import BaseModel, ConfigDict, Field

from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.core.locations import CONFIGS
from tilewise.datasets.packs.pack import Pack
from tilewise.models.model_file import ModelFile, int8_of
from tilewise.training.evaluate.disturbances import DISTURBANCES
from tilewise.training.evaluate.outputs import (
    NO_ZONE,
    Predictions,
    cpu_milliseconds,
    graph_difference,
    open_single_threaded,
    predict_rows,
)
from tilewise.training.registry import contract
from tilewise.training.settings import read_yaml_settings

DEFAULT = CONFIGS / "gates.yaml"


class _GateModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ChampionGate(_GateModel):
    """The most that may be lost against the champion, at `confidence`, by `resamples` of a paired
    bootstrap."""

    confidence: float = Field(0.95, gt=0.5, lt=1)
    resamples: int = Field(2000, ge=100, le=100_000)
    accuracy: float = Field(ge=0, le=1)
    macro_f1: float = Field(ge=0, le=1)


class FloorGate(_GateModel):
    """Minimum figures of every model."""

    accuracy: float = Field(ge=0, le=1)
    macro_f1: float = Field(ge=0, le=1)
    class_recall: float = Field(ge=0, le=1)
    class_tiles: int = Field(10, ge=1)


class CoverageGate(_GateModel):
    """How far the coverage of prediction sets may be below the target."""

    target: float = Field(gt=0, lt=1)
    max_below: float = Field(ge=0, le=1)


class RobustnessGate(_GateModel):
    """The most accuracy that disturbances may cost, by name (`tilewise.training.evaluate.disturbances`)."""

    model_config = ConfigDict(frozen=True, extra="allow")

    more_than_champion: float = Field(1.0, ge=0, le=1)

    @property
    def limits(self) -> dict[str, float]:
        """The limit of each disturbance."""
        return {name: float(limit) for name, limit in (self.__pydantic_extra__ or {}).items()}

    def model_post_init(self, context: object, /) -> None:
        """Refuse unknown disturbances."""
        unknown = sorted(set(self.__pydantic_extra__ or {}) - set(DISTURBANCES))
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: the disturbances are {', '.join(DISTURBANCES)}")


class ZonesGate(_GateModel):
    """How far the accuracy in a zone of at least `tiles` may be below that of all tiles."""

    tiles: int = Field(30, ge=1)
    max_below: float = Field(ge=0, le=1)


class LatencyGate(_GateModel):
    """CPU time, one thread, batches of one."""

    milliseconds: float = Field(gt=0)
    times_champion: float = Field(1.5, gt=0)


class GateSettings(_GateModel):
    """The whole file; a gate that is None is not applied.

    `approval`: true requires a person's name, a list one of these names (an empty one any).
    """

    split: str = "test"
    min_tiles: int = Field(100, ge=1)
    seed: int = 0
    champion: ChampionGate | None = None
    floor: FloorGate | None = None
    calibration: float | None = None
    coverage: CoverageGate | None = None
    outliers: float | None = None
    robustness: RobustnessGate | None = None
    zones: ZonesGate | None = None
    latency: LatencyGate | None = None
    megabytes: float | None = None
    parity: float | None = None
    int8: float | None = None
    contract: bool = False
    approval: bool | tuple[str, ...] = True

    def objection(self, approver: str) -> str | None:
        """Return why a model that passes every gate may not be promoted yet, or None."""
        named = self.approval if isinstance(self.approval, tuple) else ()
        if self.approval is False or (approver and (not named or approver in named)):
            return None
        wanted = f"one of {', '.join(named)}" if named else "a person"
        return f"{wanted} must approve; add --approve NAME"


def read_gate_settings(path: Path) -> GateSettings:
    """Read a file like `configs/gates.yaml`; raises as `read_yaml_settings` does."""
    return read_yaml_settings(path, GateSettings, DEFAULT)


_PARITY_TILES = 64
_CHUNK = 200  # resamples drawn at once: bounds the memory of the bootstrap


@dataclass(frozen=True, slots=True)
class GateResult:
    """The result of one gate.

    Attributes:
        gate: its name, e.g. `floor/accuracy`.
        passed: whether the model passed.
        figure: the measured value.
        limit: the limit, in words.
    """

    gate: str
    passed: bool
    figure: float
    limit: str


@dataclass(frozen=True)
class GateContext:
    """A candidate, the champion if there is one, and the tiles that both are measured on."""

    candidate: ModelFile
    champion: ModelFile | None
    pack: Pack
    settings: GateSettings
    _cache: dict[tuple[str, str], Predictions] = field(default_factory=dict)

    @cached_property
    def rows(self) -> npt.NDArray[np.int64]:
        """The tiles' rows in the pack."""
        return self.pack.rows(self.settings.split)

    def predictions(self, model: ModelFile, disturbance: str = "") -> Predictions:
        """Return a model's predictions for the tiles, disturbed or not; computed once."""
        key = (model.sha256, disturbance)
        if key not in self._cache:
            self._cache[key] = predict_rows(model, self.pack, self.rows, DISTURBANCES.get(disturbance))
        return self._cache[key]

    def tags(self, champion: ModelVersion | None) -> dict[str, str]:
        """Return the data and the champion that the candidate was measured on and against, for a version's
        tags."""
        against = champion.tags.get("semver", str(champion.version)) if champion and self.champion else "none"
        return {
            "data_hash": self.pack.summary.data_hash,
            "split": self.settings.split,
            "tiles": str(len(self.rows)),
            "champion": against,
        }


def open_context(candidate: Path, champion: Path | None, pack: Pack, settings: GateSettings) -> GateContext:
    """Open both model files, single-threaded, for a comparison on the tiles of a pack.

    A champion that lacks classes of the tiles cannot be compared: this is printed, and the context has none.
    """
    serving = open_single_threaded(champion) if champion else None
    if serving and not set(pack.summary.classes) <= set(serving.metadata.classes):
        click.echo("the champion lacks classes of these tiles, so the candidate is not compared with it")
        serving = None
    return GateContext(open_single_threaded(candidate), serving, pack, settings)


def run_gates(context: GateContext) -> Iterator[GateResult]:
    """Yield the results of every gate in the settings.

    Raises:
        TrainingError: there are too few tiles.
    """
    if len(context.rows) < context.settings.min_tiles:
        raise TrainingError(
            f"{context.pack.root}: {len(context.rows)} tiles in the split {context.settings.split!r}, the "
            f"minimum is "
            f"{context.settings.min_tiles}; name another pack, or change the gates file"
        )
    for name, gate in GATES.items():
        setting = getattr(context.settings, name)
        if setting is not None and setting is not False:  # a limit of 0 is one
            yield from gate(context, setting)


def lower_bounds(candidate: Predictions, champion: Predictions, context: GateContext) -> dict[str, float]:
    """Return the lower confidence bounds of the candidate's gain in accuracy and macro F1, by a paired
    bootstrap.

    Both models are measured on the same tiles, so tiles are drawn with replacement and both are measured on
    each draw (Efron & Tibshirani 1993, chapter 13, the percentile interval): tiles that are hard for both
    cancel out.
    """
    gate = context.settings.champion
    assert gate is not None  # noqa: S101 - only called where the settings have it
    random = np.random.default_rng(context.settings.seed)
    accuracy, macro_f1 = [], []
    for start in range(0, gate.resamples, _CHUNK):
        draws = random.integers(
            0, len(context.rows), (min(_CHUNK, gate.resamples - start), len(context.rows))
        )
        accuracy += list(candidate.correct[draws].mean(1) - champion.correct[draws].mean(1))
        macro_f1 += [_macro_f1(candidate, draw) - _macro_f1(champion, draw) for draw in draws]
    level = 1 - gate.confidence
    return {"accuracy": float(np.quantile(accuracy, level)), "macro_f1": float(np.quantile(macro_f1, level))}


def _macro_f1(predictions: Predictions, draw: npt.NDArray[np.int64]) -> float:
    """Return macro F1 over the classes in a draw, from the confusion matrix."""
    count = len(predictions.classes)
    confusion = np.bincount(
        predictions.labels[draw] * count + predictions.predicted[draw], minlength=count**2
    )
    confusion = confusion.reshape(count, count)
    true, predicted, both = confusion.sum(1), confusion.sum(0), confusion.diagonal()
    seen = true > 0
    return float((2 * both[seen] / (true[seen] + predicted[seen])).mean())


def _champion(context: GateContext, gate: ChampionGate) -> Iterator[GateResult]:
    if context.champion is None:
        return
    bounds = lower_bounds(
        context.predictions(context.candidate), context.predictions(context.champion), context
    )
    for name, bound in bounds.items():
        margin = getattr(gate, name)
        limit = f"≥ -{margin:g} against the champion, {gate.confidence:.0%}"
        yield GateResult(f"champion/{name}", bound >= -margin, bound, limit)


def _floor(context: GateContext, floor: FloorGate) -> Iterator[GateResult]:
    predictions = context.predictions(context.candidate)
    for name in ("accuracy", "macro_f1"):
        figure, minimum = getattr(predictions, name), getattr(floor, name)
        yield GateResult(f"floor/{name}", figure >= minimum, figure, f"≥ {minimum:g}")
    for index, name in enumerate(predictions.classes):
        of_class = predictions.labels == index
        if of_class.sum() >= floor.class_tiles:
            recall = float(predictions.correct[of_class].mean())
            yield GateResult(
                f"floor/recall/{name}", recall >= floor.class_recall, recall, f"≥ {floor.class_recall:g}"
            )


def _calibration(context: GateContext, limit: float) -> Iterator[GateResult]:
    import torch  # here, as the registry's other commands need not wait for it
    from torchmetrics.functional.classification import multiclass_calibration_error

    from tilewise.training.evaluate.evaluation import CALIBRATION_BINS

    predictions = context.predictions(context.candidate)
    error = multiclass_calibration_error(
        torch.from_numpy(predictions.probabilities),
        torch.from_numpy(predictions.labels),
        len(predictions.classes),
        n_bins=CALIBRATION_BINS,
    )
    yield GateResult("calibration", float(error) <= limit, float(error), f"≤ {limit:g}")


def _coverage(context: GateContext, gate: CoverageGate) -> Iterator[GateResult]:
    sets = context.candidate.metadata.prediction_sets
    if sets is None or max(sets.thresholds) < gate.target:
        yield GateResult("coverage", False, 0.0, f"prediction sets calibrated for {gate.target:g}")
        return
    of_label = context.predictions(context.candidate).of_label
    covered = float((of_label >= sets.threshold(gate.target)).mean())
    minimum = gate.target - gate.max_below
    yield GateResult("coverage", covered >= minimum, covered, f"≥ {minimum:g} at the target {gate.target:g}")


def _outliers(context: GateContext, limit: float) -> Iterator[GateResult]:
    known = context.candidate.metadata.outliers
    if known is None:
        yield GateResult("outliers", False, 0.0, "a calibrated outlier score")
        return
    flagged = float((context.predictions(context.candidate).outlier_scores > known.threshold).mean())
    yield GateResult("outliers", flagged <= limit, flagged, f"≤ {limit:g} of in-distribution tiles flagged")


def _robustness(context: GateContext, gate: RobustnessGate) -> Iterator[GateResult]:
    clean = context.predictions(context.candidate).accuracy
    for name, max_cost in gate.limits.items():
        accuracy = context.predictions(context.candidate, name).accuracy
        cost = clean - accuracy
        yield GateResult(f"robustness/{name}", cost <= max_cost, cost, f"≤ {max_cost:g} of accuracy lost")
        if context.champion:
            behind = context.predictions(context.champion, name).accuracy - accuracy
            limit = f"≤ {gate.more_than_champion:g} behind the champion"
            yield GateResult(f"robustness/{name}/champion", behind <= gate.more_than_champion, behind, limit)


def _zones(context: GateContext, gate: ZonesGate) -> Iterator[GateResult]:
    predictions = context.predictions(context.candidate)
    for zone in np.unique(predictions.zones):
        inside = predictions.zones == zone
        if zone != NO_ZONE and inside.sum() >= gate.tiles:
            below = predictions.accuracy - float(predictions.correct[inside].mean())
            yield GateResult(
                f"zones/{zone}", below <= gate.max_below, below, f"≤ {gate.max_below:g} below all"
            )


def _latency(context: GateContext, gate: LatencyGate) -> Iterator[GateResult]:
    models = {"candidate": context.candidate} | ({"champion": context.champion} if context.champion else {})
    taken = {name: times[1] for name, times in cpu_milliseconds(models).items()}
    limit = gate.milliseconds
    yield GateResult(
        "latency", taken["candidate"] <= limit, taken["candidate"], f"≤ {limit:g} ms of CPU time a tile"
    )
    if context.champion:
        times = taken["candidate"] / taken["champion"]
        yield GateResult(
            "latency/champion", times <= gate.times_champion, times, f"≤ {gate.times_champion:g} ×"
        )


def _megabytes(context: GateContext, limit: float) -> Iterator[GateResult]:
    size = context.candidate.path.stat().st_size / 1e6
    yield GateResult("megabytes", size <= limit, size, f"≤ {limit:g} MB")


def _parity(context: GateContext, limit: float) -> Iterator[GateResult]:
    difference = graph_difference(context.candidate, context.pack.fetch(context.rows[:_PARITY_TILES]))
    yield GateResult(
        "parity", difference <= limit, difference, f"≤ {limit:g} between optimised and plain graph"
    )


def _int8(context: GateContext, limit: float) -> Iterator[GateResult]:
    """Compare the version's INT8 file, if it has one, with fp32: services use it where the processor is
    faster with it."""
    path = int8_of(context.candidate.path)
    if not path.is_file():
        return
    int8 = open_single_threaded(path)
    if int8.metadata.quantised_from != context.candidate.sha256:
        yield GateResult("int8", False, 1.0, "an INT8 file made from this version's fp32 file")
        return
    lost = context.predictions(context.candidate).accuracy - context.predictions(int8).accuracy
    yield GateResult("int8", lost <= limit, lost, f"≤ {limit:g} of accuracy lost against fp32")


def _contract(context: GateContext, _: bool) -> Iterator[GateResult]:
    broken = contract.violations(context.candidate, context.pack.fetch(context.rows[: contract.TILES]))
    yield GateResult(
        "contract", not broken, len(broken), "; ".join(broken) or "a running service keeps its contract"
    )


GATES: dict[str, Callable[[GateContext, Any], Iterator[GateResult]]] = {  # called with their setting
    "floor": _floor,
    "champion": _champion,
    "calibration": _calibration,
    "coverage": _coverage,
    "outliers": _outliers,
    "robustness": _robustness,
    "zones": _zones,
    "latency": _latency,
    "megabytes": _megabytes,
    "parity": _parity,
    "int8": _int8,
    "contract": _contract,
}
