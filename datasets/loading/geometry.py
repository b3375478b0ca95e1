"""Turning and warping a whole batch of tiles on the device: what `tilewise.datasets.loading.geometry` does tile by tile on the CPU.

One bilinear sampling does it all: one of the eight symmetries of the square for each tile, and for a share of the tiles
a rotation, zoom, shear and shift. Beyond the edge lies the tile's mirror image. A pixel interpolated from any no-data
pixel is no data.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.loading.draws import Draws

if TYPE_CHECKING:
    import albumentations as albu

ALL_VALID = 0.999  # a pixel interpolated from any no-data neighbour is no data


@dataclass(frozen=True)
class GeometryOptions:
    """How tiles are turned and warped in training.

    Attributes:
        flips: draw one of the eight symmetries of the square for each tile.
        warp: share of tiles (0–1) that are also rotated, scaled, sheared and shifted.
        rotate_degrees: largest rotation of a warped tile, either way.
        scale: smallest and largest zoom; below 1 more is seen, in smaller pieces.
        keep_ratio: zoom both sides alike, and out as often as in; else each side has its own, evenly drawn.
        shift: largest shift, as a share of the side.
        shear_degrees: largest shear, either way.
    """

    flips: bool = True
    warp: float = 0.5
    rotate_degrees: float = 45.0
    scale: tuple[float, float] = (0.8, 1.25)
    keep_ratio: bool = False
    shift: float = 0.12
    shear_degrees: float = 5.0

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high or (self.keep_ratio and not low <= 1 <= high):
            raise TrainingError(
                f"data.geometry.scale: [{low}, {high}] is no range of zooms above 0; with keep_ratio it goes from 1 at "
                "most to 1 at least, since as many tiles are zoomed out as in"
            )


class Geometry:
    """Draws one geometric transform for each tile; no data stays no data."""

    def __init__(self, options: GeometryOptions) -> None:
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network for a newer version
        import albumentations as albu
        import cv2

        cv2.setNumThreads(0)  # a pool of OpenCV threads in every loader worker fights with torch for the cores
        self._compose = albu.Compose(_transforms(options))

    def reseed(self, seed: int) -> None:
        """Start the draws anew from `seed`."""
        self._compose.set_random_seed(seed)

    def __call__(self, planes: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
        """Return uint16 (bands, height, width): the planes of one tile, turned and warped together."""
        if not len(planes):
            return planes
        valid = (planes > 0).all(axis=0)
        image = planes.transpose(1, 2, 0).astype(np.float32)
        if valid.all():
            warped = self._compose(image=image)["image"]
            return np.maximum(np.rint(warped), 1).astype(np.uint16).transpose(2, 0, 1)
        warped = self._compose(image=np.dstack([image, valid]))["image"]
        kept = warped[..., -1:] > ALL_VALID
        return np.where(kept, np.maximum(np.rint(warped[..., :-1]), 1), 0).astype(np.uint16).transpose(2, 0, 1)


def _transforms(options: GeometryOptions) -> list[albu.BasicTransform]:
    import albumentations as albu
    import cv2

    transforms: list[albu.BasicTransform] = [albu.D4(p=1.0)] if options.flips else []
    if options.warp > 0:
        turn, shear, shift = options.rotate_degrees, options.shear_degrees, options.shift
        transforms.append(
            albu.Affine(
                rotate=(-turn, turn),
                scale=options.scale,
                keep_ratio=options.keep_ratio,
                balanced_scale=options.keep_ratio,
                shear=(-shear, shear),
                translate_percent=(-shift, shift),
                interpolation=cv2.INTER_LINEAR,
                border_mode=cv2.BORDER_REFLECT_101,  # what lies beyond the edge looks like what lies within
                p=options.warp,
            )
        )
    return transforms


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
