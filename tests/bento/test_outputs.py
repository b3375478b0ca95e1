"""What a classified scene leaves on disk: maps and tables that other programs read, each whole or absent."""

import errno
import json
import struct
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import rasterio
from affine import Affine
from geotiffs import CORNER, UTM
from rasterio.crs import CRS
from rasterio.warp import transform_bounds
from tiny_onnx import metadata

from bento.legend import colours
from bento.outputs import whole, write_class_map, write_windows
from bento.scene import NO_CLASS, WindowAnswer
from datasets.eurosat import CLASSES
from datasets.tile import Georeference
from models.modelfile import ModelMetadata

PLACE = Georeference(UTM, CORNER)
MODEL = metadata(CLASSES)
ACROSS_180 = Georeference(CRS.from_epsg(32660), Affine(10, 0, 833_700, 0, -10, 0))


def class_map(height: int = 100, width: int = 150) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, len(CLASSES), (height // 16 + 1, width // 16 + 1), dtype=np.uint8)
    pixels = blocks.repeat(16, axis=0).repeat(16, axis=1)[:height, :width].copy()
    pixels[:10, :20] = NO_CLASS
    return pixels


def windows() -> list[WindowAnswer]:
    """Four windows, the second of which was skipped."""
    rng = np.random.default_rng(1)
    answers = rng.dirichlet(np.ones(len(CLASSES)), 4).astype(np.float32)
    places = [(0, 0), (0, 64), (36, 0), (36, 64)]
    return [
        WindowAnswer(row, column, 64, 64, 0.2 if n == 1 else 1.0, None if n == 1 else answers[n])
        for n, (row, column) in enumerate(places)
    ]


def rings_of_wkb(wkb: bytes) -> list[list[tuple[float, float]]]:
    """Read a Polygon or MultiPolygon, little-endian, to the last byte; return its rings."""

    def polygon(at: int) -> tuple[list[list[tuple[float, float]]], int]:
        order, kind, count = struct.unpack_from("<BII", wkb, at)
        assert (order, kind) == (1, 3)
        at += 9
        rings = []
        for _ in range(count):
            (points,) = struct.unpack_from("<I", wkb, at)
            numbers = struct.unpack_from(f"<{2 * points}d", wkb, at + 4)
            rings.append(list(zip(numbers[::2], numbers[1::2], strict=True)))
            at += 4 + 16 * points
        return rings, at

    rings: list[list[tuple[float, float]]] = []
    order, kind, count = struct.unpack_from("<BII", wkb, 0)
    assert order == 1
    at, parts = (0, 1) if kind == 3 else (9, count)
    for _ in range(parts):
        found, at = polygon(at)
        rings += found
    assert at == len(wkb)
    return rings


# Class maps.


@pytest.fixture(scope="module")
def map_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("map") / "scene.classes.tif"
    write_class_map(class_map(), PLACE, MODEL, path)
    return path


def test_a_class_map_lies_on_the_scenes_own_grid(map_path: Path) -> None:
    with rasterio.open(map_path) as dataset:
        assert (dataset.crs, dataset.transform) == (UTM, CORNER)
        assert (dataset.count, dataset.dtypes[0]) == (1, "uint8")
        np.testing.assert_array_equal(dataset.read(1), class_map())


def test_a_class_map_is_a_cloud_optimised_geotiff_with_no_data_told(map_path: Path) -> None:
    with rasterio.open(map_path) as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.nodata == NO_CLASS
        assert (dataset.dataset_mask() == 0).sum() == (class_map() == NO_CLASS).sum()


def test_a_class_map_has_the_legends_colours(map_path: Path) -> None:
    with rasterio.open(map_path) as dataset:
        table = dataset.colormap(1)
    assert [table[index][:3] for index in range(len(CLASSES))] == colours(CLASSES)
    assert table[NO_CLASS][3] == 0


def test_a_class_map_names_its_classes_inside_and_beside_the_file(map_path: Path) -> None:
    with rasterio.open(map_path) as dataset:
        assert json.loads(dataset.tags()["CLASSES"]) == list(CLASSES)
        assert dataset.tags()["MODEL"] == "tiny 0"
        assert dataset.descriptions == ("class",)
    beside = ElementTree.parse(map_path.with_name("scene.classes.tif.aux.xml"))  # noqa: S314 - we wrote it
    assert [node.text for node in beside.iter("Category")] == list(CLASSES)
    assert beside.find("PAMRasterBand[@band='1']/CategoryNames") is not None


def test_class_names_with_signs_of_xml_stay_as_they_are(tmp_path: Path) -> None:
    names = ("Crops & <fields>", "Forêt", '"Sea"')
    write_class_map(np.zeros((64, 64), np.uint8), PLACE, metadata(names), tmp_path / "m.tif")
    beside = ElementTree.parse(tmp_path / "m.tif.aux.xml")  # noqa: S314 - we wrote it
    assert [node.text for node in beside.iter("Category")] == list(names)
    with rasterio.open(tmp_path / "m.tif") as dataset:
        assert json.loads(dataset.tags()["CLASSES"]) == list(names)


def test_a_large_map_has_overviews_of_whole_classes(tmp_path: Path) -> None:
    pixels = class_map(1100, 1300)
    write_class_map(pixels, PLACE, MODEL, tmp_path / "m.tif")
    with rasterio.open(tmp_path / "m.tif") as dataset:
        assert dataset.overviews(1)[0] == 2
        assert dataset.is_tiled
        half = dataset.read(1, out_shape=(550, 650))
    # By mode: a block of one class stays that class, and no class is made up between two.
    np.testing.assert_array_equal(half[8:544:8, 8:640:8], pixels[16:1088:16, 16:1280:16])


def test_the_same_map_is_the_same_bytes(map_path: Path, tmp_path: Path) -> None:
    write_class_map(class_map(), PLACE, MODEL, tmp_path / "scene.classes.tif")
    for name in ("scene.classes.tif", "scene.classes.tif.aux.xml"):
        assert (tmp_path / name).read_bytes() == map_path.with_name(name).read_bytes()


def test_folders_are_made_and_nothing_else_is_left_there(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    write_class_map(class_map(), PLACE, MODEL, folder / "m.tif")
    write_windows(windows(), PLACE, CLASSES, folder / "m.parquet")
    assert sorted(path.name for path in folder.iterdir()) == ["m.parquet", "m.tif", "m.tif.aux.xml"]


# Tables of windows.


@pytest.fixture(scope="module")
def table_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "scene.windows.parquet"
    write_windows(windows(), PLACE, CLASSES, path)
    return path


def geo(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(pq.read_metadata(path).metadata[b"geo"])
    return content


def test_the_table_is_geoparquet(table_path: Path) -> None:
    said = geo(table_path)
    assert said["version"] == "1.1.0"
    assert said["primary_column"] == "geometry"
    column = said["columns"]["geometry"]
    assert column["encoding"] == "WKB"
    assert column["geometry_types"] == ["Polygon"]
    assert str(pq.read_schema(table_path).field("geometry").type) == "binary"


def test_every_window_has_its_outline_in_longitude_and_latitude(table_path: Path) -> None:
    rows = pq.read_table(table_path).to_pylist()
    assert [(row["row"], row["column"]) for row in rows] == [(w.row, w.column) for w in windows()]
    for row in rows:
        (ring,) = rings_of_wkb(row["geometry"])
        left, top = CORNER * (row["column"], row["row"])
        expected = transform_bounds(UTM, "EPSG:4326", left, top - 640, left + 640, top)
        xs, ys = zip(*ring, strict=True)
        assert ring[0] == ring[-1]
        assert (min(xs), min(ys), max(xs), max(ys)) == pytest.approx(expected, abs=1e-5)


def test_the_bounding_box_holds_all_outlines(table_path: Path) -> None:
    wkbs = pq.read_table(table_path)["geometry"].to_pylist()
    points = [point for wkb in wkbs for ring in rings_of_wkb(wkb) for point in ring]
    xs, ys = zip(*points, strict=True)
    assert geo(table_path)["columns"]["geometry"]["bbox"] == [min(xs), min(ys), max(xs), max(ys)]


def test_every_window_has_its_class_and_probabilities_and_a_skipped_one_has_none(table_path: Path) -> None:
    rows = pq.read_table(table_path).to_pylist()
    for row, window in zip(rows, windows(), strict=True):
        shares = [row[f"p_{name}"] for name in CLASSES]
        assert row["valid_share"] == pytest.approx(window.valid_share)
        if window.probabilities is None:
            assert row["class"] is None
            assert set(shares) == {None}
        else:
            assert row["class"] == CLASSES[int(np.argmax(shares))]
            assert shares == pytest.approx(window.probabilities)
            assert sum(shares) == pytest.approx(1, abs=1e-5)


def test_a_table_of_skipped_windows_alone_can_be_read(tmp_path: Path) -> None:
    skipped = [WindowAnswer(0, 0, 64, 64, 0.0, None)]
    write_windows(skipped, PLACE, CLASSES, tmp_path / "t.parquet")
    (row,) = pq.read_table(tmp_path / "t.parquet").to_pylist()
    assert row["class"] is None
    assert row["p_Forest"] is None


def test_windows_across_the_antimeridian_are_outlined_in_two_parts(tmp_path: Path) -> None:
    write_windows(windows(), ACROSS_180, CLASSES, tmp_path / "t.parquet")
    assert geo(tmp_path / "t.parquet")["columns"]["geometry"]["geometry_types"] == ["MultiPolygon", "Polygon"]
    rows = pq.read_table(tmp_path / "t.parquet").to_pylist()
    parts = [rings_of_wkb(row["geometry"]) for row in rows]
    assert [len(rings) for rings in parts] == [2, 1, 2, 1]
    assert all(max(x for x, _ in ring) - min(x for x, _ in ring) < 0.1 for rings in parts for ring in rings)


# Whole or absent.


def write_map(path: Path, model: ModelMetadata = MODEL) -> None:
    write_class_map(class_map(), PLACE, model, path)


def write_table(path: Path) -> None:
    write_windows(windows(), PLACE, CLASSES, path)


@pytest.mark.parametrize("write", [write_map, write_table])
def test_a_folder_that_is_a_file_is_an_error_and_stays_as_it_is(tmp_path: Path, write: Callable[[Path], None]) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="ile"):
        write(tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("write", [write_map, write_table])
@pytest.mark.parametrize("device", ["/dev/full"])
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, write: Callable[[Path], None], device: str) -> None:
    # What is written to this name goes to a device that is always full.
    (tmp_path / ".out.partial").symlink_to(device)
    with pytest.raises(OSError, match="No space left") as caught:
        write(tmp_path / "out")
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_stays_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "result.txt"
    path.write_text("the old one")

    def fail() -> None:
        with whole(path) as partial:
            partial.write_text("half of the n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "the old one"
    assert [path.name for path in tmp_path.iterdir()] == ["result.txt"]


def test_what_is_whole_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "result.txt"
    path.write_text("the old one")
    with whole(path) as partial:
        partial.write_text("the new one")
        assert path.read_text() == "the old one"
    assert path.read_text() == "the new one"
