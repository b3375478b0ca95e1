"""What goes wrong with input before a model sees it: the mistakes that a model file is measured by.

Tiles are uint16 (n, 13, height, width), DN, 0 = no data, of any size. `training.exposure` draws mistakes like these at
random, for what is to tell faulty input from sound input.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from datasets.bands import BAND_NAMES, EUROSAT_MS_ORDER, RGB_BANDS, positions
from datasets.radiometry import BASELINE_OFFSET, DN_MAX, QUANTIFICATION
from datasets.tile import DN

Floats = npt.NDArray[np.floating]
Places = npt.NDArray[np.int64]
Bands = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """One mistake.

    Attributes:
        words: what it is, for tables.
        make: maps tiles to the same tiles with the mistake.
        touches: says of a tile's bands whether the mistake changes it at all.
    """

    words: str
    make: Callable[[DN], DN]
    touches: Callable[[Bands], bool] = lambda bands: True


def offset_left_in(tiles: DN) -> DN:
    """Leave in the offset of 1000 DN that products have had since processing baseline 04.00."""
    return as_dn(tiles, tiles.astype(np.float32) - BASELINE_OFFSET)


def unit_scale(tiles: DN) -> DN:
    """Read reflectances 0-1 as if they were DN."""
    return as_dn(tiles, tiles.astype(np.float32) / QUANTIFICATION)


def eurosat_order(tiles: DN) -> DN:
    """Read files whose B8A is the last band, as EuroSAT's, as if they were in the canonical order."""
    found = np.zeros_like(tiles)
    for taken, into in groups(tiles):
        names = [BAND_NAMES[place] for place in into]
        found[np.ix_(taken, into)] = tiles[
            np.ix_(taken, np.array(positions(n for n in EUROSAT_MS_ORDER if n in names)))
        ]
    return found


def red_for_blue(tiles: DN) -> DN:
    """Exchange red and blue."""
    red, _, blue = positions(RGB_BANDS)
    found = tiles.copy()
    found[:, [red, blue]] = tiles[:, [blue, red]]
    return found


def cut_off(tiles: DN) -> DN:
    """Take away the part of each tile that lies beyond a slanting edge of the swath, a tenth to nine tenths of it."""
    count, _, height, width = tiles.shape
    down, across = np.mgrid[0:height, 0:width]
    place = down + 0.2 * across
    shares = np.linspace(0.1, 0.9, count) if count > 1 else np.array([0.5])
    edges = np.quantile(place, np.random.default_rng(0).permutation(shares))
    return np.where((place < edges[:, None, None])[:, None], np.uint16(0), tiles)


FAULTS: dict[str, Fault] = {
    "offset": Fault("an offset of +1000 left in", offset_left_in),
    "scale": Fault("a 0-1 scale taken for DN", unit_scale),
    "order": Fault("B8A-last order read as canonical", eurosat_order, lambda bands: "B8A" in bands),
    "red_blue": Fault("red and blue exchanged", red_for_blue, lambda bands: set(RGB_BANDS) <= set(bands)),
    "no_data": Fault("10-90 % of the tile NaN or no data", cut_off),
}


def as_dn(tiles: DN, changed: npt.NDArray[np.number]) -> DN:
    """Return `changed` as DN from 1 on, as readers do, with no data where `tiles` had it."""
    return np.where(tiles == 0, 0, np.clip(np.rint(changed), 1, DN_MAX)).astype(np.uint16)


def groups(tiles: DN) -> list[tuple[Places, Places]]:
    """Return (rows, positions of bands) of the tiles that have the same bands."""
    present = (tiles > 0).any((2, 3))
    kinds, which = np.unique(present, axis=0, return_inverse=True)
    return [(np.flatnonzero(which == number), np.flatnonzero(kind)) for number, kind in enumerate(kinds)]
