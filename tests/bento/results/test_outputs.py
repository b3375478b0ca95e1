"""What a classified scene leaves on disk: maps that other programs read, each whole or absent."""

import errno
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from geotiffs import CORNER, UTM
from rasterio.crs import CRS
from tiny_onnx import metadata

from tilewise.bento.inference.scene import NO_CLASS
from tilewise.bento.results.maps import colours, whole, write_class_map
from tilewise.datasets.core.tile import Georeference
from tilewise.datasets.readers.eurosat import CLASSES
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
    assert sorted(path.name for path in folder.iterdir()) == ["m.tif", "m.tif.aux.xml"]


# Whole or absent.


def write_map(path: Path, model: ModelMetadata = MODEL) -> None:
    write_class_map(class_map(), PLACE, model, path)


def test_a_folder_that_is_a_file_is_an_error_and_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="ile"):
        write_map(tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("device", ["/dev/full"])
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, device: str) -> None:
    # What is written to this name goes to a device that is always full.
    (tmp_path / ".out.partial").symlink_to(device)
    with pytest.raises(OSError, match="No space left") as caught:
        write_map(tmp_path / "out")
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
