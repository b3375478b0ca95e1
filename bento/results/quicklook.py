"""Pictures of a scene for readers without a GIS: its class map with a legend, and its true colours."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from PIL import Image, ImageDraw, ImageFont
from rasterio.enums import Resampling

from tilewise.bento.inference.blending import NO_CLASS, OUT_OF_DISTRIBUTION
from tilewise.bento.inference.preview import stretch
from tilewise.bento.inference.thinning import LONGEST_SIDE, shown
from tilewise.bento.inference.window_grid import SceneInfo
from tilewise.bento.results.maps import UNLIKE, UNLIKE_COLOUR
from tilewise.datasets.core.tile import DN
from tilewise.models.class_colours import Colour, colours
from tilewise.models.model_file import ModelMetadata

SUFFIX, COLOUR_SUFFIX = ".quicklook.png", ".truecolour.jpg"
_SHORTEST = 384  # pixels of the map's longer side in the picture
_MARGIN, _LINE, _SWATCH, _LEGEND = 16, 24, 16, 250
_PAPER, _INK, _FAINT = (255, 255, 255), (30, 30, 30), (110, 110, 110)
_NONE: Colour = (225, 225, 225)
_STEPS = (1, 2, 5)
_HATCH = 8  # pixels from one line of the hatching to the next

Pixels = npt.NDArray[np.uint8]
LegendRow = tuple[Pixels, str, str]
"""Swatch, uint8 (height, width, 3); name; figure."""


def write_quicklook(
    class_map: Path, scene_info: SceneInfo, metadata: ModelMetadata, area_ha: Mapping[str, float], path: Path
) -> Path:
    """Write a PNG: the map (at most 1024 pixels a side), title, scale bar, legend with percentages.

    Args:
        class_map: the finished map.
        scene_info: its grid and name.
        metadata: of the model.
        area_ha: hectares of each class that occurs, and of UNLIKE.
        path: of the picture.

    Raises:
        OSError: the disk does not take it.
    """
    picture, scale = read_small(class_map)
    day = (scene_info.datetime or "")[:10]
    when = f", {day}" if day and day not in scene_info.name else ""
    note = f"{metadata.name} {metadata.version}" + (
        ", trained on synthetic tiles" if metadata.synthetic else ""
    )
    page = draw_page(
        paint(picture, metadata),
        scale,
        scene_info,
        f"{scene_info.name}{when}",
        _legend(metadata, area_ha),
        note,
    )
    page.save(path, format="PNG", compress_level=9)
    return path


class TrueColour:
    """A picture of a scene, red, green and blue, as large as its class map in the quick-look."""

    def __init__(self, scene_info: SceneInfo) -> None:
        sides = scene_info.height, scene_info.width
        rows, columns = (len(shown(side, max(sides))) for side in sides)
        self._pixels, self._done = np.zeros((3, rows, columns), np.uint16), 0
        self._grown = max(1, _SHORTEST // max(sides))

    def add(self, colours: DN) -> None:
        """Take the next rows: uint16 (3, rows, columns), DN, 0 = no data."""
        count = colours.shape[1]
        self._pixels[:, self._done : self._done + count] = colours
        self._done += count

    def write(self, path: Path) -> Path:
        """Write a JPEG, each band stretched by its percentiles; what has no data is light grey.

        Raises:
            OSError: the disk does not take it.
        """
        valid = np.asarray((self._pixels > 0).all(axis=0))
        picture = stretch(self._pixels.astype(np.float32), valid).transpose(1, 2, 0)
        picture[~valid] = _NONE
        grown = picture.repeat(self._grown, axis=0).repeat(self._grown, axis=1)
        Image.fromarray(grown).save(path, format="JPEG", quality=88)
        return path


def paint(class_map: npt.NDArray[np.uint8], metadata: ModelMetadata) -> npt.NDArray[np.uint8]:
    """Return uint8 (height, width, 3): a class map in the legend's colours.

    What is unlike the training data is hatched; where nothing is known it is light grey.
    """
    table = np.full((256, 3), _NONE, np.uint8)
    table[: len(metadata.classes)] = colours(metadata.classes)
    table[OUT_OF_DISTRIBUTION], table[NO_CLASS] = UNLIKE_COLOUR, _NONE
    painted = table[class_map]
    down, across = np.ogrid[: class_map.shape[0], : class_map.shape[1]]
    painted[(class_map == OUT_OF_DISTRIBUTION) & ((down + across) % _HATCH < _HATCH // 4)] = _INK
    return painted


def overlay(class_map: npt.NDArray[np.uint8], metadata: ModelMetadata) -> bytes:
    """Return a PNG of uint8 (height, width) in the legend's colours, transparent where nothing is known.

    It has at most 1024 pixels a side: of a larger map, the pixels nearest to the middles of the picture's. A
    small map is enlarged, so that the hatching of what is unlike the training data can be seen.
    """
    longest = max(class_map.shape)
    rows, columns = (shown(side, longest) for side in class_map.shape)
    grown = max(1, _SHORTEST // longest)
    small = class_map[np.ix_(rows, columns)].repeat(grown, axis=0).repeat(grown, axis=1)
    opaque = np.where(small == NO_CLASS, 0, 255).astype(np.uint8)
    made = io.BytesIO()
    Image.fromarray(np.dstack([paint(small, metadata), opaque])).save(made, format="PNG")
    return made.getvalue()


def draw_page(
    painted: Pixels,
    scale: float,
    scene_info: SceneInfo,
    title: str,
    legend: Sequence[LegendRow],
    note: str,
    *,
    legend_width: int = _LEGEND,
) -> Image.Image:
    """Return a page: a painted map, title, scale bar, legend, and a note below the legend.

    Args:
        painted: uint8 (height, width, 3).
        scale: pixels of `painted` that one pixel of the map takes.
        scene_info: the map's grid.
        title: above the map.
        legend: from top to bottom.
        note: one line.
        legend_width: pixels.
    """
    height, width = painted.shape[:2]
    page_height = max(height + _LINE, _LINE * (len(legend) + 2)) + _LINE + 2 * _MARGIN
    page = Image.new("RGB", (width + legend_width + 3 * _MARGIN, page_height), _PAPER)
    page.paste(Image.fromarray(painted), (_MARGIN, _MARGIN + _LINE))
    pen = ImageDraw.Draw(page)
    pen.text((_MARGIN, _MARGIN - 4), title, _INK, _font(16))
    _draw_scale_bar(pen, scene_info, scale, (_MARGIN, _MARGIN + _LINE + height + 6))
    x, y = width + 2 * _MARGIN, _MARGIN + _LINE
    for swatch, name, figure in legend:
        page.paste(Image.fromarray(swatch), (x, y))
        pen.rectangle((x, y, x + _SWATCH, y + _SWATCH), outline=_FAINT)
        pen.text((x + _SWATCH + 8, y), name, _INK, _font(14))
        pen.text((x + legend_width, y), figure, _FAINT, _font(14), anchor="ra")
        y += _LINE
    pen.text((x, y + 4), note, _FAINT, _font(12))
    return page


def _legend(metadata: ModelMetadata, area_ha: Mapping[str, float]) -> list[LegendRow]:
    """Return the legend of a class map, with percentages of the area that has a class or is unlike all."""
    total = sum(area_ha.values())
    entries = [*zip(metadata.classes, range(len(metadata.classes)), metadata.classes, strict=True)]
    others = [
        (UNLIKE, OUT_OF_DISTRIBUTION, "unlike the training data"),
        ("", NO_CLASS, "no data, cloud, skipped"),
    ]
    rows = []
    for key, number, name in [*entries, *others]:
        swatch = paint(np.full((_SWATCH, _SWATCH), number, np.uint8), metadata)
        percent = f"{100 * area_ha.get(key, 0.0) / total:.1f} %" if total and key else ""
        rows.append((swatch, name, percent))
    return rows


def read_small(class_map: Path) -> tuple[npt.NDArray[Any], float]:
    """Return the map at the picture's size, and how many pixels of the picture one pixel of the map takes."""
    with rasterio.open(class_map) as dataset:
        longest = max(dataset.shape)
        shrunk = min(1.0, LONGEST_SIDE / longest)
        shape = tuple(max(1, round(side * shrunk)) for side in dataset.shape)
        # Overviews are made by mode; between two of them nearest-neighbour invents no class.
        picture = dataset.read(1, out_shape=shape, resampling=Resampling.nearest)
    grown = max(1, _SHORTEST // longest)
    return picture.repeat(grown, axis=0).repeat(grown, axis=1), shrunk * grown


def _draw_scale_bar(
    pen: ImageDraw.ImageDraw, scene_info: SceneInfo, scale: float, corner: tuple[int, int]
) -> None:
    """Draw a bar of a round length, a fifth to a half of the map's width."""
    if not scene_info.pixel_ha > 0:
        return
    metres = (scene_info.pixel_ha * 10_000) ** 0.5 / scale  # of a pixel of the picture
    limit = scene_info.width * scale * metres / 3
    exponent = 10.0 ** np.floor(np.log10(max(limit, 1.0)))
    length = max((step * exponent for step in _STEPS if step * exponent <= limit), default=limit)
    x, y = corner
    pen.rectangle((x, y, x + round(length / metres), y + 4), fill=_INK)
    label = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    pen.text((x + round(length / metres) + 8, y - 6), label, _INK, _font(13))


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
