"""Heads on frozen embeddings, and what cross-validation knows of them.

A head is a multinomial logistic regression on standardised embeddings; its penalty is chosen by
cross-validation inside the tiles that it is fitted to. Out-of-fold figures are of tiles that neither the head
nor its penalty has seen.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, make_scorer, roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tilewise.datasets.core.errors import TrainingError
from tilewise.models.network.calibration import COVERAGES, fit_thresholds
from tilewise.models.network.finetuned import cosine, nearest_distance
from tilewise.models.network.outliers import FALSE_ALARMS
from tilewise.training.finetune.features import Embeddings, Ids

Floats = npt.NDArray[np.float64]
Fold = tuple[Ids, Ids]
"""The positions of the tiles that a head is fitted to, and of those that are held out."""

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.5, 20.0
TEMPERATURE_PRIOR = 0.3  # standard deviation of the temperature's logarithm about 0, before any tile is seen
_STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)  # inverse penalties (scikit-learn's C)
_INNER_FOLDS = 4
_MAX_BANK = 4096  # training tiles that the distance of the outlier score looks at
_ITERATIONS = 2000


@dataclass(frozen=True, slots=True)
class Head:
    """A linear head: float32 weight (classes, features) and bias (classes,), and the C that was chosen."""

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    strength: float

    def logits(self, embeddings: Embeddings) -> Floats:
        """Map (n, features) to (n, classes)."""
        return np.asarray(embeddings @ self.weight.T + self.bias, np.float64)


@dataclass(frozen=True, slots=True)
class UnknownClass:
    """How well tiles of a class are told from the others while it is left out.

    Attributes:
        name: of the class.
        tiles: how many tiles of it there are.
        auroc: the probability (0-1) that one of them has a larger distance than a tile of the other classes.
        flagged: the fraction (0-1) of them above the limit that the other classes' tiles give.
    """

    name: str
    tiles: int
    auroc: float
    flagged: float


def make_folds(labels: Ids, groups: Ids, count: int) -> list[Fold]:
    """Return stratified folds, each group in one of them; without folds whose training part lacks a class."""
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a class in fewer groups than folds
        folds = list(splitter.split(labels, labels, groups))
    classes = len(np.unique(labels))
    return [fold for fold in folds if len(np.unique(labels[fold[0]])) == classes]


def fit_head(embeddings: Embeddings, labels: Ids, groups: Ids) -> Head:
    """Fit a head to all views of tiles, with the penalty of the lowest loss on held-out groups.

    Args:
        embeddings: float32 (views, n, features).
        labels: int64 (n,), every class from 0 on.
        groups: int64 (n,), tiles that must not be on both sides.
    """
    views, tiles = embeddings.shape[:2]
    x, y = embeddings.reshape(views * tiles, -1), np.tile(labels, views)
    inner = make_folds(y, np.tile(groups, views), _INNER_FOLDS)
    steps = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_ITERATIONS))
    loss = partial(log_loss, labels=np.unique(labels))
    search = GridSearchCV(
        steps,
        {"logisticregression__C": _STRENGTHS},
        scoring=make_scorer(loss, greater_is_better=False, response_method="predict_proba"),
        cv=inner or make_folds(y, np.tile(np.arange(tiles), views), _INNER_FOLDS),
    ).fit(x, y)
    scaler, regression = search.best_estimator_
    weight, bias = regression.coef_ / scaler.scale_, regression.intercept_
    bias = bias - weight @ scaler.mean_
    if len(weight) == 1:  # of two classes scikit-learn fits the difference
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    strength = float(search.best_params_["logisticregression__C"])
    return Head(weight.astype(np.float32), bias.astype(np.float32), strength)


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """Heads that were each fitted to all folds but one.

    Attributes:
        heads: one for each fold.
        folds: the folds.
        labels: int64 (n,).
        groups: int64 (n,), tiles that are in one fold.
        bank: float32 (m, features), see `make_bank`.
    """

    heads: tuple[Head, ...]
    folds: tuple[Fold, ...]
    labels: Ids
    groups: Ids
    bank: npt.NDArray[np.float32]

    def logits(self, embeddings: Embeddings) -> Floats:
        """Map the embeddings (n, features) to logits by heads that have not seen the tile, (n, classes)."""
        found = np.zeros((len(self.labels), len(self.heads[0].bias)))
        for head, (_, held_out) in zip(self.heads, self.folds, strict=True):
            found[held_out] = head.logits(embeddings[held_out])
        return found

    def distances(self, embeddings: Embeddings, without: int | None = None) -> npt.NDArray[np.float32]:
        """Return the distances of the tiles to the nearest tiles of other groups, float32 (n,).

        Args:
            embeddings: float32 (n, features).
            without: a class whose tiles are not among the nearest.
        """
        kept = bank_rows(len(self.labels))
        values = cosine(torch.from_numpy(embeddings), torch.from_numpy(self.bank)).numpy()
        values[self.groups[:, None] == self.groups[kept]] = -1
        values = values[:, self.labels[kept] != without]
        return nearest_distance(torch.from_numpy(np.ascontiguousarray(values))).numpy()

    def leave_out(self, embeddings: Embeddings, classes: tuple[str, ...]) -> tuple[UnknownClass, ...]:
        """Leave each class out of the nearest tiles once, and measure how well its tiles are told from the
        others; nothing for two classes."""
        found = []
        for label, name in enumerate(classes if len(classes) > 2 else ()):
            distances, left_out = self.distances(embeddings, without=label), self.labels == label
            limit = upper_quantile(distances[~left_out], FALSE_ALARMS)
            flagged = 0.0 if limit is None else float((distances[left_out] > limit).mean())
            auroc = float(roc_auc_score(left_out, distances))
            found.append(UnknownClass(name, int(left_out.sum()), auroc, flagged))
        return tuple(found)


def cross_validate(
    embeddings: Embeddings, labels: Ids, groups: Ids, count: int, progress: Callable[[int], None]
) -> CrossValidation:
    """Fit a head to all folds but one, for each of `count` folds.

    Args:
        embeddings, labels, groups: as of `fit_head`.
        progress: called with the number of folds that are done.

    Raises:
        TrainingError: in one fold a class would have no tiles left to learn from.
    """
    folds, fitted = make_folds(labels, groups, count), []
    if len(folds) < count:
        raise TrainingError(
            f"{count} folds leave a class without tiles to learn from; use fewer --folds, or add tiles of "
            f"other places"
        )
    for number, (rest, _) in enumerate(folds, start=1):
        fitted.append(fit_head(embeddings[:, rest], labels[rest], groups[rest]))
        progress(number)
    return CrossValidation(tuple(fitted), tuple(folds), labels, groups, make_bank(embeddings))


def fit_temperature(logits: Floats, labels: Ids) -> float:
    """Return the most probable temperature, 0.5 to 20, under a log-normal prior about 1.

    Where few tiles are all right, ever lower temperatures fit better; the prior holds against it, and weighs
    less the more tiles there are.
    """

    def loss(log_temperature: float) -> float:
        log_probability = log_softmax(logits / math.exp(log_temperature), axis=1)
        fit = -log_probability[np.arange(len(labels)), labels].sum()
        return float(fit + (log_temperature / TEMPERATURE_PRIOR) ** 2 / 2)

    bounds = (math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE))
    return float(np.clip(math.exp(minimize_scalar(loss, bounds=bounds).x), MIN_TEMPERATURE, MAX_TEMPERATURE))


def set_thresholds(probabilities: npt.NDArray[np.floating], labels: Ids) -> dict[float, float]:
    """Return {coverage: minimum probability of a class in the set}, of the coverages for which there are
    enough tiles."""
    enough = tuple(coverage for coverage in COVERAGES if len(labels) >= tiles_for(coverage))
    return fit_thresholds(probabilities, labels, enough)


def tiles_for(coverage: float) -> int:
    """Return how many tiles a threshold for that coverage (0-1) needs at least: 1 / (1 - coverage) - 1."""
    return math.ceil(round(1 / (1 - coverage) - 1, 6))


def upper_quantile(scores: npt.NDArray[np.floating], fraction: float) -> float | None:
    """Return the score that a new one exceeds with at most that probability; None: too few scores."""
    rank = math.ceil(round((len(scores) + 1) * (1 - fraction), 6))
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else None


def make_bank(embeddings: Embeddings) -> npt.NDArray[np.float32]:
    """Return float32 (m, features), each of length 1: the mean over the views of each of `bank_rows`."""
    mean = embeddings[:, bank_rows(embeddings.shape[1])].mean(axis=0)
    return np.asarray(mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12), np.float32)


def bank_rows(tiles: int) -> Ids:
    """Return the positions of the tiles that are in the bank: all, or spread over many."""
    return np.linspace(0, tiles - 1, min(tiles, _MAX_BANK)).astype(np.int64)
