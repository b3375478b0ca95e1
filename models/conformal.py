"""Prediction sets that hold the true class as often as they promise.

Split conformal prediction with the threshold score ("least ambiguous set-valued classifiers", Sadinle, Lei & Wasserman
2019, doi:10.1080/01621459.2017.1395341): a class is in the set if its probability is at least a threshold, which is
the quantile of the true class's probability on tiles that did not train the network. Of all ways with that guarantee it
gives the smallest sets. A set may be empty: no class is likely enough for the coverage that was asked.
"""

import math

import numpy as np
import numpy.typing as npt

METHOD = "threshold (least ambiguous sets)"
COVERAGES = (0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99)


def fit_thresholds(
    probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], coverages: tuple[float, ...] = COVERAGES
) -> dict[float, float]:
    """Return {coverage: lowest probability a class in the set may have}.

    Args:
        probabilities: float (n, classes), calibrated, of tiles that did not train the network.
        labels: int (n,).
        coverages: shares (0-1) of tiles whose set is to hold the true class.
    """
    of_truth = np.sort(probabilities[np.arange(len(labels)), labels])
    return {coverage: _threshold(of_truth, coverage) for coverage in coverages}


def _threshold(of_truth: npt.NDArray[np.floating], coverage: float) -> float:
    """Return the finite-sample quantile of the sorted probabilities; 0, every class, where n is too small for it."""
    below = len(of_truth) - math.ceil((len(of_truth) + 1) * coverage)
    return float(of_truth[below]) if below >= 0 else 0.0
