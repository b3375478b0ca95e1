"""An explanation as a picture: heat over the tile in true colour, with its scale.

Red: what speaks for the class, for its probability drops where it is taken away. Blue: what speaks against it.
"""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from bento.explain import Explanation
from datasets.bands import RGB_BANDS, positions
from datasets.tile import NO_DATA, Tile

ZOOM = 4  # pixels of the picture for one of the tile
LEAST_SCALE = 0.01  # smaller effects are not painted in full colour: they are next to nothing
LEAST_CONTRAST = 400  # DN: what varies less is not stretched to the full, it would be noise
_FOR, _AGAINST = (215, 25, 28), (44, 90, 205)
_COLOUR_LEFT = 0.3
_COVER = 0.75  # of the picture, where the heat is highest
_BAR, _GAP, _LABEL = 12, 6, 48
_INK, _PAPER = (40, 40, 40), (255, 255, 255)
_FONT_SIZE = 13

Picture = npt.NDArray[np.uint8]
Heat = npt.NDArray[np.float32]


def paint(explanation: Explanation) -> bytes:
    """Return a PNG of 256 × 256 pixels for a tile of 64, and the scale to its right."""
    strongest = max(float(np.abs(explanation.heat).max()), LEAST_SCALE)
    ground = np.kron(_pale(true_colour(explanation.tile)), np.ones((ZOOM, ZOOM, 1), np.uint8))
    picture = _cover(ground, _enlarge(explanation.heat / np.float32(strongest), ZOOM))
    return _png(np.concatenate([picture, _scale(len(picture), strongest)], axis=1))


def true_colour(tile: Tile) -> Picture:
    """Return uint8 (height, width, 3), stretched from the 2nd to the 98th percentile; no data is black.

    Each band begins at its own darkest, which takes the haze off, and all share one contrast, which keeps the colours.
    In place of red, green and blue, a tile without any of them shows its first bands.
    """
    shown = RGB_BANDS if set(RGB_BANDS) <= set(tile.bands) else (*tile.bands, tile.bands[0], tile.bands[0])[:3]
    bands = tile.pixels[positions(shown)].astype(np.float32)
    ranges = [np.percentile(band[band != NO_DATA], (2, 98)) if band.any() else np.zeros(2) for band in bands]
    contrast = max(LEAST_CONTRAST, *(high - low for low, high in ranges))
    darkest = np.array([low for low, _ in ranges])[:, None, None]
    bright = np.clip((bands - darkest) / contrast, 0, 1) * (bands != NO_DATA)
    return np.asarray(np.rint(255 * bright).transpose(1, 2, 0), np.uint8)


def _pale(picture: Picture) -> Picture:
    """Return a picture nearly in grey, so that a red field is not taken for heat."""
    grey = picture.mean(axis=2, keepdims=True)
    return np.asarray(np.rint(grey + _COLOUR_LEFT * (picture - grey)), np.uint8)


def _enlarge(heat: Heat, zoom: int) -> Heat:
    """Return `heat` (n, n) as (zoom · n, zoom · n), by straight lines between the pixels' centres."""
    length = len(heat)
    places = (np.arange(length * zoom) + 0.5) / zoom - 0.5
    known = np.arange(length)
    across = np.stack([np.interp(places, known, row) for row in heat])
    return np.stack([np.interp(places, known, column) for column in across.T], axis=1).astype(np.float32)


def _cover(ground: Picture, heat: Heat) -> Picture:
    """Return `ground` (h, w, 3) under `heat` (h, w), -1 to 1."""
    share = _COVER * np.abs(heat)[..., None]
    colour = np.where(heat[..., None] > 0, np.array(_FOR), np.array(_AGAINST))
    return np.asarray(np.rint(ground * (1 - share) + colour * share), np.uint8)


def _scale(height: int, strongest: float) -> Picture:
    """Return a bar from + to - `strongest` with its numbers."""
    slope = np.repeat(np.linspace(1, -1, height, dtype=np.float32)[:, None], _BAR, axis=1)
    bar = _cover(np.full((height, _BAR, 3), 128, np.uint8), slope)
    field = Image.new("RGB", (_GAP + _BAR + _GAP + _LABEL, height), _PAPER)
    field.paste(Image.fromarray(bar), (_GAP, 0))
    pen, font = ImageDraw.Draw(field), ImageFont.load_default(_FONT_SIZE)
    labels = ((2, "lt", f"{strongest:+.3f}"), (height // 2, "lm", "0"), (height - 2, "lb", f"{-strongest:+.3f}"))
    for y, anchor, text in labels:
        pen.text((_GAP + _BAR + _GAP, y), text, _INK, font, anchor=anchor)
    return np.asarray(field)


def _png(picture: Picture) -> bytes:
    content = io.BytesIO()
    Image.fromarray(picture).save(content, format="PNG")
    return content.getvalue()
