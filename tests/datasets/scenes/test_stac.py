"""Scenes told of by STAC: on disk and on a real server that gives ranges."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from range_server import FileServer, serving_files
from rasterio.windows import Window
from rasters import write_tiff
from scene_files import native, smooth, stac_item, write_band, write_json

from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.core.errors import (
    BandsUnknownError,
    FetchError,
    RadiometryUnknownError,
    SceneError,
    UnreadableImageError,
)
from tilewise.datasets.core.radiometry import Level, ReadOptions
from tilewise.datasets.scenes import Kind, SceneOptions, find_scenes, parse_clouds

PIXELS = smooth(13, 120)
BANDS = {"blue": "B02", "red": "B04", "nir08": "B8A", "coastal": "B01"}
RASTER = {"scale": 0.0001, "offset": -0.1, "nodata": 0}
AS_THEY_ARE = SceneOptions(clouds=None)
SAID = SceneOptions(ReadOptions(level=Level.L2A), clouds=None)


def asset(key: str, **more: Any) -> dict[str, Any]:
    fields = {"eo:bands": [{"name": key, "common_name": key}], "raster:bands": [RASTER], "roles": ["data"]}
    return {"href": f"./{key}.tif", "type": "image/tiff; application=geotiff", **fields, **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Band files with the offset of 1000 and an item that tells of them, in the manner of Earth Search."""
    for key, band in BANDS.items():
        values, metres = native(PIXELS[BAND_NAMES.index(band)], band)
        write_band(tmp_path / f"{key}.tif", values + 1000, metres, tiled=True, blockxsize=64, blockysize=64)
    scl = np.full((60, 60), 4, np.uint8)
    scl[:30] = 9
    write_band(tmp_path / "scl.tif", scl, 20)
    assets = {key: asset(key) for key in BANDS} | {
        "scl": {"href": "scl.tif", "roles": ["data"]},
        "visual": {"href": "visual.tif", "roles": ["visual"], "eo:bands": [{"name": "red"}]},
        "thumbnail": {"href": "thumb.jpg", "roles": ["thumbnail"]},
        "blue-jp2": {"href": "s3://bucket/B02.jp2", "type": "image/jp2", "eo:bands": [{"name": "blue"}]},
    }
    write_json(tmp_path / "item.json", stac_item(assets, "S2A_T32_one"))
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[FileServer]:
    with serving_files(folder) as plan:
        yield plan


def check(found: Any) -> None:
    with found.open() as scene:
        assert scene.bands == ("B01", "B02", "B04", "B8A")
        assert (scene.platform, scene.taken.year) == ("sentinel-2b", 2023)
        got = scene.read(Window(0, 0, 120, 120))
    np.testing.assert_array_equal(got[1], PIXELS[1])
    np.testing.assert_array_equal(got[3], PIXELS[3])
    assert np.abs(got[8].astype(int) - PIXELS[8])[18:-18, 18:-18].max() < 30


def test_an_item_on_disk_is_read_by_its_relative_hrefs_and_declared_scales(folder: Path) -> None:
    (found,) = find_scenes([folder / "item.json"], SAID)
    assert (found.name, found.kind) == ("S2A_T32_one", Kind.STAC)
    check(found)


def test_an_item_on_a_server_is_read_by_ranges(server: FileServer) -> None:
    (found,) = find_scenes([f"{server.url}/item.json?key=s3cret"], SAID)
    check(found)
    asked = [wanted for verb, path, wanted in server.asked if verb == "GET" and ".tif" in path]
    assert asked
    assert all(asked), "every file is read by ranges, none as a whole"


def test_a_catalog_a_collection_and_an_itemcollection_lead_to_their_items(
    folder: Path, server: FileServer
) -> None:
    (folder / "items").mkdir()
    absolute = {key: asset(key, href=f"{server.url}/{key}.tif") for key in BANDS}
    write_json(folder / "items" / "two.json", stac_item(absolute, "two"))
    links = [{"rel": "item", "href": "./item.json"}, {"rel": "item", "href": "items/two.json"}]
    write_json(
        folder / "collection.json",
        {"type": "Collection", "id": "c", "links": [*links, {"rel": "self", "href": "x"}]},
    )
    up = {"rel": "child", "href": "./catalog.json"}
    write_json(
        folder / "catalog.json",
        {"type": "Catalog", "links": [{"rel": "child", "href": "collection.json"}, up]},
    )
    for place in (folder / "collection.json", folder / "catalog.json", f"{server.url}/catalog.json"):
        found = find_scenes([place], SAID)
        assert [scene.name for scene in found] == ["S2A_T32_one", "two"]
        check(found[1])
    both = [stac_item({key: asset(key) for key in BANDS}, name) for name in ("a", "b", "b")]
    both[2]["properties"]["version"] = "2"
    write_json(folder / "search.json", {"type": "FeatureCollection", "features": both})
    found = find_scenes([folder / "search.json"], SAID)
    assert [scene.name for scene in found] == ["a", "b", "b-2"]
    check(found[1])


def test_bands_by_the_newer_way_of_stac_and_by_keys_alone(folder: Path) -> None:
    newer = {key: {"href": f"{key}.tif", "bands": [{"name": band, **RASTER}]} for key, band in BANDS.items()}
    keys = {band: {"href": f"{key}.tif", "raster:bands": [RASTER]} for key, band in BANDS.items()}
    for n, assets in enumerate((newer, keys)):
        (found,) = find_scenes([write_json(folder / f"{n}.json", stac_item(assets))], SAID)
        assert found.kind is Kind.STAC
        check(found)


def test_level_and_offset_come_from_the_items_properties(folder: Path) -> None:
    assets = {key: {"href": f"{key}.tif", "eo:bands": [{"name": band}]} for key, band in BANDS.items()}
    told = {"s2:processing_baseline": "04.00", "s2:product_type": "S2MSI2A"}
    (found,) = find_scenes([write_json(folder / "pc.json", stac_item(assets, **told))], AS_THEY_ARE)
    check(found)
    (found,) = find_scenes([write_json(folder / "untold.json", stac_item(assets))])
    with pytest.raises(RadiometryUnknownError, match="offset"), found.open():
        pass


def test_an_asset_of_several_bands_is_read_by_their_places(tmp_path: Path) -> None:
    write_tiff(tmp_path / "stack.tif", PIXELS[[3, 2, 1]], corner=(600_000, 5_000_000))
    bands = [{"name": name} for name in ("B04", "B03", "B02")]
    item = stac_item({"stack": {"href": "stack.tif", "eo:bands": bands}})
    (found,) = find_scenes([write_json(tmp_path / "i.json", item)], AS_THEY_ARE)
    with found.open() as scene:
        np.testing.assert_array_equal(scene.read(Window(0, 0, 120, 120))[[1, 2, 3]], PIXELS[[1, 2, 3]])


def test_clouds_come_from_the_items_mask(server: FileServer) -> None:
    (found,) = find_scenes([f"{server.url}/item.json"], SceneOptions(SAID.read_options, parse_clouds("scl")))
    with found.open() as scene:
        got = scene.read(Window(0, 0, 120, 120))
    assert not got[:, :60].any()
    assert (got[1, 60:] > 0).all()


def test_a_fingerprint_follows_what_the_server_tells_and_not_the_key_in_the_address(
    server: FileServer,
) -> None:
    (found,) = find_scenes([f"{server.url}/item.json"], SAID)
    first = found.fingerprint()
    assert first == found.fingerprint()
    path = server.folder / "blue.tif"
    path.write_bytes(path.read_bytes() + b"\0")
    assert found.fingerprint() != first


# What goes wrong.


def test_a_server_that_fails_is_an_error_and_no_hole_in_the_map(server: FileServer, monkeypatch: Any) -> None:
    import tilewise.datasets.scenes.rasters as rasters

    monkeypatch.setitem(rasters._REMOTE, "GDAL_HTTP_MAX_RETRY", "0")
    (found,) = find_scenes([f"{server.url}/item.json"], SAID)
    with found.open() as scene:
        server.go_down()
        with pytest.raises(UnreadableImageError):
            scene.read(Window(0, 0, 120, 120))
    with pytest.raises(FetchError, match="503"):
        found.fingerprint()
    (gone,) = find_scenes([f"{server.url}/item.json"], SAID)
    with pytest.raises(SceneError, match="503"), gone.open():
        pass


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nonsense", "not valid JSON"),
        ("[]", "not a STAC item"),
        ('{"type": "Topology"}', "not a STAC item"),
        ('{"type": "Collection", "links": []}', "it has no item"),
        ('{"type": "FeatureCollection", "features": [{"type": "Feature", "assets": 3}]}', "it has no item"),
    ],
)
def test_json_that_tells_of_no_scene_is_reported(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.json").write_text(content)
    (found,) = find_scenes([tmp_path / "x.json"])
    with pytest.raises(SceneError, match=message), found.open():
        pass


@pytest.mark.parametrize(
    ("href", "message"),
    [
        ("ftp://host/blue.tif", "ftp: addresses are not read"),
        ("abfs://b/x.tif", "abfs: addresses"),
        ("/vsicurl/x.tif", "no such file"),
    ],
)
def test_other_addresses_than_paths_and_http_are_refused(folder: Path, href: str, message: str) -> None:
    (found,) = find_scenes(
        [write_json(folder / "x.json", stac_item({"blue": asset("blue", href=href)}))], SAID
    )
    with pytest.raises((SceneError, UnreadableImageError), match=message), found.open():
        pass


def test_metadata_from_a_server_do_not_lead_to_this_machines_disk(folder: Path, server: FileServer) -> None:
    secret = folder / "blue.tif"
    for name, href in (("a", f"file://{secret}"), ("b", str(secret))):
        write_json(folder / f"{name}.json", stac_item({"blue": asset("blue", href=href)}))
        (found,) = find_scenes([f"{server.url}/{name}.json"], SAID)
        with pytest.raises((SceneError, UnreadableImageError)), found.open():
            pass


def test_jpeg_2000_is_not_read_from_a_server(folder: Path, server: FileServer) -> None:
    item = stac_item({"blue": asset("blue", href=f"{server.url}/blue.jp2", type="image/jp2")})
    (found,) = find_scenes([write_json(folder / "x.json", item)], SAID)
    with pytest.raises(SceneError, match="JPEG 2000 on a server; download them"), found.open():
        pass


def test_an_item_without_bands_says_how_to_go_on(folder: Path) -> None:
    (found,) = find_scenes([write_json(folder / "x.json", stac_item({"data": {"href": "blue.tif"}}))])
    with (
        pytest.raises(BandsUnknownError, match=r"none of its assets .*name the files themselves"),
        found.open(),
    ):
        pass
