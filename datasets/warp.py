"""Turning and warping a whole batch of tiles on the device: what `datasets.geometry` does tile by tile on the CPU.

One bilinear sampling does it all: one of the eight symmetries of the square for each tile, and for a share of the tiles
a rotation, zoom, shear and shift. Beyond the edge lies the tile's mirror image. A pixel interpolated from any no-data
pixel is no data.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from datasets.draws import Draws
from datasets.geometry import ALL_VALID, GeometryOptions


class Warp(nn.Module):
    """Draws one geometric transform for each tile."""

    _symmetries: Tensor

    def __init__(self, options: GeometryOptions) -> None:
        super().__init__()
        self._options = options
        self.register_buffer("_symmetries", symmetries())

    def forward(self, tiles: Tensor, draws: Draws) -> Tensor:
        """Return float32 DN (batch, 13, height, width), turned and warped."""
        if not self._options.flips and self._options.warp == 0:
            return tiles
        return warp(tiles, self.draw(draws))

    def draw(self, draws: Draws) -> Tensor:
        """Return float32 (batch, 2, 3): where each pixel comes from, see `warp`."""
        options = self._options
        turn = draws.between(-options.rotate_degrees, options.rotate_degrees) * (math.pi / 180)
        shear = torch.tan(draws.between(-options.shear_degrees, options.shear_degrees, 2) * (math.pi / 180))
        zoom = _zoom_alike(options.scale, draws) if options.keep_ratio else draws.between(*options.scale, 2)
        shift = draws.between(-options.shift, options.shift, 2) * 2  # a side is 2 long
        cosine, sine, one = turn.cos(), turn.sin(), torch.ones_like(turn)
        rotation = torch.stack([cosine, -sine, sine, cosine], dim=1).view(-1, 2, 2)
        skew = torch.stack([one, shear[:, 0], shear[:, 1], one], dim=1).view(-1, 2, 2)
        matrix = (rotation @ skew) / zoom[:, None, :]
        warped = (draws.uniform() < options.warp)[:, None, None]
        matrix = torch.where(warped, matrix, torch.eye(2, device=turn.device))
        which = (draws.uniform() * 8).long() if options.flips else torch.zeros_like(turn).long()
        matrix = matrix @ self._symmetries[which]
        return torch.cat([matrix, torch.where(warped, shift[:, :, None], 0.0)], dim=2)


def _zoom_alike(scale: tuple[float, float], draws: Draws) -> Tensor:
    """Return float32 (batch, 2), twice the same: evenly from below 1 for half of the tiles, from above for the rest."""
    low, high = scale
    inward, place = draws.uniform() < 0.5, draws.uniform()
    zoom = torch.where(inward, 1 + (high - 1) * place, 1 - (1 - low) * place)
    return zoom[:, None].expand(-1, 2)


def warp(tiles: Tensor, matrices: Tensor) -> Tensor:
    """Return float32 DN (batch, bands, height, width), each pixel taken from where its matrix says.

    Args:
        tiles: float32 DN (batch, bands, height, width), 0 = no data.
        matrices: float32 (batch, 2, 3): source (x, y) = matrix · (x, y, 1), where −1 and 1 are the centres of the first
            and the last pixel of a side.
    """
    has = tiles > 0
    present = has.flatten(2).any(dim=2)[:, :, None, None]
    valid = (has | ~present).all(dim=1, keepdim=True)
    stack = torch.cat([tiles, valid.to(tiles.dtype)], dim=1)
    grid = functional.affine_grid(matrices, list(stack.shape), align_corners=True)
    sampled = functional.grid_sample(stack, grid, mode="bilinear", padding_mode="reflection", align_corners=True)
    kept = (sampled[:, -1:] > ALL_VALID) & present
    return torch.where(kept, sampled[:, :-1].clamp(min=1.0), 0.0)


def symmetries() -> Tensor:
    """Return float32 (8, 2, 2): the symmetries of the square."""
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    mirror = torch.tensor([[-1.0, 0.0], [0.0, 1.0]])
    turns = [torch.linalg.matrix_power(quarter, n) for n in range(4)]
    return torch.stack([*turns, *(mirror @ turn for turn in turns)])
