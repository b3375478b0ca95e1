"""Which pixels of a large scene a small picture shows."""

import numpy as np
import numpy.typing as npt

from tilewise.datasets.core.bands import RGB_BANDS, positions
from tilewise.datasets.core.tile import DN

LONGEST_SIDE = 1024
"""Pixels of the longer side of a picture."""


def shown(side: int, longest: int, most: int = LONGEST_SIDE) -> npt.NDArray[np.intp]:
    """Return which of `side` rows or columns are shown: those nearest to the middles of the picture's.

    Args:
        side: rows or columns.
        longest: the larger of both.
        most: pixels of the picture's longer side.
    """
    count = max(1, round(side * min(1.0, most / longest)))
    return ((np.arange(count) + 0.5) * (side / count)).astype(np.intp)


def true_colour(pixels: DN, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]) -> DN:
    """Return uint16 (3, rows, columns): red, green and blue of some pixels, DN, 0 = no data.

    Args:
        pixels: uint16 (13, height, width).
        rows, columns: of the pixels.
    """
    return np.stack([pixels[band][np.ix_(rows, columns)] for band in positions(RGB_BANDS)])
