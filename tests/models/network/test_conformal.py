import numpy as np
import pytest
import torch

from tilewise.models.network.calibration import fit_temperature, fit_thresholds, group_weights


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


def test_a_weight_counts_like_so_many_tiles() -> None:
    probabilities, labels = draw(400, seed=5)
    twice = np.r_[np.arange(400), np.arange(100)]  # the first hundred are there twice
    repeated = fit_thresholds(probabilities[twice], labels[twice], coverages=(0.9,))
    weights = np.where(np.arange(400) < 100, 2.0, 1.0)
    weighted = fit_thresholds(probabilities, labels, (0.9,), weights * 400 / weights.sum())
    assert weighted[0.9] == pytest.approx(repeated[0.9], abs=0.01)


def test_a_rare_group_weighs_as_much_as_a_common_one() -> None:
    groups = np.array([0] * 90 + [1] * 10)
    weights = group_weights(groups)
    assert weights.mean() == pytest.approx(1)
    assert weights[groups == 0].sum() == pytest.approx(weights[groups == 1].sum())


def test_the_temperature_follows_the_rare_group_where_groups_count_equally() -> None:
    """The common group is as sure as it is right; the rare one is as often wrong, and twice as sure."""
    probabilities, labels = draw(4400, seed=6)
    logits = torch.from_numpy(np.log(probabilities))
    groups = np.array([0] * 4000 + [1] * 400)
    logits[4000:] *= 2
    truth = torch.from_numpy(labels)
    plain = fit_temperature(logits, truth)
    equal = fit_temperature(logits, truth, torch.from_numpy(group_weights(groups)))
    assert plain == pytest.approx(1.0, abs=0.15)
    assert equal > plain + 0.2


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_the_fewest_tiles_that_can_promise_a_coverage_do(coverage: float) -> None:
    """One tile of n + 1 is more than 1 - coverage of them until n + 1 reaches 1 / (1 - coverage)."""
    fewest = round(1 / (1 - coverage)) - 1
    probabilities, labels = draw(fewest, seed=6)
    smallest = probabilities[np.arange(fewest), labels].min()
    assert fit_thresholds(probabilities, labels, (coverage,))[coverage] == smallest
    assert fit_thresholds(probabilities[1:], labels[1:], (coverage,))[coverage] == 0


def test_each_group_weighs_its_share_of_all() -> None:
    assert group_weights(np.array([3, 7, 3, 3])).tolist() == pytest.approx([2 / 3, 2, 2 / 3, 2 / 3])


def test_thresholds_are_made_for_these_coverages() -> None:
    assert tuple(fit_thresholds(*draw(200, seed=7))) == (0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99)


@pytest.mark.parametrize(
    ("coverage", "rank"),
    [(0.95, 0), (0.9, 1), (0.88, 1), (0.85, 2), (0.5, 9), (0.1, 17), (0.0, 18)],
)
def test_of_nineteen_tiles_and_a_new_one_so_many_may_lie_below(coverage: float, rank: int) -> None:
    """Of 20 tiles, 1 - coverage are 20 * (1 - coverage): the new one and as many below the threshold."""
    sure = np.random.default_rng(8).permutation(np.arange(1, 20) / 20)
    probabilities = np.column_stack([sure, 1 - sure])
    assert fit_thresholds(probabilities, np.zeros(19, int), (coverage,)) == {coverage: (rank + 1) / 20}


def test_weights_move_with_their_tiles() -> None:
    """The three least sure weigh 1.5 together, the others 5.5: of 8 with the new one, 2.4 may
    lie below the threshold: the new one and 1.4."""
    sure = np.array([0.7, 0.1, 0.6, 0.2, 0.5, 0.3, 0.4])
    weights = np.where(sure < 0.35, 0.5, 5.5 / 4)
    probabilities = np.column_stack([sure, 1 - sure])
    assert fit_thresholds(probabilities, np.zeros(7, int), (0.7,), weights) == {0.7: 0.3}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_coverage_of_nothing_leaves_the_surest_class_only(count: int) -> None:
    sure = np.arange(1, count + 1) / 4
    probabilities = np.column_stack([sure, 1 - sure])
    assert fit_thresholds(probabilities, np.zeros(count, int), (0.0,)) == {0.0: count / 4}
