"""Whether probabilities and prediction sets hold what they promise, on tiles that calibrated neither.

The tiles are halved at random many times; temperature and thresholds are fitted on one half and measured on the other,
both ways. So the figures are those of the method on the file's logits: the temperature and the thresholds inside the
file, if they were fitted on this very split, are judged by none of its tiles.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import softmax

from datasets.progress import Report
from models import conformal
from models.calibration import fit_temperature
from training.assess.settings import AssessSettings
from training.assess.tables import Table
from training.evaluation import evaluate

METHODS = ("lac", "aps", "raps")
Labels = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Half:
    """Calibrated probabilities and labels of the half that was fitted on, and of the other."""

    fitted: tuple[Floats, Labels]
    measured: tuple[Floats, Labels]
    temperature: float


def halves(logits: Floats, labels: Labels, settings: AssessSettings, progress: Report) -> Iterator[Half]:
    """Yield both halves of each random halving, with the temperature of the one applied to both."""
    random = np.random.default_rng(settings.seed)
    for turn in range(settings.halves):
        order = random.permutation(len(labels))
        one, other = order[::2], order[1::2]
        for fitted, measured in ((one, other), (other, one)):
            temperature = fit_temperature(torch.from_numpy(logits[fitted]), torch.from_numpy(labels[fitted]))
            shares = softmax(logits / temperature, axis=1)
            yield Half((shares[fitted], labels[fitted]), (shares[measured], labels[measured]), temperature)
        progress("halving", turn + 1, settings.halves)


def certainty_tables(
    logits: Floats, labels: Labels, classes: tuple[str, ...], settings: AssessSettings, progress: Report
) -> tuple[Table, Table]:
    """Return the table of the calibration error on held-out tiles, and that of prediction sets by each method."""
    errors: list[float] = []
    temperatures: list[float] = []
    sets: dict[tuple[str, float], list[tuple[float, float, float, float]]] = {}
    random = np.random.default_rng(settings.seed)
    for half in halves(logits, labels, settings, progress):
        shares, truth = (torch.from_numpy(part) for part in half.measured)
        errors.append(evaluate("held out", shares, truth, classes).calibration_error)
        temperatures.append(half.temperature)
        for method in METHODS:
            for coverage, figures in _sets_of(half, method, settings, random):
                sets.setdefault((method, coverage), []).append(figures)
    return _error_table(errors, temperatures, len(labels)), _set_table(sets, len(labels))


def _sets_of(
    half: Half, method: str, settings: AssessSettings, random: np.random.Generator
) -> Iterator[tuple[float, tuple[float, float, float, float]]]:
    """Yield (coverage asked, (covered, mean size, share of empty sets, covered of the worst class))."""
    scores, (shares, labels) = (
        conformal.scores_of(method, half.fitted[0], random, settings.raps_penalty),
        half.measured,
    )
    measured = conformal.scores_of(method, shares, random, settings.raps_penalty)
    for coverage in settings.coverages:
        chosen = measured <= conformal.limit_of(scores, half.fitted[1], coverage)
        covered, size = chosen[np.arange(len(labels)), labels], chosen.sum(1)
        worst = min(float(covered[labels == label].mean()) for label in np.unique(labels))
        yield coverage, (float(covered.mean()), float(size.mean()), float((size == 0).mean()), worst)


def _error_table(errors: list[float], temperatures: list[float], tiles: int) -> Table:
    found, heat = np.array(errors), np.array(temperatures)
    note = (
        f"Expected calibration error, 15 bins. {tiles} tiles, halved at random {len(errors) // 2} times: the "
        "temperature is fitted on one half and the error measured on the other, both ways."
    )
    header = ("figure", "mean %", "least %", "most %", "temperature")
    row = ("calibration error", float(found.mean()), float(found.min()), float(found.max()), float(heat.mean()))
    return Table("calibration", "Calibration on held-out tiles", note, header, (row,))


def _set_table(sets: dict[tuple[str, float], list[tuple[float, float, float, float]]], tiles: int) -> Table:
    rows = []
    for (method, coverage), found in sorted(sets.items(), key=lambda item: (item[0][1], METHODS.index(item[0][0]))):
        covered, size, empty, worst = np.array(found).mean(0)
        spread = float(np.array(found)[:, 0].std())
        rows.append((method.upper(), coverage, float(covered), spread, float(size), float(empty), float(worst)))
    turns = len(next(iter(sets.values()))) // 2
    note = (
        f"{tiles} tiles, halved at random {turns} times: thresholds from one half, measured on the other, both ways. "
        "Model files hold LAC's thresholds."
    )
    header = ("method", "asked %", "covered %", "± %", "mean size", "empty %", "worst class covered %")
    return Table("sets", "Prediction sets on held-out tiles", note, header, tuple(rows))
