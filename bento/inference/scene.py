"""A scene larger (or smaller) than a tile, classified window by window.

Windows are squares of the model's tile size on a grid that starts at the scene's upper left corner. The last
row and column are moved inwards, so that they end where the scene ends; a scene smaller than a tile is one
window, the rest of which is no data. A window with too few valid pixels is skipped.
"""

import threading
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rasterio.io import DatasetReader
from rasterio.windows import Window

from tilewise.bento.inference.blending import NO_CLASS
from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.window_grid import starts
from tilewise.bento.inference.windows import GridOptions, WindowAnswer, classify
from tilewise.datasets.core.console import Report, silent
from tilewise.datasets.core.tile import DN, Georeference
from tilewise.datasets.readers.geotiff import ReadingPlan, isolated_gdal, read_dn
from tilewise.datasets.scenes import ground
from tilewise.datasets.scenes.ground import NEAR_10_M, require_georeference

__all__ = [
    "NEAR_10_M",
    "NO_CLASS",
    "SceneAnswer",
    "WindowAnswer",
    "check_ground_size",
    "classify_scene",
    "require_georeference",
    "starts",
]


@dataclass(frozen=True, slots=True)
class SceneAnswer:
    """A classified scene.

    Attributes:
        class_map: uint8 (height, width), class positions on the scene's own grid, NO_CLASS elsewhere.
        windows: every window, in reading order.
    """

    class_map: npt.NDArray[np.uint8]
    windows: list[WindowAnswer]


def check_ground_size(dataset: DatasetReader, name: str) -> None:
    """Refuse a scene whose pixels are not about 10 m: a network knows a class by its texture at one scale.

    Raises:
        TileShapeError: the scene's CRS is no map projection, or its pixels have another size.
    """
    place = Georeference(dataset.crs, dataset.transform)
    ground.check_ground_size(ground.Grid(place, dataset.height, dataset.width), name)


def classify_scene(
    engine: Engine,
    dataset: DatasetReader,
    plan: ReadingPlan,
    min_valid_fraction: float = 0.5,
    progress: Report = silent,
) -> SceneAnswer:
    """Classify an open scene, and hold all of its answer in memory.

    Raises:
        UnreadableImageError: a block of the scene cannot be decoded.
    """
    scene = _OpenDataset(dataset, plan)
    answer = classify(engine, scene, GridOptions(min_valid_fraction=min_valid_fraction), progress, workers=1)
    class_map = np.full((dataset.height, dataset.width), NO_CLASS, np.uint8)
    windows: list[WindowAnswer] = []
    with closing(answer.iter_blocks()) as blocks:
        for block in blocks:
            class_map[block.row : block.row + len(block.class_map)] = block.class_map
            windows += block.windows
    return SceneAnswer(class_map, windows)


class _OpenDataset:
    """A raster that somebody else opened and closes, as a scene; one thread at a time reads it."""

    broken = 0

    def __init__(self, dataset: DatasetReader, plan: ReadingPlan) -> None:
        self.name, self.bands = plan.name, plan.bands
        self.georeference = Georeference(dataset.crs, dataset.transform)
        self.height, self.width = dataset.height, dataset.width
        height, width = dataset.block_shapes[0]
        self.block = int(height), int(width)
        self._dataset, self._plan = dataset, plan
        self._lock = threading.Lock()

    def read(self, window: Window) -> DN:
        """Return uint16 (13, height, width), 0 = no data."""
        with self._lock, isolated_gdal():
            return read_dn(self._dataset, self._plan, window)
