"""Where the windows of a scene lie, and how the scene is cut into strips and parts that are read at once.

Windows are squares of the model's tile size. They begin every `stride` pixels from the scene's upper left corner; the
last row and column are moved inwards, so that they end where the scene ends. A scene smaller than a tile is one window,
the rest of which is no data. A strip is some rows of windows; a part is some windows of a strip, chosen so that the
blocks of the scene's files are decoded as few times as can be.
"""

from dataclasses import dataclass
from itertools import pairwise

from tilewise.datasets.core.tile import Georeference

_SQUARE_METRES_OF_HECTARE = 10_000.0


@dataclass(frozen=True, slots=True)
class SceneInfo:
    """The grid that results lie on, and what is known of where they come from.

    Attributes:
        name: stem of the results' file names.
        place: where the grid lies.
        height, width: pixels of the maps.
        window_place: where the grid lies that windows are counted on; None: the same. It is another where the maps
            have one value for several pixels.
        sources: the files that the scene was read from, as they were named.
        datetime: when it was taken, ISO 8601; None where the files do not say.
        platform: the satellite, e.g. `sentinel-2a`; None where the files do not say.
        level: the processing level; None where nobody says.
    """

    name: str
    place: Georeference
    height: int
    width: int
    sources: tuple[str, ...] = ()
    datetime: str | None = None
    platform: str | None = None
    level: str | None = None
    window_place: Georeference | None = None

    @property
    def pixel_ha(self) -> float:
        """Hectares of one pixel in the grid's own projection; not a number where the grid is in degrees."""
        if not self.place.crs.is_projected:
            return float("nan")
        _, metres = self.place.crs.linear_units_factor
        return abs(self.place.transform.determinant) * metres**2 / _SQUARE_METRES_OF_HECTARE


_PIXELS_AT_ONCE = 2**20  # 26 MiB of 13 bands
_LARGEST_BLOCK = 4 * _PIXELS_AT_ONCE
_WIDTH = 1024


@dataclass(frozen=True, slots=True)
class WindowGrid:
    """The windows of a scene.

    Attributes:
        tile: pixels a side of a window.
        stride: pixels from one window to the next.
        height, width: of the scene.
        rows, columns: where windows begin.
        strips: the rows (positions in `rows`) of each strip.
        parts: the columns (positions in `columns`) of each part of a strip.
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
        """Return the pixel rows that a strip decides: from its first window to the first of the next strip."""
        first = self.rows[self.strips[strip].start]
        last = strip + 1 == len(self.strips)
        return first, self.height if last else self.rows[self.strips[strip + 1].start]

    def part_edges(self, part: int) -> tuple[int, int]:
        """Return the pixel columns that a part decides."""
        first = self.columns[self.parts[part].start]
        last = part + 1 == len(self.parts)
        return first, self.width if last else self.columns[self.parts[part + 1].start]

    def first_needed(self, strip: int) -> int:
        """Return the first strip whose windows reach into the rows that `strip` decides."""
        top = self.edges(strip)[0]
        return next(n for n, rows in enumerate(self.strips) if self.rows[rows[-1]] + self.tile > top or n == strip)


def make_window_grid(height: int, width: int, tile: int, stride: int, block: tuple[int, int] = (1, 1)) -> WindowGrid:
    """Return the windows of a scene of `height` × `width` pixels whose files have blocks of `block` (height, width)."""
    rows, columns = starts(height, tile, stride), starts(width, tile, stride)
    down, across = _size_of_part(width, tile, stride, block)
    strips, parts = (_groups(len(found), n) for found, n in ((rows, down // stride), (columns, across // stride)))
    return WindowGrid(tile, stride, height, width, tuple(rows), tuple(columns), strips, parts)


def starts(length: int, tile: int, stride: int | None = None) -> list[int]:
    """Return where windows of `tile` begin along `length` pixels; the last one is moved inwards."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, stride or tile), length - tile]


def _size_of_part(width: int, tile: int, stride: int, block: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) in pixels of what is read at once: whole blocks, about a million pixels."""
    high, wide = block if block[0] * block[1] <= _LARGEST_BLOCK else (1, 1)
    across = wide * max(1, round(_WIDTH / wide)) if wide < width else width
    # Windows that overlap read the edges of parts twice: larger parts have less of them.
    pixels = _PIXELS_AT_ONCE if stride == tile else 2 * _PIXELS_AT_ONCE
    down = high * max(1, round(pixels / across / high))
    return max(down, tile), max(across, tile)


def _groups(count: int, size: int) -> tuple[range, ...]:
    """Cut 0…count into ranges of `size`; the last window, which may be moved inwards, is never alone."""
    edges = [*range(0, max(count - 1, 1), max(size, 1)), count]
    return tuple(range(first, last) for first, last in pairwise(edges))
