"""Between training and the model file: calibrate on validation tiles, and write down what users must know."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from datasets.module import TileDataModule
from datasets.pack import UNLABELLED, Pack, spread
from datasets.statistics import EDGES
from datasets.tile import DN
from models import conformal, outliers
from models.calibration import fit_temperature
from models.classifier import Classifier
from models.modelfile import ModelMetadata, Outliers, PredictionSets, ReferenceHistogram
from models.sampling import LINES
from training.evaluation import evaluate
from training.exposure import exposures
from training.provenance import code_revision
from training.task import ClassificationTask

_MOST_FITTED = 8192  # tiles that the outlier score is fitted on: enough for the covariance of any embedding here
_MOST_EXPOSED = 2500  # tiles of each source that the input check learns from
_BATCH = 256  # tiles, or turns and mirrors of tiles, that are in memory at once
_HELD_BACK = 3  # every third of these is for the limits and not for fitting

# A folder that is called otherwise may hold another run tomorrow, and services tell models apart by their versions.
_SEMANTIC = re.compile(r"\d+\.\d+\.\d+")

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was fitted on the validation split.

    Attributes:
        prediction_sets, outliers: for the model file's metadata.
        metrics: figures of the calibrated probabilities, named for a tracker.
    """

    prediction_sets: PredictionSets
    outliers: Outliers
    metrics: dict[str, float]


def calibrate(classifier: Classifier, datamodule: TileDataModule, classes: list[str]) -> Calibration:
    """Fit temperature, prediction sets and outlier score of `classifier` (32 bit, on the CPU), changing it in place."""
    pack = datamodule.pack
    _fit_outliers(classifier, pack)
    answers = _answers(classifier, pack, pack.rows("val"))
    classifier.temperature.fill_(fit_temperature(answers.logits, answers.labels))
    probabilities = torch.softmax(answers.logits / classifier.temperature, 1)
    return Calibration(
        prediction_sets=PredictionSets(
            method=conformal.METHOD,
            thresholds=conformal.fit_thresholds(probabilities.numpy(), answers.labels.numpy()),
            calibrated_on=f"{len(answers.labels)} tiles of the validation split",
        ),
        outliers=Outliers(
            method=outliers.METHOD,
            threshold=_fit_limits(classifier, pack),
            false_alarms=outliers.FALSE_ALARMS,
        ),
        metrics=evaluate("val", probabilities, answers.labels, classes).metrics("calibrated"),
    )


def describe(
    model: ClassificationTask, datamodule: TileDataModule, run: str, calibration: Calibration
) -> ModelMetadata:
    """Return the model file's metadata; `run` is the name of the run's folder."""
    statistics = datamodule.pack.statistics()
    summary, weights = datamodule.pack.summary, _digest(model.classifier)
    return ModelMetadata(
        name="sentile",
        version=run if _SEMANTIC.fullmatch(run) else f"{run}-{weights[:8]}",
        classes=tuple(model.classes),
        trained_bands=tuple(band["band"] for band in statistics if band["tiles"]),
        temperature=float(model.classifier.temperature),
        prediction_sets=calibration.prediction_sets,
        outliers=calibration.outliers,
        network=_network(model.classifier),
        histogram_edges=EDGES,
        histograms=tuple(
            ReferenceHistogram(band=band["band"], mean=band["mean"], std=band["std"], counts=tuple(band["histogram"]))
            for band in statistics
        ),
        metrics=calibration.metrics,
        data_hash=summary.data_hash,
        weights=weights,
        synthetic=summary.synthetic,
        code_revision=code_revision(),
        licence="CC0-1.0" if summary.synthetic else "MIT",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _network(classifier: Classifier) -> str:
    """Return the architecture in words."""
    seen = f", mean of {classifier.symmetries} symmetries" if classifier.symmetries > 1 else ""
    return f"{type(classifier.backbone).__name__}{seen}"


def _digest(classifier: Classifier) -> str:
    """Return SHA-256 of what a checkpoint holds: weights, statistics of normalisation, and no calibration."""
    digest = sha256()
    for name, tensor in sorted(classifier.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class _Answers:
    """Logits (n, classes), embeddings (n, features) and labels (n,), and the raw parts of the outlier score."""

    logits: Tensor
    embeddings: Tensor
    parts: Tensor
    missing: Tensor
    labels: Tensor


def _fit_outliers(classifier: Classifier, pack: Pack) -> None:
    """Fit the outlier score's parts on training tiles, and on unlabelled ones by the classes they are taken for."""
    train, unlabelled = spread(pack.rows("train"), _MOST_FITTED), _fitted_part(pack.rows(UNLABELLED))
    labelled = _answers(classifier, pack, train)
    embeddings, labels = [labelled.embeddings], [labelled.labels]
    if len(unlabelled):
        answered = _answers(classifier, pack, unlabelled)
        embeddings.append(answered.embeddings)
        labels.append(answered.logits.argmax(1))
    classifier.outliers.fit_distance(torch.cat(embeddings), torch.cat(labels))
    kinds = [pack.rows("train", source) for source in pack.summary.sources] + [unlabelled]
    lines = [_lines(pack, spread(rows, _MOST_EXPOSED)) for rows in kinds if len(rows)]
    classifier.outliers.check.fit(exposures(lines))


def held_back(pack: Pack) -> Rows:
    """Return the unlabelled tiles that nothing but limits is fitted on, and figures are measured on.

    A network that was pretrained may have seen them, without labels.
    """
    return pack.rows(UNLABELLED)[::_HELD_BACK]


def _fit_limits(classifier: Classifier, pack: Pack) -> float:
    """Bring the outlier score's parts to one scale, and return the threshold: on tiles that neither was fitted on."""
    kinds = {source: pack.rows("val", source) for source in pack.summary.sources}
    kinds[UNLABELLED] = held_back(pack)
    known = {kind: _answers(classifier, pack, rows) for kind, rows in kinds.items() if len(rows)}
    classifier.outliers.fit_limits([answers.parts for answers in known.values()])
    scores = {kind: classifier.outliers.combine(a.parts, a.missing).numpy() for kind, a in known.items()}
    names = np.concatenate([np.full(len(found), kind) for kind, found in scores.items()])
    return outliers.fit_threshold(np.concatenate(list(scores.values())), kinds=names)


def _answers(classifier: Classifier, pack: Pack, rows: Rows) -> _Answers:
    answered, batch = [], _BATCH // classifier.symmetries
    with torch.no_grad():
        for start in range(0, len(rows), batch):
            tiles = torch.from_numpy(pack.fetch(rows[start : start + batch]))
            logits, embedding = classifier(tiles)
            answered.append((logits, embedding, *classifier.outliers.parts(tiles, embedding, logits)))
    logits, embeddings, scores, gone = (torch.cat(parts) for parts in zip(*answered, strict=True))
    return _Answers(logits, embeddings, scores, gone, torch.from_numpy(pack.labels[rows]))


def _lines(pack: Pack, rows: Rows) -> DN:
    """Return what the input check looks at of the tiles in `rows`, uint16."""
    return np.ascontiguousarray(pack.fetch(rows)[:, :, LINES])


def _fitted_part(rows: Rows) -> Rows:
    """Return the rows without those that are held back for the limits."""
    return rows[np.arange(len(rows)) % _HELD_BACK != 0]
