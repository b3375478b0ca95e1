"""Smooth class maps: each pixel takes the class with the most votes around it, weighted by probability.

Every pixel of a square votes for its own class with the weight of its probability. What has no data or is
unlike the training data neither votes nor changes. Votes are whole numbers (steps of a probability), so that
maps do not depend on how they are cut into blocks.
"""

from collections.abc import Generator, Iterable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tilewise.bento.inference.blending import OUT_OF_DISTRIBUTION
from tilewise.bento.inference.windows import SceneBlock
from tilewise.bento.results.maps import NO_PROBABILITY, to_steps
from tilewise.datasets.core.errors import SceneError

Classes = npt.NDArray[np.uint8]
Votes = npt.NDArray[np.int64]


def radius_of(side: float, pixel_ha: float) -> int:
    """Return the radius, in pixels of `pixel_ha` hectares, of a square of `side` metres; 0 for a side of 0.

    Raises:
        SceneError: the square is less than three pixels wide, so that nothing would change.
    """
    if not side:
        return 0
    metres = (pixel_ha * 10_000) ** 0.5
    if not side >= 3 * metres:
        raise SceneError(
            f"squares of {side:g} m to smooth by, on a map of pixels of {metres:g} m; give --smooth at least "
            f"three pixels ({3 * metres:g} m)"
        )
    return round((side / metres - 1) / 2)


def smooth(blocks: Iterable[SceneBlock], radius: int) -> Generator[SceneBlock, None, None]:
    """Yield the blocks with smoothed classes, as soon as `radius` rows below each are known.

    Probabilities, outlier scores and windows stay what they are.

    Args:
        blocks: from the first row to the last.
        radius: the square around a pixel is 2 × radius + 1 pixels a side. Below 1: nothing changes.
    """
    if radius < 1:
        yield from blocks
        return
    above: list[SceneBlock] = []
    waiting: list[SceneBlock] = []
    for block in blocks:
        waiting.append(block)
        while sum(len(later.class_map) for later in waiting[1:]) >= radius:
            yield _smoothed(above, waiting, radius)
            above = _last_rows([*above, waiting.pop(0)], radius)
    while waiting:
        yield _smoothed(above, waiting, radius)
        above = _last_rows([*above, waiting.pop(0)], radius)


def _last_rows(blocks: list[SceneBlock], count: int) -> list[SceneBlock]:
    """Return the last blocks that hold `count` rows between them."""
    while len(blocks) > 1 and sum(len(later.class_map) for later in blocks[1:]) >= count:
        blocks = blocks[1:]
    return blocks


def _smoothed(above: list[SceneBlock], waiting: list[SceneBlock], radius: int) -> SceneBlock:
    """Return the first block that waits, smoothed with up to `radius` rows above and below it."""
    block = waiting[0]
    around = [*above, *waiting]
    classes = np.concatenate([each.class_map for each in around])
    steps = np.concatenate([to_steps(each.probability) for each in around])
    first = sum(len(each.class_map) for each in above)
    last = first + len(block.class_map)
    begin, end = max(first - radius, 0), min(last + radius, len(classes))
    found = majority(classes[begin:end], steps[begin:end], radius)
    return replace(block, class_map=found[first - begin : last - begin])


def majority(classes: Classes, steps: Classes, radius: int) -> Classes:
    """Return uint8 (height, width): the class with the most votes in the square around each pixel.

    Of classes with as many votes, the first in the model's order is taken.

    Args:
        classes: uint8 (height, width).
        steps: uint8 (height, width), probability of the class in steps; NO_PROBABILITY: no vote.
        radius: of the square, in pixels.
    """
    votes = np.where(steps == NO_PROBABILITY, 0, steps).astype(np.int64)
    most = np.zeros(classes.shape, np.int64)
    found = classes.copy()
    has_class = classes < OUT_OF_DISTRIBUTION
    for number in np.unique(classes[has_class]):
        count = _box_sums(np.where(classes == number, votes, 0), radius)
        more = (count > most) & has_class
        found[more] = number
        np.maximum(most, count, out=most)
    return found


def _box_sums(values: Votes, radius: int) -> Votes:
    """Return the sums over squares that are cut off at the edges, by a summed-area table."""
    height, width = values.shape
    sums = np.zeros((height + 1, width + 1), np.int64)
    np.cumsum(np.cumsum(values, axis=0), axis=1, out=sums[1:, 1:])
    rows, columns = np.arange(height), np.arange(width)
    top, bottom = (rows - radius).clip(0), (rows + radius + 1).clip(None, height)
    left, right = (columns - radius).clip(0), (columns + radius + 1).clip(None, width)
    inside = sums[np.ix_(bottom, right)] - sums[np.ix_(top, right)] - sums[np.ix_(bottom, left)]
    return np.asarray(inside + sums[np.ix_(top, left)])
