"""Flip, rotate and warp training tiles: whole batches in plain torch, or tile by tile by Albumentations.

One bilinear sampling does it all: one of the eight symmetries of the square for each tile, and for a fraction
of the tiles a rotation, zoom, shear and shift. Beyond the edge is the tile's mirror image. A pixel
interpolated from any no-data pixel becomes no data.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.core.tile import has_data
from tilewise.datasets.loading.draws import Draws

if TYPE_CHECKING:
    import albumentations as albu

Backend = Literal["torch", "albumentations"]

ALL_VALID = 0.999
"""An interpolated valid-pixel mask below this means that a no-data neighbour counted in."""


@dataclass(frozen=True)
class GeometryOptions:
    """How tiles are flipped, rotated and warped in training.

    Attributes:
        backend: `torch` warps whole batches on the device that trains, CPU or GPU; `albumentations` warps
            tile by tile in the loader's processes, and needs that package.
        flips: draw one of the eight symmetries of the square for each tile.
        warp: fraction of tiles (0–1) that are also rotated, scaled, sheared and shifted.
        rotate_degrees: maximum rotation of a warped tile, either way.
        scale: smallest and largest zoom; below 1 more is seen, in smaller pieces.
        keep_ratio: zoom both sides alike, and out as often as in; else each side has its own zoom, uniformly
            drawn.
        shift: maximum shift, as a fraction of the side.
        shear_degrees: maximum shear, either way.

    Raises:
        TrainingError: `scale` is not a range of zooms.
    """

    backend: Backend = "torch"
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
                f"data.augment.geometry.scale: [{low}, {high}] is not a range of zooms above 0; "
                "with keep_ratio it must include 1, since as many tiles are zoomed out as in"
            )


class Warp(nn.Module):
    """Draw one geometric transform for each tile of a batch, and apply it in plain torch."""

    _symmetries: Tensor

    def __init__(self, options: GeometryOptions) -> None:
        super().__init__()
        self._options = options
        self.register_buffer("_symmetries", symmetries())

    def forward(self, tiles: Tensor, draws: Draws) -> Tensor:
        """Return float32 DN (batch, 13, height, width), flipped, rotated and warped."""
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
    """Return float32 (batch, 2), twice the same: below 1 for half of the tiles, above 1 for the rest."""
    low, high = scale
    inward, position = draws.uniform() < 0.5, draws.uniform()
    zoom = torch.where(inward, 1 + (high - 1) * position, 1 - (1 - low) * position)
    return zoom[:, None].expand(-1, 2)


def warp(tiles: Tensor, matrices: Tensor) -> Tensor:
    """Return float32 DN (batch, bands, height, width), each pixel taken from where its tile's matrix points.

    Args:
        tiles: float32 DN (batch, bands, height, width), 0 = no data.
        matrices: float32 (batch, 2, 3): source (x, y) = matrix · (x, y, 1), where −1 and 1 are the centres of
            the first and the last pixel of a side.
    """
    held = has_data(tiles)
    present = held.flatten(2).any(dim=2)[:, :, None, None]
    valid = (held | ~present).all(dim=1, keepdim=True)
    stack = torch.cat([tiles, valid.to(tiles.dtype)], dim=1)
    grid = functional.affine_grid(matrices, list(stack.shape), align_corners=True)
    sampled = functional.grid_sample(
        stack, grid, mode="bilinear", padding_mode="reflection", align_corners=True
    )
    kept = (sampled[:, -1:] > ALL_VALID) & present
    return torch.where(kept, sampled[:, :-1].clamp(min=1.0), 0.0)


def symmetries() -> Tensor:
    """Return float32 (8, 2, 2): the symmetries of the square."""
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    mirror = torch.tensor([[-1.0, 0.0], [0.0, 1.0]])
    turns = [torch.linalg.matrix_power(quarter, n) for n in range(4)]
    return torch.stack([*turns, *(mirror @ turn for turn in turns)])


class AlbumentationsWarp:
    """Draw one geometric transform for each tile, and apply it by Albumentations on the CPU.

    Raises:
        TrainingError: Albumentations is not installed.
    """

    def __init__(self, options: GeometryOptions) -> None:
        os.environ.setdefault(
            "NO_ALBUMENTATIONS_UPDATE", "1"
        )  # else its import looks for a newer version online
        try:
            import albumentations as albu
            import cv2
        except ImportError as error:
            raise TrainingError(
                "data.augment.geometry.backend: albumentations is not installed; "
                "pip install albumentations==2.0.8, or choose torch"
            ) from error
        cv2.setNumThreads(
            0
        )  # a pool of OpenCV threads in every loader process competes with torch for the cores
        self._compose = albu.Compose(_transforms(options))

    def reseed(self, seed: int) -> None:
        """Restart the draws from `seed`."""
        self._compose.set_random_seed(seed)

    def __call__(self, planes: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
        """Return uint16 (bands, height, width): the bands of one tile, warped together."""
        if not len(planes):
            return planes
        valid = has_data(planes).all(axis=0)
        image = planes.transpose(1, 2, 0).astype(np.float32)
        if valid.all():
            warped = self._compose(image=image)["image"]
            return np.maximum(np.rint(warped), 1).astype(np.uint16).transpose(2, 0, 1)
        warped = self._compose(image=np.dstack([image, valid]))["image"]
        kept = warped[..., -1:] > ALL_VALID
        return (
            np.where(kept, np.maximum(np.rint(warped[..., :-1]), 1), 0).astype(np.uint16).transpose(2, 0, 1)
        )


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
                border_mode=cv2.BORDER_REFLECT_101,  # beyond the edge the tile's mirror image
                p=options.warp,
            )
        )
    return transforms
