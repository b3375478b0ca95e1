"""The gates that a model passes before it serves. Each is a function from a case to findings with figures."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.core.locations import CONFIGS
from tilewise.datasets.packs.pack import Pack
from tilewise.models.model_file import ModelFile, int8_of
from tilewise.training.evaluate.disturbances import DISTURBANCES
from tilewise.training.evaluate.outputs import (
    NOWHERE,
    Answers,
    answers_of,
    graph_difference,
    milliseconds_a_tile,
    open_single_threaded,
)
from tilewise.training.registry import contract

DEFAULT = CONFIGS / "gates.yaml"


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Champion(_Settings):
    """What may be lost against the model that serves, with `confidence`, in `resamples` of a paired bootstrap."""

    confidence: float = Field(0.95, gt=0.5, lt=1)
    resamples: int = Field(2000, ge=100, le=100_000)
    accuracy: float = Field(ge=0, le=1)
    macro_f1: float = Field(ge=0, le=1)


class Floor(_Settings):
    """What every model must reach."""

    accuracy: float = Field(ge=0, le=1)
    macro_f1: float = Field(ge=0, le=1)
    class_recall: float = Field(ge=0, le=1)
    class_tiles: int = Field(10, ge=1)


class Coverage(_Settings):
    """How far the prediction sets may fall short of the coverage that is asked."""

    asked: float = Field(gt=0, lt=1)
    max_below: float = Field(ge=0, le=1)


class Robustness(_Settings):
    """The most accuracy that disturbances may cost, by their names in `tilewise.training.evaluate.disturbances`."""

    model_config = ConfigDict(frozen=True, extra="allow")

    more_than_champion: float = Field(1.0, ge=0, le=1)

    @property
    def limits(self) -> dict[str, float]:
        """The limit of each disturbance."""
        return {name: float(limit) for name, limit in (self.__pydantic_extra__ or {}).items()}

    def model_post_init(self, context: object, /) -> None:
        """Refuse disturbances that nobody knows."""
        unknown = sorted(set(self.__pydantic_extra__ or {}) - set(DISTURBANCES))
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: the disturbances are {', '.join(DISTURBANCES)}")


class Zones(_Settings):
    """How far accuracy in a zone with `tiles` or more may lie below that of all."""

    tiles: int = Field(30, ge=1)
    max_below: float = Field(ge=0, le=1)


class Latency(_Settings):
    """CPU time, one thread, batches of one."""

    milliseconds: float = Field(gt=0)
    times_champion: float = Field(1.5, gt=0)


class GateSettings(_Settings):
    """The whole file; what is None is not asked.

    `approval`: true asks for a person's name, a list for one of these names (an empty one for any).
    """

    split: str = "test"
    min_tiles: int = Field(100, ge=1)
    seed: int = 0
    champion: Champion | None = None
    floor: Floor | None = None
    calibration: float | None = None
    coverage: Coverage | None = None
    outliers: float | None = None
    robustness: Robustness | None = None
    zones: Zones | None = None
    latency: Latency | None = None
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
        return f"{wanted} must approve; say --approve NAME"


def read_settings(path: Path) -> GateSettings:
    """Return what a gates file asks.

    Raises:
        TrainingError: it cannot be read, or asks what nobody knows.
    """
    try:
        return GateSettings.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise TrainingError(f"{path}: cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise TrainingError(f"{path}: {where}: {first['msg']}; configs/gates.yaml shows every setting") from error


_PARITY_TILES = 64
_CHUNK = 200  # resamples that are drawn at once: bounds the memory of the bootstrap


@dataclass(frozen=True, slots=True)
class Finding:
    """What one gate found.

    Attributes:
        gate: its name, e.g. `floor/accuracy`.
        passed: whether the model may go on.
        figure: what was measured.
        limit: what was asked, in words.
    """

    gate: str
    passed: bool
    figure: float
    limit: str


@dataclass(frozen=True)
class Case:
    """A candidate, the champion if there is one, and the tiles that both are measured on."""

    candidate: ModelFile
    champion: ModelFile | None
    pack: Pack
    settings: GateSettings
    _seen: dict[tuple[str, str], Answers] = field(default_factory=dict)

    @cached_property
    def rows(self) -> npt.NDArray[np.int64]:
        """The tiles' rows in the pack."""
        return self.pack.rows(self.settings.split)

    def answers(self, model: ModelFile, disturbance: str = "") -> Answers:
        """Return a model's answers to the tiles, disturbed or not; worked out once."""
        key = (model.sha256, disturbance)
        if key not in self._seen:
            self._seen[key] = answers_of(model, self.pack, self.rows, DISTURBANCES.get(disturbance))
        return self._seen[key]


def examine(case: Case) -> Iterator[Finding]:
    """Yield what every gate that the settings ask for finds.

    Raises:
        TrainingError: the tiles are too few to decide anything.
    """
    if len(case.rows) < case.settings.min_tiles:
        raise TrainingError(
            f"{case.pack.root}: {len(case.rows)} tiles in the split {case.settings.split!r}, "
            f"{case.settings.min_tiles} are the least; name another pack, or change the gates file"
        )
    for name, gate in GATES.items():
        if getattr(case.settings, name):
            yield from gate(case)


def lower_bounds(candidate: Answers, champion: Answers, case: Case) -> dict[str, float]:
    """Return the lower confidence bounds of the candidate's gain in accuracy and macro F1, by a paired bootstrap.

    Both models answer the same tiles, so tiles are drawn with replacement and both are measured on each draw
    (Efron & Tibshirani 1993, chapter 13, the percentile interval): what is hard for both cancels out.
    """
    asked = case.settings.champion
    assert asked is not None  # noqa: S101 - only called where the settings ask for it
    random = np.random.default_rng(case.settings.seed)
    accuracy, macro_f1 = [], []
    for start in range(0, asked.resamples, _CHUNK):
        draws = random.integers(0, len(case.rows), (min(_CHUNK, asked.resamples - start), len(case.rows)))
        accuracy += list(candidate.right[draws].mean(1) - champion.right[draws].mean(1))
        macro_f1 += [_macro_f1(candidate, draw) - _macro_f1(champion, draw) for draw in draws]
    level = 1 - asked.confidence
    return {"accuracy": float(np.quantile(accuracy, level)), "macro_f1": float(np.quantile(macro_f1, level))}


def _macro_f1(answers: Answers, draw: npt.NDArray[np.int64]) -> float:
    """Return macro F1 over the classes that a draw has, from the confusion matrix."""
    count = len(answers.classes)
    confusion = np.bincount(answers.labels[draw] * count + answers.answered[draw], minlength=count**2)
    confusion = confusion.reshape(count, count)
    true, answered, both = confusion.sum(1), confusion.sum(0), confusion.diagonal()
    seen = true > 0
    return float((2 * both[seen] / (true[seen] + answered[seen])).mean())


def _champion(case: Case) -> Iterator[Finding]:
    if case.champion is None or case.settings.champion is None:
        return
    bounds = lower_bounds(case.answers(case.candidate), case.answers(case.champion), case)
    for name, bound in bounds.items():
        margin = getattr(case.settings.champion, name)
        limit = f"≥ -{margin:g} against the champion, {case.settings.champion.confidence:.0%} sure"
        yield Finding(f"champion/{name}", bound >= -margin, bound, limit)


def _floor(case: Case) -> Iterator[Finding]:
    floor, answers = case.settings.floor, case.answers(case.candidate)
    assert floor is not None  # noqa: S101 - asked for, see `examine`
    for name in ("accuracy", "macro_f1"):
        figure, minimum = getattr(answers, name), getattr(floor, name)
        yield Finding(f"floor/{name}", figure >= minimum, figure, f"≥ {minimum:g}")
    for index, name in enumerate(answers.classes):
        of_class = answers.labels == index
        if of_class.sum() >= floor.class_tiles:
            recall = float(answers.right[of_class].mean())
            yield Finding(f"floor/recall/{name}", recall >= floor.class_recall, recall, f"≥ {floor.class_recall:g}")


def _calibration(case: Case) -> Iterator[Finding]:
    import torch  # here, as the registry's other commands need not wait for it
    from torchmetrics.functional.classification import multiclass_calibration_error

    from tilewise.training.evaluate.evaluation import CALIBRATION_BINS

    limit, answers = case.settings.calibration or 0.0, case.answers(case.candidate)
    error = multiclass_calibration_error(
        torch.from_numpy(answers.probabilities),
        torch.from_numpy(answers.labels),
        len(answers.classes),
        n_bins=CALIBRATION_BINS,
    )
    yield Finding("calibration", float(error) <= limit, float(error), f"≤ {limit:g}")


def _coverage(case: Case) -> Iterator[Finding]:
    asked, sets = case.settings.coverage, case.candidate.metadata.prediction_sets
    assert asked is not None  # noqa: S101 - asked for, see `examine`
    if sets is None or max(sets.thresholds) < asked.asked:
        yield Finding("coverage", False, 0.0, f"prediction sets calibrated for {asked.asked:g}")
        return
    answers = case.answers(case.candidate)
    of_truth = answers.probabilities[np.arange(len(answers.labels)), answers.labels]
    covered = float((of_truth >= sets.threshold(asked.asked)).mean())
    minimum = asked.asked - asked.max_below
    yield Finding("coverage", covered >= minimum, covered, f"≥ {minimum:g} where {asked.asked:g} is asked")


def _outliers(case: Case) -> Iterator[Finding]:
    limit, known = case.settings.outliers or 0.0, case.candidate.metadata.outliers
    if known is None:
        yield Finding("outliers", False, 0.0, "a calibrated outlier score")
        return
    flagged = float((case.answers(case.candidate).outlier_scores > known.threshold).mean())
    yield Finding("outliers", flagged <= limit, flagged, f"≤ {limit:g} of known tiles flagged")


def _robustness(case: Case) -> Iterator[Finding]:
    asked, clean = case.settings.robustness, case.answers(case.candidate).accuracy
    assert asked is not None  # noqa: S101 - asked for, see `examine`
    for name, max_cost in asked.limits.items():
        accuracy = case.answers(case.candidate, name).accuracy
        cost = clean - accuracy
        yield Finding(f"robustness/{name}", cost <= max_cost, cost, f"≤ {max_cost:g} of accuracy lost")
        if case.champion:
            behind = case.answers(case.champion, name).accuracy - accuracy
            limit = f"≤ {asked.more_than_champion:g} behind the champion"
            yield Finding(f"robustness/{name}/champion", behind <= asked.more_than_champion, behind, limit)


def _zones(case: Case) -> Iterator[Finding]:
    asked, answers = case.settings.zones, case.answers(case.candidate)
    assert asked is not None  # noqa: S101 - asked for, see `examine`
    for zone in np.unique(answers.zones):
        there = answers.zones == zone
        if zone != NOWHERE and there.sum() >= asked.tiles:
            below = answers.accuracy - float(answers.right[there].mean())
            yield Finding(f"zones/{zone}", below <= asked.max_below, below, f"≤ {asked.max_below:g} below all")


def _latency(case: Case) -> Iterator[Finding]:
    asked = case.settings.latency
    assert asked is not None  # noqa: S101 - asked for, see `examine`
    models = {"candidate": case.candidate} | ({"champion": case.champion} if case.champion else {})
    taken = {name: times[1] for name, times in milliseconds_a_tile(models).items()}
    limit = asked.milliseconds
    yield Finding("latency", taken["candidate"] <= limit, taken["candidate"], f"≤ {limit:g} ms a tile")
    if case.champion:
        times = taken["candidate"] / taken["champion"]
        yield Finding("latency/champion", times <= asked.times_champion, times, f"≤ {asked.times_champion:g} ×")


def _megabytes(case: Case) -> Iterator[Finding]:
    size, limit = case.candidate.path.stat().st_size / 1e6, case.settings.megabytes or 0.0
    yield Finding("megabytes", size <= limit, size, f"≤ {limit:g} MB")


def _parity(case: Case) -> Iterator[Finding]:
    limit = case.settings.parity or 0.0
    difference = graph_difference(case.candidate, case.pack.fetch(case.rows[:_PARITY_TILES]))
    yield Finding("parity", difference <= limit, difference, f"≤ {limit:g} between optimised and plain graph")


def _int8(case: Case) -> Iterator[Finding]:
    """Judge the INT8 file of the version, where it has one: services take it where the processor gains by it."""
    path, limit = int8_of(case.candidate.path), case.settings.int8 or 0.0
    if not path.is_file():
        return
    int8 = open_single_threaded(path)
    if int8.metadata.quantised_from != case.candidate.sha256:
        yield Finding("int8", False, 1.0, "an INT8 file that was made from this version's fp32 file")
        return
    lost = case.answers(case.candidate).accuracy - case.answers(int8).accuracy
    yield Finding("int8", lost <= limit, lost, f"≤ {limit:g} of accuracy lost against fp32")


def _contract(case: Case) -> Iterator[Finding]:
    broken = contract.violations(case.candidate, case.pack.fetch(case.rows[: contract.TILES]))
    yield Finding("contract", not broken, len(broken), "; ".join(broken) or "a real service keeps its contract")


GATES: dict[str, Callable[[Case], Iterator[Finding]]] = {
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
