"""One uploaded scene: checked by its header, classified, and told as windows on Earth or as a map."""

import json
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.io import DatasetReader

from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.scene import (
    SceneAnswer,
    WindowAnswer,
    check_ground_size,
    classify_scene,
    require_georeference,
    starts,
)
from tilewise.bento.inference.uploads import describe_outlier, describe_set
from tilewise.bento.results.maps import write_class_map
from tilewise.datasets.core.errors import SceneTooLargeError
from tilewise.datasets.core.radiometry import Level, ReadOptions
from tilewise.datasets.core.tile import Georeference, canonical_order
from tilewise.datasets.readers.geotiff import ReadingPlan, open_geotiff, plan_reading

GEOJSON, MAP = "application/geo+json", "image/tiff"
_DIGITS = 6
_MAX_ELONGATED = 4  # sides: a strip of windows is held at once, so its length is bounded too
_MAX_BLOCK_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class SceneQuestion:
    """What is asked of a scene, and said of it.

    Attributes:
        name: what the scene is called.
        said: what the file itself does not say.
        min_valid_fraction: share (0-1) of valid pixels below which a window is skipped.
        coverage: of the windows' prediction sets (0-1).
    """

    name: str
    overrides: ReadOptions = ReadOptions()  # noqa: RUF009 - frozen
    min_valid_fraction: float = 0.5
    coverage: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        overrides = {
            "bands": self.overrides.bands,
            "level": self.overrides.level,
            "scale": self.overrides.scale,
            "offset": self.overrides.offset,
        }
        return {
            "name": self.name,
            "said": overrides,
            "min_valid_fraction": self.min_valid_fraction,
            "coverage": self.coverage,
        }

    @classmethod
    def from_json(cls, known: dict[str, Any]) -> "SceneQuestion":
        """Return what `to_json` was called on."""
        overrides = known["said"]
        bands, level = overrides["bands"], overrides["level"]
        read_options = ReadOptions(
            bands and tuple(bands), level and Level(level), overrides["scale"], overrides["offset"]
        )
        return cls(known["name"], read_options, known["min_valid_fraction"], known["coverage"])


@dataclass(frozen=True, slots=True)
class AnsweredScene:
    """A classified scene with what its telling needs."""

    question: SceneQuestion
    engine: Engine
    plan: ReadingPlan
    place: Georeference
    answer: SceneAnswer


def count_windows(path: Path, question: SceneQuestion, tile_size: int, max_pixels: int) -> int:
    """Return how many windows a scene has, having checked all that its header tells; no pixel is decoded.

    Raises:
        SceneTooLargeError: more than `max_pixels`, or too long a side.
        TilewiseError: it cannot be read, or not as a scene of 10 m.
    """
    with _opened(path, question) as (dataset, _, _):
        width, height = dataset.width, dataset.height
        longest = int(_MAX_ELONGATED * math.sqrt(max_pixels))
        if width * height > max_pixels or max(width, height) > longest:
            raise SceneTooLargeError(
                f"{question.name}: {width} × {height} pixels, {max_pixels:,} and {longest:,} on a side are the most; "
                "cut it with gdal_translate -srcwin, or classify it by tilewise batch"
            )
        _refuse_huge_blocks(dataset, question.name)
        return len(starts(width, tile_size)) * len(starts(height, tile_size))


def answer_scene(engine: Engine, path: Path, question: SceneQuestion, report: Callable[[float], None]) -> AnsweredScene:
    """Classify the scene at `path`; `report` is told the share that is done (0-1), and may raise to end the work.

    Raises:
        TilewiseError: as `count_windows`, or a block cannot be decoded.
    """
    with _opened(path, question) as (dataset, plan, place):
        answer = classify_scene(
            engine,
            dataset,
            plan,
            question.min_valid_fraction,
            lambda _, done, total: report(done / (total or done)),
        )
    return AnsweredScene(question, engine, plan, place, answer)


def tell(scene: AnsweredScene, form: str) -> bytes:
    """Return a classified scene in one of `FORMS`."""
    return FORMS[form](scene)


def to_geojson(scene: AnsweredScene) -> bytes:
    """Return the windows as a GeoJSON FeatureCollection (RFC 7946) with the foreign members `name`, `model`, …"""
    windows = scene.answer.windows
    content = {
        "type": "FeatureCollection",
        "name": scene.question.name,
        "model": scene.engine.identity,
        "bands": list(canonical_order(scene.plan.bands)),
        "level": scene.plan.radiometry.level,
        "features": [_feature(scene, index, window) for index, window in enumerate(windows)],
    }
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def to_class_map(scene: AnsweredScene) -> bytes:
    """Return the class map as a Cloud-Optimised GeoTIFF on the scene's own grid (`tilewise.bento.results.maps.write_class_map`)."""
    with tempfile.TemporaryDirectory(prefix="tilewise-") as folder:
        path = Path(folder) / "map.tif"
        write_class_map(scene.answer.class_map, scene.place, scene.engine.metadata, path)
        return path.read_bytes()


FORMS: dict[str, Callable[[AnsweredScene], bytes]] = {GEOJSON: to_geojson, MAP: to_class_map}


@contextmanager
def _opened(path: Path, question: SceneQuestion) -> Iterator[tuple[DatasetReader, ReadingPlan, Georeference]]:
    with open_geotiff(path, question.name) as dataset:
        place = require_georeference(dataset, question.name)
        check_ground_size(dataset, question.name)
        yield dataset, plan_reading(dataset, question.name, question.overrides), place


def _refuse_huge_blocks(dataset: DatasetReader, name: str) -> None:
    """Refuse blocks that would take as much memory as several requests may, each time that a part is read."""
    height, width = dataset.block_shapes[0]
    size = height * width * dataset.count * np.dtype(dataset.dtypes[0]).itemsize
    if size > _MAX_BLOCK_BYTES:
        raise SceneTooLargeError(
            f"{name}: its blocks of {width} × {height} pixels take {size / 2**20:.0f} MiB in all bands, "
            f"{_MAX_BLOCK_BYTES / 2**20:.0f} MiB are the most; "
            "rewrite it: gdal_translate -co TILED=YES -co BLOCKXSIZE=512 -co BLOCKYSIZE=512"
        )


def _feature(scene: AnsweredScene, index: int, window: WindowAnswer) -> dict[str, Any]:
    classes, found = scene.engine.metadata.classes, window.probabilities
    properties: dict[str, Any] = {
        "class": None,
        "probability": None,
        "probabilities": None,
        "prediction_set": None,
        "outlier": None,
        "valid_fraction": round(window.valid_fraction, _DIGITS),
        "row": window.row,
        "column": window.column,
        "height": window.height,
        "width": window.width,
    }
    if found is not None:
        properties |= {
            "class": classes[window.class_index],
            "probability": round(float(found.max()), _DIGITS),
            "probabilities": {name: round(float(p), _DIGITS) for name, p in zip(classes, found, strict=True)},
            "prediction_set": describe_set(scene.engine, found.tolist(), scene.question.coverage),
            "outlier": describe_outlier(scene.engine, window.outlier_score or 0.0),
        }
    return {"type": "Feature", "id": index, "geometry": window.footprint(scene.place), "properties": properties}
