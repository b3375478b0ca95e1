"""Maps of scenes as other programs read them: grid, values, colours; and a disk that fails is an error."""

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from geotiffs import CORNER, UTM
from tiny_onnx import metadata

from tilewise.bento.inference.blending import NO_CLASS
from tilewise.bento.inference.window_grid import SceneInfo
from tilewise.bento.results.maps import (
    NO_PROBABILITY,
    STEPS,
    MapSpec,
    MapWriter,
    class_spec,
    colours,
    outlier_spec,
    probabilities_spec,
    probability_spec,
    to_steps,
)
from tilewise.datasets.core.tile import Georeference
from tilewise.datasets.readers.eurosat import CLASSES

MODEL = metadata(CLASSES)
INFO = SceneInfo("scene", Georeference(UTM, CORNER), 1100, 700)


def blocks(height: int, width: int, dtype: str, bands: int = 1) -> npt.NDArray[Any]:
    """(bands, height, width) of squares of 20, with a corner of no data."""
    rng = np.random.default_rng(height)
    squares = rng.integers(0, len(CLASSES), (bands, height // 20 + 1, width // 20 + 1))
    pixels = squares.repeat(20, axis=1).repeat(20, axis=2)[:, :height, :width].astype(dtype)
    pixels[:, :30, :50] = np.nan if dtype == "float32" else NO_CLASS
    return pixels


def write(
    folder: Path, spec: MapSpec, pixels: npt.NDArray[Any], step: int = 64, scene_info: SceneInfo = INFO
) -> Path:
    folder.mkdir(exist_ok=True)
    writer = MapWriter(
        folder, replace(scene_info, height=pixels.shape[1], width=pixels.shape[2]), spec, {"MODEL": "m"}
    )
    for row in range(0, pixels.shape[1], step):
        writer.add(pixels[:, row : row + step])
    return writer.finish()[0]


@pytest.mark.parametrize("step", [1, 64, 513, 5000])
@pytest.mark.parametrize("make", [class_spec, outlier_spec])
def test_rows_come_back_however_they_were_handed_over(tmp_path: Path, make: Any, step: int) -> None:
    spec = make(MODEL)
    pixels = blocks(600, 90, spec.dtype)
    with rasterio.open(write(tmp_path, spec, pixels, step)) as dataset:
        assert (dataset.crs, dataset.transform) == (UTM, CORNER)
        np.testing.assert_array_equal(dataset.read(), pixels)


def test_a_class_map_is_a_cog_with_overviews_colours_names_and_statistics(tmp_path: Path) -> None:
    pixels = blocks(1100, 700, "uint8")
    path = write(tmp_path, class_spec(MODEL), pixels)
    with rasterio.open(path) as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.overviews(1) == [2, 4]
        assert dataset.nodata == NO_CLASS
        assert [dataset.colormap(1)[index][:3] for index in range(len(CLASSES))] == colours(CLASSES)
        assert json.loads(dataset.tags()["CLASSES"]) == list(CLASSES)
        statistics = dataset.tags(1)
    known = pixels[pixels != NO_CLASS].astype(float)
    assert float(statistics["STATISTICS_MINIMUM"]) == known.min()
    assert float(statistics["STATISTICS_MAXIMUM"]) == known.max()
    assert float(statistics["STATISTICS_MEAN"]) == pytest.approx(known.mean())
    assert float(statistics["STATISTICS_STDDEV"]) == pytest.approx(known.std())
    assert float(statistics["STATISTICS_VALID_PERCENT"]) == pytest.approx(
        100 * known.size / pixels.size, abs=0.01
    )
    assert "<Category>SeaLake</Category>" in path.with_name(f"{path.name}.aux.xml").read_text()


def test_overviews_of_classes_hold_no_class_that_lies_between_two(tmp_path: Path) -> None:
    pixels = np.where(np.arange(1024) // 64 % 2, 9, 1).astype(np.uint8)[None, None].repeat(1024, axis=1)
    with rasterio.open(write(tmp_path, class_spec(MODEL), pixels), overview_level=0) as overview:
        assert set(np.unique(overview.read(1))) == {1, 9}


def test_probabilities_are_kept_in_steps_that_gdal_scales_back(tmp_path: Path) -> None:
    probabilities = (
        np.random.default_rng(0)
        .dirichlet(np.ones(len(CLASSES)), (64, 80))
        .astype(np.float32)
        .transpose(2, 0, 1)
    )
    probabilities[:, :5] = np.nan
    with rasterio.open(write(tmp_path, probabilities_spec(MODEL), to_steps(probabilities))) as dataset:
        assert dataset.descriptions == CLASSES
        assert dataset.scales == (1 / STEPS,) * len(CLASSES)
        found = dataset.read(masked=True) * dataset.scales[0]
    assert found.mask[:, :5].all()
    assert np.abs(found[:, 5:] - probabilities[:, 5:]).max() <= 0.5 / STEPS + 1e-6


def test_no_probability_is_not_a_probability_of_0() -> None:
    np.testing.assert_array_equal(
        to_steps(np.array([0, 1, np.nan, 0.5])), [0, STEPS, NO_PROBABILITY, STEPS // 2]
    )


def test_the_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    pixels = blocks(700, 300, "float32")
    first, second = (
        write(tmp_path / name, outlier_spec(MODEL), pixels, step) for name, step in (("a", 64), ("b", 7))
    )
    assert first.read_bytes() == second.read_bytes()


def test_a_map_without_a_single_class_is_a_map(tmp_path: Path) -> None:
    path = write(tmp_path, class_spec(MODEL), np.full((1, 20, 20), NO_CLASS, np.uint8))
    with rasterio.open(path) as dataset:
        assert (dataset.read(1) == NO_CLASS).all()
        assert "STATISTICS_MEAN" not in dataset.tags(1)


def test_only_the_map_is_left_in_the_folder(tmp_path: Path) -> None:
    write(tmp_path, probability_spec(MODEL), blocks(64, 64, "uint8"))
    assert [path.name for path in tmp_path.iterdir()] == ["scene.probability.tif"]


@pytest.mark.parametrize("full", [".scene.outlier.tif.raw", "scene.outlier.tif"])
def test_a_disk_that_is_full_is_an_error_that_says_so(tmp_path: Path, full: str) -> None:
    (tmp_path / full).symlink_to(
        "/dev/full"
    )  # what is written to this name goes to a device that is always full
    pixels = np.random.default_rng(0).random((1, 600, 600), np.float32)
    with pytest.raises(OSError) as caught:
        write(tmp_path, outlier_spec(MODEL), pixels)
    assert caught.value.errno == errno.ENOSPC


def test_a_map_that_was_damaged_on_its_way_to_the_disk_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tilewise.bento.results.maps as maps

    copy = maps.copy_raster

    def damage(source: Path, target: Path, **options: Any) -> None:
        copy(source, target, **options)
        with target.open("r+b") as file:
            file.seek(-600, 2)
            file.write(bytes(100))

    monkeypatch.setattr(maps, "copy_raster", damage)
    with pytest.raises(OSError, match="could not be written whole"):
        write(tmp_path, outlier_spec(MODEL), np.random.default_rng(0).random((1, 300, 300), np.float32))
