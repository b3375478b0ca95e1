"""Uploaded tiles: one answer for each, in order, whatever the others are."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from affine import Affine
from geotiffs import geotiff, jpeg, tile_file
from hostile.attacks import padded_tile
from rasterio.crs import CRS

from tilewise.bento.inference.engine import Answers, Engine
from tilewise.bento.inference.uploads import (
    DecodeBudget,
    InferenceError,
    ModelFailure,
    Upload,
    classify_batch,
    classify_uploads,
    header_of,
    read_apart,
    successes,
    takes_long,
)
from tilewise.datasets.acquire.synthetic import TAGS, synthesise_tile
from tilewise.datasets.core.bands import BAND_NAMES, L2A_BANDS
from tilewise.datasets.core.errors import SceneTooLargeError, TilewiseError
from tilewise.datasets.core.radiometry import Level, ReadOptions
from tilewise.datasets.core.tile import DN, Tile
from tilewise.datasets.readers.eurosat import CLASSES
from tilewise.models.model_file import PredictionSets

FOREST = synthesise_tile("Forest", 1, 2)
LAKE = synthesise_tile("SeaLake", 1, 2)


def answer(engine: Engine, content: bytes, overrides: ReadOptions | None = None) -> dict[str, Any]:
    """The JSON answer to one upload."""
    (result,) = classify_uploads(engine, [Upload("tile.tif", content, overrides or ReadOptions())])
    back: dict[str, Any] = json.loads(json.dumps(result, allow_nan=False))
    return back


def test_nothing_uploaded_gives_nothing(engine: Engine) -> None:
    assert classify_uploads(engine, []) == []


def test_answers_keep_the_order_of_the_uploads_with_errors_among_them(engine: Engine) -> None:
    uploads = [
        Upload("one.tif", tile_file(FOREST)),
        Upload("two.tif", jpeg()),
        Upload("three.tif", tile_file(LAKE)),
        Upload("four.tif", b""),
    ]
    results = classify_uploads(engine, uploads)
    assert [result["name"] for result in results] == ["one.tif", "two.tif", "three.tif", "four.tif"]
    assert [result.get("class") for result in results] == ["Forest", None, "SeaLake", None]
    assert results[1]["error"]["message"] == "two.tif: not a readable JPEG or PNG"
    assert results[3]["error"]["message"] == "four.tif: an empty file"


def test_a_semicolon_in_a_name_does_not_tear_the_error_apart(engine: Engine) -> None:
    (result,) = classify_uploads(engine, [Upload("a; b.tif", jpeg())])
    assert result["error"]["message"] == "a; b.tif: not a readable JPEG or PNG"


def test_only_bad_uploads_give_only_errors(engine: Engine) -> None:
    results = classify_uploads(engine, [Upload("a.tif", jpeg()), Upload("b.tif", b"II*\0")])
    assert [set(result) for result in results] == [{"name", "error"}] * 2


def test_the_class_is_the_max_probable_one_and_all_classes_are_told(engine: Engine) -> None:
    result = answer(engine, tile_file(FOREST))
    shares = result["probabilities"]
    assert tuple(shares) == CLASSES
    assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
    assert shares[result["class"]] == max(shares.values())


def test_bands_that_the_file_lacks_are_not_claimed(engine: Engine) -> None:
    result = answer(engine, tile_file(FOREST, L2A_BANDS), ReadOptions(level=Level.L2A))
    assert result["bands"] == list(L2A_BANDS)
    assert result["level"] == "L2A"


def test_the_share_of_valid_pixels_is_told(engine: Engine) -> None:
    pixels = FOREST.pixels.copy()
    pixels[4, :16] = 0
    result = answer(engine, tile_file(Tile("t", pixels, BAND_NAMES, Level.L1C, FOREST.georeference)))
    assert result["valid_fraction"] == 0.75


def test_a_tile_without_a_place_is_answered_without_a_footprint(engine: Engine) -> None:
    content = geotiff(FOREST.pixels, names=BAND_NAMES, tags=TAGS, crs=None, transform=Affine.identity())
    result = answer(engine, content)
    assert result["class"] == "Forest"
    assert result["footprint"] is None


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        (CRS.from_epsg(32629), Affine(10, 0, 1e12, 0, -10, 1e12)),
        (CRS.from_epsg(32629), Affine(10, 0, math.inf, 0, -10, 0)),
        (CRS.from_wkt('LOCAL_CS["a garden",UNIT["metre",1]]'), Affine(10, 0, 5, 0, -10, 5)),
    ],
)
def test_a_tile_with_a_place_nowhere_on_earth_is_answered_and_harms_no_other(
    engine: Engine, crs: CRS, transform: Affine
) -> None:
    lost = tile_file(FOREST, crs=crs, transform=transform)
    uploads = [Upload("lost.tif", lost), Upload("lake.tif", tile_file(LAKE))]
    first, second = classify_uploads(engine, uploads)
    assert (first["class"], first["footprint"]) == ("Forest", None)
    assert second["class"] == "SeaLake"
    assert second["footprint"]["type"] == "Polygon"


def test_a_float_tile_with_nan_is_answered_and_nan_counts_as_no_data(engine: Engine) -> None:
    pixels = FOREST.pixels.astype(np.float32)
    pixels[:, :, :32] = np.nan
    overrides = ReadOptions(scale=0.0001, offset=0)
    result = answer(engine, geotiff(pixels, names=BAND_NAMES), overrides)
    assert result["valid_fraction"] == 0.5


class BrokenEngine(Engine):
    """An engine that fails on every batch."""

    def classify(self, tiles: DN) -> Answers:
        raise RuntimeError("bad allocation")


def test_a_model_that_fails_marks_its_own_uploads_and_no_others_of_the_batch(engine: Engine) -> None:
    broken = object.__new__(BrokenEngine)
    broken._file = engine._file
    tile = tile_file(FOREST)
    uploads = [Upload("a", tile), Upload("b", tile, engine=broken), Upload("c", b""), Upload("d", tile)]
    batch = classify_batch(engine, uploads)
    assert [index for index, _, _ in batch.classified] == [0, 3]
    assert isinstance(batch.results[1], ModelFailure)
    for index in (0, 3):
        assert batch.results[index]["class"] == "Forest"  # type: ignore[index]
    assert "error" in batch.results[2]  # type: ignore[operator]
    with pytest.raises(InferenceError, match="model version 0 failed: RuntimeError"):
        successes(batch.results)


def test_a_coverage_that_the_model_is_not_calibrated_for_fails_its_own_group_only(engine: Engine) -> None:
    sets = PredictionSets(method="test", thresholds={0.8: 0.01})
    limited = object.__new__(Engine)
    metadata = engine.metadata.model_copy(update={"prediction_sets": sets})
    limited._file, limited._run_size = replace(engine._file, metadata=metadata), engine._run_size
    uploads = [
        Upload("a", tile_file(FOREST), coverage=0.9),
        Upload("b", tile_file(FOREST), coverage=0.9, engine=limited),
    ]
    first, second = classify_batch(engine, uploads).results
    assert first["class"] == "Forest"  # type: ignore[index]
    assert isinstance(second, ModelFailure)


def padded(name: str, budget: DecodeBudget) -> Upload:
    """A tile in one block of 1024 × 1024: 26 MiB when decoded."""
    return Upload(name, padded_tile(), budget=budget)


def test_a_request_that_has_decoded_its_share_is_refused_the_rest_and_another_is_not(engine: Engine) -> None:
    budget = DecodeBudget(60 * 2**20)
    uploads = [padded(str(index), budget) for index in range(4)]
    answers = classify_uploads(engine, [*uploads, padded("other", DecodeBudget())])
    assert [answer["error"]["code"] if "error" in answer else "" for answer in answers] == [
        "",
        "",
        "too_large",
        "too_large",
        "",
    ]


def test_a_tile_on_which_reading_fails_in_an_unforeseen_way_harms_no_other(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """No file is known that does it: the options are broken instead."""
    odd = Upload("odd.tif", tile_file(FOREST), None)  # type: ignore[arg-type]
    first, second = classify_uploads(engine, [odd, Upload("good.tif", tile_file(LAKE))])
    assert (first["error"]["code"], second["class"]) == ("internal", "SeaLake")
    assert "could not be read, for an unexpected reason" in caplog.text


BLOCKS = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}


@pytest.mark.parametrize(
    ("content", "long"),
    [
        (tile_file(FOREST), False),
        (tile_file(FOREST, compress="deflate"), False),
        (FOREST, False),
        (jpeg(), False),
        (b"\x93NUMPY", False),
        (TilewiseError("it could not be fetched"), False),
        (tile_file(FOREST, compress="lzma"), True),  # GDAL's, slow
        (tile_file(FOREST, **BLOCKS), True),  # 64 × 64 pixels that take 6.5 MiB when decoded
        (tile_file(FOREST, crs=CRS.from_epsg(32601), transform=Affine(10, 0, 5e5, 0, -10, 5e6)), True),
        (geotiff(np.ones((13, 65, 64), np.uint16)), True),
        (b"II*\0", True),
        (b"", True),
    ],
)
def test_what_takes_long_is_what_is_not_read_already_and_not_plain_and_small(
    engine: Engine, content: bytes | Tile | Exception, long: bool
) -> None:
    """All else would hold up every other caller if a batch read it."""
    classify_uploads(engine, [Upload("a.tif", tile_file(FOREST))])  # GDAL reads its CRS the first time
    assert takes_long(Upload("a.tif", content, header=header_of(content)), 64) is long


@pytest.mark.parametrize("content", [tile_file(FOREST, compress="lzma"), b"II*\0", tile_file(FOREST), b""])
def test_an_upload_that_is_read_apart_has_the_answer_of_one_that_is_not(
    engine: Engine, content: bytes
) -> None:
    upload = Upload("a.tif", content)
    assert classify_uploads(engine, [read_apart(upload, 64)]) == classify_uploads(engine, [upload])


def test_reading_apart_takes_from_the_budget_of_the_request(engine: Engine) -> None:
    budget = DecodeBudget(60 * 2**20)
    read = [read_apart(padded(str(index), budget), 64) for index in range(3)]
    assert [type(upload.content) for upload in read] == [Tile, Tile, SceneTooLargeError]
    assert budget.left == 60 * 2**20 - 2 * 26 * 2**20
