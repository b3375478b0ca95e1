"""Whether input that a model file does not know is flagged: by its own score, and by others for comparison.

Limits come from one half of the known tiles, of every kind; false alarms are counted on the other half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import logsumexp
from sklearn.neighbors import NearestNeighbors

from datasets.pack import UNLABELLED, spread
from models.outliers import MahalanobisScore, fit_threshold
from training.assess.accuracy import Plain
from training.assess.clouds import cut_tiles
from training.assess.outputs import Case, Outputs
from training.assess.settings import AssessSettings
from training.assess.tables import Table
from training.calibrate import held_back
from training.faults import FAULTS

Scores = npt.NDArray[np.floating]
FILE = "the file's score"
_CLOUDS = "real clouds"


@dataclass(frozen=True)
class Judges:
    """Scores that compete, each a function of outputs; larger for stranger. The first is the model file's own."""

    by_name: dict[str, Callable[[Outputs], Scores]]
    limits: dict[str, float]

    def flagged(self, name: str, outputs: Outputs) -> float:
        """Return the share (0-1) that a score flags."""
        return float((self.by_name[name](outputs) > self.limits[name]).mean())


def scores_that_compete(case: Case, settings: AssessSettings) -> dict[str, Callable[[Outputs], Scores]]:
    """Return the file's score and the usual ones: on embedding, logits and probabilities; fitted on training tiles."""
    train = spread(case.pack.rows("train"), settings.fitted)
    train = train[case.labels(train) >= 0]
    known = case.ask(train, step="training tiles")
    distance = MahalanobisScore(len(case.model.metadata.classes), known.embedding.shape[1])
    embeddings, labels = torch.from_numpy(known.embedding), torch.from_numpy(case.labels(train))
    distance.fit(embeddings, labels)
    background = MahalanobisScore(1, known.embedding.shape[1])
    background.fit(embeddings, torch.zeros_like(labels))
    nearest = NearestNeighbors(n_neighbors=min(settings.neighbours, len(train))).fit(_unit(known.embedding))
    return {
        FILE: lambda found: found.outlier_score,
        "Mahalanobis": lambda found: distance(torch.from_numpy(found.embedding)).numpy(),
        "relative": lambda found: (
            distance(torch.from_numpy(found.embedding)) - background(torch.from_numpy(found.embedding))
        ).numpy(),
        "kNN": lambda found: nearest.kneighbors(_unit(found.embedding))[0][:, -1],
        "energy": lambda found: -logsumexp(found.logits, axis=1),
        "softmax": lambda found: -found.probabilities.max(1),
    }


def stranger_table(case: Case, plain: Plain, settings: AssessSettings, clouds: Path | None) -> Table:
    """Return the share of each kind of input that each score flags, and that the file flags by its own threshold."""
    known = _known(case, plain)
    by_name = scores_that_compete(case, settings)
    kinds = np.concatenate([np.full(len(found), kind) for kind, found in _halved(known, 0)])
    limits = {
        name: fit_threshold(
            np.concatenate([score(found) for _, found in _halved(known, 0)]), settings.false_alarms, kinds
        )
        for name, score in by_name.items()
    }
    judges = Judges(by_name, limits)
    rows = [_row(case, judges, f"known: {kind}", found) for kind, found in _halved(known, 1)]
    rows += [_row(case, judges, title, found) for title, found in _faulty(case)]
    if clouds is not None:
        rows += [_row(case, judges, title, found) for title, found in _cloudy(case, clouds, settings)]
    note = (
        f"Share flagged. Limits flag {settings.false_alarms:.0%} of one half of the known tiles, of the kind that is "
        "flagged most; known tiles below are the other half. The last column is the file's score at the threshold that "
        f"is inside the file.{'' if clouds else ' Clouds were not measured: no --clouds.'}"
    )
    header = ("input", "tiles", *(f"{name} %" for name in by_name), "file's threshold %")
    return Table("strangers", "What is flagged", note, header, tuple(rows))


def _known(case: Case, plain: Plain) -> dict[str, Outputs]:
    """Return the outputs for each kind of known tiles that no score was fitted on."""
    unlabelled = held_back(case.pack)
    return plain | ({UNLABELLED: case.ask(unlabelled, step=UNLABELLED)} if len(unlabelled) else {})


def _halved(known: dict[str, Outputs], half: int) -> Iterator[tuple[str, Outputs]]:
    for kind, found in known.items():
        yield kind, found.take(np.arange(half, len(found), 2))


def _faulty(case: Case) -> Iterator[tuple[str, Outputs]]:
    """Yield what is wrong with the tiles of a kind, and the outputs for them."""
    kinds = {source: case.rows(source) for source in case.sources}
    kinds |= {UNLABELLED: rows} if len(rows := held_back(case.pack)) else {}
    for kind, where in kinds.items():
        for fault in FAULTS.values():
            if fault.touches(case.pack.bands(int(where[0]))):
                yield f"{kind}: {fault.words}", case.ask(where, fault.make, f"{kind}, {fault.words}")


def _cloudy(case: Case, folder: Path, settings: AssessSettings) -> Iterator[tuple[str, Outputs]]:
    tiles, shares = cut_tiles(folder, settings)
    for title, chosen in (
        (f"{_CLOUDS}: {settings.cloudy:.0%} of the pixels or more", shares >= settings.cloudy),
        ("the same scenes on clear days: known, though elsewhere", shares == 0),
    ):
        if chosen.any():
            yield title, case.ask_tiles(tiles[chosen])


def _row(case: Case, judges: Judges, title: str, found: Outputs) -> tuple[str | int | float | None, ...]:
    return (title, len(found), *(judges.flagged(name, found) for name in judges.by_name), case.flagged(found))


def _unit(embedding: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return embeddings of length 1, as Sun et al. 2022 compare them (arXiv:2204.06507)."""
    return np.asarray(embedding / np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), 1e-12))
