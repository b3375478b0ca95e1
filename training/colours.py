"""What the colours of a tile say of its class, wherever they lie in it: an opinion that knows no shapes and no sizes.

A random forest (Breiman 2001, doi:10.1023/A:1010933404324) on how three indices and three bands are spread over the
tile's pixels. Alone it is right on seven in ten multispectral tiles, where networks are on more than nine in ten; but
it is wrong for other reasons. So where both give one answer, that is more than either alone: two views of one thing, as
in co-training (Blum and Mitchell 1998, doi:10.1145/279943.279962; docs/decisions/0023).
"""

import warnings

import numpy as np
import numpy.typing as npt
import torch
from sklearn.ensemble import RandomForestClassifier

from datasets.atmosphere import Atmosphere, AtmosphereOptions
from datasets.bands import positions
from datasets.draws import Draws
from datasets.errors import NoTilesError
from datasets.pack import Pack
from datasets.radiometry import DN_MAX
from datasets.tile import BAND_COUNT, DN

# Of normalised differences: vegetation, its water, its red edge (NDVI, NDMI, NDRE).
_INDICES = (("B08", "B04"), ("B08", "B11"), ("B07", "B05"))
_BANDS = ("B04", "B08", "B11")
_PERCENTILES = (5, 25, 50, 75, 95)
_AIRS = 4  # how often each labelled tile is seen, each time through another atmosphere
_TREES, _LEAF = 500, 4
_BATCH = 256


class Colours:
    """Classes of Level-2A tiles by their colours, learned from the labelled Level-1C tiles of a pack.

    Args:
        pack: whose train split is learned, as Level-2A would show it (`datasets.atmosphere`); tiles without all bands
            of Level-1C are passed over.
        seed: of the atmospheres and of the forest.

    Raises:
        NoTilesError: no tile of the train split has all bands.
    """

    def __init__(self, pack: Pack, seed: int = 0) -> None:
        rows = np.array([row for row in pack.rows("train") if len(pack.places[row]) == BAND_COUNT], np.int64)
        if not len(rows):
            raise NoTilesError(f"{pack.root}: no tile of its train split has all 13 bands, whose colours are learned")
        seen = np.tile(rows, _AIRS)
        features = [
            colour_features(_without_air(pack.fetch(seen[start : start + _BATCH]), start, seed))
            for start in range(0, len(seen), _BATCH)
        ]
        self._classes = np.array(pack.summary.classes)
        self._forest = RandomForestClassifier(_TREES, min_samples_leaf=_LEAF, random_state=seed)
        self._forest.fit(np.concatenate(features), pack.labels[seen])

    def guess(self, tiles: DN) -> list[str]:
        """Return the class of each Level-2A tile, uint16 (n, 13, 64, 64) in DN."""
        return list(self._classes[self._forest.predict(colour_features(tiles))])


def colour_features(tiles: DN) -> npt.NDArray[np.float64]:
    """Return float64 (n, 36): of each index and each band's logarithm five percentiles and the standard deviation.

    Pixels without data are passed over; what a tile has no pixel of is 0.

    Args:
        tiles: uint16 (n, 13, height, width), DN.
    """
    pixels = np.where(tiles > 0, tiles, np.nan).reshape(*tiles.shape[:2], -1)
    band = {name: pixels[:, positions([name])[0]] for name in {*_BANDS, *np.ravel(_INDICES)}}
    layers = [(band[one] - band[other]) / (band[one] + band[other]) for one, other in _INDICES]
    layers += [np.log(band[name]) for name in _BANDS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of tiles that lack a band
        spread = [
            np.vstack([np.nanpercentile(layer, _PERCENTILES, axis=1), np.nanstd(layer, axis=1)]) for layer in layers
        ]
    return np.nan_to_num(np.concatenate(spread)).T


def _without_air(tiles: DN, first: int, seed: int) -> DN:
    """Return uint16 tiles of Level-1C as their Level-2A would be; tile `first` is the first of all that are seen."""
    atmosphere = Atmosphere(AtmosphereOptions(share=1.0))
    draws = Draws(torch.arange(first, first + len(tiles)), seed)
    changed = atmosphere(torch.from_numpy(tiles.astype(np.float32)), draws)
    return changed.round().clamp(max=DN_MAX).numpy().astype(np.uint16)
