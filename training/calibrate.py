"""Between training and the model file: calibrate on validation tiles, and write down what users must know."""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import torch
from torch import Tensor

from datasets.module import TileDataModule
from datasets.statistics import EDGES
from models import conformal, outliers
from models.calibration import fit_temperature
from models.classifier import Classifier
from models.modelfile import ModelMetadata, Outliers, PredictionSets, ReferenceHistogram
from training.evaluation import evaluate
from training.provenance import code_revision
from training.task import ClassificationTask

_MOST_FITTED = 8192  # tiles that the outlier score is fitted on: enough for the covariance of any embedding here
_BATCH = 256


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
    train = pack.rows("train")
    spread = train[np.linspace(0, len(train) - 1, min(_MOST_FITTED, len(train))).astype(np.int64)]
    _, embeddings, labels = _answers(classifier, datamodule, spread)
    classifier.outliers.fit(embeddings, labels)
    logits, embeddings, labels = _answers(classifier, datamodule, pack.rows("val"))
    classifier.temperature.fill_(fit_temperature(logits, labels))
    probabilities = torch.softmax(logits / classifier.temperature, 1)
    with torch.no_grad():
        scores = classifier.outliers(embeddings).numpy()
    return Calibration(
        prediction_sets=PredictionSets(
            method=conformal.METHOD,
            thresholds=conformal.fit_thresholds(probabilities.numpy(), labels.numpy()),
            calibrated_on=f"{len(labels)} tiles of the validation split",
        ),
        outliers=Outliers(
            method=outliers.METHOD, threshold=outliers.fit_threshold(scores), false_alarms=outliers.FALSE_ALARMS
        ),
        metrics=evaluate("val", probabilities, labels, classes).metrics("calibrated"),
    )


def describe(
    model: ClassificationTask, datamodule: TileDataModule, version: str, calibration: Calibration
) -> ModelMetadata:
    """Return the model file's metadata."""
    statistics = datamodule.pack.statistics()
    summary = datamodule.pack.summary
    return ModelMetadata(
        name="sentile",
        version=version,
        classes=tuple(model.classes),
        trained_bands=tuple(band["band"] for band in statistics if band["tiles"]),
        temperature=float(model.classifier.temperature),
        prediction_sets=calibration.prediction_sets,
        outliers=calibration.outliers,
        network=type(model.classifier.backbone).__name__,
        histogram_edges=EDGES,
        histograms=tuple(
            ReferenceHistogram(band=band["band"], mean=band["mean"], std=band["std"], counts=tuple(band["histogram"]))
            for band in statistics
        ),
        metrics=calibration.metrics,
        data_hash=summary.data_hash,
        synthetic=summary.synthetic,
        code_revision=code_revision(),
        licence="CC0-1.0" if summary.synthetic else "MIT",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _answers(classifier: Classifier, datamodule: TileDataModule, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits (n, classes), embeddings (n, features) and labels (n,) of the tiles in `rows`."""
    pack = datamodule.pack
    answered = []
    with torch.no_grad():
        for start in range(0, len(rows), _BATCH):
            answered.append(classifier(torch.from_numpy(pack.fetch(rows[start : start + _BATCH]))))
    logits, embeddings = (torch.cat(parts) for parts in zip(*answered, strict=True))
    return logits, embeddings, torch.from_numpy(pack.labels[rows])
