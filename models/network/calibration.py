"""Calibration: temperature scaling of probabilities, and conformal prediction sets.

Temperature scaling: Guo et al. 2017 (arXiv:1706.04599). Prediction sets: split conformal prediction with the
    threshold
score ("least ambiguous set-valued classifiers", Sadinle, Lei & Wasserman 2019,
doi:10.1080/01621459.2017.1395341). A class is in the set if its probability is at least a threshold: the
quantile of the true class's probability on tiles that did not train the network. Of all methods with that
guarantee it has the smallest sets. A set may be empty.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

_LOWEST, _HIGHEST = 0.05, 20.0


def fit_temperature(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """Return the temperature (0.05 to 20) that minimises the negative log-likelihood of softmax(logits / T).

    Args:
        logits: float (n, classes).
        labels: int64 (n,).
        weights: float (n,), of each tile's likelihood; None: equal.
    """
    shares = torch.ones(len(labels)) if weights is None else weights
    shares = shares.double() / shares.sum()
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        each = functional.cross_entropy(logits.double() / log_temperature.exp(), labels, reduction="none")
        loss = (each * shares).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return float(log_temperature.detach().exp().clamp(_LOWEST, _HIGHEST))


def group_weights(groups: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """Return float64 (n,) with mean 1, with which every group counts as much as any other."""
    _, place, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return np.asarray(len(groups) / (len(counts) * counts[place]), np.float64)


METHOD = "threshold (least ambiguous sets)"
COVERAGES = (0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99)
_FREE_RANKS = 2


def fit_thresholds(
    probabilities: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    coverages: tuple[float, ...] = COVERAGES,
    weights: npt.NDArray[np.floating] | None = None,
) -> dict[float, float]:
    """Return {coverage: minimum probability of a class in the set}.

    Args:
        probabilities: float (n, classes), calibrated, of tiles that did not train the network.
        labels: int (n,).
        coverages: fractions (0-1) of tiles whose set is to include the true class.
        weights: float (n,) with mean 1, of each tile (weighted conformal prediction, Tibshirani et al. 2019,
            arXiv:1904.06019); None: equal.
    """
    of_truth = probabilities[np.arange(len(labels)), labels]
    order = np.argsort(of_truth)
    shares = (np.ones(len(labels)) if weights is None else weights)[order]
    return {coverage: _threshold(of_truth[order], shares, coverage) for coverage in coverages}


def _threshold(
    of_truth: npt.NDArray[np.floating], weights: npt.NDArray[np.floating], coverage: float
) -> float:
    """Return the finite-sample quantile of the sorted probabilities; 0, every class, where n is too small.

    Of n + 1 tiles, the new one among them, at most 1 - coverage may lie below the threshold.
    """
    allowed = (len(of_truth) + 1) * (1 - coverage) - 1
    below = int(np.searchsorted(np.cumsum(weights), allowed + 1e-9, side="right"))
    return float(of_truth[min(below, len(of_truth) - 1)]) if allowed >= -1e-9 else 0.0


def scores_of(
    method: str, probabilities: npt.NDArray[np.floating], random: np.random.Generator, penalty: float = 0.01
) -> npt.NDArray[np.float64]:
    """Return the nonconformity of each class, float (n, classes): a set has the classes up to a limit.

    `lac`: 1 - probability, which model files use. `aps`: the probability of all likelier classes and a random
        fraction
    of its own (Romano, Sesia & Candès 2020, arXiv:2006.02544). `raps`: the same and a `penalty` for each rank
    beyond the second (Angelopoulos et al. 2021, arXiv:2009.14193). `tilewise assess` compares them.

    Args:
        method: `lac`, `aps` or `raps`.
        probabilities: float (n, classes).
        random: draws the fractions.
        penalty: of `raps`.
    """
    if method == "lac":
        return np.asarray(1 - probabilities, np.float64)
    order = np.argsort(-probabilities, axis=1)
    ranked = np.take_along_axis(probabilities, order, 1).astype(np.float64)
    scores = np.cumsum(ranked, 1) - ranked + random.random((len(ranked), 1)) * ranked
    if method == "raps":
        scores += penalty * np.maximum(np.arange(1, ranked.shape[1] + 1) - _FREE_RANKS, 0)
    found = np.empty_like(scores)
    np.put_along_axis(found, order, scores, 1)
    return found


def limit_of(scores: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], coverage: float) -> float:
    """Return the limit of `scores` (n, classes) at which sets include the true class with `coverage`
    (0-1)."""
    of_truth = np.sort(scores[np.arange(len(labels)), labels])
    rank = math.ceil((len(of_truth) + 1) * coverage) - 1
    return float(of_truth[rank]) if rank < len(of_truth) else math.inf
