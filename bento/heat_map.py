"""An explanation as a picture: heat over the tile in true colour, with its scale.

Red: what speaks for the class, for its probability drops where it is taken away. Blue: what speaks against it.
"""

import numpy as np
import numpy.typing as npt
from rasterio.io import MemoryFile

from bento.explain import Explanation
from datasets.bands import RGB_BANDS, positions
from datasets.geotiff import closed_world
from datasets.tile import NO_DATA, Tile

ZOOM = 4  # pixels of the picture for one of the tile
LEAST_SCALE = 0.01  # smaller effects are not painted in full colour: they are next to nothing
LEAST_CONTRAST = 400  # DN: what varies less is not stretched to the full, it would be noise
_FOR, _AGAINST = (215, 25, 28), (44, 90, 205)
_COLOUR_LEFT = 0.3
_COVER = 0.75  # of the picture, where the heat is highest
_BAR, _GAP, _FONT_ZOOM = 12, 6, 2
_INK, _PAPER = 40, 255
_LABEL_CHARACTERS = 6
# 3 × 5 dots, a row in each number.
_FONT = {
    "0": (7, 5, 5, 5, 7),
    "1": (2, 6, 2, 2, 7),
    "2": (7, 1, 7, 4, 7),
    "3": (7, 1, 7, 1, 7),
    "4": (5, 5, 7, 1, 1),
    "5": (7, 4, 7, 1, 7),
    "6": (7, 4, 7, 5, 7),
    "7": (7, 1, 2, 2, 2),
    "8": (7, 5, 7, 5, 7),
    "9": (7, 5, 7, 1, 7),
    ".": (0, 0, 0, 0, 2),
    "+": (0, 2, 7, 2, 0),
    "-": (0, 0, 7, 0, 0),
}

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
    label = 4 * _FONT_ZOOM * _LABEL_CHARACTERS
    field = np.full((height, _GAP + _BAR + _GAP + label, 3), _PAPER, np.uint8)
    field[:, _GAP : _GAP + _BAR] = bar
    texts = (f"{strongest:+.3f}", "0", f"{-strongest:+.3f}")
    for text, top in zip(texts, (2, height // 2 - 5, height - 12), strict=True):
        dots = np.kron(_write(text), np.ones((_FONT_ZOOM, _FONT_ZOOM), np.uint8))
        place = field[top : top + dots.shape[0], _GAP + _BAR + _GAP :][:, : dots.shape[1]]
        place[dots[:, : place.shape[1]] > 0] = _INK
    return field


def _write(text: str) -> Picture:
    """Return the dots (5, 4 · characters) of a number."""
    dots = np.array([_FONT[character] for character in text])[..., None] >> np.array([2, 1, 0]) & 1  # (character, 5, 3)
    return np.asarray(np.pad(dots, ((0, 0), (0, 0), (0, 1))).transpose(1, 0, 2).reshape(5, -1), np.uint8)


def _png(picture: Picture) -> bytes:
    height, width, _ = picture.shape
    with closed_world(), MemoryFile() as memory:
        with memory.open(driver="PNG", count=3, height=height, width=width, dtype="uint8") as dataset:
            dataset.write(picture.transpose(2, 0, 1))
        return bytes(memory.read())
