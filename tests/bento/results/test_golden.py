"""Where results lie: maps, windows and polygons against GDAL's own programs, to the pixel."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
from gdal_tools import needs_gdal, values_at

from tilewise.bento.batch import RunOptions, classify_scenes
from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.windows import GridOptions, WindowAnswer
from tilewise.datasets.acquire.synthetic import synthesise_scene
from tilewise.datasets.core.tile import Georeference, place_bands
from tilewise.datasets.readers.eurosat import CLASSES
from tilewise.datasets.scenes import SceneOptions

pytestmark = needs_gdal
ROWS, COLUMNS = 3, 5  # of windows: no square, so that rows are not columns


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    synthesise_scene(tmp_path / "scene.tif", 3, ROWS, COLUMNS)
    return tmp_path / "scene.tif"


@pytest.fixture
def place(scene: Path) -> Path:
    """A raster on the scene's grid whose numbers are 1000 × row + column."""
    down, across = np.indices((64 * ROWS, 64 * COLUMNS))
    with rasterio.open(scene) as dataset:
        grid = {"crs": dataset.crs, "transform": dataset.transform, "width": dataset.width}
        size = {"height": dataset.height, "count": 1, "dtype": "int32"}
    path = scene.with_name("place.tiff")
    with rasterio.open(path, "w", driver="GTiff", **grid, **size) as dataset:
        dataset.write((1000 * down + across).astype(np.int32), 1)
    return path


def classified(scene: Path, model: Path, **grid: int) -> Path:
    options = RunOptions(SceneOptions(clouds=None), GridOptions(**grid))
    (outcome,) = classify_scenes(scene, scene.parent / "out", model=model, options=options)
    assert outcome.error is None
    return scene.parent / "out"


def inside_corners(outline: shapely.Geometry, pixels: float = 0.5) -> list[tuple[float, float]]:
    """Points half a pixel inside each corner of a window of 64 pixels."""
    middle = outline.centroid
    corners = list(outline.exterior.coords)[:4]
    part = 1 - 2 * pixels / 64
    return [(middle.x + part * (x - middle.x), middle.y + part * (y - middle.y)) for x, y in corners]


def test_every_window_lies_where_its_pixels_do(scene: Path, place: Path, linear_model: Path) -> None:
    table = pq.read_table(classified(scene, linear_model) / "scene.windows.parquet")
    outlines = shapely.from_wkb(table["geometry"].to_pylist())
    points = [point for outline in outlines for point in inside_corners(outline)]
    places = np.array(values_at(place, points)).reshape(-1, 4)
    starts = 1000 * np.array(table["row"].to_pylist()) + np.array(table["column"].to_pylist())
    np.testing.assert_array_equal(
        np.sort(places - starts[:, None], axis=1), [[0, 63, 63000, 63063]] * len(table)
    )


def test_a_window_s_own_outline_is_that_of_the_pixels_it_names(place: Path) -> None:
    with rasterio.open(place) as dataset:
        georeference = Georeference(dataset.crs, dataset.transform)
    window = WindowAnswer(64, 128, 64, 64, 1.0, None)
    outline = shapely.geometry.shape(window.footprint(georeference))
    assert sorted(values_at(place, inside_corners(outline))) == [64128, 64191, 127128, 127191]


@pytest.mark.parametrize("cell", [1, 16])
def test_the_class_map_has_each_window_s_class_up_to_its_corners(
    scene: Path, linear_model: Path, cell: int
) -> None:
    out = classified(scene, linear_model, cell=cell)
    table = pq.read_table(out / "scene.windows.parquet")
    names = table["class"].to_pylist()
    assert len(set(names)) > 3, "neighbours must differ for a shift to show"
    outlines = shapely.from_wkb(table["geometry"].to_pylist())
    found = values_at(out / "scene.classes.tif", [p for outline in outlines for p in inside_corners(outline)])
    assert [CLASSES[value] for value in found] == [name for name in names for _ in range(4)]


def test_a_class_of_the_map_is_that_of_the_pixels_beneath(
    scene: Path, linear_model: Path, engine: Engine
) -> None:
    out = classified(scene, linear_model)
    with rasterio.open(out / "scene.classes.tif") as made, rasterio.open(scene) as dataset:
        found, pixels = made.read(1), place_bands(dataset.read(), dataset.descriptions)
    for row, column in np.ndindex(ROWS, COLUMNS):
        part = np.s_[64 * row : 64 * (row + 1), 64 * column : 64 * (column + 1)]
        expected = engine.classify(pixels[None, :, *part]).probabilities.argmax()
        assert (found[part] == expected).all()


def test_polygons_have_the_class_that_the_map_has_within_them(scene: Path, linear_model: Path) -> None:
    out = classified(scene, linear_model)
    table = pq.read_table(out / "scene.polygons.parquet")
    outlines = shapely.from_wkb(table["geometry"].to_pylist())
    within = [outline.buffer(-4e-5) for outline in outlines]  # some four metres
    points = [(x, y) for part in within for x, y in part.exterior.coords]
    expected = [
        i for i, p in zip(table["class_index"].to_pylist(), within, strict=True) for _ in p.exterior.coords
    ]
    assert values_at(out / "scene.classes.tif", points) == expected
