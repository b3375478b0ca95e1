"""Areas of interest: what files of polygons mean, and which pixels of a scene they keep."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.warp import transform, transform_geom
from rasterio.windows import Window
from rasters import L1C_TAGS, write_tiff
from scene_files import CORNER, CRS, smooth
from shapely.geometry import mapping, shape

from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.core.errors import OutsideAreaError, SceneError
from tilewise.datasets.core.tile import Georeference
from tilewise.datasets.scenes import SceneOptions, find_scenes
from tilewise.datasets.scenes.area import Area, area_of_bounds, read_area
from tilewise.datasets.scenes.ground import Grid

SIZE = 640
WEST, NORTH = CORNER
SQUARE = shapely.box(WEST + 2010, NORTH - 3010, WEST + 3010, NORTH - 2010)  # 100 × 100 pixels


def write_geojson(path: Path, *geometries: Any, **members: Any) -> Path:
    features = [{"type": "Feature", "id": f"f{n}", "geometry": mapping(g)} for n, g in enumerate(geometries)]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features, **members}))
    return path


def named_crs(name: str) -> dict[str, Any]:
    return {"crs": {"type": "name", "properties": {"name": name}}}


def in_degrees(geometry: Any) -> Any:
    return shape(transform_geom(CRS, "EPSG:4326", mapping(geometry)))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    more = {"tiled": True, "blockxsize": 64, "blockysize": 64}
    return write_tiff(path, smooth(13, SIZE), BAND_NAMES, L1C_TAGS, CORNER, **more)


def kept(scene: Path, area: Area) -> np.ndarray:
    """bool (SIZE, SIZE): the pixels of the whole scene that are inside the area."""
    (source,) = find_scenes([scene], SceneOptions(clouds=None, area=area))
    with source.open() as opened:
        inside = opened.inside(Window(0, 0, opened.width, opened.height))
        x, y = opened.georeference.transform @ (0, 0)
        assert (opened.read(Window(0, 0, opened.width, opened.height)) > 0).all()
    whole = np.zeros((SIZE, SIZE), bool)
    row, column = round((NORTH - y) / 10), round((x - WEST) / 10)
    whole[row : row + inside.shape[0], column : column + inside.shape[1]] = inside
    return whole


def square_of(rows: slice, columns: slice) -> np.ndarray:
    whole = np.zeros((SIZE, SIZE), bool)
    whole[rows, columns] = True
    return whole


def test_a_geojson_is_in_degrees_unless_it_names_its_system(scene: Path, tmp_path: Path) -> None:
    expected = square_of(slice(201, 301), slice(201, 301))
    own = write_geojson(tmp_path / "own.geojson", SQUARE, **named_crs("urn:ogc:def:crs:EPSG::32632"))
    np.testing.assert_array_equal(kept(scene, read_area(own)), expected)
    degrees = write_geojson(tmp_path / "degrees.geojson", in_degrees(SQUARE))
    assert (kept(scene, read_area(degrees)) != expected).mean() < 0.001  # edges are straight in degrees


def test_a_geopackage_is_reprojected_from_its_own_system(scene: Path, tmp_path: Path) -> None:
    path = tmp_path / "area.gpkg"
    moved = shape(transform_geom(CRS, "EPSG:32633", mapping(SQUARE)))
    pyogrio.raw.write(
        path, np.array([shapely.to_wkb(moved)]), [], [], crs="EPSG:32633", geometry_type="Polygon", layer="a"
    )
    expected = square_of(slice(201, 301), slice(201, 301))
    assert (kept(scene, read_area(path)) != expected).sum() <= 4


def test_features_are_united_and_holes_stay_out(scene: Path, tmp_path: Path) -> None:
    hole = SQUARE.difference(shapely.box(WEST + 2200, NORTH - 2600, WEST + 2400, NORTH - 2400))
    other = shapely.box(WEST + 2500, NORTH - 3500, WEST + 3500, NORTH - 2500)
    system = named_crs("EPSG:32632")
    path = write_geojson(tmp_path / "two.geojson", hole, other, **system)
    expected = square_of(slice(201, 301), slice(201, 301)) | square_of(slice(250, 350), slice(250, 350))
    expected[240:260, 220:240] = False
    np.testing.assert_array_equal(kept(scene, read_area(path)), expected)


def test_a_rectangle_of_degrees_is_an_area(scene: Path) -> None:
    west, south, east, north = in_degrees(SQUARE).bounds
    found = kept(scene, area_of_bounds(west, south, east, north))
    (xs, ys) = transform("EPSG:4326", CRS, [west, east], [north, south])
    assert found[square_of(slice(205, 297), slice(205, 297))].all()
    assert abs(found.sum() - (xs[1] - xs[0]) * (ys[0] - ys[1]) / 100) < 400


def test_a_long_edge_in_degrees_is_straight_in_degrees(tmp_path: Path) -> None:
    """A parallel curves in UTM: halfway along 3° its middle lies a kilometre from the straight line."""
    path = write_geojson(tmp_path / "wide.geojson", shapely.box(6, 45, 9, 45.2))
    moved = read_area(path)
    (x,), (y,) = transform("EPSG:4326", CRS, [7.5], [45.0])
    grid = Grid(
        Georeference(rasterio.crs.CRS.from_user_input(CRS), Affine(10, 0, x - 5000, 0, -10, y + 5000)),
        1000,
        1000,
    )
    edge = moved.on_grid(grid)
    assert not edge.contains(shapely.Point(x, y - 2))
    assert edge.contains(shapely.Point(x, y + 2))


def test_the_grid_is_cut_to_the_area_in_whole_windows(scene: Path, tmp_path: Path) -> None:
    area = read_area(write_geojson(tmp_path / "a.geojson", SQUARE, **named_crs("EPSG:32632")))
    (source,) = find_scenes([scene], SceneOptions(clouds=None, area=area))
    (whole,) = find_scenes([scene], SceneOptions(clouds=None))
    with source.open() as cut, whole.open() as full:
        assert (cut.height, cut.width) == (256, 256)
        offset = round((cut.georeference.transform.c - WEST) / 10)
        assert offset == 128
        np.testing.assert_array_equal(cut.read(Window(70, 80, 50, 60)), full.read(Window(198, 208, 50, 60)))


def test_a_scene_beside_the_area_is_outside_of_it(scene: Path) -> None:
    (source,) = find_scenes([scene], SceneOptions(area=area_of_bounds(0, 0, 1, 1)))
    with pytest.raises(OutsideAreaError, match="scene: no pixel of it is inside --bbox"), source.open():
        pass


def test_another_area_is_another_input_but_not_another_name(scene: Path, tmp_path: Path) -> None:
    system = named_crs("EPSG:32632")
    first = read_area(write_geojson(tmp_path / "a.geojson", SQUARE, **system))
    renamed = read_area(write_geojson(tmp_path / "b.geojson", SQUARE, **system))
    other = read_area(write_geojson(tmp_path / "c.geojson", SQUARE.buffer(50), **system))
    prints = [
        find_scenes([scene], SceneOptions(area=area))[0].fingerprint() for area in (first, renamed, other)
    ]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("geometry", "why"),
    [
        ({"type": "Point", "coordinates": [1, 2]}, r"a.geojson: feature 2 \(x\) is a Point"),
        ({"type": "Polygon", "coordinates": []}, r"a.geojson: feature 2 \(x\) is empty"),
        (
            {"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [0, 1], [1, 0], [0, 0]]]},
            r"a.geojson: feature 2 \(x\) is not a valid polygon \(Self-intersection",
        ),
        ({"type": "Polygon", "coordinates": "no"}, r"a.geojson: feature 2 \(x\) has no geometry"),
        (None, r"a.geojson: feature 2 \(x\) has no geometry"),
    ],
)
def test_errors_name_the_file_and_the_feature(tmp_path: Path, geometry: Any, why: str) -> None:
    good = {"type": "Feature", "geometry": mapping(shapely.box(0, 0, 1, 1))}
    bad = {"type": "Feature", "id": "x", "geometry": geometry}
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [good, bad]}))
    with pytest.raises(SceneError, match=why):
        read_area(path)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.geojson", "{", "not valid JSON"),
        ("a.geojson", "[]", "not a GeoJSON"),
        ("a.geojson", '{"type": "FeatureCollection", "features": []}', "no feature"),
        ("a.geojson", '{"type": "Point", "coordinates": [1, 2], "crs": {"x": 1}}', "member crs"),
        ("a.gpkg", "no database", "not a GeoPackage"),
        ("a.shp", "", "an area is a GeoJSON"),
    ],
)
def test_files_that_are_no_area_are_refused(tmp_path: Path, name: str, content: str, why: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(SceneError, match=why):
        read_area(tmp_path / name)


@pytest.mark.parametrize("bounds", [(2, 0, 1, 1), (0, 1, 1, 1), (0, 0, 1, 91), (-181, 0, 1, 1)])
def test_rectangles_that_are_none_are_refused(bounds: tuple[float, float, float, float]) -> None:
    with pytest.raises(SceneError, match="W,S,E,N in degrees"):
        area_of_bounds(*bounds)
