"""What a classified scene leaves on disk: maps that other programs read, each whole or absent."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from geotiffs import CORNER, UTM
from rasterio.crs import CRS
from tiny_onnx import metadata

from tilewise.bento.inference.blending import NO_CLASS, OUT_OF_DISTRIBUTION
from tilewise.bento.inference.window_grid import SceneInfo
from tilewise.bento.results.maps import MapWriter, class_spec, model_tags
from tilewise.datasets.core.tile import Georeference
from tilewise.datasets.readers.eurosat import CLASSES
from tilewise.models.class_colours import colours
from tilewise.models.model_file import ModelMetadata

PLACE = Georeference(UTM, CORNER)
MODEL = metadata(CLASSES)
ACROSS_180 = Georeference(CRS.from_epsg(32660), Affine(10, 0, 833_700, 0, -10, 0))


def class_map(height: int = 100, width: int = 150) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, len(CLASSES), (height // 16 + 1, width // 16 + 1), dtype=np.uint8)
    pixels = blocks.repeat(16, axis=0).repeat(16, axis=1)[:height, :width].copy()
    pixels[:10, :20] = NO_CLASS
    return pixels


def write_class_map(pixels: npt.NDArray[np.uint8], folder: Path, model: ModelMetadata = MODEL) -> Path:
    """Write `scene.classes.tif` as the service and batch inference do."""
    folder.mkdir(exist_ok=True)
    info = SceneInfo("scene", PLACE, *pixels.shape)
    writer = MapWriter(folder, info, class_spec(model), model_tags(model, "ab" * 32))
    writer.add(pixels[None])
    return writer.finish()[0]


# Class maps.


@pytest.fixture(scope="module")
def map_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_map(class_map(), tmp_path_factory.mktemp("map"))


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
        assert dataset.tags()["MODEL_SHA256"] == "ab" * 32
        assert dataset.descriptions == ("class",)
    beside = ElementTree.parse(map_path.with_name("scene.classes.tif.aux.xml"))  # noqa: S314 - we wrote it
    assert categories(beside) == dict(enumerate(CLASSES)) | {OUT_OF_DISTRIBUTION: "out_of_distribution"}
    assert beside.find("PAMRasterBand[@band='1']/CategoryNames") is not None


def categories(beside: Any) -> dict[int, str]:
    """The named numbers of a `.aux.xml`."""
    return {number: node.text for number, node in enumerate(beside.iter("Category")) if node.text}


def test_qgis_finds_a_style_with_the_colour_and_the_name_of_every_number_that_means_something(
    tmp_path: Path,
) -> None:
    names = ("Crops & <fields>", "Forest", '"Sea"')
    path = write_class_map(np.zeros((64, 64), np.uint8), tmp_path, metadata(names))
    style = ElementTree.parse(path.with_suffix(".qml"))  # noqa: S314 - we wrote it
    renderer = style.find("pipe/rasterrenderer")
    assert renderer is not None
    assert (renderer.get("type"), renderer.get("band")) == ("paletted", "1")
    entries = {int(e.get("value", "")): (e.get("label"), e.get("color")) for e in style.iter("paletteEntry")}
    assert list(entries) == [0, 1, 2, OUT_OF_DISTRIBUTION]
    assert [label for label, _ in entries.values()] == [*names, "unlike the training data"]
    assert entries[1][1] == "#1e6432"


def test_patches_below_the_least_size_get_the_class_of_their_largest_neighbour(tmp_path: Path) -> None:
    pixels = np.zeros((600, 40), np.uint8)
    pixels[:, 20:] = 1
    pixels[10:12, 5:8] = 2  # six pixels in the first class
    pixels[530:533, 30:33] = 2  # nine in the second, in another block
    pixels[20:22, 20:22] = NO_CLASS
    pixels[40:42, 20:22] = OUT_OF_DISTRIBUTION
    expected = pixels.copy()
    expected[10:12, 5:8] = 0
    writer = MapWriter(tmp_path, SceneInfo("s", PLACE, 600, 40), class_spec(MODEL), {}, min_pixels=7)
    writer.add(pixels[None])
    with rasterio.open(writer.finish()[0]) as dataset:
        np.testing.assert_array_equal(dataset.read(1), expected)
        statistics = dataset.tags(1)
    assert float(statistics["STATISTICS_MEAN"]) == pytest.approx(expected[expected != NO_CLASS].mean())


def test_class_names_with_signs_of_xml_stay_as_they_are(tmp_path: Path) -> None:
    names = ("Crops & <fields>", "Forêt", '"Sea"')
    path = write_class_map(np.zeros((64, 64), np.uint8), tmp_path, metadata(names))
    beside = ElementTree.parse(tmp_path / "scene.classes.tif.aux.xml")  # noqa: S314 - we wrote it
    assert list(categories(beside).values())[:3] == list(names)
    with rasterio.open(path) as dataset:
        assert json.loads(dataset.tags()["CLASSES"]) == list(names)


def test_a_large_map_has_overviews_of_whole_classes(tmp_path: Path) -> None:
    pixels = class_map(1100, 1300)
    with rasterio.open(write_class_map(pixels, tmp_path)) as dataset:
        assert dataset.overviews(1)[0] == 2
        assert dataset.is_tiled
        half = dataset.read(1, out_shape=(550, 650))
    # By mode: a block of one class stays that class, and no class is made up between two.
    np.testing.assert_array_equal(half[8:544:8, 8:640:8], pixels[16:1088:16, 16:1280:16])


def test_the_same_map_is_the_same_bytes(map_path: Path, tmp_path: Path) -> None:
    write_class_map(class_map(), tmp_path)
    for name in ("scene.classes.tif", "scene.classes.tif.aux.xml", "scene.classes.qml"):
        assert (tmp_path / name).read_bytes() == map_path.with_name(name).read_bytes()


def test_nothing_but_the_map_its_class_names_and_its_style_is_left(tmp_path: Path) -> None:
    write_class_map(class_map(), tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "scene.classes.qml",
        "scene.classes.tif",
        "scene.classes.tif.aux.xml",
    ]
