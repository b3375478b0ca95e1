"""Heads on embeddings made by a generator: separable blobs, blobs that overlap, and a class of its own."""

import numpy as np
import pytest

from tilewise.datasets.core.errors import TrainingError
from tilewise.training.finetune import heads


def blobs(classes: int, tiles: int, distance: float, seed: int = 0) -> tuple[heads.Embeddings, heads.Ids]:
    """Return embeddings (2 views, n, 8) of classes `distance` standard deviations from the origin."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), tiles)
    centres = np.zeros((classes, 8))
    centres[np.arange(classes), np.arange(classes)] = distance
    tile = centres[labels] + random.normal(size=(len(labels), 8))
    return (tile + 0.1 * random.normal(size=(2, *tile.shape))).astype(np.float32), labels


def fit(embeddings: heads.Embeddings, labels: heads.Ids, count: int = 5) -> heads.CrossValidation:
    return heads.cross_validate(embeddings, labels, np.arange(len(labels)), count, lambda done: None)


def accuracy(logits: heads.Floats, labels: heads.Ids) -> float:
    return float((logits.argmax(1) == labels).mean())


@pytest.mark.parametrize("classes", [2, 3])
def test_a_head_tells_classes_apart_that_can_be_told_apart(classes: int) -> None:
    embeddings, labels = blobs(classes, 20, distance=8)
    head = heads.fit_head(embeddings, labels, np.arange(len(labels)))
    assert head.weight.shape == (classes, 8)
    others, truth = blobs(classes, 50, distance=8, seed=1)
    assert accuracy(head.logits(others[0]), truth) > 0.98


def test_cross_validation_is_at_chance_where_labels_mean_nothing() -> None:
    embeddings, _ = blobs(1, 200, distance=0)
    labels = np.random.default_rng(0).integers(0, 2, 200)
    known = fit(embeddings, labels)
    assert accuracy(known.logits(embeddings[0]), labels) == pytest.approx(0.5, abs=0.12)


def test_tiles_of_one_group_are_in_one_fold_and_are_no_neighbours() -> None:
    embeddings, labels = blobs(2, 20, distance=8)
    groups = np.tile(np.repeat(np.arange(10), 2), 2)
    for fitted, held_out in heads.make_folds(labels, groups, 5):
        assert not set(groups[fitted]) & set(groups[held_out])
    alone = heads.cross_validate(embeddings, labels, groups, 5, lambda done: None)
    copies = embeddings[0].copy()
    copies[1] = copies[0]  # its twin is in its own group, so it is not near
    assert alone.distances(copies)[1] > 1e-3


def test_a_class_in_a_single_place_cannot_be_cross_validated() -> None:
    embeddings, labels = blobs(2, 10, distance=8)
    groups = np.where(labels == 0, 0, np.arange(20))
    with pytest.raises(TrainingError, match="use fewer --folds, or add tiles of other places"):
        heads.cross_validate(embeddings, labels, groups, 5, lambda done: None)


def test_few_tiles_that_are_all_right_do_not_make_a_model_sure_of_everything() -> None:
    labels = np.arange(20) % 4
    logits = 3.0 * np.eye(4)[labels]
    assert heads.fit_temperature(logits, labels) > 0.6, "without the prior: 0.5"
    many = np.arange(4000) % 4
    assert heads.fit_temperature(3.0 * np.eye(4)[many], many) == pytest.approx(0.5, abs=1e-4), "the floor"


def test_the_temperature_of_many_tiles_is_that_of_their_answers() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(4000, 4)) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([random.choice(4, p=row) for row in probabilities])
    assert heads.fit_temperature(3 * logits, labels) == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize(("tiles", "highest"), [(10, 0.9), (18, 0.925), (19, 0.95), (38, 0.95), (99, 0.99)])
def test_sets_have_the_coverages_for_which_there_are_enough_tiles(tiles: int, highest: float) -> None:
    probabilities = np.random.default_rng(0).dirichlet([5, 1], tiles)
    thresholds = heads.set_thresholds(probabilities, np.zeros(tiles, np.int64))
    assert max(thresholds) == highest
    assert all(threshold > 0 for threshold in thresholds.values())
    assert heads.tiles_for(highest) <= tiles


def test_a_threshold_needs_enough_scores_and_is_exceeded_at_the_stated_rate() -> None:
    assert heads.upper_quantile(np.arange(18), 0.05) is None
    assert heads.upper_quantile(np.arange(19), 0.05) == 18
    random = np.random.default_rng(0)
    above = [random.normal() > heads.upper_quantile(random.normal(size=60), 0.05) for _ in range(4000)]
    assert np.mean(above) == pytest.approx(0.05, abs=0.015)


def test_a_class_that_is_left_out_is_far_from_the_others() -> None:
    embeddings, labels = blobs(4, 20, distance=12)
    found = fit(embeddings, labels).leave_out(embeddings[0], ("a", "b", "c", "d"))
    assert [each.name for each in found] == ["a", "b", "c", "d"]
    assert min(each.auroc for each in found) > 0.99
    assert min(each.flagged for each in found) > 0.9
    near, labels = blobs(4, 20, distance=0)
    assert max(e.auroc for e in fit(near, labels).leave_out(near[0], ("a", "b", "c", "d"))) < 0.75


def test_with_two_classes_none_can_be_left_out() -> None:
    embeddings, labels = blobs(2, 10, distance=8)
    assert fit(embeddings, labels).leave_out(embeddings[0], ("a", "b")) == ()
