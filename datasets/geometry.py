"""Geometric augmentation of tiles on the CPU, by Albumentations (`datasets.warp` is its like on a GPU).

Of Albumentations only geometry is used: its photometric transforms are written for three 8-bit channels and
damage 13-band reflectances (docs/decisions/0003-augmentation.md says which, and how that was seen).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from datasets.errors import TrainingError

if TYPE_CHECKING:  # a machine that warps on its GPU may have no Albumentations
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
