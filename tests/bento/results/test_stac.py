"""STAC items as catalogues take them: valid, complete, and the same for the same scene."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from affine import Affine
from geotiffs import CORNER, UTM
from rasterio.crs import CRS
from rasterio.warp import transform_bounds
from stac_rules import SCHEMAS
from tiny_onnx import metadata

from tilewise.bento.inference.window_grid import SceneInfo
from tilewise.bento.results.stac import write_item
from tilewise.datasets.core.tile import Georeference
from tilewise.datasets.readers.eurosat import CLASSES
from tilewise.models.model_file import ModelMetadata
from tilewise.models.model_item import MLM

pystac = pytest.importorskip("pystac")

FILES = [
    "scene.classes.tif",
    "scene.classes.tif.aux.xml",
    "scene.classes.qml",
    "scene.probability.tif",
    "scene.polygons.geojson",
    "scene.quicklook.png",
    "scene.truecolour.jpg",
    "scene.windows.fgb",
    "scene.windows.gpkg",
    "scene.windows.parquet",
]
INFO = SceneInfo(
    "scene",
    Georeference(UTM, CORNER),
    1000,
    700,
    ("/data/in/scene.tif",),
    "2021-07-01T11:20:00Z",
    "sentinel-2a",
)


def item(folder: Path, scene_info: SceneInfo = INFO, model: ModelMetadata | None = None) -> dict[str, Any]:
    files = [folder / name.replace("scene", scene_info.name, 1) for name in FILES]
    known = model or metadata(CLASSES)
    path = folder / "s.json"
    written = write_item(path, scene_info, known, files, Path("/data/m.onnx"), "ab" * 32, Path("/data/out"))
    content: dict[str, Any] = json.loads(written.read_text())
    return content


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Any:
    """pystac's validator, which finds every schema here and would fail where it had to fetch one."""
    from pystac.validation.stac_validator import JsonSchemaSTACValidator

    validator = JsonSchemaSTACValidator()
    validator.schema_cache |= SCHEMAS
    monkeypatch.setattr(pystac.StacIO, "default", lambda: pytest.fail("a schema is fetched from the network"))
    return validator


def validate(content: dict[str, Any], validator: Any) -> list[str]:
    found: list[str] = pystac.Item.from_dict(content).validate(validator)
    return found


@pytest.mark.parametrize(
    "scene_info",
    [
        INFO,
        SceneInfo("undated", INFO.georeference, 50, 60),
        SceneInfo("far", Georeference(CRS.from_epsg(32660), Affine(10, 0, 833_700, 0, -10, 0)), 100, 128),
        SceneInfo(
            "own", Georeference(CRS.from_proj4("+proj=laea +lat_0=45 +lon_0=9 +datum=WGS84"), CORNER), 10, 10
        ),
    ],
    ids=lambda scene_info: scene_info.name,
)
def test_an_item_is_valid_with_its_four_extensions(
    tmp_path: Path, offline: Any, scene_info: SceneInfo
) -> None:
    content = item(tmp_path, scene_info)
    assert len(content["stac_extensions"]) == 4
    assert len(validate(content, offline)) == 5  # STAC itself and each extension


def test_an_item_names_how_pixels_became_classes(tmp_path: Path) -> None:
    scene_info = replace(INFO, lineage="Windows of 32 and 64 pixels, 8 pixels apart")
    written = write_item(
        *(tmp_path / "s.json", scene_info, metadata(CLASSES), [], Path("/m.onnx"), "ab" * 32, tmp_path),
        smooth=240,
        min_area=0.5,
    )
    assert json.loads(written.read_text())["properties"]["processing:lineage"] == (
        "Windows of 32 and 64 pixels, 8 pixels apart; smoothed by the majority in squares of 240 m, weighted "
        "by probability; patches of less than 0.5 ha merged into their largest neighbour"
    )


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content["properties"].pop("processing:lineage"),
        lambda content: content["properties"].pop("mlm:name"),
        lambda content: content["assets"].pop("model"),
        lambda content: content["properties"].update({"proj:shape": [1]}),
        lambda content: content["assets"]["classes"]["classification:classes"][0].update(
            {"color_hint": "red"}
        ),
        lambda content: content.pop("bbox"),
    ],
)
def test_the_validation_finds_what_is_wrong(tmp_path: Path, offline: Any, spoil: Any) -> None:
    content = item(tmp_path)
    spoil(content)
    with pytest.raises((pystac.errors.STACValidationError, KeyError, pystac.errors.STACTypeError)):
        validate(content, offline)


def test_a_models_odd_names_make_valid_items(tmp_path: Path, offline: Any) -> None:
    odd = metadata(("Forêt & <b>", "Ödland", "1")).model_copy(update={"name": "ä/7 ", "version": "?"})
    content = item(tmp_path, model=odd)
    validate(content, offline)
    classes = content["assets"]["classes"]["classification:classes"]
    assert [known["description"] for known in classes[:-1]] == list(odd.classes)


def test_what_is_unlike_the_training_data_is_a_value_of_the_map_and_no_class_of_the_model(
    tmp_path: Path,
) -> None:
    content = item(tmp_path)
    *_, unlike = content["assets"]["classes"]["classification:classes"]
    assert (unlike["value"], unlike["name"]) == (254, "out_of_distribution")
    (output,) = content["properties"]["mlm:output"]
    assert len(output["classification:classes"]) == len(CLASSES)


def test_an_item_is_valid_by_the_published_schemas(tmp_path: Path) -> None:
    """The restated rules say what the published schemas say; skipped where their server is not reached."""
    try:
        httpx.head(MLM, timeout=5, follow_redirects=True).raise_for_status()
    except httpx.HTTPError as error:
        pytest.skip(f"{MLM} is not reached ({type(error).__name__})")
    assert len(pystac.Item.from_dict(item(tmp_path)).validate()) == 4


def test_an_item_lies_where_its_scene_lies(tmp_path: Path) -> None:
    content = item(tmp_path)
    assert content["properties"]["proj:code"] == "EPSG:32629"
    assert content["properties"]["proj:shape"] == [1000, 700]
    assert content["properties"]["proj:transform"] == [10, 0, 540_000, 0, -10, 4_740_000]
    bounds = transform_bounds(UTM, "EPSG:4326", *content["properties"]["proj:bbox"])
    assert content["bbox"] == pytest.approx(bounds, abs=1e-4)
    assert content["properties"]["datetime"] == "2021-07-01T11:20:00Z"


def test_a_box_across_the_antimeridian_begins_in_the_east(tmp_path: Path) -> None:
    west, _, east, _ = item(
        tmp_path,
        SceneInfo("far", Georeference(CRS.from_epsg(32660), Affine(10, 0, 833_700, 0, -10, 0)), 100, 128),
    )["bbox"]
    assert 179 < west <= 180
    assert -180 <= east < -179


def test_links_lead_from_the_folder_of_results(tmp_path: Path) -> None:
    content = item(tmp_path)
    assert content["assets"]["classes"]["href"] == "./scene.classes.tif"
    assert content["assets"]["model"]["href"] == os.path.join("..", "m.onnx")  # noqa: PTH118 - a link, not a file
    assert [link["href"] for link in content["links"]] == ["../in/scene.tif"]
    kinds = {"classes", "classes_xml", "classes_qml", "probability", "quicklook", "truecolour", "model"}
    assert set(content["assets"]) == kinds | {
        "polygons_geojson",
        "windows_fgb",
        "windows_gpkg",
        "windows_parquet",
    }
