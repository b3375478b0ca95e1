"""`tilewise batch --aoi` and `--bbox`: maps of a part of scenes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
from batch_runs import batch, errors, results_in
from rasterio.features import geometry_mask
from rasterio.warp import transform_geom
from shapely.geometry import box, mapping

from tilewise.bento.batch import Output, OutputOptions, RunOptions, SceneState, classify_scenes
from tilewise.bento.inference.windows import GridOptions
from tilewise.datasets.acquire.synthetic import synthesise_scene
from tilewise.datasets.scenes import SceneOptions
from tilewise.datasets.scenes.area import read_area

MAPS = ("--outputs", "classes,windows", "--clouds", "none")
BLOCKS = ("BLOCK_OFFSET_0_0", "BLOCK_OFFSET_1_0")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    synthesise_scene(path, 1, 8, 16)  # 2 × 4 blocks of 256
    return path


def area_of(scene: Path, path: Path, *corners: tuple[float, float]) -> Path:
    """Write a polygon whose corners are (column, row) of the scene, in its own system."""
    with rasterio.open(scene) as dataset:
        polygon = shapely.Polygon([dataset.transform @ corner for corner in corners])
        name = dataset.crs.to_string()
    content = {"type": "Feature", "geometry": mapping(polygon), "crs": {"properties": {"name": name}}}
    path.write_text(json.dumps(content))
    return path


def run(scene: Path, out: Path, model: Path, *more: object, status: int = 0) -> Any:
    done = batch(scene, "--out", out, "--model", model, *MAPS, *more)
    assert done.returncode == status, done.stderr
    return done


def class_map(out: Path) -> tuple[np.ndarray, Any]:
    with rasterio.open(out / "scene.classes.tif") as dataset:
        return dataset.read(1), dataset.transform


@pytest.mark.parametrize("stride", [64, 32])
def test_inside_the_area_the_map_is_the_whole_scenes_and_outside_there_is_none(
    scene: Path, linear_model: Path, tmp_path: Path, stride: int
) -> None:
    corners = ((700, 200), (900, 150), (960, 420), (650, 390))
    area = area_of(scene, tmp_path / "area.geojson", *corners)
    for name, limit in (("whole", None), ("part", read_area(area))):
        options = RunOptions(
            SceneOptions(clouds=None, area=limit), GridOptions(stride), OutputOptions((Output.CLASSES,))
        )
        (outcome,) = classify_scenes(scene, tmp_path / name, model=linear_model, options=options)
        assert outcome.state is SceneState.DONE
    (whole, there), (part, here) = class_map(tmp_path / "whole"), class_map(tmp_path / "part")
    left, top = (round(value) for value in ~there @ (here.c, here.f))
    same = whole[top : top + part.shape[0], left : left + part.shape[1]]
    inside = geometry_mask(
        [shapely.Polygon([(x - left, y - top) for x, y in corners])],
        part.shape,
        rasterio.Affine.identity(),
        invert=True,
    )
    np.testing.assert_array_equal(part, np.where(inside, same, 255))
    assert part.shape == (512, 512)


def test_hectares_and_windows_are_of_the_area_alone(scene: Path, linear_model: Path, tmp_path: Path) -> None:
    area = area_of(scene, tmp_path / "a.geojson", (70, 70), (190, 70), (190, 130), (70, 130))
    run(scene, tmp_path / "out", linear_model, "--aoi", area)
    pixels, _ = class_map(tmp_path / "out")
    (result,) = json.loads((tmp_path / "out" / "summary.json").read_text())["results"]
    assert sum(result["area_ha"].values()) == pytest.approx(120 * 60 / 100)
    assert (pixels != 255).sum() == 120 * 60
    windows = pq.read_table(tmp_path / "out" / "scene.windows.parquet")
    assert windows.num_rows == 4  # of the two rows and two columns of windows that it touches
    assert result["windows"] == 4
    assert result["skipped"] == 0


def test_what_the_area_does_not_touch_is_not_read(scene: Path, linear_model: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "scene.tif"
    content = bytearray(scene.read_bytes())
    with rasterio.open(scene) as dataset:
        for name in BLOCKS:
            start = int(dataset.get_tag_item(name, "TIFF", bidx=1))
            content[start : start + 64] = b"\xff" * 64
    damaged.write_bytes(content)
    far = area_of(scene, tmp_path / "far.geojson", (800, 20), (900, 20), (900, 120), (800, 120))
    near = area_of(scene, tmp_path / "near.geojson", (20, 20), (90, 20), (90, 90), (20, 90))
    run(damaged, tmp_path / "far", linear_model, "--aoi", far)
    done = run(damaged, tmp_path / "near", linear_model, "--aoi", near, status=1)
    assert "could not be decoded" in done.stderr or "truncated or corrupt" in done.stderr


def test_scenes_outside_the_area_are_named_and_counted_nowhere(
    scene: Path, linear_model: Path, tmp_path: Path
) -> None:
    synthesise_scene(tmp_path / "in" / "near.tif", 1, 2, 2)
    with rasterio.open(tmp_path / "in" / "near.tif") as dataset:
        profile, pixels = dataset.profile, dataset.read()
        tags, descriptions, bounds = dataset.tags(), dataset.descriptions, dataset.bounds
        west, south, east, north = shapely.geometry.shape(
            transform_geom(dataset.crs, "EPSG:4326", mapping(box(*bounds)))
        ).bounds
    profile["transform"] = profile["transform"] @ rasterio.Affine.translation(20_000, 0)
    with rasterio.open(tmp_path / "in" / "far.tif", "w", **profile) as dataset:
        dataset.write(pixels)
        dataset.update_tags(**tags)
        dataset.descriptions = descriptions
    bounds_text = f"{west},{south},{east},{north}"
    done = run(tmp_path / "in", tmp_path / "out", linear_model, "--bbox", bounds_text)
    assert "far: outside the area" in done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [result["name"] for result in summary["results"]] == ["near"]
    kept = results_in(tmp_path / "out")
    again = run(tmp_path / "in", tmp_path / "out", linear_model, "--bbox", bounds_text)
    assert "near: done already" in again.stderr
    assert results_in(tmp_path / "out") == kept
    seen = run(tmp_path / "in", tmp_path / "out", linear_model, "--bbox", bounds_text, "--dry-run")
    assert "nothing to do: outside the area" in seen.stdout


def test_an_area_without_any_scene_is_an_error(scene: Path, linear_model: Path, tmp_path: Path) -> None:
    done = run(scene, tmp_path / "out", linear_model, "--bbox", "0,0,1,1", status=1)
    assert errors(done) == ["error: no scene has a pixel inside the area; 1 were looked at"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--bbox", "1,2,3"), "four numbers W,S,E,N"),
        (("--bbox", "3,2,1,4"), "W below E"),
        (("--aoi", "none.geojson"), "there is no such file"),
        (("--aoi", "none.geojson", "--bbox", "0,0,1,1"), "give one of them"),
    ],
)
def test_areas_that_cannot_be_used_end_the_command(
    scene: Path, linear_model: Path, tmp_path: Path, options: tuple[str, ...], why: str
) -> None:
    done = batch(scene, "--out", tmp_path / "out", "--model", linear_model, *options)
    assert done.returncode in (1, 2)
    assert why in done.stderr
