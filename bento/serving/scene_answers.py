"""Classify one uploaded scene: check its header, classify its windows, serialise windows or class map.

Uploads go through the same scene reader, windows and writers as batch inference; what differs is that only
GeoTIFFs are opened, that sizes are limited by the header, and that a block which cannot be decoded is an
error.
"""

import json
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio.io import DatasetReader

from tilewise.bento.inference.blending import NO_CLASS, OUT_OF_DISTRIBUTION
from tilewise.bento.inference.engine import TileClassifier
from tilewise.bento.inference.window_grid import SceneInfo, make_window_grid
from tilewise.bento.inference.windows import GridOptions, WindowAnswer, classify
from tilewise.bento.results.maps import UNLIKE, MapWriter, class_spec, model_tags
from tilewise.bento.results.quicklook import overlay
from tilewise.bento.results.tables import window_features
from tilewise.datasets.core.errors import SceneTooLargeError, UnreadableImageError
from tilewise.datasets.core.radiometry import Level, ReadOptions
from tilewise.datasets.core.tile import TILE_SIZE, Georeference
from tilewise.datasets.readers.geotiff import open_geotiff, plan_reading
from tilewise.datasets.scenes import Scene, parse_clouds
from tilewise.datasets.scenes.band_files import date_in, mask_within
from tilewise.datasets.scenes.ground import Grid, check_ground_size, grid_for_windows, grid_of
from tilewise.datasets.scenes.layers import Layer, Parts, block_of, choose_mask, in_canonical_order

GEOJSON, MAP, PICTURE = "application/geo+json", "image/tiff", "image/png"
NO_CLASS_NAME = "no_class"
_MAX_ELONGATION = 4  # sides: a strip of windows is held at once, so its length is bounded too
_PIXELS_A_WINDOW = 256  # of the largest scene, at least: all windows are held at once
_MAX_BLOCK_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class SceneRequest:
    """How a client wants its scene to be classified.

    Attributes:
        name: the scene's name in answers and errors.
        read_options: bands and radiometry, where the file itself does not declare them.
        min_valid_fraction: windows with a smaller fraction (0-1) of valid pixels are skipped.
        coverage: of the windows' prediction sets (0-1).
        stride: pixels from one window to the next.
        clouds: the cloud mask, as `parse_clouds` takes it.
        warp: bring a scene that is in degrees, or not near 10 m, to 10 m in its UTM zone.
    """

    name: str
    read_options: ReadOptions = ReadOptions()  # noqa: RUF009 - frozen
    min_valid_fraction: float = 0.5
    coverage: float = 0.0
    stride: int = TILE_SIZE
    clouds: str = "auto"
    warp: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the request JSON-ready."""
        options = self.read_options
        return {
            "name": self.name,
            "read_options": {
                "bands": options.bands,
                "level": options.level,
                "scale": options.scale,
                "offset": options.offset,
            },
            "min_valid_fraction": self.min_valid_fraction,
            "coverage": self.coverage,
            "stride": self.stride,
            "clouds": self.clouds,
            "warp": self.warp,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "SceneRequest":
        """Return the request from what `to_json` returned."""
        options = content["read_options"]
        bands, level = options["bands"], options["level"]
        read_options = ReadOptions(
            bands and tuple(bands), level and Level(level), options["scale"], options["offset"]
        )
        return cls(**{**content, "read_options": read_options})


@dataclass(frozen=True, slots=True)
class ClassifiedScene:
    """A classified scene, all of it in memory.

    Attributes:
        request: what the client asked for.
        engine: the model that classified it.
        bands: canonical names of the scene's bands.
        level: its processing level.
        georeference: of its pixels.
        class_map: uint8 (height, width), class index, OUT_OF_DISTRIBUTION or NO_CLASS where there is none.
        windows: in reading order.
    """

    request: SceneRequest
    engine: TileClassifier
    bands: tuple[str, ...]
    level: Level | None
    georeference: Georeference
    class_map: npt.NDArray[np.uint8]
    windows: list[WindowAnswer]


def count_windows(path: Path, request: SceneRequest, tile_size: int, max_pixels: int) -> int:
    """Check a scene by its header, before any pixel is decoded; return how many windows it has.

    Raises:
        SceneTooLargeError: it has more than `max_pixels`, too long a side, huge blocks, or very many windows.
        TilewiseError: it cannot be read, or its pixels are not about 10 m.
    """
    with open_geotiff(path, request.name) as dataset:
        layer = _layer_of(dataset, path, request)
        grid = grid_for_windows([layer.grid], request.name, request.warp)
        for each in (layer.grid, grid):
            _refuse_too_many_pixels(each, request.name, max_pixels)
        _refuse_huge_blocks(dataset, request.name)
        windows = make_window_grid(grid.height, grid.width, tile_size, request.stride)
        count = len(windows.rows) * len(windows.columns)
        _refuse_too_many_windows(count, request, max_pixels)
        return count


def answer_scene(
    engine: TileClassifier, path: Path, request: SceneRequest, report: Callable[[float], None]
) -> ClassifiedScene:
    """Classify the scene at `path`.

    Args:
        report: called with the fraction (0-1) that is done; it may raise to end the work.

    Raises:
        TilewiseError: as `count_windows`, or a block cannot be decoded.
    """

    def progress(_: str, done: int, total: int | None) -> None:
        report(done / (total or done))

    with _opened(path, request) as scene:
        grid = GridOptions(stride=request.stride, min_valid_fraction=request.min_valid_fraction)
        work = classify(engine, scene, grid, progress, workers=1)
        class_map = np.full((work.height, work.width), NO_CLASS, np.uint8)
        windows: list[WindowAnswer] = []
        with closing(work.iter_blocks()) as blocks:
            for block in blocks:
                if scene.broken:
                    raise UnreadableImageError(
                        f"{request.name}: truncated or corrupt, its pixels cannot be decoded"
                    )
                class_map[block.row : block.row + len(block.class_map)] = block.class_map
                windows += block.windows
        return ClassifiedScene(
            request, engine, scene.bands, scene.level, work.georeference, class_map, windows
        )


def serialise(scene: ClassifiedScene, form: str) -> bytes:
    """Return a classified scene as one of the media types in `FORMS`."""
    return FORMS[form](scene)


def to_geojson(scene: ClassifiedScene) -> bytes:
    """Return the windows as a GeoJSON FeatureCollection (RFC 7946) with members `name`, `pixels`, …"""
    metadata = scene.engine.metadata
    content = {
        "type": "FeatureCollection",
        "name": scene.request.name,
        "model": scene.engine.identity,
        "bands": list(scene.bands),
        "level": scene.level,
        "pixels": count_pixels(scene),
        "features": window_features(scene.windows, scene.georeference, metadata, scene.request.coverage),
    }
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def count_pixels(scene: ClassifiedScene) -> dict[str, int]:
    """Return how many pixels of the class map each class has, and UNLIKE and NO_CLASS_NAME; all of them."""
    names = {**dict(enumerate(scene.engine.metadata.classes)), OUT_OF_DISTRIBUTION: UNLIKE}
    counts = np.bincount(scene.class_map.ravel(), minlength=NO_CLASS + 1).tolist()
    return {name: counts[index] for index, name in {**names, NO_CLASS: NO_CLASS_NAME}.items()}


def to_picture(scene: ClassifiedScene) -> bytes:
    """Return the class map as a PNG to lay over a picture of the scene."""
    return overlay(scene.class_map, scene.engine.metadata)


def to_class_map(scene: ClassifiedScene) -> bytes:
    """Return the class map as a COG on the scene's own grid, as batch inference writes it."""
    height, width = scene.class_map.shape
    engine, info = scene.engine, SceneInfo("scene", scene.georeference, height, width)
    tags = model_tags(engine.metadata, engine.sha256)
    with (
        tempfile.TemporaryDirectory(prefix="tilewise-") as folder,
        closing(MapWriter(Path(folder), info, class_spec(engine.metadata), tags)) as writer,
    ):
        writer.add(scene.class_map[None])
        path, *_ = writer.finish()
        return path.read_bytes()


FORMS: dict[str, Callable[[ClassifiedScene], bytes]] = {
    GEOJSON: to_geojson,
    MAP: to_class_map,
    PICTURE: to_picture,
}


@contextmanager
def _opened(path: Path, request: SceneRequest) -> Iterator[Scene]:
    """Open an upload as a scene, once `open_geotiff` has found it to be a GeoTIFF without traps.

    Its clouds are no data, by a mask among its bands or else as they are found in its pixels, unless the
    request says otherwise.
    """
    mask = parse_clouds(request.clouds)
    with open_geotiff(path, request.name) as dataset:
        layer = _layer_of(dataset, path, request)
        taken = date_in(Path(request.name).stem)
        clouds = choose_mask(request.name, mask, taken, partial(mask_within, path, dataset))
    parts = Parts((layer,), clouds, layer.plan.radiometry.level, taken)
    with Scene(request.name, parts, warp=request.warp, clouds=mask) as scene:
        yield scene


def _layer_of(dataset: DatasetReader, path: Path, request: SceneRequest) -> Layer:
    """Return the bands of an open upload, as a scene's only layer.

    Raises:
        TilewiseError: it has no georeference, no pixels of about 10 m although it is not to be warped, or
            unknown bands or radiometry.
    """
    grid = grid_of(dataset, request.name)
    if not request.warp:
        check_ground_size(grid, request.name, "send warp=true, or ")
    plan = in_canonical_order(plan_reading(dataset, request.name, request.read_options))
    return Layer(path, plan, grid, block_of(dataset))


def _refuse_too_many_pixels(grid: Grid, name: str, max_pixels: int) -> None:
    max_side = int(_MAX_ELONGATION * math.sqrt(max_pixels))
    if grid.width * grid.height > max_pixels or max(grid.width, grid.height) > max_side:
        raise SceneTooLargeError(
            f"{name}: {grid.width} × {grid.height} pixels, {max_pixels:,} and {max_side:,} on a side are the "
            "most; cut it with gdal_translate -srcwin, or classify it by tilewise batch"
        )


def _refuse_too_many_windows(count: int, request: SceneRequest, max_pixels: int) -> None:
    most = max(1, max_pixels // _PIXELS_A_WINDOW)
    if count > most:
        raise SceneTooLargeError(
            f"{request.name}: {count:,} windows at a stride of {request.stride} pixels, at most {most:,}; "
            "choose a larger stride, or cut the scene"
        )


def _refuse_huge_blocks(dataset: DatasetReader, name: str) -> None:
    """Refuse blocks that take as much memory as several requests may, each time that a part is read."""
    height, width = block_of(dataset)
    size = height * width * dataset.count * np.dtype(dataset.dtypes[0]).itemsize
    if size > _MAX_BLOCK_BYTES:
        raise SceneTooLargeError(
            f"{name}: its blocks of {width} × {height} pixels take {size / 2**20:.0f} MiB in all bands, "
            f"{_MAX_BLOCK_BYTES / 2**20:.0f} MiB are the most; "
            "rewrite it: gdal_translate -co TILED=YES -co BLOCKXSIZE=512 -co BLOCKYSIZE=512"
        )
