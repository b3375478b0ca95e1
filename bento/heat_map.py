"""An explanation as a picture: heat over the tile in true colour, with its scale.

Red: what speaks for the class, for its probability drops where it is taken away. Blue: what speaks against it.
"""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bento.explain import Explanation
from datasets.pictures import Picture, cover, heat_over

ZOOM = 4  # pixels of the picture for one of the tile
LEAST_SCALE = 0.01  # smaller effects are not painted in full colour: they are next to nothing
_BAR, _GAP, _LABEL = 12, 6, 48
_INK, _PAPER = (40, 40, 40), (255, 255, 255)
_FONT_SIZE = 13


def paint(explanation: Explanation) -> bytes:
    """Return a PNG of 256 × 256 pixels for a tile of 64, and the scale to its right."""
    strongest = max(float(np.abs(explanation.heat).max()), LEAST_SCALE)
    picture = heat_over(explanation.tile, explanation.heat / np.float32(strongest), ZOOM)
    return _png(np.concatenate([picture, _scale(len(picture), strongest)], axis=1))


def _scale(height: int, strongest: float) -> Picture:
    """Return a bar from + to - `strongest` with its numbers."""
    slope = np.repeat(np.linspace(1, -1, height, dtype=np.float32)[:, None], _BAR, axis=1)
    bar = cover(np.full((height, _BAR, 3), 128, np.uint8), slope)
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
