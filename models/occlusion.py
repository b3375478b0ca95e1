"""Patch occlusion of a tile: how far a score drops when a patch is replaced by the tile's own mean.

NumPy alone, so that the service and `tilewise explain` share it. docs/decisions/0005 compares what patches
may be replaced by.
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from tilewise.datasets.core.tile import DN, NO_DATA

_BATCH_SIZE = 64  # occluded tiles held at once

Values = npt.NDArray[np.float32]
Drop = Callable[[DN], Values]
"""From occluded tiles, uint16 (n, 13, h, w), to how far the score of each drops, float32 (n,)."""


def occlude(pixels: DN, drop: Drop, size: int, stride: int) -> tuple[Values, Values]:
    """Return the effect of occluding each patch of a tile, and of each pixel.

    Args:
        pixels: uint16 (13, h, h), the tile.
        drop: from occluded tiles to the drop of their score; larger means that the patch supports the score.
        size: of a patch in pixels, 1 to h.
        stride: pixels between patches, 1 to `size`.

    Returns:
        float32 (rows, columns), the drop for each patch; and float32 (h, h), the mean of the patches over
        each pixel.
    """
    starts = patch_starts(pixels.shape[1], size, stride)
    drops = in_batches(_without_patches(pixels, starts, size), len(starts) ** 2, drop)
    grid = drops.reshape(len(starts), len(starts))
    return grid, _mean_over_pixels(grid, starts, size, pixels.shape[1])


def in_batches(tiles: Iterator[DN], count: int, drop: Drop) -> Values:
    """Return float32 (count,): `drop` of `count` tiles, a bounded number of which are held at once."""
    drops = [
        drop(np.stack([next(tiles) for _ in range(min(_BATCH_SIZE, count - start))]))
        for start in range(0, count, _BATCH_SIZE)
    ]
    return np.concatenate(drops) if drops else np.zeros(0, np.float32)


def patch_starts(length: int, size: int, stride: int) -> list[int]:
    """Return where patches begin along a side of `length` pixels; the last one ends where the side ends."""
    last = length - size
    return [*range(0, last, stride), last]


def without_pattern(pixels: DN) -> DN:
    """Return a tile (13, h, w) with all valid pixels set to their band's mean; no data stays no data."""
    valid = pixels != NO_DATA
    count = np.maximum(valid.sum(axis=(1, 2)), 1)
    mean = np.rint(pixels.sum(axis=(1, 2), dtype=np.float64) / count).astype(np.uint16)
    return np.where(valid, mean[:, None, None], np.uint16(NO_DATA))


def _without_patches(pixels: DN, starts: list[int], size: int) -> Iterator[DN]:
    """Yield the tile (13, h, w) without each of its patches, in reading order."""
    filled = without_pattern(pixels)
    for row in starts:
        for column in starts:
            patch = np.s_[:, row : row + size, column : column + size]
            occluded = pixels.copy()
            occluded[patch] = filled[patch]
            yield occluded


def _mean_over_pixels(grid: Values, starts: list[int], size: int, length: int) -> Values:
    """Return float32 (length, length): the mean of the patches that cover each pixel."""
    total, count = np.zeros((length, length), np.float32), np.zeros((length, length), np.float32)
    for row, values in zip(starts, grid, strict=True):
        for column, value in zip(starts, values, strict=True):
            total[row : row + size, column : column + size] += value
            count[row : row + size, column : column + size] += 1
    return np.asarray(total / np.maximum(count, 1), np.float32)
