"""Explanations: right on tiles where the cause is known, and the same over HTTP from a real service."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from geotiffs import tile_file
from rasterio.io import MemoryFile
from servers import served
from tiny_onnx import metadata, write_model

from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.occlusion import MIN_SCALE, Method, explain, paint
from tilewise.datasets.acquire.synthetic import synthesise_tile
from tilewise.datasets.core.bands import BAND_NAMES, positions
from tilewise.datasets.core.pictures import true_colour
from tilewise.datasets.core.tile import BAND_COUNT, DN, Tile, canonical_order
from tilewise.models.occlusion import patch_starts

GROUND = synthesise_tile("Forest", 3, 1)
CLASSES = ("Bare", "Built", "Wet")


def tile_of(pixels: DN, bands: tuple[str, ...] = BAND_NAMES) -> Tile:
    return Tile("made", pixels, canonical_order(bands), None, GROUND.georeference)


def flat(value: int = 1000) -> DN:
    return np.full((BAND_COUNT, 64, 64), value, np.uint16)


def half_and_half() -> Tile:
    """Left: nothing. Right: bright in B08, which speaks for Built."""
    pixels = flat()
    pixels[positions(("B08",)), :, 32:] = 3000
    return tile_of(pixels)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the mean of B08, Wet by that of B11; Bare by neither."""
    weights = np.zeros((BAND_COUNT + 1, 3), np.float32)
    weights[positions(("B08",)), 1] = 0.004
    weights[positions(("B11",)), 2] = 0.004
    weights[-1] = (2, -5, -6)
    path = tmp_path_factory.mktemp("explain") / "model.onnx"
    return write_model(path, metadata(CLASSES).model_dump_json(), weights=weights)


@pytest.fixture(scope="module")
def eyes(model: Path) -> Engine:
    return Engine(model, threads=1)


def mass(heat: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.maximum(heat, 0)


# What it finds.


def test_the_heat_lies_on_the_half_that_the_answer_rests_on(eyes: Engine) -> None:
    found = explain(eyes, half_and_half(), class_name="Built")
    assert found.heat.shape == (64, 64)
    assert mass(found.heat)[:, 32:].sum() > 0.95 * mass(found.heat).sum() > 0
    assert found.grid[:, 8:].min() > 0 > found.grid[:, :7].max(), (
        "what is below the tile's mean speaks against it"
    )


def test_the_band_that_the_answer_rests_on_is_found(eyes: Engine) -> None:
    found = explain(eyes, half_and_half(), class_name="Built")
    assert max(found.bands, key=found.bands.__getitem__) == "B08"
    assert found.bands["B08"] > 0.1
    assert found.bands["B11"] < 0, "without what speaks for Wet, Built is likelier"
    assert found.bands["B02"] == 0


def test_the_answered_class_is_explained_unless_another_is_asked_for(eyes: Engine) -> None:
    tile = half_and_half()
    answers = eyes.classify(tile.pixels[None]).probabilities[0]
    found = explain(eyes, tile)
    assert found.class_name == CLASSES[int(answers.argmax())] == "Built"
    assert found.probability == pytest.approx(answers[1])
    against = explain(eyes, tile, class_name="Bare")
    assert against.probability == pytest.approx(answers[0])
    assert against.heat[:, 40:].mean() < 0, "what speaks for Built speaks against Bare"


def test_each_patch_tells_what_taking_it_away_does(eyes: Engine) -> None:
    tile = half_and_half()
    found = explain(eyes, tile, size=16, stride=16, class_name="Built")
    assert found.grid.shape == (4, 4)
    means = tile.pixels.mean(axis=(1, 2))
    for row, column in np.ndindex(4, 4):
        occluded = tile.pixels.copy()
        patch = np.s_[:, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        occluded[patch] = np.rint(means)[:, None, None]
        expected = found.probability - eyes.classify(occluded[None]).probabilities[0, 1]
        assert found.grid[row, column] == pytest.approx(expected, abs=1e-6)
        assert found.heat[16 * row, 16 * column] == pytest.approx(expected, abs=1e-6)


def test_the_embedding_turns_where_something_is_taken_whatever_the_class(eyes: Engine) -> None:
    tile = half_and_half()
    one, other = (explain(eyes, tile, Method.EMBEDDING, class_name=name) for name in ("Built", "Bare"))
    np.testing.assert_array_equal(one.heat, other.heat)
    assert one.bands["B08"] > 0.01
    even = explain(eyes, tile_of(flat()), Method.EMBEDDING)
    assert np.abs(even.heat).max() < 1e-6, "an even tile looks the same without any of its parts"


def test_holes_and_absent_bands_stay_what_they_are(eyes: Engine) -> None:
    pixels = np.zeros((BAND_COUNT, 64, 64), np.uint16)
    bands = ("B02", "B03", "B04", "B08")
    pixels[positions(bands)] = 1000
    pixels[positions(("B08",)), :, 32:] = 3000
    pixels[:, :16] = 0
    found = explain(eyes, tile_of(pixels, bands), class_name="Built")
    assert set(found.bands) == set(bands)
    assert np.abs(found.grid[:3]).max() == 0, "there is nothing to take away"
    assert mass(found.heat)[16:, 32:].sum() > 0.95 * mass(found.heat).sum() > 0


@pytest.mark.parametrize(("size", "stride"), [(8, 4), (8, 8), (7, 3), (64, 64), (5, 5), (33, 20)])
def test_patches_cover_every_pixel_and_stay_inside(size: int, stride: int) -> None:
    covered = np.zeros(64, bool)
    starts = patch_starts(64, size, stride)
    for start in starts:
        covered[start : start + size] = True
    assert covered.all()
    assert starts[-1] + size == 64
    assert starts == sorted(set(starts))


# The picture.


def read_png(content: bytes) -> npt.NDArray[np.uint8]:
    with MemoryFile(content) as memory, memory.open(driver="PNG") as dataset:
        return np.asarray(dataset.read().transpose(1, 2, 0), np.uint8)


def redness(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    return picture[..., 0] - picture[..., 1:].mean(axis=2)


def test_the_picture_is_red_where_the_heat_is_and_has_its_scale_beside(eyes: Engine) -> None:
    picture = read_png(paint(explain(eyes, half_and_half(), class_name="Built")))
    assert picture.shape[0] == 256
    assert picture.shape[1] > 256
    assert redness(picture[:, 160:256]).mean() > 50
    assert redness(picture[:, :96]).mean() < -10, "blue speaks against"
    bar = picture[:, 265]
    assert redness(bar[None])[0, 2] > 50 > -50 > redness(bar[None])[0, -3]
    assert (picture[:, 285:] < 100).any(), "with numbers"


def test_next_to_nothing_is_not_painted_as_if_it_were_much(eyes: Engine) -> None:
    pixels = flat()
    pixels[positions(("B08",)), :, 32:] = 1002
    found = explain(eyes, tile_of(pixels), class_name="Built")
    assert 0 < np.abs(found.heat).max() < MIN_SCALE / 4
    assert np.abs(redness(read_png(paint(found))[:, :256])).max() < 50


@pytest.mark.parametrize("bands", [BAND_NAMES, ("B04", "B03", "B02"), ("B08", "B11"), ("B05",)])
def test_a_tile_of_any_bands_has_a_picture(bands: tuple[str, ...]) -> None:
    pixels = np.zeros_like(GROUND.pixels)
    pixels[positions(bands)] = GROUND.pixels[positions(bands)]
    pixels[:, :4] = 0
    picture = true_colour(tile_of(pixels, bands))
    assert picture.shape == (64, 64, 3)
    assert (picture[:4] == 0).all()
    assert picture[4:].std() > 5


# Over HTTP.


@pytest.fixture(scope="module")
def service(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    settings = {"TILEWISE_WORKERS": "2", "TILEWISE_THREADS": "1"}
    with (
        served(model, tmp_path_factory.mktemp("bentoml"), **settings) as server,
        httpx.Client(base_url=server.url, trust_env=False, timeout=30) as client,
    ):
        yield client


def ask(
    service: httpx.Client, query: str = "", accept: str = "application/json", **request: Any
) -> httpx.Response:
    request = request or {"content": tile_file(half_and_half()), "headers": {"Content-Type": "image/tiff"}}
    headers = {"Accept": accept} | request.pop("headers", {})
    return service.post(f"/explain{query}", headers=headers, **request)


def test_a_picture_comes_unless_numbers_are_asked_for(service: httpx.Client, eyes: Engine) -> None:
    response = ask(service, "?class=Built", accept="*/*")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    assert response.content == paint(explain(eyes, half_and_half(), class_name="Built"))


def test_the_numbers_are_those_of_the_tile(service: httpx.Client, eyes: Engine) -> None:
    response = ask(service, "?class=Built&size=16&stride=8&name=wood.tif")
    assert response.status_code == 200, response.text
    expected = explain(eyes, half_and_half(), size=16, stride=8, class_name="Built")
    content = response.json()
    np.testing.assert_allclose(content["grid"], expected.grid, atol=2e-6)
    assert content["bands"] == pytest.approx(expected.bands, abs=2e-6)
    assert content["starts"] == [0, 8, 16, 24, 32, 40, 48]
    facts = {key: content[key] for key in ("name", "class", "method", "size", "stride")}
    assert facts == {"name": "wood.tif", "class": "Built", "method": "occlusion", "size": 16, "stride": 8}
    assert content["model"]["sha256"] == eyes.sha256


def test_a_tile_may_come_in_any_of_the_three_forms(service: httpx.Client, tmp_path: Path) -> None:
    np.save(tmp_path / "tiles.npy", half_and_half().pixels[None])
    array = (tmp_path / "tiles.npy").read_bytes()
    answers = [
        ask(service),
        ask(service, files={"tiles": ("made.tif", tile_file(half_and_half()))}),
        ask(service, content=array, headers={"Content-Type": "application/octet-stream"}),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert len({str(answer.json()["grid"]) for answer in answers}) == 1


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("?method=gradient", 422, "method is occlusion or embedding"),
        ("?class=Forest", 422, "class is one of Bare, Built, Wet"),
        ("?size=65", 422, "size is a whole number from 1 to 64"),
        ("?size=8&stride=9", 422, "stride is a whole number from 1 to 8"),
        ("?size=-1", 422, "size is a whole number"),
        ("?size=%C2%B2", 422, "size is a whole number"),
        ("?size=4&stride=1", 422, "patches"),
        ("?colour=red", 422, "unknown parameter 'colour'"),
    ],
)
def test_what_makes_no_sense_is_refused(service: httpx.Client, query: str, status: int, message: str) -> None:
    response = ask(service, query)
    assert response.status_code == status
    assert message in response.json()["error"]["message"]


def test_one_sound_tile_is_explained_at_a_time(service: httpx.Client) -> None:
    file = tile_file(half_and_half())
    two = ask(service, files=[("tiles", ("1.tif", file)), ("tiles", ("2.tif", file))])
    assert two.status_code == 413
    broken = ask(service, content=b"II*\0", headers={"Content-Type": "image/tiff"})
    assert (broken.status_code, broken.json()["error"]["code"]) == (415, "unreadable_image")
    empty = ask(service, content=tile_file(tile_of(flat(0))), headers={"Content-Type": "image/tiff"})
    assert (empty.status_code, empty.json()["error"]["code"]) == (422, "no_data")
    assert ask(service, accept="image/jpeg").status_code == 406
