"""The grid of windows over a scene, cut into strips and parts that are read at once.

A window is a square of the model's tile size. Windows begin every `stride` pixels from the scene's upper left
corner; the last row and column are moved inwards, so that they end where the scene ends. A scene smaller than
a tile is one window, padded with no data. A strip is some rows of windows; a part is some windows of a strip,
chosen so that the blocks of the scene's files are decoded as few times as possible.
"""

from dataclasses import dataclass
from itertools import pairwise

from tilewise.datasets.core.tile import Georeference

_SQUARE_METRES_PER_HECTARE = 10_000.0
_PIXELS_AT_ONCE = 2**20  # 26 MiB of 13 bands
_MAX_BLOCK_PIXELS = 4 * _PIXELS_AT_ONCE  # larger blocks do not decide how a scene is cut
_PART_WIDTH = 1024  # pixels, about


@dataclass(frozen=True, slots=True)
class SceneInfo:
    """The grid of a scene's results, and the scene's origin.

    Attributes:
        name: stem of the results' file names.
        georeference: of the maps.
        height, width: pixels of the maps.
        sources: the files that the scene was read from, as the user named them.
        datetime: acquisition time, ISO 8601, or of several scenes first/last; None: unknown.
        platform: the satellite, e.g. `sentinel-2a`; None: unknown.
        level: the processing level; None: unknown.
        clouds: the kind of the scene's cloud mask; None: clouds were not looked for.
        scene_georeference: of the scene's own pixels, in which windows are counted; None: that of the maps.
            The two differ where maps are coarser than the scene.
        lineage: how windows became maps, in a sentence.
    """

    name: str
    georeference: Georeference
    height: int
    width: int
    sources: tuple[str, ...] = ()
    datetime: str | None = None
    platform: str | None = None
    level: str | None = None
    clouds: str | None = None
    scene_georeference: Georeference | None = None
    lineage: str | None = None

    @property
    def window_georeference(self) -> Georeference:
        """The grid that windows are counted on."""
        return self.scene_georeference or self.georeference

    @property
    def pixel_ha(self) -> float:
        """Hectares of one pixel of the maps in their own projection; NaN for grids in degrees."""
        if not self.georeference.crs.is_projected:
            return float("nan")
        _, metres = self.georeference.crs.linear_units_factor
        return abs(self.georeference.transform.determinant) * metres**2 / _SQUARE_METRES_PER_HECTARE


@dataclass(frozen=True, slots=True)
class WindowGrid:
    """The windows of a scene.

    Attributes:
        tile: pixels a side of a window.
        stride: pixels from one window to the next.
        height, width: of the scene.
        rows, columns: pixel row and column at which windows begin.
        strips: indices into `rows` of each strip.
        parts: indices into `columns` of each part of a strip.
    """

    tile: int
    stride: int
    height: int
    width: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    strips: tuple[range, ...]
    parts: tuple[range, ...]

    def edges(self, strip: int) -> tuple[int, int]:
        """Return the pixel rows (begin, end) that a strip paints: from its first window to the next one's."""
        rows = self.strips[strip]
        return self.rows[rows.start], (*self.rows, self.height)[rows.stop]

    def part_edges(self, part: int) -> tuple[int, int]:
        """Return the pixel columns (begin, end) that a part paints."""
        columns = self.parts[part]
        return self.columns[columns.start], (*self.columns, self.width)[columns.stop]

    def first_needed(self, strip: int) -> int:
        """Return the first strip whose windows reach into the rows that `strip` paints."""
        top = self.edges(strip)[0]
        return next(n for n, rows in enumerate(self.strips) if self.rows[rows[-1]] + self.tile > top)


def make_window_grid(
    height: int, width: int, tile: int, stride: int, block: tuple[int, int] = (1, 1)
) -> WindowGrid:
    """Lay windows of `tile` pixels over a scene.

    Args:
        height, width: of the scene, in pixels.
        stride: pixels from one window to the next.
        block: (height, width) of the blocks of the scene's files.
    """
    rows, columns = starts(height, tile, stride), starts(width, tile, stride)
    down, across = _size_of_part(width, tile, stride, block)
    strips, parts = (
        _groups(len(found), n) for found, n in ((rows, down // stride), (columns, across // stride))
    )
    return WindowGrid(tile, stride, height, width, tuple(rows), tuple(columns), strips, parts)


def starts(length: int, tile: int, stride: int | None = None) -> list[int]:
    """Return the pixels at which windows begin along `length` pixels; the last one is moved inwards."""
    last = max(length - tile, 0)
    return [*range(0, last, stride or tile), last]


def _size_of_part(width: int, tile: int, stride: int, block: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) in pixels of what is read at once: whole blocks, about a million pixels."""
    high, wide = block if block[0] * block[1] <= _MAX_BLOCK_PIXELS else (1, 1)
    across = wide * max(1, round(_PART_WIDTH / wide)) if wide < width else width
    # The edges of parts are read twice where windows overlap: larger parts have fewer edges.
    pixels = _PIXELS_AT_ONCE if stride == tile else 2 * _PIXELS_AT_ONCE
    down = high * max(1, round(pixels / across / high))
    return max(down, tile), max(across, tile)


def _groups(count: int, size: int) -> tuple[range, ...]:
    """Cut 0…count into ranges of `size`; the last window, which may be moved inwards, is never alone."""
    edges = [*range(0, max(count - 1, 1), size), count]
    return tuple(range(first, last) for first, last in pairwise(edges))
