"""Tables of an assessment: accuracy, classes, latitude, robustness; calibration and prediction sets on
held-out tiles.

For calibration and prediction sets the tiles are halved at random many times; temperature and thresholds are
fitted on one half and measured on the other, both ways. The figures are therefore those of the method on the
file's logits, even where the file's own temperature and thresholds were fitted on this split.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import softmax

from tilewise.datasets.core.bands import BAND_SETS
from tilewise.datasets.core.console import Report
from tilewise.datasets.packs.pack import Pack
from tilewise.datasets.packs.splits import tile_centres
from tilewise.models.network import calibration
from tilewise.models.network.calibration import fit_temperature
from tilewise.training.evaluate.assess_settings import AssessSettings
from tilewise.training.evaluate.disturbances import DESCRIPTIONS, DISTURBANCES
from tilewise.training.evaluate.evaluation import ALL, Evaluation, Table, evaluate, views_of
from tilewise.training.evaluate.outputs import ModelOutputs, PackEvaluator, Rows, SourceOutputs

_GEOGRAPHIC = "EPSG:4326"


def accuracy_table(evaluator: PackEvaluator, plain: SourceOutputs) -> tuple[Table, list[Evaluation]]:
    """Return the table by source and set of bands, and the evaluations in it."""
    found = [
        _evaluate(evaluator, f"{source}/{view}", source, _outputs_of_view(evaluator, plain, source, view))
        for source in evaluator.sources
        for view in views_of(evaluator.pack.bands(int(evaluator.rows(source)[0])))
    ]
    rows = tuple((e.group, e.tiles, e.accuracy, e.macro_f1, e.calibration_error) for e in found)
    note = (
        "Every tile of the split. The calibration error is that of the file as it is; the one on held-out "
        "tiles is "
        "below."
    )
    header = ("tiles, bands", "tiles", "accuracy %", "macro F1 %", "calibration error %")
    return Table("accuracy", "Accuracy by source and bands", note, header, rows), found


def class_table(evaluations: list[Evaluation]) -> Table:
    """Return precision, recall and F1 of each class, all bands, by source."""
    rows = [
        (f"{e.group.split('/')[0]}: {c.name}", c.tiles, c.precision, c.recall, c.f1)
        for e in evaluations
        if e.group.endswith(f"/{ALL}")
        for c in e.classes
        if c.tiles
    ]
    header = ("source: class", "tiles", "precision %", "recall %", "F1 %")
    return Table("classes", "Each class", "With all the bands that the tiles have.", header, tuple(rows))


def zone_table(evaluator: PackEvaluator, plain: SourceOutputs, settings: AssessSettings) -> Table:
    """Return accuracy by zone of latitude, of the tiles with coordinates."""
    known = latitudes(evaluator.pack)
    rows: list[tuple[str, int, float]] = []
    for source in evaluator.sources:
        names = evaluator.pack.names(evaluator.rows(source))
        degrees = np.array([known.get(name, np.nan) for name in names])
        correct = plain[source].probabilities.argmax(1) == evaluator.labels(evaluator.rows(source))
        zones = np.floor(degrees / settings.zone_degrees) * settings.zone_degrees
        for zone in np.unique(zones[np.isfinite(zones)]):
            inside = zones == zone
            if inside.sum() >= settings.zone_tiles:
                title = f"{source}: {zone:g} to {zone + settings.zone_degrees:g}° N"
                rows.append((title, int(inside.sum()), float(correct[inside].mean())))
    note = (
        "By the tiles' coordinates; a tile without coordinates takes those of the tile with its name in "
        "another "
        f"source. Zones with fewer than {settings.zone_tiles} tiles are left out."
    )
    return Table("zones", "Latitude", note, ("source: zone", "tiles", "accuracy %"), tuple(rows))


def robustness_table(evaluator: PackEvaluator, plain: SourceOutputs) -> Table:
    """Return accuracy and the flagged fraction under each disturbance that changes the tiles of a source."""
    rows: list[tuple[str, int, float, float, float | None]] = []
    for source in evaluator.sources:
        index, size = evaluator.rows(source), len(evaluator.rows(source))
        clean = float((plain[source].probabilities.argmax(1) == evaluator.labels(index)).mean())
        rows.append((f"{source}: as it is", size, clean, 0.0, evaluator.flagged(plain[source])))
        for name in _applicable(evaluator.pack.bands(int(index[0]))):
            words = DESCRIPTIONS[name]
            found = evaluator.run(index, DISTURBANCES[name], f"{source}, {words}")
            accuracy = float((found.probabilities.argmax(1) == evaluator.labels(index)).mean())
            rows.append((f"{source}: {words}", size, accuracy, accuracy - clean, evaluator.flagged(found)))
    note = (
        "The same tiles with one disturbance each, defined in `training/evaluate/disturbances.py`. Flagged: "
        "as out of "
        "distribution, by the threshold inside the file."
    )
    header = ("source: disturbance", "tiles", "accuracy %", "change %", "flagged %")
    return Table("robustness", "Robustness", note, header, tuple(rows))


def latitudes(pack: Pack) -> dict[str, float]:
    """Return the latitude (degrees) of the centre of each tile with coordinates, by the tile's name."""
    degrees = tile_centres(pack, pack.rows(), _GEOGRAPHIC)[:, 1]
    names = pack.names(pack.rows())
    return {name: float(y) for name, y in zip(names, degrees, strict=True) if np.isfinite(y)}


def _outputs_of_view(evaluator: PackEvaluator, plain: SourceOutputs, source: str, view: str) -> ModelOutputs:
    if view == ALL:
        return plain[source]
    return evaluator.run_view(view, evaluator.rows(source), f"{source}, bands {view}")


def _evaluate(evaluator: PackEvaluator, group: str, source: str, outputs: ModelOutputs) -> Evaluation:
    labels = torch.from_numpy(evaluator.labels(evaluator.rows(source)))
    return evaluate(group, torch.from_numpy(outputs.probabilities), labels, evaluator.model.metadata.classes)


def _applicable(bands: tuple[str, ...]) -> Iterator[str]:
    """Yield the disturbances that change tiles with `bands` and leave some of these."""
    for name in DISTURBANCES:
        view = name.removesuffix("_bands")
        if view == name or set(BAND_SETS[view]) < set(bands):
            yield name


def rows_of(evaluator: PackEvaluator) -> Rows:
    """Return the rows of all sources, one source after another."""
    return np.concatenate([evaluator.rows(source) for source in evaluator.sources])


METHODS = ("lac", "aps", "raps")
Labels = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Half:
    """Calibrated probabilities and labels of the half that was fitted on, and of the half that is
    measured."""

    fitted: tuple[Floats, Labels]
    measured: tuple[Floats, Labels]
    temperature: float


def halves(logits: Floats, labels: Labels, settings: AssessSettings, progress: Report) -> Iterator[Half]:
    """Yield both directions of each random halving, with the temperature of the fitted half applied to
    both."""
    random = np.random.default_rng(settings.seed)
    for number in range(settings.halves):
        order = random.permutation(len(labels))
        first, second = order[::2], order[1::2]
        for fitted, measured in ((first, second), (second, first)):
            temperature = fit_temperature(torch.from_numpy(logits[fitted]), torch.from_numpy(labels[fitted]))
            calibrated = softmax(logits / temperature, axis=1)
            yield Half(
                (calibrated[fitted], labels[fitted]), (calibrated[measured], labels[measured]), temperature
            )
        progress("halving", number + 1, settings.halves)


def certainty_tables(
    logits: Floats, labels: Labels, classes: tuple[str, ...], settings: AssessSettings, progress: Report
) -> tuple[Table, Table]:
    """Return the tables of the calibration error and of prediction sets by each method, on held-out tiles."""
    errors: list[float] = []
    temperatures: list[float] = []
    sets: dict[tuple[str, float], list[tuple[float, float, float, float]]] = {}
    random = np.random.default_rng(settings.seed)
    for half in halves(logits, labels, settings, progress):
        probabilities, truth = (torch.from_numpy(part) for part in half.measured)
        errors.append(evaluate("held out", probabilities, truth, classes).calibration_error)
        temperatures.append(half.temperature)
        for method in METHODS:
            for coverage, figures in _sets_of(half, method, settings, random):
                sets.setdefault((method, coverage), []).append(figures)
    return _error_table(errors, temperatures, len(labels)), _set_table(sets, len(labels))


def group_table(logits: Floats, labels: Labels, groups: Labels, coverage: float) -> Table:
    """Return accuracy, calibration error and coverage of each group of like tiles, calibrated on the others.

    Args:
        logits: float32 (n, classes).
        labels, groups: int64 (n,).
        coverage: of the prediction sets (0-1).
    """
    rows: list[tuple[str, int, float, float, float]] = []
    calibrated = np.empty_like(logits)
    covered = np.empty(len(labels), bool)
    for group in np.unique(groups):
        inside = groups == group
        weights = calibration.group_weights(groups[~inside])
        others = (torch.from_numpy(part) for part in (logits[~inside], labels[~inside], weights))
        temperature = fit_temperature(*others)
        calibrated[inside] = softmax(logits[inside] / temperature, axis=1)
        known = softmax(logits[~inside] / temperature, axis=1)
        least = calibration.fit_thresholds(known, labels[~inside], (coverage,), weights)[coverage]
        covered[inside] = calibrated[inside][np.arange(inside.sum()), labels[inside]] >= least
        rows.append((f"group {group}", *_group_figures(calibrated[inside], labels[inside], covered[inside])))
    worst = (
        "worst group",
        len(labels),
        min(r[2] for r in rows),
        max(r[3] for r in rows),
        min(r[4] for r in rows),
    )
    together = ("all", *_group_figures(calibrated, labels, covered))
    note = (
        "Each class is divided into groups of like colours (`datasets/packs/groups.py`), which stand in for "
        "other land. Temperature and thresholds for a group are fitted on the other groups."
    )
    header = ("tiles", "number", "accuracy %", "calibration error %", f"covered by {coverage:.0%} sets %")
    return Table("groups", "Groups of like tiles", note, header, (*rows, worst, together))


def _group_figures(
    probabilities: Floats, labels: Labels, covered: npt.NDArray[np.bool_]
) -> tuple[int, float, float, float]:
    classes = [str(number) for number in range(probabilities.shape[1])]
    found = evaluate("group", torch.from_numpy(probabilities), torch.from_numpy(labels), classes)
    return len(labels), found.accuracy, found.calibration_error, float(covered.mean())


def _sets_of(
    half: Half, method: str, settings: AssessSettings, random: np.random.Generator
) -> Iterator[tuple[float, tuple[float, float, float, float]]]:
    """Yield (target coverage, (coverage, mean size, fraction of empty sets, coverage of the worst class))."""
    scores = calibration.scores_of(method, half.fitted[0], random, settings.raps_penalty)
    probabilities, labels = half.measured
    measured = calibration.scores_of(method, probabilities, random, settings.raps_penalty)
    for coverage in settings.coverages:
        chosen = measured <= calibration.limit_of(scores, half.fitted[1], coverage)
        covered, size = chosen[np.arange(len(labels)), labels], chosen.sum(1)
        worst = min(float(covered[labels == label].mean()) for label in np.unique(labels))
        yield coverage, (float(covered.mean()), float(size.mean()), float((size == 0).mean()), worst)


def _error_table(errors: list[float], temperatures: list[float], tiles: int) -> Table:
    found = np.array(errors)
    note = (
        f"Expected calibration error, 15 bins. {tiles} tiles, halved at random {len(errors) // 2} times: the "
        "temperature is fitted on one half and the error measured on the other, both ways."
    )
    header = ("figure", "mean %", "min %", "max %", "temperature")
    figures = (float(found.mean()), float(found.min()), float(found.max()), float(np.mean(temperatures)))
    row = ("calibration error", *figures)
    return Table("calibration", "Calibration on held-out tiles", note, header, (row,))


def _set_table(sets: dict[tuple[str, float], list[tuple[float, float, float, float]]], tiles: int) -> Table:
    rows = []
    for (method, coverage), found in sorted(
        sets.items(), key=lambda item: (item[0][1], METHODS.index(item[0][0]))
    ):
        covered, size, empty, worst = np.array(found).mean(0)
        spread = float(np.array(found)[:, 0].std())
        rows.append(
            (method.upper(), coverage, float(covered), spread, float(size), float(empty), float(worst))
        )
    times = len(next(iter(sets.values()))) // 2
    note = (
        f"{tiles} tiles, halved at random {times} times: thresholds from one half, measured on the other, "
        f"both ways. "
        "Model files have LAC's thresholds."
    )
    header = ("method", "target %", "covered %", "± %", "mean size", "empty %", "worst class covered %")
    return Table("sets", "Prediction sets on held-out tiles", note, header, tuple(rows))
