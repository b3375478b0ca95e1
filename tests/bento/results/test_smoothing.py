"""Smoothed class maps: a probability-weighted majority that does not depend on how a map is cut."""

from collections import Counter
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from tilewise.bento.inference.blending import NO_CLASS, OUT_OF_DISTRIBUTION
from tilewise.bento.inference.windows import SceneBlock
from tilewise.bento.results.maps import to_steps
from tilewise.bento.results.smoothing import majority, radius_of, smooth
from tilewise.datasets.core.errors import SceneError

Array = npt.NDArray[np.uint8]


def noisy(height: int = 90, width: int = 40) -> tuple[Array, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(3)
    classes = rng.integers(0, 4, (height, width)).astype(np.uint8)
    classes[rng.random(classes.shape) < 0.1] = NO_CLASS
    classes[rng.random(classes.shape) < 0.1] = OUT_OF_DISTRIBUTION
    probability = rng.uniform(0.3, 1, classes.shape).astype(np.float32)
    probability[classes >= OUT_OF_DISTRIBUTION] = np.nan
    return classes, probability


def blocks(classes: Array, probability: npt.NDArray[np.float32], heights: list[int]) -> list[SceneBlock]:
    ends = np.cumsum([0, *heights])
    assert ends[-1] == len(classes)
    return [
        SceneBlock(int(a), classes[a:b], probability[a:b], probability[a:b], None) for a, b in pairwise(ends)
    ]


def by_hand(classes: Array, probability: npt.NDArray[np.float32], radius: int) -> Array:
    found, steps = classes.copy(), to_steps(probability)
    for (row, column), own in np.ndenumerate(classes):
        if own >= OUT_OF_DISTRIBUTION:
            continue
        votes: Counter[int] = Counter()
        for r in range(max(row - radius, 0), min(row + radius + 1, len(classes))):
            for c in range(max(column - radius, 0), min(column + radius + 1, classes.shape[1])):
                if classes[r, c] < OUT_OF_DISTRIBUTION:
                    votes[int(classes[r, c])] += int(steps[r, c])
        found[row, column] = min(votes, key=lambda k: (-votes[k], k))
    return found


def test_each_pixel_takes_the_class_with_the_most_probability_around_it() -> None:
    classes, probability = noisy()
    found = majority(classes, to_steps(probability), 2)
    np.testing.assert_array_equal(found, by_hand(classes, probability, 2))
    assert (found != classes).mean() > 0.3


def test_one_sure_pixel_outvotes_two_doubtful_ones() -> None:
    classes, probability = np.array([[0, 1, 0]], np.uint8), np.array([[0.3, 0.9, 0.3]], np.float32)
    assert majority(classes, to_steps(probability), 1).tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("heights", [[90], [1] * 90, [7, 1, 2, 60, 20], [3, 3, 84]])
@pytest.mark.parametrize("radius", [1, 4, 200])
def test_a_smoothed_map_does_not_depend_on_its_blocks(heights: list[int], radius: int) -> None:
    classes, probability = noisy()
    found = list(smooth(blocks(classes, probability, heights), radius))
    assert [len(block.class_map) for block in found] == heights
    whole = np.concatenate([block.class_map for block in found])
    np.testing.assert_array_equal(whole, majority(classes, to_steps(probability), radius))
    np.testing.assert_array_equal(np.concatenate([block.probability for block in found]), probability)


def test_squares_are_metres_wide_and_at_least_three_pixels() -> None:
    assert [radius_of(side, 0.01) for side in (0, 30, 50, 240)] == [0, 1, 2, 12]
    assert radius_of(240, 0.64) == 1
    with pytest.raises(SceneError, match=r"--smooth at least three pixels \(240 m\)"):
        radius_of(100, 0.64)
