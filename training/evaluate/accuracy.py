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
from rasterio.warp import transform
from scipy.special import softmax

from tilewise.datasets.core.bands import BAND_SETS
from tilewise.datasets.core.console import Report
from tilewise.datasets.packs.pack import Pack
from tilewise.models.network import calibration
from tilewise.models.network.calibration import fit_temperature
from tilewise.training.evaluate.disturbances import DISTURBANCES, WORDS
from tilewise.training.evaluate.evaluation import ALL, Evaluation, evaluate, views_of
from tilewise.training.evaluate.outputs import AssessSettings, Case, Outputs, Rows, Table

Plain = dict[str, Outputs]
"""The outputs for the tiles of each source as they are."""

_CORNERS = ("left", "bottom", "right", "top")


def accuracy_table(case: Case, plain: Plain) -> tuple[Table, list[Evaluation]]:
    """Return the table by source and set of bands, and what was measured."""
    found = [
        _evaluated(case, f"{source}/{view}", source, _seen(case, plain, source, view))
        for source in case.sources
        for view in views_of(case.pack.bands(int(case.rows(source)[0])))
    ]
    rows = tuple((e.group, e.tiles, e.accuracy, e.macro_f1, e.calibration_error) for e in found)
    note = "Every tile of the split. The calibration error is that of the file as it is; see the one on held-out tiles."
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
    return Table("classes", "Each class", "Through all bands that the tiles have.", header, tuple(rows))


def zone_table(case: Case, plain: Plain, settings: AssessSettings) -> Table:
    """Return accuracy by zone of latitude, of the tiles whose place is known."""
    known = latitudes(case.pack)
    rows: list[tuple[str, int, float]] = []
    for source in case.sources:
        names = case.pack.names(case.rows(source))
        degrees = np.array([known.get(name, np.nan) for name in names])
        right = plain[source].probabilities.argmax(1) == case.labels(case.rows(source))
        zones = np.floor(degrees / settings.zone_degrees) * settings.zone_degrees
        for zone in np.unique(zones[np.isfinite(zones)]):
            there = zones == zone
            if there.sum() >= settings.zone_tiles:
                title = f"{source}: {zone:g} to {zone + settings.zone_degrees:g}° N"
                rows.append((title, int(there.sum()), float(right[there].mean())))
    note = (
        f"From the tiles' coordinates; a tile without takes those of the tile of its name in another source. Zones of "
        f"fewer than {settings.zone_tiles} tiles are left out."
    )
    return Table("zones", "Latitude", note, ("source: zone", "tiles", "accuracy %"), tuple(rows))


def robustness_table(case: Case, plain: Plain) -> Table:
    """Return accuracy, and what the file flags, under each disturbance that changes the tiles of a source."""
    rows: list[tuple[str, int, float, float, float | None]] = []
    for source in case.sources:
        where = case.rows(source)
        clean = float((plain[source].probabilities.argmax(1) == case.labels(where)).mean())
        rows.append((f"{source}: as it is", len(where), clean, 0.0, case.flagged(plain[source])))
        for name in _applicable(case.pack.bands(int(where[0]))):
            found = case.ask(where, DISTURBANCES[name], f"{source}, {WORDS[name]}")
            accuracy = float((found.probabilities.argmax(1) == case.labels(where)).mean())
            rows.append((f"{source}: {WORDS[name]}", len(where), accuracy, accuracy - clean, case.flagged(found)))
    note = (
        "The same tiles disturbed one way each; `training/evaluate/disturbances.py` says how exactly. Flagged: as unlike the "
        "training data, by the threshold inside the file."
    )
    header = ("source: disturbance", "tiles", "accuracy %", "change %", "flagged %")
    return Table("robustness", "Robustness", note, header, tuple(rows))


def latitudes(pack: Pack) -> dict[str, float]:
    """Return the latitude (degrees) of the middle of each tile whose place is known, by name."""
    table = pack.index.select(["name", "crs", *_CORNERS]).to_pydict()
    sides = np.array([[np.nan if x is None else x for x in table[side]] for side in _CORNERS], np.float64)
    middle = np.stack([(sides[0] + sides[2]) / 2, (sides[1] + sides[3]) / 2])
    crs, names = np.array([text or "" for text in table["crs"]]), np.array(table["name"])
    found: dict[str, float] = {}
    for one in np.unique(crs[(crs != "") & np.isfinite(middle).all(0)]):
        there = np.flatnonzero((crs == one) & np.isfinite(middle).all(0))
        _, degrees = transform(str(one), "EPSG:4326", *middle[:, there])[:2]
        found |= dict(zip(names[there].tolist(), degrees, strict=True))
    return found


def _seen(case: Case, plain: Plain, source: str, view: str) -> Outputs:
    if view == ALL:
        return plain[source]
    return case.ask_through(view, case.rows(source), f"{source}, bands {view}")


def _evaluated(case: Case, group: str, source: str, outputs: Outputs) -> Evaluation:
    labels: npt.NDArray[np.int64] = case.labels(case.rows(source))
    return evaluate(
        group, torch.from_numpy(outputs.probabilities), torch.from_numpy(labels), case.model.metadata.classes
    )


def _applicable(bands: tuple[str, ...]) -> Iterator[str]:
    """Yield the disturbances that change tiles with `bands` and leave them some."""
    for name in DISTURBANCES:
        view = name.removesuffix("_bands")
        if view == name or set(BAND_SETS[view]) < set(bands):
            yield name


def rows_of(case: Case) -> Rows:
    """Return the rows of all sources, one source after another."""
    return np.concatenate([case.rows(source) for source in case.sources])


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
        calibration.scores_of(method, half.fitted[0], random, settings.raps_penalty),
        half.measured,
    )
    measured = calibration.scores_of(method, shares, random, settings.raps_penalty)
    for coverage in settings.coverages:
        chosen = measured <= calibration.limit_of(scores, half.fitted[1], coverage)
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
