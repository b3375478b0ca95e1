"""Metrics and calibration against scikit-learn, SciPy and MAPIE, which nobody here wrote."""

import numpy as np
import pytest
import torch
from mapie.classification import SplitConformalClassifier
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from tilewise.models.network.calibration import fit_temperature, fit_thresholds
from tilewise.training.evaluate.evaluation import CALIBRATION_BINS, evaluate

CLASSES = ("A", "B", "C", "D", "nobody")


@pytest.fixture
def logits_and_labels() -> tuple[np.ndarray, np.ndarray]:
    """Overconfident logits float32 (500, 5), and labels of which the last class has none."""
    drawn = np.random.default_rng(3)
    labels = drawn.integers(0, 4, 500)
    logits = drawn.normal(0, 3, (500, 5)).astype(np.float32)
    logits[np.arange(500), labels] += 3
    return logits, labels


def test_accuracy_f1_and_confusion_are_scikit_learn_s(
    logits_and_labels: tuple[np.ndarray, np.ndarray],
) -> None:
    logits, labels = logits_and_labels
    found = evaluate("x", torch.from_numpy(softmax(logits, axis=1)), torch.from_numpy(labels), CLASSES)
    predicted = logits.argmax(1)
    assert np.array_equal(found.confusion, confusion_matrix(labels, predicted, labels=range(5)))
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=range(5), zero_division=0
    )
    for index, figures in enumerate(found.classes):
        assert figures.tiles == support[index]
        assert figures.precision == pytest.approx(precision[index])
        assert figures.recall == pytest.approx(recall[index])
        assert figures.f1 == pytest.approx(f1[index])
    assert found.macro_f1 == pytest.approx(f1[:4].mean()), "a class without tiles has no say"
    assert found.accuracy == pytest.approx((labels == predicted).mean())


def test_the_calibration_error_is_the_mean_gap_of_scikit_learn_s_curve(
    logits_and_labels: tuple[np.ndarray, np.ndarray],
) -> None:
    logits, labels = logits_and_labels
    probabilities = softmax(logits, axis=1)
    found = evaluate("x", torch.from_numpy(probabilities), torch.from_numpy(labels), CLASSES)
    sure, right = probabilities.max(1), probabilities.argmax(1) == labels
    share, mean = calibration_curve(right, sure, n_bins=CALIBRATION_BINS)
    counts = np.histogram(sure, np.linspace(0, 1, CALIBRATION_BINS + 1))[0]
    gap = (np.abs(share - mean) * counts[counts > 0]).sum() / len(labels)
    assert found.calibration_error == pytest.approx(gap, abs=1e-6)


def test_the_temperature_is_where_scipy_finds_the_least_loss(
    logits_and_labels: tuple[np.ndarray, np.ndarray],
) -> None:
    logits, labels = logits_and_labels

    def loss(log_temperature: float) -> float:
        return -log_softmax(logits / np.exp(log_temperature), axis=1)[np.arange(500), labels].sum()

    best = minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-8})
    found = fit_temperature(torch.from_numpy(logits), torch.from_numpy(labels))
    assert found == pytest.approx(np.exp(best.x), rel=1e-4)
    assert found > 1.05, "the logits are too sure"


class Prefit(ClassifierMixin, BaseEstimator):
    """A classifier that answers what it is asked: MAPIE takes an estimator of scikit-learn."""

    def __init__(self, classes: int = 5) -> None:
        self.classes = classes
        self.classes_ = np.arange(classes)
        self.fitted_ = True

    def fit(self, x: np.ndarray, y: np.ndarray) -> "Prefit":
        return self

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        return x

    def predict(self, x: np.ndarray) -> np.ndarray:
        return x.argmax(1)


@pytest.mark.parametrize("count", [200, 1000])
def test_prediction_sets_are_those_of_mapie(count: int) -> None:
    random = np.random.default_rng(7)
    logits = random.normal(0, 2, (count + 500, 5))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (probabilities.cumsum(1) > random.random((len(logits), 1))).argmax(1)
    known, new = probabilities[:count], probabilities[count:]
    coverages = (0.8, 0.9, 0.95)
    theirs = SplitConformalClassifier(
        Prefit(), confidence_level=list(coverages), conformity_score="lac", prefit=True
    ).conformalize(known, labels[:count])
    sets = theirs.predict_set(new)[1]  # (n, classes, coverages)
    ours = fit_thresholds(known, labels[:count], coverages)
    for place, coverage in enumerate(coverages):
        assert ((new >= ours[coverage] - 1e-12) == sets[:, :, place]).mean() > 0.999
