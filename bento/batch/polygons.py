"""Neighbouring pixels of one class merged into polygons."""

from collections.abc import Iterator
from contextlib import closing
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import rasterio
from rasterio.features import shapes
from rasterio.warp import transform_geom

from bento.batch.frame import Frame
from bento.batch.tables import TableWriter
from bento.batch.wkb import to_wkb
from bento.blending import NO_CLASS
from models.modelfile import ModelMetadata

_DIGITS = 7  # of a degree: a centimetre
_AT_ONCE = 1024
_SCHEMA = pa.schema([("class", pa.string()), ("class_index", pa.int32()), ("area_ha", pa.float64())])

Ring = list[tuple[float, float]]


def write_polygons(class_map: Path, frame: Frame, metadata: ModelMetadata, path: Path) -> Path:
    """Write the polygons of a class map: class, position of the class, hectares in the grid's projection, outline.

    Pixels that touch only at a corner are not neighbours.

    Raises:
        OSError: the disk does not take them.
    """
    with closing(TableWriter(path, _SCHEMA)) as writer:
        with rasterio.open(class_map) as dataset:
            found = shapes(rasterio.band(dataset, 1), transform=dataset.transform)
            known = (item for item in found if item[1] != NO_CLASS)
            while part := list(islice(known, _AT_ONCE)):
                _add(writer, part, frame, metadata)
        return writer.finish()


def _add(writer: TableWriter, part: list[tuple[dict[str, Any], float]], frame: Frame, metadata: ModelMetadata) -> None:
    indexes = [int(value) for _, value in part]
    on_earth = transform_geom(frame.place.crs, "EPSG:4326", [shape for shape, _ in part], precision=_DIGITS)
    per_unit = frame.pixel_ha / abs(frame.place.transform.determinant)
    columns = {
        "class": [metadata.classes[index] for index in indexes],
        "class_index": indexes,
        "area_ha": [round(area_of(shape["coordinates"]) * per_unit, 6) for shape, _ in part],
    }
    writer.add(columns, [to_wkb(shape) for shape in on_earth])


def area_of(rings: list[Ring]) -> float:
    """Return the area of a polygon, its first ring less its holes, in square units of its coordinates."""
    outer, *holes = [abs(sum(_crosses(ring))) / 2 for ring in rings]
    return outer - sum(holes)


def _crosses(ring: Ring) -> Iterator[float]:
    """Yield the cross product of each edge (https://en.wikipedia.org/wiki/Shoelace_formula).

    Coordinates are taken from the first corner: in metres of UTM their products would lose digits.
    """
    x0, y0 = ring[0]
    for (x1, y1), (x2, y2) in pairwise(ring):
        yield (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
