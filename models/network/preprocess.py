"""Preprocessing inside the graph, so that training and serving cannot differ: from DN to normalised bands.

Its output fits into eight bits: in an INT8 file all of it but the filling of absent bands is one
    QuantizeLinear
(`tilewise.models.export.quantise`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

LINES = slice(3, None, 7)
"""The lines of a tile that statistics are computed on."""


def sample(tiles: Tensor) -> Tensor:
    """Return every seventh line of `tiles` (batch, 13, 64, 64): float32 (batch, 13, 9, 64)."""
    return tiles[:, :, LINES].to(torch.float32)


STEPS = 24  # in one standard deviation
MIDDLE = 128  # the 8-bit value of the mean
LOWEST, HIGHEST = -MIDDLE / STEPS, (255 - MIDDLE) / STEPS  # in standard deviations: the range of eight bits


class Preprocess(nn.Module):
    """Fill absent bands, and normalise each band by the mean and standard deviation of the training data.

    An absent band becomes 0, the mean. No data inside a present band stays DN 0, darker than any surface. A
    band that no training tile had (std 0) is ignored.

    A band is absent if every seventh line is no data: this finds any patch of data of 7 × 7 pixels, and
        testing all
    pixels would cost as much as a layer of the network.

    Attributes:
        fill: float32 (1, 13, 1, 1), the DN that becomes 0.
        scale, shift: float32 (1, 13, 1, 1), of `dn × scale + shift`.
    """

    fill: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take `mean` and `std`, 13 numbers each, in DN."""
        super().__init__()
        middle, spread = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        known = spread > 0
        # Wider steps where the mean is more than 128 steps above 0: DN 0 too must have an 8-bit value.
        step = torch.maximum(spread / STEPS, middle / MIDDLE).clamp(min=1e-6)
        above = (
            middle / step
        ).round()  # whole steps, so that the mean of every band has the same 8-bit value
        self._register("fill", torch.where(known, above * step, 0.0))
        self._register("scale", torch.where(known, 1 / (STEPS * step), 0.0))
        self._register("shift", torch.where(known, -above / STEPS, 0.0))

    def _register(self, name: str, values: Tensor) -> None:
        self.register_buffer(name, values.to(torch.float32).view(1, -1, 1, 1))

    def forward(self, tiles: Tensor) -> Tensor:
        """Map DN (batch, 13, height, width), uint16 or float, into float32 of the same shape, -5.3 to 5.3."""
        dn = tiles.to(torch.float32)
        absent = sample(tiles).amax(dim=(2, 3), keepdim=True) <= 0
        filled = torch.maximum(dn, torch.where(absent, self.fill, 0.0))
        return (filled * self.scale + self.shift).clamp(LOWEST, HIGHEST)
