"""Tables of windows and of polygons as GeoParquet, GeoJSON, FlatGeobuf or GeoPackage, in EPSG:4326."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
import shapely
from rasterio.features import shapes
from rasterio.warp import transform, transform_geom
from shapely.geometry import mapping, shape

from tilewise.bento.inference.blending import NO_CLASS, OUT_OF_DISTRIBUTION
from tilewise.bento.inference.window_grid import SceneInfo
from tilewise.bento.inference.windows import WindowAnswer
from tilewise.bento.results.maps import UNLIKE
from tilewise.datasets.core.errors import TilewiseError
from tilewise.datasets.core.tile import Georeference
from tilewise.models.model_file import ModelMetadata

GEOMETRY = "geometry"
GEOPARQUET_VERSION = "1.1.0"
_ROW_GROUP = 4096  # rows
_POLYGONS_AT_ONCE = 1024
_DEGREE_DIGITS = 7  # a centimetre
_PROBABILITY_DIGITS = 6
_HALF_TURN = 180.0
_NO_TIME = "1970-01-01T00:00:00.000Z"  # the same scene gives the same bytes
_POLYGON_SCHEMA = pa.schema([("class", pa.string()), ("class_index", pa.int32()), ("area_ha", pa.float64())])

Geometries = npt.NDArray[np.object_]
"""shapely geometries, None where a row has no outline."""


class VectorFormat(StrEnum):
    """The file format of a table; its value is the file's suffix."""

    PARQUET = "parquet"
    GEOJSON = "geojson"
    FLATGEOBUF = "fgb"
    GEOPACKAGE = "gpkg"


_OGR_DRIVERS = {VectorFormat.FLATGEOBUF: "FlatGeobuf", VectorFormat.GEOPACKAGE: "GPKG"}


class TableWriter:
    """Write rows with a geometry to a GeoParquet file.

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
        self._bounds = np.full(4, np.nan)  # west, south, east, north

    def add(self, columns: Mapping[str, Any], geometries: Geometries) -> None:
        """Take rows: a list or an array for each column, and their outlines in EPSG:4326.

        Raises:
            OSError: the disk does not take them.
        """
        if not len(geometries):
            return
        arrays = [
            pa.array(columns[field.name], field.type) for field in self._schema if field.name != GEOMETRY
        ]
        wkb = pa.array(shapely.to_wkb(geometries, byte_order=1), pa.binary())
        self._held.append(pa.record_batch([*arrays, wkb], schema=self._schema))
        self._rows += len(geometries)
        self._types |= {geometry.geom_type for geometry in geometries if geometry is not None}
        bounds = shapely.total_bounds(geometries)
        self._bounds[:2] = np.fmin(self._bounds[:2], bounds[:2])
        self._bounds[2:] = np.fmax(self._bounds[2:], bounds[2:])
        if self._rows >= _ROW_GROUP:
            self._flush()

    def finish(self) -> Path:
        """Complete the file; return it.

        Raises:
            OSError: the disk does not take it.
        """
        self._flush()
        self._file.add_key_value_metadata({"geo": json.dumps(self._metadata())})
        self._file.close()
        return self.path

    def close(self) -> None:
        """Give up an unfinished table; the caller removes the file."""
        self._file.close()

    def _flush(self) -> None:
        if self._held:
            self._file.write_table(pa.Table.from_batches(self._held).combine_chunks())
        self._held, self._rows = [], 0

    def _metadata(self) -> dict[str, Any]:
        """Return GeoParquet's metadata (https://geoparquet.org/releases/v1.1.0); no `crs` means EPSG:4326."""
        column: dict[str, Any] = {"encoding": "WKB", "geometry_types": sorted(self._types)}
        if np.isfinite(self._bounds).all():
            column["bbox"] = self._bounds.tolist()
        return {"version": GEOPARQUET_VERSION, "primary_column": GEOMETRY, "columns": {GEOMETRY: column}}


def convert(table: Path, form: VectorFormat) -> Path:
    """Write a finished GeoParquet `table` in another format beside it; return the new file.

    Raises:
        TilewiseError: FlatGeobuf or GeoPackage was requested, and pyogrio is not installed.
        OSError: the disk does not take it.
    """
    path = table.with_suffix(f".{form}")
    if form is VectorFormat.GEOJSON:
        _write_geojson(table, path)
    elif form in _OGR_DRIVERS:
        _write_by_ogr(table, path, _OGR_DRIVERS[form])
    return path


def check_available(form: VectorFormat) -> None:
    """Refuse a format that this installation cannot write, before any work is done.

    Raises:
        TilewiseError: FlatGeobuf or GeoPackage, without pyogrio.
    """
    if form in _OGR_DRIVERS:
        try:
            import pyogrio  # noqa: F401
        except ImportError as error:
            raise TilewiseError(
                f"{_OGR_DRIVERS[form]} is written by pyogrio; pip install 'tilewise[vector]'"
            ) from error


def _batches(table: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(table) as file:
        yield from file.iter_batches(_ROW_GROUP)


def _write_geojson(table: Path, path: Path) -> None:
    """Write RFC 7946, one feature a line, so that the file can also be read line by line."""
    with path.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        separator = "\n"
        for batch in _batches(table):
            rows = batch.to_pylist()
            outlines = shapely.to_geojson(shapely.from_wkb([row.pop(GEOMETRY) for row in rows]))
            for row, outline in zip(rows, outlines, strict=True):
                properties = json.dumps(row, ensure_ascii=False)
                feature = (
                    f'{{"type": "Feature", "properties": {properties}, "geometry": {outline or "null"}}}'
                )
                file.write(separator + feature)
                separator = ",\n"
        file.write("\n]}\n")


def _geojson_of(geometry: Any) -> dict[str, Any] | None:
    """Return a shapely geometry as a GeoJSON object, None where there is none."""
    return None if geometry is None else mapping(geometry)


def _write_by_ogr(table: Path, path: Path, driver: str) -> None:
    from pyogrio import set_gdal_config_options
    from pyogrio.raw import write_arrow

    set_gdal_config_options({"OGR_CURRENT_DATE": _NO_TIME})  # a GeoPackage states when it was written
    with pq.ParquetFile(table) as file:
        schema = _without_lists(file.schema_arrow.remove_metadata())
        rows = (_as_text(batch, schema) for batch in file.iter_batches(_ROW_GROUP))
        write_arrow(
            pa.RecordBatchReader.from_batches(schema, rows),
            path,
            layer=table.stem,
            driver=driver,
            geometry_name=GEOMETRY,
            geometry_type="Unknown",  # across the antimeridian there are multipolygons beside polygons
            crs="EPSG:4326",
        )


def _without_lists(schema: pa.Schema) -> pa.Schema:
    """Return `schema` with text columns in place of lists, which these formats do not have."""
    return pa.schema(
        [field.with_type(pa.string()) if pa.types.is_list(field.type) else field for field in schema]
    )


def _as_text(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return `batch` with its lists as JSON text."""
    columns = [
        pa.array([value if value is None else json.dumps(value) for value in column.to_pylist()], field.type)
        if pa.types.is_list(column.type)
        else column
        for column, field in zip(batch.columns, schema, strict=True)
    ]
    return pa.record_batch(columns, schema=schema)


class WindowsTable:
    """Write the answers of windows to a GeoParquet file.

    Columns: `row` and `column` of the upper left pixel, `class`, `probability` (of that class),
    `valid_fraction`, `p_<class>` for every class, `outlier_score`, and for models calibrated for them
    `outlier` (whether the score is above the model's threshold) and `prediction_set` (likeliest class first).
    Of a skipped window only its position and `valid_fraction` are filled.

    Args:
        path: the GeoParquet file to make.
        scene_info: the scene's grid.
        metadata: of the model.
        coverage: of the prediction sets, 0-1.
    """

    def __init__(self, path: Path, scene_info: SceneInfo, metadata: ModelMetadata, coverage: float) -> None:
        self._scene_info, self._metadata, self._coverage = scene_info, metadata, coverage
        self._writer = TableWriter(path, _window_schema(metadata))

    def add(self, windows: Sequence[WindowAnswer]) -> None:
        """Take windows in reading order; raise OSError where the disk does not take them."""
        if windows:
            self._writer.add(
                self._columns(windows), window_outlines(windows, self._scene_info.window_georeference)
            )

    def finish(self) -> Path:
        """Complete the file; return it."""
        return self._writer.finish()

    def close(self) -> None:
        """Give up an unfinished table."""
        self._writer.close()

    def _columns(self, windows: Sequence[WindowAnswer]) -> dict[str, Any]:
        metadata, classes = self._metadata, self._metadata.classes
        found = [
            None if window.probabilities is None else window.probabilities.tolist() for window in windows
        ]
        scores = [score_of(window) for window in windows]
        columns: dict[str, Any] = {
            "row": [window.row for window in windows],
            "column": [window.column for window in windows],
            "class": [None if w.class_index == NO_CLASS else classes[w.class_index] for w in windows],
            "probability": [p and max(p) for p in found],
            "valid_fraction": [window.valid_fraction for window in windows],
            "outlier_score": scores,
        }
        for index, name in enumerate(classes):
            columns[f"p_{name}"] = [p and p[index] for p in found]
        if metadata.outliers:
            columns["outlier"] = [None if s is None else s > metadata.outliers.threshold for s in scores]
        if metadata.prediction_sets:
            columns["prediction_set"] = [p and metadata.prediction_set(p, self._coverage) for p in found]
        return columns


def _window_schema(metadata: ModelMetadata) -> pa.Schema:
    fields = [
        ("row", pa.int32()),
        ("column", pa.int32()),
        ("class", pa.string()),
        ("probability", pa.float32()),
        ("valid_fraction", pa.float32()),
        *((f"p_{name}", pa.float32()) for name in metadata.classes),
        ("outlier_score", pa.float32()),
    ]
    if metadata.outliers:
        fields.append(("outlier", pa.bool_()))
    if metadata.prediction_sets:
        fields.append(("prediction_set", pa.list_(pa.string())))
    return pa.schema(fields)


def window_features(
    windows: Sequence[WindowAnswer], georeference: Georeference, metadata: ModelMetadata, coverage: float
) -> list[dict[str, Any]]:
    """Return windows as GeoJSON features, JSON-ready; properties are nested as in the answers for tiles.

    Args:
        windows: in reading order; a feature's `id` is its index.
        georeference: of the grid that windows are counted on.
        metadata: of the model.
        coverage: of the prediction sets, 0-1.
    """
    outlines = window_outlines(windows, georeference)
    return [
        {
            "type": "Feature",
            "id": index,
            "geometry": _geojson_of(outline),
            "properties": _window_properties(window, metadata, coverage),
        }
        for index, (window, outline) in enumerate(zip(windows, outlines, strict=True))
    ]


def _window_properties(window: WindowAnswer, metadata: ModelMetadata, coverage: float) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "class": None,
        "probability": None,
        "probabilities": None,
        "prediction_set": None,
        "outlier": None,
        "valid_fraction": round(window.valid_fraction, _PROBABILITY_DIGITS),
        "row": window.row,
        "column": window.column,
        "height": window.height,
        "width": window.width,
    }
    if window.probabilities is None:
        return properties
    found = window.probabilities.tolist()
    rounded = {name: round(p, _PROBABILITY_DIGITS) for name, p in zip(metadata.classes, found, strict=True)}
    chosen, score = metadata.prediction_set(found, coverage), score_of(window) or 0.0
    return properties | {
        "class": metadata.classes[window.class_index],
        "probability": round(max(found), _PROBABILITY_DIGITS),
        "probabilities": rounded,
        "prediction_set": None if chosen is None else {"coverage": coverage, "classes": chosen},
        "outlier": metadata.outliers
        and {"score": round(score, _PROBABILITY_DIGITS), "flag": score > metadata.outliers.threshold},
    }


def score_of(window: WindowAnswer) -> float | None:
    """Return the outlier score of a window, None where it was skipped."""
    score = window.outlier_score
    return None if score is None or window.probabilities is None else float(score)


def window_outlines(windows: Sequence[WindowAnswer], georeference: Georeference) -> Geometries:
    """Return the outlines of windows in EPSG:4326, None where one has no longitude and latitude.

    All corners are transformed at once, which is 20 times as fast as one window at a time.

    Args:
        georeference: of the grid that windows are counted on.
    """
    boxes = np.array([(w.column, w.row, w.column + w.width, w.row + w.height) for w in windows], float)
    corners = boxes.reshape(-1, 4)[
        :, [[0, 1], [0, 3], [2, 3], [2, 1]]
    ]  # (windows, 4 corners, column and row)
    a, b, c, d, e, f = georeference.transform[:6]
    xs = (a * corners[..., 0] + b * corners[..., 1] + c).ravel()
    ys = (d * corners[..., 0] + e * corners[..., 1] + f).ravel()
    longitude, latitude = transform(georeference.crs, "EPSG:4326", xs, ys)
    on_earth = np.stack([longitude, latitude], axis=-1).round(_DEGREE_DIGITS).reshape(corners.shape)
    odd = np.ptp(on_earth[..., 0], axis=1) > _HALF_TURN
    odd |= ~(np.isfinite(on_earth).all(axis=(1, 2)) & (abs(on_earth[..., 0]) <= _HALF_TURN).all(axis=1))
    outlines = np.full(len(windows), None, object)
    outlines[~odd] = shapely.polygons(on_earth[~odd])
    for index in np.flatnonzero(odd).tolist():  # across the antimeridian, or nowhere on Earth
        footprint = windows[index].footprint(georeference)
        outlines[index] = None if footprint is None else shape(footprint)
    return outlines


def write_polygons(class_map: Path, scene_info: SceneInfo, metadata: ModelMetadata, path: Path) -> Path:
    """Merge neighbouring pixels of one class to polygons; write class, index, hectares and outline of each.

    What is unlike the training data has the class UNLIKE and the index OUT_OF_DISTRIBUTION.

    Pixels that touch only at a corner are no neighbours. Areas are measured in the grid's own projection.

    Raises:
        OSError: the disk does not take them.
    """
    with closing(TableWriter(path, _POLYGON_SCHEMA)) as writer:
        with rasterio.open(class_map) as dataset:
            found = shapes(rasterio.band(dataset, 1), transform=dataset.transform)
            known = (item for item in found if item[1] != NO_CLASS)
            while part := list(islice(known, _POLYGONS_AT_ONCE)):
                _add_polygons(writer, part, scene_info, metadata)
        return writer.finish()


def _add_polygons(
    writer: TableWriter,
    part: list[tuple[dict[str, Any], float]],
    scene_info: SceneInfo,
    metadata: ModelMetadata,
) -> None:
    indexes = [int(value) for _, value in part]
    geometries = [geometry for geometry, _ in part]
    georeference = scene_info.georeference
    on_earth = transform_geom(georeference.crs, "EPSG:4326", geometries, precision=_DEGREE_DIGITS)
    square_units = shapely.area(_to_shapely(geometries))
    columns = {
        "class": [UNLIKE if index == OUT_OF_DISTRIBUTION else metadata.classes[index] for index in indexes],
        "class_index": indexes,
        "area_ha": (square_units * (scene_info.pixel_ha / abs(georeference.transform.determinant))).round(6),
    }
    writer.add(columns, _to_shapely(on_earth))


def _to_shapely(geometries: Sequence[Mapping[str, Any]]) -> Geometries:
    made = np.full(len(geometries), None, object)
    made[:] = [shape(geometry) for geometry in geometries]
    return made
