"""How often a model file is right: by source and set of bands, by class, by latitude, and under disturbances."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from rasterio.warp import transform

from datasets.bands import BAND_SETS
from datasets.pack import Pack
from training.assess.outputs import Case, Outputs, Rows
from training.assess.settings import AssessSettings
from training.assess.tables import Table
from training.disturbances import DISTURBANCES, WORDS
from training.evaluation import ALL, Evaluation, evaluate, views_of

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
        "The same tiles disturbed one way each; `training/disturbances.py` says how exactly. Flagged: as unlike the "
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
