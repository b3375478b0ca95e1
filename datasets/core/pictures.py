"""Pictures of tiles: three bands as colours, stretched for the eye, and heat maps over them."""

import numpy as np
import numpy.typing as npt

from tilewise.datasets.core.bands import RGB_BANDS, positions
from tilewise.datasets.core.tile import Tile, has_data

MIN_CONTRAST = 400  # DN; a smaller range is not stretched to full contrast, it would be noise
FOR, AGAINST = (215, 25, 28), (44, 90, 205)
"""Colours of heat: red for evidence for a class, blue for evidence against it."""
_COLOUR_KEPT = 0.3
_MAX_OPACITY = 0.75  # where the heat is highest

Picture = npt.NDArray[np.uint8]
Heat = npt.NDArray[np.float32]


def true_colour(tile: Tile) -> Picture:
    """Return uint8 (height, width, 3): red, green and blue, or the first bands where one is missing."""
    return composite(
        tile, RGB_BANDS if set(RGB_BANDS) <= set(tile.bands) else (*tile.bands, *2 * tile.bands[:1])[:3]
    )


def composite(tile: Tile, bands: tuple[str, ...]) -> Picture:
    """Return uint8 (height, width, 3): three bands, stretched by percentiles 2 and 98; no data is black.

    Each band starts at its own dark end, which removes the haze; all have the same contrast, which keeps the
    colours.
    """
    values = tile.pixels[positions(bands)].astype(np.float32)
    valid = has_data(values)
    ranges = [
        np.percentile(band[held], (2, 98)) if held.any() else np.zeros(2)
        for band, held in zip(values, valid, strict=True)
    ]
    contrast = max(MIN_CONTRAST, *(high - low for low, high in ranges))
    darkest = np.array([low for low, _ in ranges])[:, None, None]
    bright = np.clip((values - darkest) / contrast, 0, 1) * valid
    return np.asarray(np.rint(255 * bright).transpose(1, 2, 0), np.uint8)


def heat_over(tile: Tile, heat: Heat, zoom: int) -> Picture:
    """Return uint8 (zoom · height, zoom · width, 3): `heat` (height, width), -1 to 1, over the tile."""
    ground = np.kron(_pale(true_colour(tile)), np.ones((zoom, zoom, 1), np.uint8))
    return cover(ground, _enlarge(heat, zoom))


def cover(ground: Picture, heat: Heat) -> Picture:
    """Return `ground` (h, w, 3) under `heat` (h, w), -1 to 1."""
    opacity = _MAX_OPACITY * np.abs(heat)[..., None]
    colour = np.where(heat[..., None] > 0, np.array(FOR), np.array(AGAINST))
    return np.asarray(np.rint(ground * (1 - opacity) + colour * opacity), np.uint8)


def _pale(picture: Picture) -> Picture:
    """Return a picture nearly in grey, so that a red field is not mistaken for heat."""
    grey = picture.mean(axis=2, keepdims=True)
    return np.asarray(np.rint(grey + _COLOUR_KEPT * (picture - grey)), np.uint8)


def _enlarge(heat: Heat, zoom: int) -> Heat:
    """Return `heat` (h, w) as (zoom · h, zoom · w), interpolated linearly between the pixels' centres."""
    rows, columns = ((np.arange(length * zoom) + 0.5) / zoom - 0.5 for length in heat.shape)
    across = np.stack([np.interp(columns, np.arange(heat.shape[1]), row) for row in heat])
    down = [np.interp(rows, np.arange(heat.shape[0]), column) for column in across.T]
    return np.stack(down, axis=1).astype(np.float32)
