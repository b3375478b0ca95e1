"""The classes that a tile may be, at a promised coverage: one function for service, tables and reports."""

import numpy as np
import pytest
from pydantic import ValidationError
from tiny_onnx import metadata

from tilewise.models.model_file import ModelMetadata, PredictionSets

SETS = PredictionSets(method="split", thresholds={0.8: 0.4, 0.95: 0.1})
MODEL: ModelMetadata = metadata(("A", "B", "C")).model_copy(update={"prediction_sets": SETS})


@pytest.mark.parametrize(
    ("coverage", "classes"), [(0.7, ["B"]), (0.8, ["B"]), (0.9, ["B", "A"]), (0.95, ["B", "A"])]
)
def test_a_set_has_the_classes_above_the_threshold_likeliest_first(
    coverage: float, classes: list[str]
) -> None:
    assert MODEL.prediction_set([0.25, 0.7, 0.05], coverage) == classes


def test_a_set_may_be_empty() -> None:
    assert MODEL.prediction_set([0.34, 0.33, 0.33], 0.8) == []


def test_probabilities_may_be_an_array() -> None:
    assert MODEL.prediction_set(np.array([0.2, 0.7, 0.1], np.float32), 0.8) == ["B"]


def test_a_model_that_is_not_calibrated_gives_none() -> None:
    assert metadata(("A", "B", "C")).prediction_set([0.2, 0.7, 0.1], 0.9) is None


def test_a_higher_coverage_than_was_calibrated_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the highest calibrated coverage is 0\.95"):
        MODEL.prediction_set([0.2, 0.7, 0.1], 0.99)


@pytest.mark.parametrize(
    ("coverage", "threshold"), [(0.5, 0.4), (0.8, 0.4), (0.8 + 5e-10, 0.4), (0.8 + 1e-8, 0.1), (0.95, 0.1)]
)
def test_the_threshold_is_that_of_the_next_coverage_and_digits_lost_do_not_count(
    coverage: float, threshold: float
) -> None:
    assert SETS.threshold(coverage) == threshold


def test_a_class_with_exactly_the_threshold_is_in_the_set() -> None:
    assert MODEL.prediction_set([0.4, 0.2, 0.4 - 1e-9], 0.8) == ["A"]


def test_a_probability_too_few_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        MODEL.prediction_set([0.6, 0.4], 0.8)


def test_sets_without_a_threshold_are_refused() -> None:
    with pytest.raises(ValidationError, match="thresholds"):
        PredictionSets(method="split", thresholds={})
