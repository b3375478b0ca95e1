"""The eight ways to turn and mirror a square tile. Seen from above none is the right one: each answers as well."""

from collections.abc import Callable

import torch
from torch import Tensor

_SIDES = (2, 3)


def _turned(turns: int, mirrored: bool) -> Callable[[Tensor], Tensor]:
    return lambda tiles: torch.rot90(tiles.flip(3) if mirrored else tiles, turns, _SIDES)


SYMMETRIES = [_turned(turns, mirrored) for mirrored in (False, True) for turns in range(4)]
"""Functions of tiles (batch, bands, height, width): the tile itself first, four turns, then the same of its mirror."""
