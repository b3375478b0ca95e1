"""One scene out of several of a place: the most recent clear pixel, or scenes whose answers are averaged.

The scenes are read on one grid: that of the finest raster in their most frequent coordinate reference system,
as large as all of them together. Scenes on that grid are read as they are; others are resampled onto it as
bands of another resolution are.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from tilewise.datasets.core.errors import OutsideAreaError, SceneError, TilewiseError
from tilewise.datasets.core.radiometry import Level
from tilewise.datasets.core.tile import DN, Georeference, valid_mask
from tilewise.datasets.scenes.ground import MAX_SIDE, Grid, OnGrid
from tilewise.datasets.scenes.layers import in_utc
from tilewise.datasets.scenes.options import CloudKind, SceneOptions
from tilewise.datasets.scenes.scene import BrokenBlock, ReadWindow, Scene
from tilewise.datasets.scenes.search import SceneSource

_TOLERANCE = 1e-3  # of a pixel
_Value = TypeVar("_Value")
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


class MosaicKind(StrEnum):
    """How several scenes become one map."""

    CLEAR = "clear"  # each pixel from the most recent scene in which it has data and is no cloud
    MEAN = "mean"  # each window's probabilities are the mean over the scenes in which it is not skipped


class Mosaic(OnGrid):
    """Open scenes on one grid that are classified as one; several threads may read it.

    Attributes:
        name: in messages.
        grid: of all scenes.
        bands: that all scenes have.
        block: (height, width) of the blocks of their finest rasters, where these lie on the grid.

    Raises:
        SceneError: the scenes have different bands.
    """

    def __init__(self, name: str, kind: MosaicKind, scenes: Sequence[Scene]) -> None:
        self.name, self._kind = name, kind
        self._scenes = sorted(scenes, key=_most_recent_first)
        first = self._scenes[0]
        for scene in self._scenes[1:]:
            if scene.bands != first.bands:
                raise SceneError(
                    f"{scene.name}: its bands are not those of {first.name}; a mosaic needs "
                    "scenes of the same bands"
                )
        self.grid, self.bands, self.block = first.grid, first.bands, first.block

    @property
    def level(self) -> Level | None:
        """Processing level; None: unknown, or not the same in all scenes."""
        return _common([scene.level for scene in self._scenes])

    @property
    def platform(self) -> str | None:
        """Satellite; None: unknown, or not the same in all scenes."""
        return _common([scene.platform for scene in self._scenes])

    @property
    def clouds(self) -> CloudKind | None:
        """The kind of the scenes' cloud masks; AUTO where they differ."""
        kinds = {scene.clouds for scene in self._scenes}
        return kinds.pop() if len(kinds) == 1 else CloudKind.AUTO

    @property
    def times(self) -> tuple[datetime, ...]:
        """The known acquisition times, UTC."""
        return tuple(time for scene in self._scenes for time in scene.times)

    @property
    def broken(self) -> int:
        """Number of blocks that could not be decoded so far."""
        return len(self.broken_blocks)

    @property
    def broken_blocks(self) -> tuple[BrokenBlock, ...]:
        """The blocks that could not be decoded so far, in order."""
        return tuple(sorted(block for scene in self._scenes for block in scene.broken_blocks))

    def readers(self) -> Sequence[ReadWindow]:
        """Return what reads each observation, whose answers are averaged."""
        return [scene.read for scene in self._scenes] if self._kind is MosaicKind.MEAN else [self._read_clear]

    def inside(self, window: Window) -> npt.NDArray[np.bool_] | None:
        """Return bool (height, width): the pixels of a window inside the area; None: all are."""
        return self._scenes[0].inside(window)

    def _read_clear(self, window: Window) -> DN:
        """Return uint16 (13, height, width): each pixel from the most recent scene in which it is valid."""
        found = self._scenes[0].read(window)
        missing = ~valid_mask(found, self.bands)
        for scene in self._scenes[1:]:
            if not missing.any():
                break
            older = scene.read(window)
            taken = missing & valid_mask(older, self.bands)
            found = np.where(taken, older, found)
            missing &= ~taken
        return found


@dataclass(frozen=True, slots=True)
class MosaicSource:
    """Scenes that were found and are classified as one; it can be sent to other processes.

    Attributes:
        name: name of the results.
        kind: how they become one.
        members: the scenes, which have the same options.
    """

    name: str
    kind: MosaicKind
    members: tuple[SceneSource, ...]

    @property
    def paths(self) -> tuple[Path | str, ...]:
        """The files of all scenes."""
        return tuple(dict.fromkeys(path for member in self.members for path in member.paths))

    @property
    def options(self) -> SceneOptions:
        """How the scenes are read."""
        return self.members[0].options

    @contextmanager
    def open(self) -> Iterator[Mosaic]:
        """Open all scenes on one grid for the length of the block.

        Raises:
            TilewiseError: one of them cannot be read, they have different bands, or they are too far apart.
        """
        with ExitStack() as opened:
            scenes = [opened.enter_context(member.open()) for member in self.members]
            grid = common_grid([scene.whole for scene in scenes], self.name)
            yield Mosaic(self.name, self.kind, [scene.onto(grid) for scene in scenes])

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of the scenes' fingerprints and of the kind.

        Raises:
            TilewiseError: as `SceneSource.fingerprint` raises.
        """
        parts = [self.kind.value, *sorted(member.fingerprint() for member in self.members)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def make_mosaic(sources: Sequence[SceneSource], kind: MosaicKind, name: str = "mosaic") -> MosaicSource:
    """Return the mosaic of scenes, without those that are outside the area of their options.

    Raises:
        OutsideAreaError: all of them are.
    """
    members = [source for source in sources if not _is_outside(source)]
    if not members:
        raise OutsideAreaError(f"no scene has a pixel inside the area; {len(sources)} were looked at")
    return MosaicSource(name, kind, tuple(members))


def common_grid(grids: Sequence[Grid], name: str) -> Grid:
    """Return the grid of the finest raster in the most frequent CRS, as large as all grids together.

    Raises:
        SceneError: it would be larger than any scene.
    """
    (crs, _), *_ = Counter(grid.georeference.crs for grid in grids).most_common()
    finest = min((g for g in grids if g.georeference.crs == crs), key=lambda grid: grid.pixel_m)
    columns, rows = [], []
    for grid in grids:
        bounds = grid.georeference.bounds(grid.width, grid.height)
        if grid.georeference.crs != crs:
            bounds = transform_bounds(grid.georeference.crs, crs, *bounds, densify_pts=21)
        left, bottom, right, top = bounds
        for corner in ((left, bottom), (left, top), (right, bottom), (right, top)):
            column, row = ~finest.georeference.transform @ corner
            columns.append(column)
            rows.append(row)
    left, top = (math.floor(min(edges) + _TOLERANCE) for edges in (columns, rows))
    right, bottom = (math.ceil(max(edges) - _TOLERANCE) for edges in (columns, rows))
    if max(right - left, bottom - top) > MAX_SIDE:
        raise SceneError(
            f"{name}: it would have {right - left:,} × {bottom - top:,} pixels; name scenes of one place"
        )
    moved = finest.georeference.transform @ Affine.translation(left, top)
    return Grid(Georeference(crs, moved), bottom - top, right - left)


def _is_outside(source: SceneSource) -> bool:
    if source.options.area is None:
        return False
    try:
        with source.open():
            return False
    except OutsideAreaError:
        return True
    except TilewiseError:
        return False  # the run says why


def _most_recent_first(scene: Scene) -> tuple[float, str]:
    taken = in_utc(scene.taken) if scene.taken else _LONG_AGO
    return -(taken - _LONG_AGO).total_seconds(), scene.name


def _common(values: Sequence[_Value | None]) -> _Value | None:
    return values[0] if all(value == values[0] for value in values) else None
