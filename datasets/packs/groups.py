"""Group tiles that look alike, so that a network can be measured on land unlike its training land.

Near neighbours share a scene's haze, season and colours. Where no positions are known, tiles of one class
with like colours stand in for a region: k-means (Lloyd 1982, doi:10.1109/TIT.1982.1056489) inside each class
on the mean, spread and extremes of the bands that all tiles have.
"""

from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from tilewise.datasets.core.bands import positions
from tilewise.datasets.packs.pack import Pack

GROUPS = 5
"""Number of groups of each class where calibration is fitted and measured."""
_BANDS = positions(["B02", "B03", "B04"])
_QUANTILES = (0.05, 0.5, 0.95)
_CHUNK = 512
_SEED = 0

Rows = npt.NDArray[np.int64]


def group_tiles(pack: Pack, rows: Rows, groups: int) -> Rows:
    """Return int64 (rows,): the group 0 … `groups` − 1 of each tile, by its colours within its class.

    Tiles of one class and name, such as the RGB and the multispectral tile of one place, share a group.
    """
    features, labels = _colours(pack, rows), pack.labels[rows]
    places = [
        f"{label}/{PurePosixPath(name).stem}" for label, name in zip(labels, pack.names(rows), strict=True)
    ]
    _, first, place = np.unique(places, return_index=True, return_inverse=True)
    sums = np.zeros((len(first), features.shape[1]))
    np.add.at(sums, place, features)
    means = sums / np.bincount(place)[:, None]
    found = np.zeros(len(first), np.int64)
    for label in np.unique(labels):
        chosen = labels[first] == label
        found[chosen] = _clusters(means[chosen], groups)
    return found[place]


def _colours(pack: Pack, rows: Rows) -> npt.NDArray[np.float64]:
    """Return float64 (rows, features): quantiles and spread of the logarithms of blue, green and red."""
    found = []
    for start in range(0, len(rows), _CHUNK):
        tiles = np.log(pack.fetch(rows[start : start + _CHUNK])[:, _BANDS].astype(np.float64).clip(min=1))
        flat = tiles.reshape(*tiles.shape[:2], -1)
        parts = [*np.quantile(flat, _QUANTILES, axis=2), flat.std(2)]
        found.append(np.concatenate(parts, axis=1))
    return np.concatenate(found)


def _clusters(features: npt.NDArray[np.float64], groups: int) -> Rows:
    from sklearn.cluster import KMeans

    scaled = (features - features.mean(0)) / features.std(0).clip(min=1e-9)
    count = min(groups, len(scaled))
    return np.asarray(KMeans(count, n_init=4, random_state=_SEED).fit_predict(scaled), np.int64)
