import numpy as np
import pytest

from tilewise.models.network.calibration import fit_thresholds


def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of five classes and labels drawn from them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, 5))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (probabilities.cumsum(1) > rng.random((count, 1))).argmax(1)
    return probabilities, labels


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95, 0.99])
def test_sets_hold_the_truth_as_often_as_promised_on_other_data(coverage: float) -> None:
    threshold = fit_thresholds(*draw(4000, seed=1), coverages=(coverage,))[coverage]
    probabilities, labels = draw(20_000, seed=2)
    held = probabilities[np.arange(len(labels)), labels] >= threshold
    assert held.mean() == pytest.approx(coverage, abs=0.015)


def test_a_higher_coverage_never_makes_a_set_smaller() -> None:
    thresholds = list(fit_thresholds(*draw(2000, seed=3)).values())
    assert thresholds == sorted(thresholds, reverse=True)


def test_too_few_tiles_for_a_coverage_give_every_class_rather_than_a_promise() -> None:
    assert fit_thresholds(*draw(20, seed=4), coverages=(0.99,)) == {0.99: 0.0}
