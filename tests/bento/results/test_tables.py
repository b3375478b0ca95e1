"""Tables of windows and polygons, in every form that other programs read."""

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from affine import Affine
from geotiffs import CORNER, UTM
from rasterio.crs import CRS
from rasterio.warp import transform_bounds
from shapely.geometry import mapping
from tiny_onnx import metadata

from tilewise.bento.inference.blending import NO_CLASS
from tilewise.bento.inference.window_grid import SceneInfo
from tilewise.bento.inference.windows import WindowAnswer
from tilewise.bento.results.maps import MapWriter, class_spec
from tilewise.bento.results.tables import (
    TableWriter,
    VectorFormat,
    WindowsTable,
    convert,
    window_features,
    window_outlines,
    write_polygons,
)
from tilewise.datasets.core.tile import Georeference
from tilewise.datasets.readers.eurosat import CLASSES
from tilewise.models.model_file import ModelMetadata, Outliers, PredictionSets

PLAIN = metadata(CLASSES)
CALIBRATED = PLAIN.model_copy(
    update={
        "prediction_sets": PredictionSets(method="lac", thresholds={0.9: 0.2}),
        "outliers": Outliers(method="distance", threshold=1.0, false_alarms=0.05),
    }
)
INFO = SceneInfo("scene", Georeference(UTM, CORNER), 100, 128)
ACROSS_180 = SceneInfo("far", Georeference(CRS.from_epsg(32660), Affine(10, 0, 833_700, 0, -10, 0)), 100, 128)


def from_wkb(wkb: bytes) -> dict[str, Any]:
    """The GeoJSON geometry of well-known binary."""
    geometry: dict[str, Any] = json.loads(json.dumps(mapping(shapely.from_wkb(wkb))))
    return geometry


def windows() -> list[WindowAnswer]:
    """Four windows, the second of which was skipped."""
    answers = np.random.default_rng(1).dirichlet(np.ones(len(CLASSES)), 4).astype(np.float32)
    positions = [(0, 0), (0, 64), (36, 0), (36, 64)]
    return [
        WindowAnswer(row, column, 64, 64, 0.2 if n == 1 else 1.0, None if n == 1 else answers[n])
        for n, (row, column) in enumerate(positions)
    ]


def write_windows(path: Path, model: ModelMetadata = PLAIN, scene_info: SceneInfo = INFO) -> Path:
    table = WindowsTable(path, scene_info, model, coverage=0.9)
    for window in windows():  # one by one, as strips come
        table.add([window])
    table.add([])
    return table.finish()


def write_class_map(folder: Path, pixels: Any, scene_info: SceneInfo = INFO) -> Path:
    writer = MapWriter(folder, scene_info, class_spec(PLAIN), {})
    writer.add(np.asarray(pixels, np.uint8)[None])
    return writer.finish()[0]


# Windows.


def test_every_window_has_its_place_class_and_probabilities(tmp_path: Path) -> None:
    rows = pq.read_table(write_windows(tmp_path / "w.parquet")).to_pylist()
    assert [(row["row"], row["column"]) for row in rows] == [(w.row, w.column) for w in windows()]
    for row, window in zip(rows, windows(), strict=True):
        probabilities = [row[f"p_{name}"] for name in CLASSES]
        left, top = CORNER @ (window.column, window.row)
        xs, ys = zip(*from_wkb(row["geometry"])["coordinates"][0], strict=True)
        expected = transform_bounds(UTM, "EPSG:4326", left, top - 640, left + 640, top)
        assert (min(xs), min(ys), max(xs), max(ys)) == pytest.approx(expected, abs=1e-5)
        if window.probabilities is None:
            assert (row["class"], row["probability"], set(probabilities)) == (None, None, {None})
        else:
            assert probabilities == pytest.approx(window.probabilities)
            assert (row["class"], row["probability"]) == (
                CLASSES[int(np.argmax(probabilities))],
                pytest.approx(max(probabilities)),
            )


def test_a_calibrated_model_gives_prediction_sets_likeliest_class_first(tmp_path: Path) -> None:
    rows = pq.read_table(write_windows(tmp_path / "w.parquet", CALIBRATED)).to_pylist()
    for row in rows:
        if row["class"] is None:
            assert row["prediction_set"] is None
            continue
        probabilities = {name: row[f"p_{name}"] for name in CLASSES}
        assert set(row["prediction_set"]) == {
            name for name, probability in probabilities.items() if probability >= 0.2
        }
        assert row["prediction_set"] == sorted(row["prediction_set"], key=lambda name: -probabilities[name])


def test_a_model_that_is_not_calibrated_promises_nothing(tmp_path: Path) -> None:
    names = pq.read_schema(write_windows(tmp_path / "w.parquet")).names
    assert "prediction_set" not in names
    assert "outlier" not in names


def test_the_table_is_geoparquet_with_the_box_of_all_outlines(tmp_path: Path) -> None:
    path = write_windows(tmp_path / "w.parquet")
    geo = json.loads(pq.read_metadata(path).metadata[b"geo"])
    assert (geo["version"], geo["primary_column"]) == ("1.1.0", "geometry")
    column = geo["columns"]["geometry"]
    assert (column["encoding"], column["geometry_types"]) == ("WKB", ["Polygon"])
    points = [
        point
        for wkb in pq.read_table(path)["geometry"].to_pylist()
        for point in from_wkb(wkb)["coordinates"][0]
    ]
    xs, ys = zip(*points, strict=True)
    assert column["bbox"] == [min(xs), min(ys), max(xs), max(ys)]


def test_windows_across_the_antimeridian_are_outlined_in_two_parts(tmp_path: Path) -> None:
    path = write_windows(tmp_path / "w.parquet", scene_info=ACROSS_180)
    found = [from_wkb(wkb) for wkb in pq.read_table(path)["geometry"].to_pylist()]
    assert [outline["type"] for outline in found] == ["MultiPolygon", "Polygon", "MultiPolygon", "Polygon"]
    for outline in found:
        parts = outline["coordinates"] if outline["type"] == "MultiPolygon" else [outline["coordinates"]]
        assert all(max(x for x, _ in part[0]) - min(x for x, _ in part[0]) < 0.1 for part in parts)


# Polygons.


def test_neighbours_of_one_class_become_one_polygon_with_its_area(tmp_path: Path) -> None:
    pixels = np.full((100, 128), 1)
    pixels[10:30, 10:40] = 9  # an island, so that the class around it has a hole
    pixels[50:, 64:] = NO_CLASS
    path = write_polygons(write_class_map(tmp_path, pixels), INFO, PLAIN, tmp_path / "p.parquet")
    rows = sorted(pq.read_table(path).to_pylist(), key=lambda row: row["area_ha"])
    island, around = rows
    assert (island["class"], island["class_index"]) == (CLASSES[9], 9)
    assert island["area_ha"] == pytest.approx(20 * 30 / 100)
    assert around["area_ha"] == pytest.approx((pixels == 1).sum() / 100)
    assert len(from_wkb(around["geometry"])["coordinates"]) == 2


def test_pixels_that_touch_at_a_corner_are_two_polygons(tmp_path: Path) -> None:
    pixels = np.full((100, 128), NO_CLASS)
    pixels[:10, :10] = pixels[10:20, 10:20] = 3
    path = write_polygons(write_class_map(tmp_path, pixels), INFO, PLAIN, tmp_path / "p.parquet")
    assert pq.read_table(path)["area_ha"].to_pylist() == pytest.approx([1, 1])


def test_a_map_without_a_class_has_no_polygons(tmp_path: Path) -> None:
    class_map = write_class_map(tmp_path, np.full((100, 128), NO_CLASS))
    assert pq.read_table(write_polygons(class_map, INFO, PLAIN, tmp_path / "p.parquet")).num_rows == 0


def test_an_area_keeps_its_digits_far_from_the_origin(tmp_path: Path) -> None:
    """In metres of UTM, products of coordinates would lose them."""
    fine = Affine(0.25, 0, 500_000, 0, -0.25, 5_000_000)
    info = replace(INFO, georeference=Georeference(UTM, fine))
    pixels = np.full((100, 128), NO_CLASS)
    pixels[50, 60] = 1
    path = write_polygons(write_class_map(tmp_path, pixels, info), info, PLAIN, tmp_path / "p.parquet")
    assert pq.read_table(path)["area_ha"].to_pylist() == [0.000006]  # 0.0625 m², in six decimals


# Forms.


def test_geojson_holds_the_same_rows(tmp_path: Path) -> None:
    table = write_windows(tmp_path / "w.parquet", CALIBRATED)
    content = json.loads(convert(table, VectorFormat.GEOJSON).read_text())
    assert content["type"] == "FeatureCollection"
    rows = pq.read_table(table).to_pylist()
    assert len(content["features"]) == len(rows)
    for feature, row in zip(content["features"], rows, strict=True):
        assert feature["geometry"] == from_wkb(row.pop("geometry"))
        assert feature["properties"] == row


BY_OGR = (VectorFormat.FLATGEOBUF, VectorFormat.GEOPACKAGE)


@pytest.mark.parametrize("form", BY_OGR)
def test_flatgeobuf_and_geopackage_hold_the_same_rows(tmp_path: Path, form: VectorFormat) -> None:
    pyogrio = pytest.importorskip("pyogrio", reason="pip install 'tilewise[vector]'")
    table = write_windows(tmp_path / "w.parquet", CALIBRATED)
    info, found = pyogrio.read_arrow(convert(table, form))
    assert "4326" in info["crs"]
    rows = {(row["row"], row["column"]): row for row in pq.read_table(table).to_pylist()}
    assert found.num_rows == len(rows)  # in the order of its index
    for row in found.to_pylist():
        expected = rows[row["row"], row["column"]]
        assert row["class"] == expected["class"]
        assert from_wkb(row[info["geometry_name"] or "wkb_geometry"]) == from_wkb(expected["geometry"])
        sets = row["prediction_set"]
        assert (sets if sets is None else json.loads(sets)) == expected["prediction_set"]


@pytest.mark.parametrize("form", VectorFormat)
def test_a_table_without_rows_can_be_read_in_every_form(tmp_path: Path, form: VectorFormat) -> None:
    if form in BY_OGR:
        pytest.importorskip("pyogrio", reason="pip install 'tilewise[vector]'")
    table = TableWriter(tmp_path / "t.parquet", pa.schema([("class", pa.string())])).finish()
    path = convert(table, form)
    if form is VectorFormat.GEOJSON:
        assert json.loads(path.read_text())["features"] == []
    elif form in BY_OGR:
        import pyogrio

        assert pyogrio.read_arrow(path)[1].num_rows == 0
    else:
        assert pq.read_table(path).num_rows == 0


@pytest.mark.parametrize("form", VectorFormat)
def test_the_same_rows_are_the_same_bytes(tmp_path: Path, form: VectorFormat) -> None:
    if form in BY_OGR:
        pytest.importorskip("pyogrio", reason="pip install 'tilewise[vector]'")
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        made.append(convert(write_windows(tmp_path / name / "w.parquet", CALIBRATED), form).read_bytes())
    assert made[0] == made[1]


def test_outlines_are_little_endian_well_known_binary_of_two_dimensions(tmp_path: Path) -> None:
    (wkb, *_) = pq.read_table(write_windows(tmp_path / "w.parquet"))["geometry"].to_pylist()
    assert wkb[:13] == struct.pack("<BIII", 1, 3, 1, 5)  # byte order, polygon, one ring, five points
    assert len(wkb) == 13 + 5 * 16


# Features of the service.


def test_features_have_the_fields_of_the_tables_rows(tmp_path: Path) -> None:
    features = window_features(windows(), INFO.georeference, CALIBRATED, 0.9)
    rows = pq.read_table(write_windows(tmp_path / "w.parquet", CALIBRATED)).to_pylist()
    assert len(features) == len(rows)
    for index, (feature, row) in enumerate(zip(features, rows, strict=True)):
        properties = feature["properties"]
        assert (feature["type"], feature["id"]) == ("Feature", index)
        assert json.loads(json.dumps(feature["geometry"])) == from_wkb(row["geometry"])
        for name in ("row", "column", "class"):
            assert properties[name] == row[name]
        if row["class"] is None:
            assert (
                properties["probability"]
                is properties["probabilities"]
                is properties["prediction_set"]
                is None
            )
            continue
        assert properties["probability"] == pytest.approx(row["probability"], abs=1e-6)
        assert properties["probabilities"] == pytest.approx({n: row[f"p_{n}"] for n in CLASSES}, abs=1e-6)
        assert properties["prediction_set"] == {"coverage": 0.9, "classes": row["prediction_set"]}


def test_no_windows_have_no_outlines() -> None:
    assert len(window_outlines([], INFO.georeference)) == 0
