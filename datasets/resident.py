"""Tiles that live on the device whole: an epoch then copies nothing but the numbers of its tiles."""

from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from datasets.pack import PLANE_BYTES, Pack
from datasets.tile import BAND_COUNT, TILE_SIZE

_PIECE = 1024  # planes copied at a time: 8 MB


class ResidentTiles:
    """The planes of some rows of a pack on a device, only the bands that each tile has.

    Attributes:
        rows: int64, ascending: which tiles.

    Args:
        pack: where they come from.
        rows: int64 (n,): which tiles.
        device: where they go.
    """

    def __init__(self, pack: Pack, rows: npt.NDArray[np.int64], device: torch.device) -> None:
        self.rows = rows = np.unique(rows)
        sources = np.concatenate([pack.first_plane[row] + np.arange(len(pack.places[row])) for row in rows])
        places = np.zeros((len(pack), BAND_COUNT), np.int32)  # 0 is the plane of bands that a tile lacks
        places[np.repeat(rows, [len(pack.places[row]) for row in rows]), _concatenate(pack, rows)] = (
            np.arange(len(sources), dtype=np.int32) + 1
        )
        # As int16: not every device gathers uint16, and a gather does not look at the values.
        self._planes = torch.zeros((len(sources) + 1, TILE_SIZE, TILE_SIZE), dtype=torch.int16, device=device)
        for first in range(0, len(sources), _PIECE):
            piece = pack.planes[sources[first : first + _PIECE]].astype(np.uint16).view(np.int16)
            self._planes[first + 1 : first + 1 + len(piece)] = torch.from_numpy(piece).to(device)
        self._places = torch.from_numpy(places).to(device)
        self._labels = torch.from_numpy(pack.labels).to(device)

    def fetch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return tiles uint16 (batch, 13, 64, 64) and labels int64 (batch,) of `rows`, int64 on the device."""
        return self._planes[self._places[rows].long()].view(torch.uint16), self._labels[rows]


def resident_bytes(pack: Pack, rows: npt.NDArray[np.int64]) -> int:
    """Return how many bytes the tiles in `rows` take on a device."""
    return sum(len(pack.places[row]) for row in np.unique(rows)) * PLANE_BYTES


def _concatenate(pack: Pack, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return cast("npt.NDArray[np.int64]", np.concatenate([pack.places[row] for row in rows]))
