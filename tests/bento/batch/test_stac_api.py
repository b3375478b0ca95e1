"""`tilewise batch --stac`: a real STAC API is searched, and what it finds is read from a real server."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
import stac_server
from batch_runs import batch, errors
from range_server import serving_files
from rasterio.warp import transform_geom
from scene_files import stac_item
from shapely.geometry import box, mapping, shape

from tilewise.bento.batch import Output, OutputOptions, RunOptions, classify_scenes
from tilewise.datasets.acquire.synthetic import synthesise_scene
from tilewise.datasets.core.errors import FetchError, NoTilesError, SceneError
from tilewise.datasets.scenes import SceneOptions
from tilewise.datasets.scenes.area import Area, area_of_bounds
from tilewise.datasets.scenes.stac_api import StacSearch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(stac_server.missing()), reason=stac_server.missing() or "it runs"),
]
COLLECTION = "sentinel-2-l2a"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    for number in range(3):
        synthesise_scene(folder / f"scene{number}.tif", number, 2, 3)
    return folder


@pytest.fixture(scope="module")
def area(folder: Path) -> Area:
    return area_of_bounds(*_outline(folder).buffer(-0.002).bounds)


def _outline(folder: Path) -> shape:
    with rasterio.open(folder / "scene0.tif") as dataset:
        return shape(transform_geom(dataset.crs, "EPSG:4326", mapping(box(*dataset.bounds))))


@pytest.fixture(scope="module")
def api(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Items of one place, of 1, 2 and 3 June, with 0, 30 and 60 % of clouds; and one far away."""
    with rasterio.open(folder / "scene0.tif") as dataset:
        bands = [{"name": name} for name in dataset.descriptions]
    outline = _outline(folder)
    with serving_files(folder) as server:
        items = []
        for number, geometry in enumerate([outline, outline, outline, box(100, 10, 101, 11)]):
            asset = {"href": f"{server.url}/scene{number % 3}.tif", "eo:bands": bands, "roles": ["data"]}
            properties = {"datetime": f"2024-06-0{number + 1}T10:00:00Z", "eo:cloud_cover": 30.0 * number}
            item = stac_item({"data": asset}, f"item{number}", **properties)
            items.append({**item, "geometry": mapping(geometry), "bbox": list(geometry.bounds)})
        with stac_server.stac_api(tmp_path_factory.mktemp("api"), COLLECTION, items) as url:
            yield url


def found(search: StacSearch, area: Area) -> set[str]:
    return {item.name for item in search.find(area)}


def test_items_are_found_by_area_dates_clouds_and_number(api: str, area: Area) -> None:
    june = "2024-06-01/2024-06-30"
    assert found(StacSearch(api, june), area) == {"item0", "item1", "item2"}
    assert found(StacSearch(api, "2024-06-02/2024-06-03"), area) == {"item1", "item2"}
    assert found(StacSearch(api, "2024-06-02/.."), area) == {"item1", "item2"}
    assert found(StacSearch(api, june, max_cloud=30), area) == {"item0", "item1"}
    assert len(found(StacSearch(api, june, limit=2), area)) == 2
    assert found(StacSearch(api, june), area_of_bounds(100.2, 10.2, 100.4, 10.4)) == {"item3"}
    with pytest.raises(NoTilesError, match=r"no item of sentinel-2-l2a .* of 2023.* at most 10 % of clouds"):
        StacSearch(api, "2023-06-01/2023-06-30", 10).find(area)
    with pytest.raises(NoTilesError, match="no item of landsat"):
        StacSearch(api, june, collections=("landsat",)).find(area)


def test_what_is_found_is_listed_and_classified_as_from_disk(
    api: str, folder: Path, area: Area, linear_model: Path, tmp_path: Path
) -> None:
    bounds = ",".join(f"{edge:.9f}" for edge in area.geometry.bounds)
    search = ("--stac", api, "--bbox", bounds, "--dates", "2024-06-01/2024-06-30", "--max-cloud", 40)
    common = ("--out", tmp_path / "out", "--model", linear_model, "--outputs", "classes", "--clouds", "none")
    seen = batch(*search, *common, "--dry-run")
    assert seen.returncode == 0, seen.stderr
    assert {line.split(":")[0] for line in seen.stdout.splitlines()} >= {"http"}
    assert seen.stdout.count("to do: ") == 2
    assert not (tmp_path / "out").exists()
    done = batch(*search, *common)
    assert done.returncode == 0, done.stderr
    west, south, east, north = map(float, bounds.split(","))
    options = RunOptions(
        SceneOptions(clouds=None, area=area_of_bounds(west, south, east, north)),
        outputs=OutputOptions((Output.CLASSES,)),
    )
    local = list(
        classify_scenes(folder / "scene1.tif", tmp_path / "local", model=linear_model, options=options)
    )
    assert len(local) == 1
    with (
        rasterio.open(tmp_path / "out" / "item1.classes.tif") as there,
        rasterio.open(tmp_path / "local" / "scene1.classes.tif") as here,
    ):
        np.testing.assert_array_equal(there.read(), here.read())


def test_an_api_that_does_not_answer_is_named(api: str, area: Area) -> None:
    with pytest.raises(FetchError, match=f"{api}/elsewhere: the STAC API does not answer"):
        StacSearch(f"{api}/elsewhere", "2024-06-01/..").find(area)


@pytest.mark.parametrize("dates", ["June", "2024-06-02", "2024-06-02/2024-06-01", "2024-06-31/..", "a/b/c"])
def test_dates_that_are_none_are_refused(dates: str) -> None:
    with pytest.raises(SceneError, match="A/B is needed"):
        StacSearch("http://127.0.0.1", dates)


def test_options_that_belong_together_are_asked_for(tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    assert "name SCENES, or a STAC API" in batch(*out).stderr
    assert "--stac needs an area" in batch(*out, "--stac", "http://x", "--dates", "../..").stderr
    assert errors(batch(*out, "--stac", "http://x", "--bbox", "0,0,1,1", "--dates", "June"))
