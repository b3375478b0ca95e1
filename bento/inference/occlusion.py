"""Explanations of an answer: which patches and bands of a tile support it, as numbers and as a picture.

In the picture, red supports the class (its probability drops without the patch), blue speaks against it.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from tilewise.bento.inference.engine import Answers, TileClassifier
from tilewise.datasets.core.bands import positions
from tilewise.datasets.core.pictures import Picture, cover, heat_over
from tilewise.datasets.core.tile import DN, NO_DATA, Tile
from tilewise.models.occlusion import in_batches, occlude

MAX_PATCHES = 1024
ZOOM = 4  # pixels of the picture for one of the tile
MIN_SCALE = 0.01  # smaller effects are negligible, and are not painted in full colour
_BAR, _GAP, _LABEL = 12, 6, 48
_INK, _PAPER = (40, 40, 40), (255, 255, 255)
_FONT_SIZE = 13

Values = npt.NDArray[np.float32]


class Method(StrEnum):
    """The score that is compared: the probability of a class, or the embedding, whatever the class."""

    OCCLUSION = "occlusion"
    EMBEDDING = "embedding"


@dataclass(frozen=True, slots=True)
class Explanation:
    """Which parts of a tile support an answer.

    Attributes:
        tile: the tile.
        class_name: the explained class.
        probability: of that class for the whole tile (0-1), calibrated.
        method: meaning of `grid`, `heat` and `bands`. OCCLUSION: the drop of the class's probability (-1 to
            1; below 0 it rises). EMBEDDING: how far the embedding turns (1 - cosine, 0-2).
        size, stride: of the patches, in pixels.
        grid: float32 (rows, columns), the effect of removing each patch.
        heat: float32 (64, 64), the mean effect of the patches that cover each pixel.
        bands: the effect of removing each band that is present.
    """

    tile: Tile
    class_name: str
    probability: float
    method: Method
    size: int
    stride: int
    grid: Values
    heat: Values
    bands: dict[str, float]


def explain(
    engine: TileClassifier,
    tile: Tile,
    method: Method = Method.OCCLUSION,
    size: int = 8,
    stride: int = 4,
    class_name: str | None = None,
) -> Explanation:
    """Explain the answer to a tile that has valid pixels.

    A patch is removed by replacing it with the tile's mean, band by band; a band by setting it to no data,
    which networks are trained for.

    Args:
        size: of a patch in pixels, 1 to the tile's.
        stride: between patches in pixels, 1 to `size`; at most MAX_PATCHES patches in all.
        class_name: one of the model's classes; None: the answered one.
    """
    whole = engine.classify(tile.pixels[None])
    index = engine.metadata.classes.index(class_name) if class_name else int(whole.probabilities[0].argmax())

    def drop(tiles: DN) -> Values:
        return _effect(method, index, whole, engine.classify(tiles))

    grid, heat = occlude(tile.pixels, drop, size, stride)
    bands = in_batches(_without_bands(tile), len(tile.bands), drop)
    return Explanation(
        tile=tile,
        class_name=engine.metadata.classes[index],
        probability=float(whole.probabilities[0, index]),
        method=method,
        size=size,
        stride=stride,
        grid=grid,
        heat=heat,
        bands={name: float(effect) for name, effect in zip(tile.bands, bands, strict=True)},
    )


def _without_bands(tile: Tile) -> Iterator[DN]:
    """Yield the tile without each of its bands."""
    for position in positions(tile.bands):
        occluded = tile.pixels.copy()
        occluded[position] = NO_DATA
        yield occluded


def _effect(method: Method, index: int, whole: Answers, occluded: Answers) -> Values:
    """Return float32 (n,): how far the answers to n occluded tiles differ from that to the whole tile."""
    if method is Method.OCCLUSION:
        return np.asarray(whole.probabilities[0, index] - occluded.probabilities[:, index])
    one, others = whole.embedding[0], occluded.embedding
    lengths = np.linalg.norm(one) * np.linalg.norm(others, axis=1)
    return np.asarray(1 - others @ one / np.maximum(lengths, 1e-12), np.float32)


def paint(explanation: Explanation) -> bytes:
    """Return a PNG: heat over the tile in true colour, 256 × 256 pixels, with its scale to the right."""
    strongest = max(float(np.abs(explanation.heat).max()), MIN_SCALE)
    picture = heat_over(explanation.tile, explanation.heat / np.float32(strongest), ZOOM)
    return _png(np.concatenate([picture, _scale(len(picture), strongest)], axis=1))


def _scale(height: int, strongest: float) -> Picture:
    """Return a colour bar from + to - `strongest` with its numbers."""
    slope = np.repeat(np.linspace(1, -1, height, dtype=np.float32)[:, None], _BAR, axis=1)
    bar = cover(np.full((height, _BAR, 3), 128, np.uint8), slope)
    field = Image.new("RGB", (_GAP + _BAR + _GAP + _LABEL, height), _PAPER)
    field.paste(Image.fromarray(bar), (_GAP, 0))
    pen, font = ImageDraw.Draw(field), ImageFont.load_default(_FONT_SIZE)
    labels = (
        (2, "lt", f"{strongest:+.3f}"),
        (height // 2, "lm", "0"),
        (height - 2, "lb", f"{-strongest:+.3f}"),
    )
    for y, anchor, text in labels:
        pen.text((_GAP + _BAR + _GAP, y), text, _INK, font, anchor=anchor)
    return np.asarray(field)


def _png(picture: Picture) -> bytes:
    content = io.BytesIO()
    Image.fromarray(picture).save(content, format="PNG")
    return content.getvalue()
