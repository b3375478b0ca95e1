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

from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.core.radiometry import Level, ReadOptions
from tilewise.datasets.core.tile import DN, TILE_SIZE
from tilewise.datasets.packs.pack import UNLABELLED, spread
from tilewise.datasets.readers.geotiff import open_geotiff, plan_reading, read_dn
from tilewise.datasets.scenes.band_files import is_mask_name
from tilewise.datasets.scenes.options import CloudKind
from tilewise.models.network.outliers import MahalanobisScore, fit_threshold
from tilewise.training.evaluate.accuracy import Plain
from tilewise.training.evaluate.disturbances import FAULTS
from tilewise.training.evaluate.evaluation import held_back
from tilewise.training.evaluate.outputs import AssessSettings, Case, Outputs, Table

_SAID = ReadOptions(level=Level.L1C, scale=1e-4, offset=0.0)


def cut_tiles(folder: Path, settings: AssessSettings) -> tuple[DN, npt.NDArray[np.float64]]:
    """Return tiles of all scenes below `folder`, uint16 (n, 13, 64, 64), and the share (0-1) of cloud in each, (n,).

    Scenes are GeoTIFFs of DN with named bands, one of them the cloud probability in percent. Ones smaller than a tile
    are mirrored to its size. Lines and columns at the edges without any data are left out.

    Raises:
        TrainingError: no scene with a cloud probability is there.
    """
    found = [part for path in sorted(folder.rglob("*.tif")) for part in [_cut(path, settings)] if part is not None]
    if not found:
        raise TrainingError(f"{folder}: no GeoTIFF with a band for the cloud probability; name another --clouds")
    tiles, shares = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return tiles, shares


def _cut(path: Path, settings: AssessSettings) -> tuple[DN, npt.NDArray[np.float64]] | None:
    with open_geotiff(path) as dataset:
        masks = [
            index
            for index, text in enumerate(dataset.descriptions, start=1)
            if text and is_mask_name(text, CloudKind.PROBABILITY)
        ]
        if not masks:
            return None
        pixels, percent = read_dn(dataset, plan_reading(dataset, path.name, _SAID)), dataset.read(masks[0])
    pixels, cloud = _trimmed(pixels, percent >= settings.cloud_percent)
    tall, wide = (max(0, TILE_SIZE - side) for side in cloud.shape)
    pixels = np.pad(pixels, ((0, 0), (0, tall), (0, wide)), mode="symmetric")
    cloud = np.pad(cloud, ((0, tall), (0, wide)), mode="symmetric")
    places = [
        (slice(top, top + TILE_SIZE), slice(left, left + TILE_SIZE))
        for top in range(0, cloud.shape[0] - TILE_SIZE + 1, settings.cloud_step)
        for left in range(0, cloud.shape[1] - TILE_SIZE + 1, settings.cloud_step)
    ]
    return np.stack([pixels[:, down, across] for down, across in places]), np.array([cloud[p].mean() for p in places])


def _trimmed(pixels: DN, cloud: npt.NDArray[np.bool_]) -> tuple[DN, npt.NDArray[np.bool_]]:
    """Leave out the lines and columns at the edges where some pixel has no data in any band."""
    valid = (pixels > 0).any(0)
    lines, columns = np.flatnonzero(valid.mean(1) > 0.5), np.flatnonzero(valid.mean(0) > 0.5)
    if not len(lines) or not len(columns):
        return pixels, cloud
    down, across = slice(lines[0], lines[-1] + 1), slice(columns[0], columns[-1] + 1)
    return pixels[:, down, across], cloud[down, across]


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


def out_of_distribution_table(case: Case, plain: Plain, settings: AssessSettings, clouds: Path | None) -> Table:
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
