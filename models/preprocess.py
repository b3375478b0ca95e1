"""The first layers of every network: from DN with holes to what the convolutions take.

It is part of the graph, so training and serving cannot disagree about it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Preprocess(nn.Module):
    """Masks no data, and normalises each band by the mean and standard deviation of the training data.

    No data becomes 0, the mean, so that a hole says nothing. A band that no training tile had (std 0) is ignored.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take `mean` and `std`, 13 numbers each, in DN."""
        super().__init__()
        spread = torch.tensor(std, dtype=torch.float32)
        scale = torch.where(spread > 0, 1 / spread.clamp(min=1e-6), 0.0)
        shift = -torch.tensor(mean, dtype=torch.float32) * scale
        self.register_buffer("scale", scale.view(1, -1, 1, 1))
        self.register_buffer("shift", shift.view(1, -1, 1, 1))

    def forward(self, tiles: Tensor) -> Tensor:
        """Turn DN (batch, 13, height, width), uint16 or float, into float32 of the same shape, about -2 to 5."""
        dn = tiles.to(torch.float32)
        # Clamping whole numbers to 0..1 is the mask, and one vectorised pass where a comparison and a cast are two.
        mask = dn.clamp(0.0, 1.0)
        return (dn * self.scale + self.shift) * mask
