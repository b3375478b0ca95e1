"""Tables of things on Earth, written as GeoParquet, GeoJSON and FlatGeobuf; geometries are in EPSG:4326.

GeoParquet is written part by part and is what the other forms are made from, so that memory holds one part.
"""

import json
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bento.batch.wkb import from_wkb
from datasets.errors import SentileError
from datasets.tile import rings_of

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
        SentileError: FlatGeobuf was asked for, and pyogrio is not installed.
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
        SentileError: FlatGeobuf, without pyogrio.
    """
    if form is VectorFormat.FLATGEOBUF:
        try:
            import pyogrio  # noqa: F401
        except ImportError as error:
            raise SentileError("FlatGeobuf is written by pyogrio; pip install 'sentile[vector]'") from error


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
