"""What a classified scene leaves on disk: a class map and a table of windows, each whole or absent."""

import json
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from rasterio.io import MemoryFile
from rasterio.shutil import copy as copy_raster

from bento.legend import colours
from bento.scene import NO_CLASS, WindowAnswer
from datasets.tile import Georeference, rings_of
from models.modelfile import ModelMetadata

_BLOCK = 512
GEOPARQUET_VERSION = "1.1.0"
MAP_SUFFIX = ".classes.tif"
TABLE_SUFFIX = ".windows.parquet"


def write_class_map(class_map: npt.NDArray[np.uint8], place: Georeference, metadata: ModelMetadata, path: Path) -> None:
    """Write a class map as Cloud-Optimised GeoTIFF on the scene's grid.

    It has a colour table, overviews by mode, 255 as no data, and the classes' names: as the band's category
    names (in the side-car file where GDAL keeps them) and as the tag CLASSES inside the file.
    """
    profile = {
        "driver": "GTiff",
        "height": class_map.shape[0],
        "width": class_map.shape[1],
        "count": 1,
        "dtype": "uint8",
        "nodata": NO_CLASS,
        "crs": place.crs,
        "transform": place.transform,
    }
    with MemoryFile() as memory, MemoryFile() as cog:
        with memory.open(**profile) as dataset:
            dataset.write(class_map, 1)
            table = {index: (*colour, 255) for index, colour in enumerate(colours(metadata.classes))}
            dataset.write_colormap(1, {**table, NO_CLASS: (0, 0, 0, 0)})
            dataset.set_band_description(1, "class")
            dataset.update_tags(CLASSES=json.dumps(list(metadata.classes)), MODEL=f"{metadata.name} {metadata.version}")
        options = {"COMPRESS": "DEFLATE", "BLOCKSIZE": _BLOCK, "OVERVIEW_RESAMPLING": "MODE"}
        with memory.open() as dataset:
            copy_raster(dataset, cog.name, driver="COG", **options, ADD_ALPHA="NO")
        # Not by GDAL's own hand: it tells of a full disk late and in many ways.
        with whole(path) as partial:
            partial.write_bytes(cog.read())
    with whole(path.with_name(f"{path.name}.aux.xml")) as partial:
        partial.write_text(category_names(metadata.classes), encoding="utf-8")


def write_windows(windows: Sequence[WindowAnswer], place: Georeference, classes: Sequence[str], path: Path) -> None:
    """Write the windows as GeoParquet: outline (EPSG:4326), class, a probability a class, valid share."""
    footprints = [window.footprint(place) for window in windows]
    columns: dict[str, Any] = {
        "row": pa.array([w.row for w in windows], pa.int32()),
        "column": pa.array([w.column for w in windows], pa.int32()),
        "class": pa.array([classes[w.class_index] if w.class_index != NO_CLASS else None for w in windows]),
        "valid_share": pa.array([w.valid_share for w in windows], pa.float32()),
    }
    for index, name in enumerate(classes):
        shares = [None if w.probabilities is None else float(w.probabilities[index]) for w in windows]
        columns[f"p_{name}"] = pa.array(shares, pa.float32())
    columns["geometry"] = pa.array([f and _well_known_binary(f) for f in footprints], pa.binary())
    with whole(path) as partial:
        pq.write_table(pa.table(columns).replace_schema_metadata(_geo_metadata(footprints)), partial)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a path to write to, which becomes `path` only when the block ends well."""
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def category_names(classes: Sequence[str]) -> str:
    """Return the content of the side-car file that GDAL and QGIS read the names of a map's classes from."""
    names = "".join(f"<Category>{escape(name)}</Category>" for name in classes)
    band = f'<PAMRasterBand band="1"><CategoryNames>{names}</CategoryNames></PAMRasterBand>'
    return f"<PAMDataset>{band}</PAMDataset>\n"


def _well_known_binary(geometry: dict[str, Any]) -> bytes:
    """Return a Polygon or a MultiPolygon without holes as well-known binary (OGC 06-103r4)."""
    polygons = [_polygon(ring) for ring in rings_of(geometry)]
    if geometry["type"] == "Polygon":
        return polygons[0]
    return struct.pack("<BII", 1, 6, len(polygons)) + b"".join(polygons)


def _polygon(ring: Sequence[Sequence[float]]) -> bytes:
    points = b"".join(struct.pack("<dd", x, y) for x, y in ring)
    return struct.pack("<BIII", 1, 3, 1, len(ring)) + points


def _geo_metadata(footprints: Sequence[dict[str, Any] | None]) -> dict[str, str]:
    """Return GeoParquet's metadata (https://geoparquet.org/releases/v1.1.0/).

    That it names no `crs` means longitude and latitude.
    """
    known = [footprint for footprint in footprints if footprint]
    points = [point for footprint in known for ring in rings_of(footprint) for point in ring]
    column: dict[str, Any] = {"encoding": "WKB", "geometry_types": sorted({f["type"] for f in known})}
    if points:
        xs, ys = zip(*points, strict=True)
        column["bbox"] = [min(xs), min(ys), max(xs), max(ys)]
    content = {"version": GEOPARQUET_VERSION, "primary_column": "geometry", "columns": {"geometry": column}}
    return {"geo": json.dumps(content)}
