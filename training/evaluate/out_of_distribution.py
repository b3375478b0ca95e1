"""Out-of-distribution detection: the fraction of faulty and cloudy tiles flagged by the file's score and by
others.

Thresholds are fitted on one half of the in-distribution tiles of each kind; false alarms are counted on the
other half.
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
from tilewise.training.evaluate.assess_settings import AssessSettings
from tilewise.training.evaluate.disturbances import FAULTS
from tilewise.training.evaluate.evaluation import Cell, Table, held_back
from tilewise.training.evaluate.outputs import ModelOutputs, PackEvaluator, SourceOutputs, run_model

_SCENE_OPTIONS = ReadOptions(level=Level.L1C, scale=1e-4, offset=0.0)


def cut_tiles(folder: Path, settings: AssessSettings) -> tuple[DN, npt.NDArray[np.float64]]:
    """Return tiles of all scenes below `folder`, uint16 (n, 13, 64, 64), and the cloudy fraction of each,
    (n,).

    Scenes are GeoTIFFs of DN with named bands, one of them the cloud probability in percent. Scenes smaller
    than a tile are mirrored to its size. Lines and columns at the edges without data are left out.

    Raises:
        TrainingError: the folder has no scene with a cloud probability.
    """
    found = [
        part for path in sorted(folder.rglob("*.tif")) for part in [_cut(path, settings)] if part is not None
    ]
    if not found:
        raise TrainingError(
            f"{folder}: no GeoTIFF with a band for the cloud probability; name another --clouds"
        )
    tiles, cloudy = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return tiles, cloudy


def _cut(path: Path, settings: AssessSettings) -> tuple[DN, npt.NDArray[np.float64]] | None:
    with open_geotiff(path) as dataset:
        masks = [
            index
            for index, text in enumerate(dataset.descriptions, start=1)
            if text and is_mask_name(text, CloudKind.PROBABILITY)
        ]
        if not masks:
            return None
        pixels, percent = (
            read_dn(dataset, plan_reading(dataset, path.name, _SCENE_OPTIONS)),
            dataset.read(masks[0]),
        )
    pixels, cloud = _trimmed(pixels, percent >= settings.cloud_percent)
    tall, wide = (max(0, TILE_SIZE - side) for side in cloud.shape)
    pixels = np.pad(pixels, ((0, 0), (0, tall), (0, wide)), mode="symmetric")
    cloud = np.pad(cloud, ((0, tall), (0, wide)), mode="symmetric")
    windows = [
        (slice(top, top + TILE_SIZE), slice(left, left + TILE_SIZE))
        for top in range(0, cloud.shape[0] - TILE_SIZE + 1, settings.cloud_step)
        for left in range(0, cloud.shape[1] - TILE_SIZE + 1, settings.cloud_step)
    ]
    tiles = np.stack([pixels[:, lines, columns] for lines, columns in windows])
    return tiles, np.array([cloud[window].mean() for window in windows])


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
IN_DISTRIBUTION = "in distribution: "
ELSEWHERE = "the same scenes on clear days: in distribution, though elsewhere"
_CLOUDS = "real clouds"

OutlierScores = dict[str, Callable[[ModelOutputs], Scores]]
"""Outlier scores by name, functions of a model's outputs; larger: further out of distribution."""


@dataclass(frozen=True)
class Detectors:
    """Outlier scores with their thresholds; the first is the model file's own."""

    scores: OutlierScores
    thresholds: dict[str, float]

    def flagged(self, name: str, outputs: ModelOutputs) -> float:
        """Return the fraction (0-1) of tiles whose score is above its threshold."""
        return float((self.scores[name](outputs) > self.thresholds[name]).mean())


def outlier_scores(evaluator: PackEvaluator, settings: AssessSettings) -> OutlierScores:
    """Return the file's score and common ones on embedding, logits and probabilities; fitted on training
    tiles."""
    train = spread(evaluator.pack.rows("train"), settings.fitted)
    train = train[evaluator.labels(train) >= 0]
    known = evaluator.run(train, step="training tiles")
    distance = MahalanobisScore(len(evaluator.model.metadata.classes), known.embedding.shape[1])
    embeddings, labels = torch.from_numpy(known.embedding), torch.from_numpy(evaluator.labels(train))
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


def out_of_distribution_table(
    evaluator: PackEvaluator, plain: SourceOutputs, settings: AssessSettings, clouds: Path | None
) -> Table:
    """Return the fraction of each kind of input flagged by each score, and by the file's own threshold."""
    known = _in_distribution(evaluator, plain)
    detectors = _fit_detectors(outlier_scores(evaluator, settings), known, settings)
    rows = [
        _row(evaluator, detectors, f"{IN_DISTRIBUTION}{kind}", found) for kind, found in _halves(known, 1)
    ]
    rows += [_row(evaluator, detectors, title, found) for title, found in _faulty(evaluator)]
    if clouds is not None:
        cloudy = _cloudy(evaluator, clouds, settings)
        rows += [_row(evaluator, detectors, title, found) for title, found in cloudy]
    note = (
        f"Fraction flagged. Thresholds flag {settings.false_alarms:.0%} of one half of the in-distribution "
        f"tiles, of "
        "the kind that is flagged most; the in-distribution tiles below are the other half. The last column "
        "is the "
        f"file's score at the threshold inside the "
        f"file.{'' if clouds else ' Clouds were not measured: no --clouds.'}"
    )
    header = ("input", "tiles", *(f"{name} %" for name in detectors.scores), "file's threshold %")
    return Table("out_of_distribution", "Out-of-distribution detection", note, header, tuple(rows))


def _fit_detectors(
    scores: OutlierScores, known: dict[str, ModelOutputs], settings: AssessSettings
) -> Detectors:
    """Fit each score's threshold on the first half of the in-distribution tiles."""
    fitted = list(_halves(known, 0))
    kinds = np.concatenate([np.full(len(outputs), kind) for kind, outputs in fitted])
    thresholds = {
        name: fit_threshold(
            np.concatenate([score(outputs) for _, outputs in fitted]), settings.false_alarms, kinds
        )
        for name, score in scores.items()
    }
    return Detectors(scores, thresholds)


def _in_distribution(evaluator: PackEvaluator, plain: SourceOutputs) -> dict[str, ModelOutputs]:
    """Return the outputs for each kind of in-distribution tiles that no score was fitted on."""
    unlabelled = held_back(evaluator.pack)
    return plain | ({UNLABELLED: evaluator.run(unlabelled, step=UNLABELLED)} if len(unlabelled) else {})


def _halves(known: dict[str, ModelOutputs], half: int) -> Iterator[tuple[str, ModelOutputs]]:
    for kind, outputs in known.items():
        yield kind, outputs.take(np.arange(half, len(outputs), 2))


def _faulty(evaluator: PackEvaluator) -> Iterator[tuple[str, ModelOutputs]]:
    """Yield each fault that affects a kind of tiles, with the outputs under it."""
    kinds = {source: evaluator.rows(source) for source in evaluator.sources}
    kinds |= {UNLABELLED: rows} if len(rows := held_back(evaluator.pack)) else {}
    for kind, index in kinds.items():
        for fault in FAULTS.values():
            if fault.affects(evaluator.pack.bands(int(index[0]))):
                step = f"{kind}, {fault.description}"
                yield f"{kind}: {fault.description}", evaluator.run(index, fault.apply, step)


def _cloudy(
    evaluator: PackEvaluator, folder: Path, settings: AssessSettings
) -> Iterator[tuple[str, ModelOutputs]]:
    tiles, cloudy = cut_tiles(folder, settings)
    for title, chosen in (
        (f"{_CLOUDS}: {settings.cloudy:.0%} of the pixels or more", cloudy >= settings.cloudy),
        (ELSEWHERE, cloudy == 0),
    ):
        if chosen.any():
            yield title, run_model(evaluator.model, tiles[chosen])


def _row(
    evaluator: PackEvaluator, detectors: Detectors, title: str, outputs: ModelOutputs
) -> tuple[Cell, ...]:
    flagged = (detectors.flagged(name, outputs) for name in detectors.scores)
    return (title, len(outputs), *flagged, evaluator.flagged(outputs))


def _unit(embedding: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return embeddings scaled to length 1, as in Sun et al. 2022 (arXiv:2204.06507)."""
    return np.asarray(embedding / np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), 1e-12))
