"""Class maps with probabilities as `tilewise batch` leaves them, from arrays."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from geotiffs import CORNER, UTM
from tiny_onnx import metadata

from tilewise.bento.inference.window_grid import SceneInfo
from tilewise.bento.results.maps import MapWriter, class_spec, model_tags, probability_spec, to_steps
from tilewise.datasets.core.tile import Georeference

CLASSES = ("Forest", "Pasture", "=River")


def write_maps(
    folder: Path,
    name: str,
    classes: npt.NDArray[Any],
    probability: float | npt.NDArray[Any] | None = 0.8,
    *,
    transform: Any = CORNER,
    crs: Any = UTM,
    names: tuple[str, ...] = CLASSES,
) -> Path:
    """Write NAME.classes.tif and, unless `probability` is None, NAME.probability.tif; return the former."""
    folder.mkdir(parents=True, exist_ok=True)
    model = metadata(names)
    info = SceneInfo(name, Georeference(crs, transform), *classes.shape)
    tags = model_tags(model, "ab" * 32)
    writer = MapWriter(folder, info, class_spec(model), tags)
    writer.add(classes.astype(np.uint8)[None])
    path = writer.finish()[0]
    if probability is not None:
        values = np.where(classes < len(names), probability, np.nan)
        sure = MapWriter(folder, info, probability_spec(model), tags)
        sure.add(to_steps(values)[None])
        sure.finish()
    return path
