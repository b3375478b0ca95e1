"""The offset of 1000 is taken off once: by an item's metadata, where its numbers do not contradict them."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from rasterio.windows import Window
from rasters import write_tiff
from scene_files import stac_item, write_band, write_json

from tilewise.datasets.core.errors import RadiometryUnknownError
from tilewise.datasets.core.radiometry import Level, ReadOptions
from tilewise.datasets.scenes import SceneOptions, find_scenes

Pixels = npt.NDArray[np.uint16]
DECLARED = {"raster:bands": [{"scale": 0.0001, "offset": -0.1, "nodata": 0}]}
PLAIN = {"raster:bands": [{"scale": 0.0001, "offset": 0, "nodata": 0}]}
CDSE = {"raster:scale": 0.0001, "raster:offset": -0.1, "nodata": 0}
FIELDS, SNOW = "fields", "snow"


def land(kind: str) -> Pixels:
    """Red over fields and water, a third of it darker than 1000, or over snow."""
    low, high = {FIELDS: (150, 2500), SNOW: (2500, 9000)}[kind]
    return np.random.default_rng(0).integers(low, high, (200, 200), np.uint16)


def scene(folder: Path, collection: str, asset: dict[str, Any], numbers: Pixels, **properties: Any) -> Any:
    write_band(folder / "B04.tif", numbers)
    item = stac_item({"red": {"href": "B04.tif", "eo:bands": [{"name": "red"}], **asset}}, **properties)
    path = write_json(folder / "item.json", {**item, "collection": collection})
    (found,) = find_scenes([path], SceneOptions(ReadOptions(level=Level.L2A), clouds=None))
    return found


def read(found: Any) -> Pixels:
    with found.open() as opened:
        return np.asarray(opened.read(Window(0, 0, 200, 200))[3])


EARTH_SEARCH = {"earthsearch:boa_offset_applied": False, "s2:processing_baseline": "05.11"}

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str, int]] = {
    # collection, asset, properties, land, what was added to reflectance × 10 000 in the file
    "Earth Search v1, marked as taken off": (
        *("sentinel-2-l2a", PLAIN),
        {"earthsearch:boa_offset_applied": True, "s2:processing_baseline": "04.00"},
        *(FIELDS, 0),
    ),
    "Earth Search v1, taken off, yet declared (earth-search 9)": (
        *("sentinel-2-l2a", DECLARED),
        {"earthsearch:boa_offset_applied": True, "s2:processing_baseline": "05.09"},
        *(SNOW, 0),
    ),
    "Earth Search v1, taken off, marked as not (earth-search 66, 71)": (
        *("sentinel-2-l2a", DECLARED, EARTH_SEARCH),
        *(FIELDS, 0),
    ),
    "Earth Search v1, before 04.00": (
        *("sentinel-2-l2a", DECLARED),
        {"earthsearch:boa_offset_applied": False, "s2:processing_baseline": "02.14"},
        *(SNOW, 0),
    ),
    "Earth Search v1, Collection 1": ("sentinel-2-c1-l2a", DECLARED, EARTH_SEARCH, FIELDS, 1000),
    "Earth Search v1, Level-1C since 04.00": (
        *("sentinel-2-l1c", {}),
        {"s2:processing_baseline": "05.09", "s2:product_type": "S2MSI1C"},
        *(FIELDS, 1000),
    ),
    "Earth Search v1, Level-1C before 04.00": (
        *("sentinel-2-l1c", {}),
        {"s2:processing_baseline": "03.01", "s2:product_type": "S2MSI1C"},
        *(FIELDS, 0),
    ),
    "Earth Search v0, marked as taken off": (
        *("sentinel-s2-l2a-cogs", {}),
        {"sentinel:boa_offset_applied": True, "sentinel:processing_baseline": "04.00"},
        *(FIELDS, 0),
    ),
    "Earth Search v0, before there was an offset": (
        *("sentinel-s2-l2a-cogs", {}),
        {"datetime": "2020-06-01T10:00:00Z"},
        *(SNOW, 0),
    ),
    "Planetary Computer since 04.00": (
        *("sentinel-2-l2a", {}),
        {"s2:processing_baseline": "05.10"},
        *(FIELDS, 1000),
    ),
    "Planetary Computer before 04.00": (
        *("sentinel-2-l2a", {}),
        {"s2:processing_baseline": "02.12"},
        *(FIELDS, 0),
    ),
    "Copernicus Data Space since 04.00": (
        *("sentinel-2-l2a", CDSE),
        {"processing:version": "05.11", "processing:level": "L2"},
        *(FIELDS, 1000),
    ),
}

REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str, int, str]] = {
    "Earth Search v1, marked as not taken off, over snow": (
        *("sentinel-2-l2a", DECLARED, EARTH_SEARCH),
        *(SNOW, 0, "Earth Search says .* often wrong.*--offset 0 .*--offset -1000"),
    ),
    "Earth Search v1, the first days of 04.00: not taken off": (
        *("sentinel-2-l2a", DECLARED),
        {**EARTH_SEARCH, "s2:processing_baseline": "04.00", "datetime": "2022-01-26T02:00:00Z"},
        *(FIELDS, 1000, "or take the item of collection sentinel-2-c1-l2a"),
    ),
    "Planetary Computer's metadata of harmonised files": (
        *("sentinel-2-l2a", {}),
        {"s2:processing_baseline": "05.10"},
        *(FIELDS, 0, r"37 % of its numbers are smaller.*--offset 0 or --offset -1000"),
    ),
    "a catalogue that declares a scale and no offset since 04.00": (
        *("mine", PLAIN),
        {"s2:processing_baseline": "05.10"},
        *(FIELDS, 1000, "no offset"),
    ),
    "a catalogue that says nothing": ("mine", {}, {}, FIELDS, 0, "no offset"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_archives_are_read_with_the_offset_taken_off_once(tmp_path: Path, case: Any) -> None:
    collection, asset, properties, kind, added = case
    expected = land(kind)
    found = scene(tmp_path, collection, asset, expected + np.uint16(added), **properties)
    np.testing.assert_array_equal(read(found), expected)


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_told_is_refused_with_the_way_out(tmp_path: Path, case: Any) -> None:
    collection, asset, properties, kind, added, message = case
    found = scene(tmp_path, collection, asset, land(kind) + np.uint16(added), **properties)
    with pytest.raises(RadiometryUnknownError, match=message), found.open():
        pass


def test_numbers_that_decide_against_metadata_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "tilewise"):
        read(scene(tmp_path, "sentinel-2-l2a", DECLARED, land(FIELDS), **EARTH_SEARCH))
    assert "was not taken off, but 37 % of its numbers are below 1000" in caplog.text


# Files that people made themselves.

ESA_SINCE = {"PROCESSING_LEVEL": "L2A", "PROCESSING_BASELINE": "05.10"}


def stacked(path: Path, tags: dict[str, str], options: ReadOptions, added: int = 0) -> Any:
    numbers = (land(FIELDS) + np.uint16(added))[None]
    write_tiff(path, numbers, ["B04"], tags, corner=(600_000, 5_000_000))
    (found,) = find_scenes([path], SceneOptions(options, clouds=None))
    return found


@pytest.mark.parametrize("name", ["gee_S2_SR_HARMONIZED.tif", "sentinel_hub_response.tif"])
def test_exports_of_earth_engine_and_sentinel_hub_say_nothing_of_it_and_are_asked_about(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(RadiometryUnknownError, match="no level and no scale and no offset"):
        read(stacked(tmp_path / name, {}, ReadOptions()))
    told = ReadOptions(level=Level.L2A, offset=0)
    np.testing.assert_array_equal(read(stacked(tmp_path / name, {}, told)), land(FIELDS))


def test_a_stack_whose_tags_survived_the_harmonisation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RadiometryUnknownError, match=r"s\.tif: .* taken off already, it seems"):
        read(stacked(tmp_path / "s.tif", ESA_SINCE, ReadOptions()))
    np.testing.assert_array_equal(
        read(stacked(tmp_path / "s.tif", ESA_SINCE, ReadOptions(), 1000)), land(FIELDS)
    )


def test_what_the_user_says_of_the_offset_is_not_doubted(tmp_path: Path) -> None:
    twice = read(stacked(tmp_path / "s.tif", ESA_SINCE, ReadOptions(offset=-1000)))
    assert (twice == 1).mean() > 0.3


def test_a_little_darkness_is_normal_and_more_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for fraction, warned in ((0.001, False), (0.02, True)):
        numbers = np.full((1, 200, 200), 1500, np.uint16)
        numbers[0].ravel()[: int(fraction * numbers.size)] = 990
        path = tmp_path / f"{fraction}.tif"
        shuffled = np.random.default_rng(0).permutation(numbers.ravel()).reshape(numbers.shape)
        write_tiff(path, shuffled, ["B04"], ESA_SINCE, corner=(600_000, 5_000_000))
        (found,) = find_scenes([path], SceneOptions(clouds=None))
        caplog.clear()
        with caplog.at_level(logging.WARNING, "tilewise"), found.open():
            pass
        assert ("if it was taken off already" in caplog.text) is warned
