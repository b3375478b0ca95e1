"""An open scene: DN on one grid, window by window, whatever files it is made of."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from tilewise.datasets.core.bands import BAND_NAMES, positions
from tilewise.datasets.core.errors import OutsideAreaError, SceneError, UnreadableImageError
from tilewise.datasets.core.radiometry import Level
from tilewise.datasets.core.tile import BAND_COUNT, DN, canonical_order
from tilewise.datasets.readers.geotiff import read_bands
from tilewise.datasets.scenes.area import Area, inside, window_around
from tilewise.datasets.scenes.clouds import VISIBLE, CloudWeights, find_clouds, table_for
from tilewise.datasets.scenes.ground import Grid, OnGrid, grid_for_windows
from tilewise.datasets.scenes.layers import CloudLayer, Layer, Parts
from tilewise.datasets.scenes.options import CloudKind, CloudMask
from tilewise.datasets.scenes.rasters import (
    address_of,
    file_of,
    is_remote,
    is_zarr,
    name_of,
    open_raster,
    scene_gdal,
)
from tilewise.datasets.scenes.resample import kernel_for, read_onto

ReadWindow = Callable[[Window], DN]
"""Returns uint16 (13, height, width) of a window of a scene, 0 = no data."""


@dataclass(frozen=True, slots=True, order=True)
class BrokenBlock:
    """A block of a raster that could not be decoded; its pixels are no data."""

    raster: str
    row: int
    column: int


class Scene(OnGrid, AbstractContextManager["Scene"]):
    """A scene whose windows several threads can read at a time: each has its own file handles.

    Attributes:
        name: the scene's name in messages.
        grid: the grid of its windows, after warping and cutting to the area, if any.
        bands: canonical names of its bands.
        level: processing level, where known.
        taken: acquisition time, UTC, where known.
        platform: satellite, where known.
        clouds: the kind of its cloud mask; None: clouds are not looked for.
        block: (height, width) of the blocks of its finest raster.
    """

    def __init__(
        self,
        name: str,
        parts: Parts,
        *,
        warp: bool = False,
        clouds: CloudMask | None = None,
        area: Area | None = None,
    ) -> None:
        """Combine the parts of a scene on one grid.

        Args:
            name: of the scene in messages.
            parts: what a reader found.
            warp: bring a scene that is in degrees, or not near 10 m, to 10 m in its UTM zone.
            clouds: the requested mask; where `parts` have none, AUTO and PIXELS find clouds in the pixels.
            area: the grid is cut to the area's extent, and `inside` is its pixels; None: the whole scene.

        Raises:
            OutsideAreaError: no pixel is inside the area.
            SceneError: its rasters have different coordinate reference systems, or clouds shall be found in
                pixels and it lacks a visible band.
            TileShapeError: its pixels are not about 10 m, and `warp` is off.
        """
        self.name = name
        self._whole = grid_for_windows([layer.grid for layer in parts.layers], name, warp)
        self._limit, self._layers = area, parts.layers
        self._cut_to_area()
        self.bands = canonical_order(tuple(band for layer in parts.layers for band in layer.plan.bands))
        self.level: Level | None = parts.level
        self.taken: datetime | None = parts.taken
        self.platform = parts.platform
        self._clouds = parts.clouds
        self._table = None if parts.clouds else self._cloud_table(clouds)
        self.clouds = parts.clouds.mask.kind if parts.clouds else CloudKind.PIXELS if self._table else None
        sources = [layer.source for layer in parts.layers] + ([parts.clouds.source] if parts.clouds else [])
        self._remote = any(is_remote(source) for source in sources)
        self._broken: set[BrokenBlock] = set()
        self._opened: list[DatasetReader] = []
        self._lock = threading.Condition()  # notified when a read ends
        self._readers: set[int] = set()  # threads that are reading
        self._closed = False
        self._mine = threading.local()

    @property
    def whole(self) -> Grid:
        """The grid before it was cut to the area."""
        return self._whole

    @property
    def times(self) -> tuple[datetime, ...]:
        """The acquisition time, UTC, where known."""
        return (self.taken,) if self.taken else ()

    @property
    def broken(self) -> int:
        """Number of blocks that could not be decoded so far."""
        return len(self.broken_blocks)

    @property
    def broken_blocks(self) -> tuple[BrokenBlock, ...]:
        """The blocks that could not be decoded so far, in order."""
        with self._lock:
            return tuple(sorted(self._broken))

    def read(self, window: Window) -> DN:
        """Return uint16 (13, height, width): a window within the scene; 0 = no data, and clouds by option.

        A block of a file on disk that cannot be decoded is no data, and is counted by `broken`.

        Raises:
            UnreadableImageError: a file disappeared, a server does not answer, or the scene is closed.
        """
        window = self._in_whole(window)
        with self._reading(), scene_gdal(remote=self._remote):
            pixels = self._read_bands(window)
            if self._clouds is not None:
                pixels = self._without_clouds(pixels, window, self._clouds)
            elif self._table is not None:
                found = find_clouds(pixels, self.bands, self.level, self._table)
                if found.any():
                    np.copyto(pixels, np.uint16(0), where=found)
            return pixels

    def readers(self) -> Sequence[ReadWindow]:
        """Return what reads each observation, of which a scene is one."""
        return [self.read]

    def onto(self, grid: Grid) -> "Scene":
        """Read the scene on another grid from now on; return the scene.

        Raises:
            OutsideAreaError: no pixel of the grid is inside the area.
        """
        if not grid.is_same(self._whole):
            self._whole = grid
            self._cut_to_area()
        return self

    def inside(self, window: Window) -> npt.NDArray[np.bool_] | None:
        """Return bool (height, width): the pixels of a window inside the area; None: all are."""
        return None if self._area is None else inside(self._area, self._whole, self._in_whole(window))

    def close(self) -> None:
        """Refuse further reads, wait for those of other threads, and close all files.

        A file that is closed while another thread reads it crashes the whole process. An interrupt during the
        wait leaves the files open.
        """
        with self._lock:
            self._closed = True
            self._lock.wait_for(lambda: not self._readers - {threading.get_ident()})
            for dataset in self._opened:
                dataset.close()
            self._opened.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _cut_to_area(self) -> None:
        """Cut the grid to the area, if any."""
        finest = min(self._layers, key=lambda layer: layer.grid.pixel_m)
        # On another grid the blocks of the files do not matter for how the scene is best cut.
        self.block = finest.block if finest.grid.is_same(self._whole) else (1, 1)
        self._area = self._limit.on_grid(self._whole) if self._limit else None
        self._cut = Window(0, 0, self._whole.width, self._whole.height)
        if self._area is not None and self._limit is not None:
            self._cut = window_around(self._area, self._whole) or self._cut
            if not inside(self._area, self._whole, self._cut).any():
                raise OutsideAreaError(f"{self.name}: no pixel of it is inside {self._limit.name}")
        self.grid = self._whole.part(self._cut)

    def _in_whole(self, window: Window) -> Window:
        row, column = window.row_off + self._cut.row_off, window.col_off + self._cut.col_off
        return Window(column, row, window.width, window.height)

    def _cloud_table(self, clouds: CloudMask | None) -> CloudWeights | None:
        if clouds is None or clouds.kind not in (CloudKind.AUTO, CloudKind.PIXELS):
            return None
        table = table_for(self.bands)
        if table is None and clouds.kind is CloudKind.PIXELS:
            raise SceneError(
                f"{self.name}: clouds are found in {', '.join(VISIBLE)}, which it does not have; "
                "leave --clouds out"
            )
        return table

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Keep the files open for as long as the block lasts."""
        reader = threading.get_ident()
        try:
            with self._lock:
                if self._closed:
                    raise UnreadableImageError(f"{self.name}: the scene is closed")
                self._readers.add(reader)
            yield
        finally:
            with self._lock:
                self._readers.discard(reader)
                self._lock.notify_all()

    def _read_bands(self, window: Window) -> DN:
        if len(self._layers) == 1 and self._layers[0].plan.bands == BAND_NAMES:
            return self._read_layer(
                self._layers[0], window
            )  # without a copy, which matters for a large scene
        pixels = np.zeros((BAND_COUNT, int(window.height), int(window.width)), np.uint16)
        for layer in self._layers:
            pixels[positions(layer.plan.bands)] = self._read_layer(layer, window)
        return pixels

    def _read_layer(self, layer: Layer, window: Window) -> DN:
        def read(part: Window) -> DN:
            return self._read_valid(layer.source, part, len(layer.plan.bands), _of_layer(layer))

        if layer.grid.is_same(self._whole):
            return read(window)
        kernel = kernel_for(layer.grid, self._whole)
        return read_onto(self._whole, window, layer.grid, read, len(layer.plan.bands), kernel)

    def _without_clouds(self, pixels: DN, window: Window, clouds: CloudLayer) -> DN:
        """Return `pixels` with 0 in clouds; pixels outside the mask count as cloud."""

        def read(part: Window) -> DN:
            # 1: clear, 2: cloud, 0: unknown.
            return self._read_valid(clouds.source, part, 1, lambda d, w: _clear_or_cloud(clouds, d, w))

        if clouds.grid.is_same(self._whole):
            mask = read(window)
        else:
            mask = read_onto(self._whole, window, clouds.grid, read, 1, Resampling.nearest)
        return np.where(mask == 1, pixels, np.uint16(0))

    def _read_valid(
        self,
        source: str | Path,
        window: Window,
        count: int,
        read: Callable[[DatasetReader, Window], DN],
    ) -> DN:
        """Read a window; where that fails on disk, read its valid blocks one by one."""
        try:
            return self._read_once(source, window, read)
        except UnreadableImageError:
            if _may_return(source):
                raise
        pixels = np.zeros((count, int(window.height), int(window.width)), np.uint16)
        height, width = self._handle(source).block_shapes[0]
        for row in range(int(window.row_off) // height, -(-int(window.row_off + window.height) // height)):
            for column in range(
                int(window.col_off) // width, -(-int(window.col_off + window.width) // width)
            ):
                part = window.intersection(Window(column * width, row * height, width, height))
                try:
                    values = self._read_once(source, part, read)
                except UnreadableImageError:
                    if _may_return(source):
                        raise
                    with self._lock:
                        self._broken.add(BrokenBlock(name_of(source), row, column))
                    continue
                top, left = int(part.row_off - window.row_off), int(part.col_off - window.col_off)
                pixels[:, top : top + int(part.height), left : left + int(part.width)] = values
        return pixels

    def _read_once(
        self, source: str | Path, window: Window, read: Callable[[DatasetReader, Window], DN]
    ) -> DN:
        """Read a window; where that fails in Zarr, close the handle.

        The next read by it would give whatever lies in GDAL's memory as the pixels of the chunk that failed
        (GDAL 3.10). A GeoTIFF is not opened anew: it may have thousands of blocks that fail.
        """
        try:
            return read(self._handle(source), window)
        except UnreadableImageError:
            if is_zarr(source) and source in self._handles:
                dataset = self._handles.pop(source)
                with self._lock:
                    self._opened.remove(dataset)
                dataset.close()
            raise

    @property
    def _handles(self) -> dict[str | Path, DatasetReader]:
        """This thread's own handles."""
        handles: dict[str | Path, DatasetReader] = self._mine.__dict__.setdefault("handles", {})
        return handles

    def _handle(self, source: str | Path) -> DatasetReader:
        """Return this thread's own handle of a raster: GDAL's are not to be shared."""
        handles = self._handles
        # A signed address expires; with a new signature it is another one, and opened anew.
        address = address_of(source) if is_remote(source) else source
        if address not in handles:
            handles[address] = open_raster(source)
            with self._lock:
                self._opened.append(handles[address])
        return handles[address]


def _may_return(source: str | Path) -> bool:
    """Return whether another try may read what failed, so that no pixel may be invented: not on disk."""
    return is_remote(source) or not file_of(source).is_file()


def _of_layer(layer: Layer) -> Callable[[DatasetReader, Window], DN]:
    return lambda dataset, window: read_bands(dataset, layer.plan, window)


def _clear_or_cloud(clouds: CloudLayer, dataset: DatasetReader, window: Window) -> DN:
    try:
        numbers: npt.NDArray[np.generic] = dataset.read(indexes=list(clouds.indexes), window=window)
    except RasterioError as error:
        raise UnreadableImageError(f"{name_of(clouds.source)}: its pixels cannot be decoded") from error
    return (clouds.is_cloud(numbers) + np.uint16(1))[None].astype(np.uint16)
