"""Loss of a part of a tile in training: the edge of an orbit, clouds that were masked, lines that a detector lost."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datasets.draws import Draws
from datasets.errors import TrainingError


@dataclass(frozen=True)
class HoleOptions:
    """How often tiles get holes.

    Attributes:
        share: of tiles (0–1) that lose a rectangle, in all bands.
        most: largest share of the tile's area that is lost.
        striped: share of tiles (0–1) that lose every n-th line, from top to bottom or from side to side, in all bands.
        periods: smallest and largest n, 2 or more.
    """

    share: float = 0.1
    most: float = 0.4
    striped: float = 0.0
    periods: tuple[int, int] = (3, 16)

    def __post_init__(self) -> None:
        if not 2 <= self.periods[0] <= self.periods[1]:
            raise TrainingError(
                f"data.holes.periods: {list(self.periods)} are not two numbers of lines, 2 or more, in order"
            )


class Holes(nn.Module):
    """Makes a rectangle of some tiles no data."""

    def __init__(self, options: HoleOptions) -> None:
        super().__init__()
        self._options = options

    def forward(self, tiles: Tensor, draws: Draws) -> Tensor:
        """Return tiles (batch, 13, height, width) with holes."""
        options, shape = self._options, tiles.shape[2:]
        lost = (draws.uniform() < options.share) * draws.between(0.0, options.most)
        return tiles * (1 - rectangles(lost, draws, *shape))[:, None]


class Stripes(nn.Module):
    """Makes every n-th line of some tiles no data."""

    def __init__(self, options: HoleOptions) -> None:
        super().__init__()
        self._options = options

    def forward(self, tiles: Tensor, draws: Draws) -> Tensor:
        """Return tiles (batch, 13, height, width) with lines lost, from side to side or from top to bottom."""
        shortest, longest = self._options.periods
        period = draws.between(shortest, longest + 1, 1).floor()
        first = (draws.uniform(1) * period).floor()
        across = draws.uniform(1, 1) < 0.5
        rows, columns = (torch.arange(n, device=tiles.device) % period == first for n in tiles.shape[2:])
        lines = torch.where(across, rows[:, :, None], columns[:, None, :])
        lost = lines & (draws.uniform(1, 1) < self._options.striped)
        return tiles * ~lost[:, None]


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
