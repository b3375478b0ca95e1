"""Neighbouring pixels of one class merged into polygons."""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from enum import StrEnum
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
from rasterio.features import shapes
from rasterio.warp import transform, transform_geom

from tilewise.bento.inference.blending import NO_CLASS
from tilewise.bento.inference.window_grid import SceneInfo
from tilewise.bento.inference.windows import WindowAnswer
from tilewise.datasets.core.errors import TilewiseError
from tilewise.datasets.core.tile import rings_of
from tilewise.models.model_file import ModelMetadata

_POLYGON, _MULTIPOLYGON = 3, 6
Point = Sequence[float]


def to_wkb(geometry: Mapping[str, Any]) -> bytes:
    """Return a GeoJSON Polygon or MultiPolygon, holes included, as well-known binary."""
    if geometry["type"] == "Polygon":
        return _polygon(geometry["coordinates"])
    polygons = geometry["coordinates"]
    head = struct.pack("<BII", 1, _MULTIPOLYGON, len(polygons))
    return head + b"".join(_polygon(rings) for rings in polygons)


def quads_to_wkb(corners: npt.NDArray[np.float64]) -> list[bytes]:
    """Return (n, 4, 2) corners as n polygons of one ring."""
    rings = np.concatenate([corners, corners[:, :1]], axis=1)
    head = struct.pack("<BIII", 1, _POLYGON, 1, rings.shape[1])
    return [head + ring.tobytes() for ring in np.ascontiguousarray(rings, "<f8")]


def from_wkb(wkb: bytes) -> dict[str, Any]:
    """Return the GeoJSON geometry of what `to_wkb` made."""
    kind, count = struct.unpack_from("<II", wkb, 1)
    if kind == _POLYGON:
        return {"type": "Polygon", "coordinates": _rings(wkb, 0)[0]}
    polygons, at = [], 9
    for _ in range(count):
        rings, at = _rings(wkb, at)
        polygons.append(rings)
    return {"type": "MultiPolygon", "coordinates": polygons}


def _polygon(rings: Sequence[Sequence[Point]]) -> bytes:
    parts = [struct.pack("<BII", 1, _POLYGON, len(rings))]
    for ring in rings:
        parts += [struct.pack("<I", len(ring)), np.asarray(ring, "<f8").tobytes()]
    return b"".join(parts)


def _rings(wkb: bytes, at: int) -> tuple[list[list[list[float]]], int]:
    (count,) = struct.unpack_from("<I", wkb, at + 5)
    at += 9
    rings = []
    for _ in range(count):
        (points,) = struct.unpack_from("<I", wkb, at)
        rings.append(np.frombuffer(wkb, "<f8", 2 * points, at + 4).reshape(points, 2).tolist())
        at += 4 + 16 * points
    return rings, at


GEOMETRY = "geometry"
GEOPARQUET_VERSION = "1.1.0"
_PART = 4096  # rows of a row group


class VectorFormat(StrEnum):
    """A form of a table on disk; its value is the file's suffix."""

    PARQUET = "parquet"
    GEOJSON = "geojson"
    FLATGEOBUF = "fgb"


class TableWriter:
    """Takes rows, and makes a GeoParquet file of them.

    Args:
        path: the file, ending in `.parquet`.
        schema: the columns, without the geometry.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self._schema = schema.append(pa.field(GEOMETRY, pa.binary()))
        self._file = pq.ParquetWriter(path, self._schema)
        self._held: list[pa.RecordBatch] = []
        self._rows = 0
        self._types: set[str] = set()
        self._box: tuple[float, float, float, float] | None = None

    def add(self, columns: Mapping[str, Any], geometries: list[bytes | None]) -> None:
        """Take rows: a list or an array for each column, and well-known binary in EPSG:4326.

        Raises:
            OSError: the disk does not take them.
        """
        if not geometries:
            return
        arrays = [pa.array(columns[field.name], field.type) for field in self._schema if field.name != GEOMETRY]
        self._held.append(pa.record_batch([*arrays, pa.array(geometries, pa.binary())], schema=self._schema))
        self._rows += len(geometries)
        for geometry in geometries:
            if geometry is not None:
                self._note(from_wkb(geometry))
        if self._rows >= _PART:
            self._flush()

    def finish(self) -> Path:
        """Make the file whole; return it.

        Raises:
            OSError: the disk does not take it.
        """
        self._flush()
        self._file.add_key_value_metadata({"geo": json.dumps(self._metadata())})
        self._file.close()
        return self.path

    def close(self) -> None:
        """Give up what is not finished; the file is the caller's to remove."""
        self._file.close()

    def _flush(self) -> None:
        if self._held:
            self._file.write_table(pa.Table.from_batches(self._held).combine_chunks())
        self._held, self._rows = [], 0

    def _note(self, geometry: dict[str, Any]) -> None:
        self._types.add(geometry["type"])
        xs, ys = zip(*(point for ring in rings_of(geometry) for point in ring), strict=True)
        box = (min(xs), min(ys), max(xs), max(ys))
        old = self._box or box
        self._box = (min(old[0], box[0]), min(old[1], box[1]), max(old[2], box[2]), max(old[3], box[3]))

    def _metadata(self) -> dict[str, Any]:
        """Return GeoParquet's metadata (https://geoparquet.org/releases/v1.1.0/); no `crs` means EPSG:4326."""
        column: dict[str, Any] = {"encoding": "WKB", "geometry_types": sorted(self._types)}
        if self._box:
            column["bbox"] = list(self._box)
        return {"version": GEOPARQUET_VERSION, "primary_column": GEOMETRY, "columns": {GEOMETRY: column}}


def convert(table: Path, form: VectorFormat) -> Path:
    """Return a file beside a finished GeoParquet `table`, with the same rows in another form.

    Raises:
        TilewiseError: FlatGeobuf was asked for, and pyogrio is not installed.
        OSError: the disk does not take it.
    """
    path = table.with_suffix(f".{form}")
    if form is VectorFormat.GEOJSON:
        _write_geojson(table, path)
    elif form is VectorFormat.FLATGEOBUF:
        _write_flatgeobuf(table, path)
    return path


def check_available(form: VectorFormat) -> None:
    """Refuse a form that this installation cannot write, before any work is done.

    Raises:
        TilewiseError: FlatGeobuf, without pyogrio.
    """
    if form is VectorFormat.FLATGEOBUF:
        try:
            import pyogrio  # noqa: F401
        except ImportError as error:
            raise TilewiseError("FlatGeobuf is written by pyogrio; pip install 'tilewise[vector]'") from error


def _batches(table: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(table) as file:
        yield from file.iter_batches(_PART)


def _write_geojson(table: Path, path: Path) -> None:
    """Write RFC 7946: one feature a line, so that the file can be taken line by line as well."""
    with path.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        separator = "\n"
        for batch in _batches(table):
            for row in batch.to_pylist():
                wkb = row.pop(GEOMETRY)
                feature = {"type": "Feature", "properties": row, "geometry": wkb and from_wkb(wkb)}
                file.write(separator + json.dumps(feature, ensure_ascii=False))
                separator = ",\n"
        file.write("\n]}\n")


def _write_flatgeobuf(table: Path, path: Path) -> None:
    from pyogrio.raw import write_arrow

    with pq.ParquetFile(table) as file:
        schema = _without_lists(file.schema_arrow.remove_metadata())
        rows = (_as_text(batch, schema) for batch in file.iter_batches(_PART))
        write_arrow(
            pa.RecordBatchReader.from_batches(schema, rows),
            path,
            driver="FlatGeobuf",
            geometry_name=GEOMETRY,
            geometry_type="Unknown",  # where a scene crosses the antimeridian, polygons lie beside multipolygons
            crs="EPSG:4326",
        )


def _without_lists(schema: pa.Schema) -> pa.Schema:
    """Return `schema` with text in the place of lists, which FlatGeobuf does not have."""
    return pa.schema([field.with_type(pa.string()) if pa.types.is_list(field.type) else field for field in schema])


def _as_text(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return `batch` with its lists as JSON."""
    columns = [
        pa.array([value if value is None else json.dumps(value) for value in column.to_pylist()], field.type)
        if pa.types.is_list(column.type)
        else column
        for column, field in zip(batch.columns, schema, strict=True)
    ]
    return pa.record_batch(columns, schema=schema)


_DIGITS = 7  # of a degree: a centimetre
_HALF_TURN = 180.0


class WindowsTable:
    """Takes windows as they are answered.

    Each row has: `row` and `column` of the upper left pixel, `class`, `confidence` (its probability), `valid_fraction`,
    `p_<class>` for every class, `outlier_score`, and where the model is calibrated for them `outlier` (whether the
    score is above the model's threshold) and `prediction_set` (likeliest class first). A window that was skipped has
    none but its place and `valid_fraction`.

    Args:
        path: the GeoParquet file to make.
        frame: the scene's grid.
        metadata: of the model.
        coverage: of the prediction sets, 0-1.
    """

    def __init__(self, path: Path, scene_info: SceneInfo, metadata: ModelMetadata, coverage: float) -> None:
        self._scene_info, self._metadata = scene_info, metadata
        sets = metadata.prediction_sets
        self._threshold = sets.threshold(coverage) if sets else None
        self._writer = TableWriter(path, _schema(metadata))

    def add(self, windows: Sequence[WindowAnswer]) -> None:
        """Take windows in reading order; raises OSError where the disk does not take them."""
        if windows:
            self._writer.add(self._columns(windows), _outlines(windows, self._scene_info))

    def finish(self) -> Path:
        """Make the file whole; return it."""
        return self._writer.finish()

    def close(self) -> None:
        """Give up what is not finished."""
        self._writer.close()

    def _columns(self, windows: Sequence[WindowAnswer]) -> dict[str, Any]:
        classes = self._metadata.classes
        shares = [window.probabilities for window in windows]
        scores = [score_of(window) for window in windows]
        columns: dict[str, Any] = {
            "row": [window.row for window in windows],
            "column": [window.column for window in windows],
            "class": [None if w.class_index == NO_CLASS else classes[w.class_index] for w in windows],
            "confidence": [None if share is None else float(share.max()) for share in shares],
            "valid_fraction": [window.valid_fraction for window in windows],
            "outlier_score": scores,
        }
        for index, name in enumerate(classes):
            columns[f"p_{name}"] = [None if share is None else float(share[index]) for share in shares]
        if self._metadata.outliers:
            limit = self._metadata.outliers.threshold
            columns["outlier"] = [None if score is None else score > limit for score in scores]
        if self._threshold is not None:
            columns["prediction_set"] = [None if share is None else self._set(share) for share in shares]
        return columns

    def _set(self, shares: Any) -> list[str]:
        assert self._threshold is not None  # noqa: S101 - asked by the caller
        ranked = sorted(zip(shares.tolist(), self._metadata.classes, strict=True), reverse=True)
        return [name for share, name in ranked if share >= self._threshold]


def score_of(window: WindowAnswer) -> float | None:
    """Return the outlier score of a window, None where it was skipped."""
    score = window.outlier_score
    return None if score is None or window.probabilities is None else float(score)


def _schema(metadata: ModelMetadata) -> pa.Schema:
    fields = [
        ("row", pa.int32()),
        ("column", pa.int32()),
        ("class", pa.string()),
        ("confidence", pa.float32()),
        ("valid_fraction", pa.float32()),
        *((f"p_{name}", pa.float32()) for name in metadata.classes),
        ("outlier_score", pa.float32()),
    ]
    if metadata.outliers:
        fields.append(("outlier", pa.bool_()))
    if metadata.prediction_sets:
        fields.append(("prediction_set", pa.list_(pa.string())))
    return pa.schema(fields)


def _outlines(windows: Sequence[WindowAnswer], scene_info: SceneInfo) -> list[bytes | None]:
    """Return the windows' outlines: all corners are transformed at once, which is 20 times faster than one by one."""
    boxes = np.array([(w.column, w.row, w.column + w.width, w.row + w.height) for w in windows], float)
    corners = boxes[:, [[0, 1], [0, 3], [2, 3], [2, 1]]]  # (windows, 4 corners, column and row)
    place = scene_info.window_place or scene_info.place
    a, b, c, d, e, f = place.transform[:6]
    xs = (a * corners[..., 0] + b * corners[..., 1] + c).ravel()
    ys = (d * corners[..., 0] + e * corners[..., 1] + f).ravel()
    longitude, latitude = transform(place.crs, "EPSG:4326", xs, ys)
    on_earth = np.stack([longitude, latitude], axis=-1).round(_DIGITS).reshape(corners.shape)
    odd = np.ptp(on_earth[..., 0], axis=1) > _HALF_TURN
    odd |= ~(np.isfinite(on_earth).all(axis=(1, 2)) & (abs(on_earth[..., 0]) <= _HALF_TURN).all(axis=1))
    outlines: list[bytes | None] = [*quads_to_wkb(on_earth)]
    for index in np.flatnonzero(odd).tolist():  # across the antimeridian, or nowhere on Earth
        footprint = windows[index].footprint(place)
        outlines[index] = None if footprint is None else to_wkb(footprint)
    return outlines


_DIGITS = 7  # of a degree: a centimetre
_AT_ONCE = 1024
_SCHEMA = pa.schema([("class", pa.string()), ("class_index", pa.int32()), ("area_ha", pa.float64())])

Ring = list[tuple[float, float]]


def write_polygons(class_map: Path, scene_info: SceneInfo, metadata: ModelMetadata, path: Path) -> Path:
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
                _add(writer, part, scene_info, metadata)
        return writer.finish()


def _add(
    writer: TableWriter, part: list[tuple[dict[str, Any], float]], scene_info: SceneInfo, metadata: ModelMetadata
) -> None:
    indexes = [int(value) for _, value in part]
    on_earth = transform_geom(scene_info.place.crs, "EPSG:4326", [shape for shape, _ in part], precision=_DIGITS)
    per_unit = scene_info.pixel_ha / abs(scene_info.place.transform.determinant)
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
