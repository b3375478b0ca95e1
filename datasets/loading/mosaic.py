"""Make mosaics of several tiles of one class, each at a fraction of its size: the same land in small pieces.

A classifier that has only seen large fields of one crop and small ones of another tells them apart by their
size. Zooming out of a tile (`tilewise.datasets.loading.geometry`) halves its fields and mirrors them; a
mosaic has fields of other tiles beside them, down to a quarter of the size, and the label stays true: for
classes that cover all of a tile, such as crops, not for those that are one object in it, such as a road
(docs/decisions/0023).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tilewise.datasets.core.bands import positions
from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.core.tile import TILE_SIZE, has_data
from tilewise.datasets.loading.draws import Draws


@dataclass(frozen=True)
class MosaicOptions:
    """How often tiles become mosaics.

    Attributes:
        fraction: fraction of the tiles of `classes` (0–1).
        classes: names of the classes whose tiles may become mosaics; empty: all classes.
        bands: bands that a tile must have, e.g. B08, without which small pieces cannot be told apart.
        sides: numbers of tiles along a mosaic's side; each mosaic draws one of them.

    Raises:
        TrainingError: `fraction` is outside 0–1, or a side does not divide a tile.
        UnknownBandError: a band that Sentinel-2 does not have.
    """

    fraction: float = 0.0
    classes: tuple[str, ...] = ()
    bands: tuple[str, ...] = ()
    sides: tuple[int, ...] = (2, 4)

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise TrainingError(
                f"data.augment.mosaic.fraction: {self.fraction} is not a fraction from 0 to 1"
            )
        if not self.sides or any(side < 2 or TILE_SIZE % side for side in self.sides):
            raise TrainingError(
                f"data.augment.mosaic.sides: {list(self.sides)} are not numbers of tiles, 2 or more, "
                f"that divide {TILE_SIZE}"
            )
        positions(self.bands)  # raises on an unknown band


class Mosaic(nn.Module):
    """Combine some tiles with others of their class in the batch.

    Args:
        options: how often, and which tiles.
        classes: the names of all classes, in the order of labels.

    Raises:
        TrainingError: `options` name a class that is not in `classes`.
    """

    _may: Tensor
    _needed: Tensor

    def __init__(self, options: MosaicOptions, classes: Sequence[str]) -> None:
        super().__init__()
        unknown = sorted(set(options.classes) - set(classes))
        if unknown:
            raise TrainingError(
                f"data.augment.mosaic.classes: no class is called {', '.join(unknown)}; "
                f"the classes are {', '.join(classes)}"
            )
        self._options = options
        may = [not options.classes or name in options.classes for name in classes]
        self.register_buffer("_may", torch.tensor(may))
        self.register_buffer("_needed", torch.tensor(positions(options.bands), dtype=torch.long))

    def forward(self, tiles: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        """Return float32 DN (batch, 13, height, width), some of them mosaics.

        Args:
            tiles: float32 DN (batch, 13, height, width).
            labels: int64 (batch,).
            draws: the draws of these tiles.
        """
        sides = self._options.sides
        present = has_data(tiles.amax(dim=(2, 3)))  # (batch, 13)
        mates = mates_of(present, labels, max(sides) ** 2)
        may = self._may[labels] & present[:, self._needed].all(dim=1)
        drawn = (draws.uniform() < self._options.fraction) & may
        which = (draws.uniform() * len(sides)).long()
        made = tiles
        for number, side in enumerate(sides):
            chosen = drawn & (which == number)
            made = torch.where(chosen[:, None, None, None], mosaic(tiles, mates[:, : side**2], draws), made)
        return made


def mosaic(tiles: Tensor, mates: Tensor, draws: Draws) -> Tensor:
    """Return float32 DN (batch, 13, height, width): for each tile a square of its mates, mirrored at random.

    Args:
        tiles: float32 DN (batch, 13, height, width); a pixel that covers no data becomes no data.
        mates: int64 (batch, side²): rows of `tiles`.
        draws: the draws of these tiles.
    """
    batch, cells = mates.shape
    side = round(cells**0.5)
    small = functional.avg_pool2d(tiles, side)
    small = torch.where(has_data(-functional.max_pool2d(-tiles, side)), small, 0.0)[mates]
    for axis in (3, 4):
        small = torch.where(draws.uniform(cells, 1, 1, 1) < 0.5, small, small.flip(axis))
    grid = small.view(batch, side, side, *small.shape[2:])
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(tiles.shape)


def mates_of(present: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return int64 (batch, count): rows of the same label and bands, the tile itself first.

    The order of tiles is random, so mates are too. Where a batch has fewer, they are repeated. A device that
    has a part of a batch finds them in its part.

    Args:
        present: bool (batch, 13), the bands that each tile has.
        labels: int64 (batch,).
        count: number of mates for each tile.
    """
    alike = (labels[:, None] == labels) & (present[:, None] == present).all(dim=2)
    index = torch.arange(len(labels), device=labels.device)
    ahead = ((index - index[:, None]) % len(labels)).masked_fill(~alike, len(labels))
    nearest = ahead.topk(min(count, len(labels)), largest=False).indices
    number = torch.arange(count, device=labels.device) % alike.sum(dim=1)[:, None].clamp(max=nearest.shape[1])
    return nearest.gather(1, number)
