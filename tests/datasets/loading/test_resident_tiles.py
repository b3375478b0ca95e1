"""Tiles that live on the device are those of the pack."""

import numpy as np
import torch

from tilewise.datasets.loading.loaders import ResidentTiles, resident_bytes
from tilewise.datasets.packs.pack import PLANE_BYTES, Pack


def test_resident_tiles_are_those_of_the_pack_with_their_labels(pack: Pack) -> None:
    rows = np.array([77, 3, 40, 3, 119])
    resident = ResidentTiles(pack, rows, torch.device("cpu"))
    tiles, labels = resident.fetch(torch.tensor([40, 3, 3, 119]))
    assert tiles.dtype == torch.uint16
    assert np.array_equal(tiles.numpy(), pack.fetch([40, 3, 3, 119]))
    assert labels.tolist() == pack.labels[[40, 3, 3, 119]].tolist()
    assert resident.rows.tolist() == [3, 40, 77, 119]


def test_their_size_is_that_of_the_bands_they_have(pack: Pack) -> None:
    assert resident_bytes(pack, np.array([1, 2, 2])) == 2 * 13 * PLANE_BYTES
