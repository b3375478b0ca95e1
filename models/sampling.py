"""The lines of a tile that are looked at where its statistics are asked for and not each of its pixels.

Every seventh: statistics are as good, and lines are copied in one go where single pixels are not. Seven shares no
divisor with 8 or 16, so lines that are lost at such steps are met as often as others; and no patch of 7 lines or more
escapes.
"""

import torch
from torch import Tensor

LINES = slice(3, None, 7)


def sample(tiles: Tensor) -> Tensor:
    """Return the pixels of `tiles` (batch, 13, 64, 64) that are looked at: float32 (batch, 13, 9, 64)."""
    return tiles[:, :, LINES].to(torch.float32)
