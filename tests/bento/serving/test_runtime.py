import pytest

from tilewise.bento.serving.runtime import total_variation


def test_the_distance_of_answers_is_half_the_sum_of_differences() -> None:
    assert total_variation({"A": 0.7, "B": 0.3}, {"A": 0.7, "B": 0.3}) == 0
    assert total_variation({"A": 1.0}, {"A": 0.25, "B": 0.75}) == pytest.approx(0.75)
    assert total_variation({"A": 1.0}, {"C": 1.0}) == 1
