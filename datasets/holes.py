"""Loss of a part of a tile in training: the edge of an orbit, or clouds that were masked."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datasets.draws import Draws


@dataclass(frozen=True)
class HoleOptions:
    """How often tiles get holes.

    Attributes:
        share: of tiles (0–1) that lose a rectangle, in all bands.
        most: largest share of the tile's area that is lost.
    """

    share: float = 0.1
    most: float = 0.4


class Holes(nn.Module):
    """Makes a part of some tiles no data."""

    def __init__(self, options: HoleOptions) -> None:
        super().__init__()
        self._options = options

    def forward(self, tiles: Tensor, draws: Draws) -> Tensor:
        """Return tiles (batch, 13, height, width) with holes."""
        lost = (draws.uniform() < self._options.share) * draws.between(0.0, self._options.most)
        return tiles * (1 - rectangles(lost, draws, *tiles.shape[2:]))[:, None]


def rectangles(share: Tensor, draws: Draws, height: int, width: int) -> Tensor:
    """Return float32 (batch, height, width), 1 inside one rectangle a tile that covers `share` (batch,) of the area."""
    side = share.sqrt()[:, None]
    inside = []
    for length in (height, width):
        extent = (side * length).floor()
        first = (draws.uniform(1) * (length - extent + 1)).floor()
        place = torch.arange(length, device=share.device)
        inside.append((place >= first) & (place < first + extent))
    return (inside[0][:, :, None] & inside[1][:, None, :]).to(torch.float32)
