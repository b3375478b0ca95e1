"""An explanation as a picture: heat over the tile in true colour, with its scale.

Red: what speaks for the class, for its probability drops where it is taken away. Blue: what speaks against it.
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

MAX_PATCHES = 1024
_MAX_BATCH_SIZE = 64  # tiles: what is held of the occluded ones at once

Values = npt.NDArray[np.float32]


class Method(StrEnum):
    """What is looked at: the probability of a class, or the embedding, whatever the class."""

    OCCLUSION = "occlusion"
    EMBEDDING = "embedding"


@dataclass(frozen=True, slots=True)
class Explanation:
    """What an answer rests on.

    Attributes:
        tile: that was answered.
        class_name: that is explained.
        probability: of it (0-1), calibrated, of the whole tile.
        method: what the numbers below are. OCCLUSION: how far the class's probability drops (-1 to 1; below 0: it
            rises). EMBEDDING: how far the embedding turns (1 - cosine, 0-2).
        size, stride: of the patches, in pixels.
        grid: float32 (rows, columns), for each patch that was taken away.
        heat: float32 (64, 64), for each pixel the mean of the patches that cover it.
        bands: for each band that is present and was taken away.
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
    """Explain the answer to a tile that holds data.

    A patch is taken away by the mean of the tile's own valid pixels, band by band: docs/decisions/0005 has what that
    was measured against. A band is taken away by no data, which networks are trained to do without.

    Args:
        size: of a patch, 1 to the tile's.
        stride: between patches, 1 to `size`; at most MAX_PATCHES patches in all.
        class_name: one of the model's; None: the one that it answers.
    """
    whole = engine.classify(tile.pixels[None])
    index = engine.metadata.classes.index(class_name) if class_name else int(whole.probabilities[0].argmax())
    starts = patch_starts(tile.pixels.shape[1], size, stride)

    def effects(tiles: Iterator[DN], count: int) -> Values:
        return np.concatenate([_effect(method, index, whole, engine.classify(b)) for b in _batches(tiles, count)])

    grid = effects(_without_patches(tile.pixels, starts, size), len(starts) ** 2).reshape(len(starts), len(starts))
    bands = effects(_without_bands(tile), len(tile.bands))
    return Explanation(
        tile=tile,
        class_name=engine.metadata.classes[index],
        probability=float(whole.probabilities[0, index]),
        method=method,
        size=size,
        stride=stride,
        grid=grid,
        heat=_spread(grid, starts, size, tile.pixels.shape[1]),
        bands={name: float(effect) for name, effect in zip(tile.bands, bands, strict=True)},
    )


def patch_starts(length: int, size: int, stride: int) -> list[int]:
    """Return where patches begin along a side of `length` pixels; the last one ends where the side ends."""
    last = length - size
    return [*range(0, last, stride), last]


def _without_patches(pixels: DN, starts: list[int], size: int) -> Iterator[DN]:
    """Yield the tile (13, h, w) without each of its patches, in reading order."""
    held = pixels != NO_DATA
    count = np.maximum(held.sum(axis=(1, 2)), 1)
    mean = np.rint(pixels.sum(axis=(1, 2), dtype=np.float64) / count).astype(np.uint16)
    filled = np.where(held, mean[:, None, None], np.uint16(NO_DATA))  # a hole stays a hole
    for row in starts:
        for column in starts:
            patch = np.s_[:, row : row + size, column : column + size]
            occluded = pixels.copy()
            occluded[patch] = filled[patch]
            yield occluded


def _without_bands(tile: Tile) -> Iterator[DN]:
    for position in positions(tile.bands):
        occluded = tile.pixels.copy()
        occluded[position] = NO_DATA
        yield occluded


def _batches(tiles: Iterator[DN], count: int) -> Iterator[DN]:
    for start in range(0, count, _MAX_BATCH_SIZE):
        yield np.stack([next(tiles) for _ in range(min(_MAX_BATCH_SIZE, count - start))])


def _effect(method: Method, index: int, whole: Answers, occluded: Answers) -> Values:
    """Return float32 (n,): what became of the answer in each of n occluded tiles."""
    if method is Method.OCCLUSION:
        return np.asarray(whole.probabilities[0, index] - occluded.probabilities[:, index])
    one, others = whole.embedding[0], occluded.embedding
    lengths = np.linalg.norm(one) * np.linalg.norm(others, axis=1)
    return np.asarray(1 - others @ one / np.maximum(lengths, 1e-12), np.float32)


def _spread(grid: Values, starts: list[int], size: int, length: int) -> Values:
    """Return float32 (length, length): the mean of the patches over each pixel."""
    total, count = np.zeros((length, length), np.float32), np.zeros((length, length), np.float32)
    for row, values in zip(starts, grid, strict=True):
        for column, value in zip(starts, values, strict=True):
            total[row : row + size, column : column + size] += value
            count[row : row + size, column : column + size] += 1
    return np.asarray(total / np.maximum(count, 1), np.float32)


ZOOM = 4  # pixels of the picture for one of the tile
MIN_SCALE = 0.01  # smaller effects are not painted in full colour: they are next to nothing
_BAR, _GAP, _LABEL = 12, 6, 48
_INK, _PAPER = (40, 40, 40), (255, 255, 255)
_FONT_SIZE = 13


def paint(explanation: Explanation) -> bytes:
    """Return a PNG of 256 × 256 pixels for a tile of 64, and the scale to its right."""
    strongest = max(float(np.abs(explanation.heat).max()), MIN_SCALE)
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
