"""The web page at `/`, as users see it: a real service, in a real browser."""

import csv
import hashlib
import io
import json
import math
import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import numpy as np
import onnx
import pytest
from affine import Affine
from axe_playwright_python.sync_playwright import Axe
from browser import find_browser, opened_browser
from geotiffs import geotiff, tile_file
from onnx import helper
from page_samples import make_samples
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Download, FilePayload, Locator, Page, Route, expect
from rasterio.crs import CRS
from rasterio.io import MemoryFile
from servers import Server, served
from tiny_onnx import metadata

from tilewise.bento.api.page import FOLDER, POLICY
from tilewise.bento.results.maps import UNLIKE_COLOUR
from tilewise.datasets.acquire.synthetic import TAGS, render, synthesise_tile
from tilewise.datasets.core.bands import BAND_NAMES, EUROSAT_MS_ORDER, RGB_BANDS
from tilewise.datasets.core.tile import DN
from tilewise.datasets.readers.eurosat import CLASSES
from tilewise.models.class_colours import KNOWN
from tilewise.models.model_file import METADATA_KEY, Outliers, PredictionSets

KEY = "page-0123456789abcdef"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
BRIGHT = 6000  # DN, mean of all bands, above which the model flags a tile as an outlier
TILES = {label: synthesise_tile(label, 2, 1) for label in CLASSES}
FOREST, LAKE = tile_file(TILES["Forest"]), tile_file(TILES["SeaLake"])
PLAIN = tile_file(TILES["Forest"], EUROSAT_MS_ORDER, named=False)  # as EuroSAT's own files: no names, no tags
EVIL = "<img src=x onerror=document.title='taken'>.tif"


@pytest.fixture(scope="module")
def model(linear_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The linear model, with all optional metadata."""
    known = metadata(CLASSES).model_copy(
        update={
            "prediction_sets": PredictionSets(
                method="split", thresholds={0.8: 0.4, 0.9: 0.02}, calibrated_on="tests"
            ),
            "outliers": Outliers(method="distance", threshold=BRIGHT, false_alarms=0.01),
            "metrics": {"val/accuracy": 0.925, "val/macro_f1": 0.9, "int8/eurosat-ms/10m/lost": -0.004386},
            "licence": "CC0-1.0",
            "synthetic": True,
        }
    )
    graph = onnx.load(str(linear_model))
    helper.set_model_props(graph, {METADATA_KEY: known.model_dump_json()})
    path = tmp_path_factory.mktemp("described") / "model.onnx"
    onnx.save(graph, str(path))
    return path


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"TILEWISE_WORKERS": "1", "TILEWISE_MAX_TILES": "3", "TILEWISE_MAX_SYNC_WINDOWS": "8"}
    with served(model, tmp_path_factory.mktemp("bentoml"), **settings) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    find_browser()
    with opened_browser() as browser:
        yield browser


class Visit:
    """A newly opened page, with all requests that it makes and all errors in it."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.context = browser.new_context(**({"viewport": DESKTOP, "reduced_motion": "reduce"} | options))
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.url = url
        self.requested: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._note)
        self.page.goto(url)

    def _note(self, message: ConsoleMessage) -> None:
        if (
            message.type == "error" and "Failed to load resource" not in message.text
        ):  # an error response is expected
            self.errors.append(message.text)

    @property
    def hosts(self) -> set[str]:
        """The hosts that the page has sent requests to, besides its own."""
        return {urlsplit(url).netloc for url in self.requested if not url.startswith("blob:")} - {
            urlsplit(self.url).netloc
        }

    def upload(self, files: dict[str, bytes]) -> None:
        payloads: list[FilePayload] = [
            {"name": name, "mimeType": "image/tiff", "buffer": content} for name, content in files.items()
        ]
        self.page.set_input_files("#file-input", payloads)

    def says(self, text: str | re.Pattern[str]) -> None:
        expect(self.page.locator("#status")).to_contain_text(text, timeout=15_000)

    def cards(self) -> Locator:
        return self.page.locator("#cards > li")


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator[Visit]:
    visit = Visit(browser, f"{server.url}/")
    expect(visit.page.locator("#model-card dl")).to_be_visible(timeout=15_000)
    yield visit
    visit.context.close()


def land(rows: int, columns: int) -> DN:
    """Land (13, 64 · rows, 64 · columns): forest, but a lake in the east."""
    cells = [
        [render("SeaLake" if c == columns - 1 else "Forest", r * columns + c, seed=4) for c in range(columns)]
        for r in range(rows)
    ]
    return np.concatenate([np.concatenate(row, axis=2) for row in cells], axis=1)


def scene(rows: int, columns: int, *, bright_cell: bool = False) -> bytes:
    """A scene of `land`; its upper left cell may be so bright that the model flags it."""
    pixels = land(rows, columns)
    if bright_cell:
        pixels[:, :64, :64] = np.linspace(6500, 8500, 13, dtype=np.uint16)[:, None, None]
    return geotiff(pixels, names=BAND_NAMES, tags=TAGS)


def changed(pixels: DN, **more: Any) -> bytes:
    return geotiff(pixels, **({"names": BAND_NAMES, "tags": TAGS} | more))


def text_of(download: Download) -> str:
    return Path(download.path()).read_text(encoding="utf-8")


# The files of the page.


def test_the_page_and_its_files_are_served_and_kept_by_browsers_until_they_change(server: Server) -> None:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=30) as client:
        for path in ("/", *(f"/page/{file.name}" for file in FOLDER.iterdir() if file.name != "index.html")):
            first = client.get(path)
            assert first.status_code == 200
            assert first.headers["content-security-policy"] == POLICY
            assert first.headers["cache-control"] == "no-cache"
            again = client.get(path, headers={"If-None-Match": f'"old", {first.headers["etag"]}'})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == first.headers["etag"]
            other = client.get(path, headers={"If-None-Match": f'"{hashlib.sha256(b"").hexdigest()[:32]}"'})
            assert other.content == first.content
        assert client.get("/page/../app.py").status_code == 404
        assert client.get("/page/missing.js").status_code == 404


def test_the_policy_lets_only_the_services_own_code_run(server: Server) -> None:
    policy = httpx.get(server.url, trust_env=False, timeout=30).headers["content-security-policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert (
        rules["default-src"]
        == rules["form-action"]
        == rules["frame-ancestors"]
        == rules["base-uri"]
        == "'none'"
    )
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    markup = (FOLDER / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", markup)


# Results.


def share_filled(bar: Locator) -> float:
    """Percent of its track that a bar fills; read again while the card is redrawn, as pictures arrive."""
    for _ in range(40):
        share = float(
            bar.evaluate("bar => 100 * bar.getBoundingClientRect().width / bar.parentElement.clientWidth")
        )
        if math.isfinite(share):
            return share
        bar.page.wait_for_timeout(50)
    raise AssertionError("the bar is never laid out")


def test_a_tile_is_answered_with_its_class_bars_set_pictures_and_place(visit: Visit) -> None:
    visit.upload({"wood.tif": FOREST})
    visit.says("wood.tif: Forest")
    card = visit.cards().first
    expect(card.locator("h4")).to_contain_text("wood.tif")
    expect(card.locator(".class")).to_contain_text(re.compile(r"Forest\s*\d+(\.\d)? %"))
    expect(card.locator(".set")).to_contain_text(
        "Possible classes: Forest. Of such lists, 90 % hold the true class."
    )
    shares = [
        float(re.sub(r"[<>%\s]", "", text)) for text in card.locator(".bars .value").all_text_contents()
    ]
    assert len(shares) == len(CLASSES)
    assert shares == sorted(shares, reverse=True)
    assert share_filled(card.locator(".bars .fill").first) == pytest.approx(shares[0], abs=2)
    for caption in ("True colour", "False colour"):
        image = card.get_by_role("img", name=f"{caption} picture of wood.tif")
        expect(image).to_be_visible()
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
    footprint = TILES["Forest"].footprint
    assert footprint is not None
    longitude, latitude = np.mean(footprint["coordinates"][0][:4], axis=0)
    expect(card.locator(".facts")).to_contain_text(f"{abs(latitude):.3f}° {'N' if latitude > 0 else 'S'}")
    expect(card.locator(".facts")).to_contain_text(f"{abs(longitude):.3f}° {'E' if longitude > 0 else 'W'}")
    expect(visit.page.locator("#map-drawing .footprint")).to_have_count(1)
    expect(card.locator(".note")).to_have_count(0)
    assert visit.errors == []


def test_many_tiles_go_in_groups_and_are_summed_up(visit: Visit) -> None:
    files = {
        f"{label}.tif": tile_file(tile) for label, tile in TILES.items()
    }  # more than the service takes at once
    visit.upload(files)
    visit.says("10 files classified")
    assert visit.cards().locator("h4").all_text_contents() == [
        f"{n}{name}" for n, name in enumerate(files, start=1)
    ]
    answered = Counter(visit.page.locator(".class span:nth-child(2)").all_text_contents())
    names = visit.page.locator("#summary th").all_text_contents()
    numbers = [int(text.split()[0]) for text in visit.page.locator("#summary td").all_text_contents()]
    assert dict(zip(names, numbers, strict=True)) == answered


def test_warnings_are_told_in_plain_words(visit: Visit) -> None:
    bright = np.full((13, 64, 64), 9000, np.uint16)
    torn = render("Forest", 5, seed=2).copy()
    torn[:, :, :40] = 0
    visit.upload(
        {
            "cloud.tif": changed(bright),
            "torn.tif": changed(torn),
            "three.tif": tile_file(TILES["Forest"], RGB_BANDS),
        }
    )
    visit.says("3 results need attention")
    cloud, torn_card, three = (visit.cards().nth(n).locator(".warnings") for n in range(3))
    expect(cloud).to_contain_text("Unlike the training data.")
    expect(cloud).to_contain_text("Possible cloud: 100 % of the pixels")
    expect(torn_card).to_contain_text("No data in 62.5 % of the pixels.")
    expect(three).to_contain_text("The file lacks 10 bands of the model")
    expect(visit.cards().nth(2).locator("figure.none")).to_contain_text("lacks a band")


def test_an_undecided_answer_is_told_as_a_set(visit: Visit) -> None:
    half = TILES["Forest"].pixels.copy()
    half[:, :, 32:] = TILES["Pasture"].pixels[:, :, 32:]
    visit.upload({"edge.tif": changed(half)})
    visit.says("1 result needs attention")
    expect(visit.cards().first.locator(".set")).to_contain_text(" or ")
    expect(visit.cards().first.locator(".warnings")).to_contain_text("Uncertain.")


def test_a_scene_is_shown_as_windows_with_its_class_map_to_download(visit: Visit) -> None:
    visit.upload({"coast.tif": scene(2, 3)})
    visit.says("1 file classified")
    card = visit.cards().first
    expect(card.locator(".class")).to_contain_text("Mostly forest")
    expect(card.locator(".bars").first).to_contain_text("Sea lake")
    expect(visit.page.locator("#map-drawing .scene image")).to_have_count(1)
    with visit.page.expect_download() as caught:
        card.get_by_role("button", name="GeoTIFF").click()
    assert caught.value.suggested_filename == "coast.classes.tif"
    with MemoryFile(Path(caught.value.path()).read_bytes()) as memory, memory.open() as dataset:
        class_map = dataset.read(1)
    assert class_map.shape == (128, 192)
    assert CLASSES[class_map[0, 0]] == "Forest"
    assert CLASSES[class_map[0, -1]] == "SeaLake"


DRAWN = """async image => {
    await image.decode();
    const canvas = Object.assign(document.createElement("canvas"), {width: 384, height: 256});
    const pen = canvas.getContext("2d");
    pen.drawImage(image, 0, 0, 384, 256);
    return [...pen.getImageData(0, 0, 384, 256).data];
}"""


def drawn(image: Locator) -> Any:
    """The pixels of a picture of 2 × 3 cells as the browser has them: uint8 (256, 384, RGBA)."""
    return np.asarray(image.evaluate(DRAWN), np.uint8).reshape(256, 384, 4)


def test_the_class_map_lies_over_the_picture_and_a_slider_sets_its_opacity(visit: Visit) -> None:
    visit.upload({"coast.tif": scene(2, 3)})
    visit.says("1 file classified")
    card = visit.cards().first
    picture = card.get_by_role("img", name="True colour picture of coast.tif")
    overlay = card.get_by_role("img", name="Class map of coast.tif")
    expect(picture).to_be_visible()
    assert picture.bounding_box() == overlay.bounding_box()
    colours = drawn(overlay)
    assert tuple(colours[10, 10]) == (*KNOWN["Forest"], 255)
    assert tuple(colours[10, -10]) == (*KNOWN["SeaLake"], 255)
    slider = card.get_by_role("slider", name="Opacity of the map")
    slider.focus()
    visit.page.keyboard.press("Home")
    assert overlay.evaluate("image => image.style.opacity") == "0"
    visit.page.keyboard.press("End")
    assert overlay.evaluate("image => image.style.opacity") == "1"


def test_what_is_unlike_the_training_data_is_hatched_and_out_of_the_sums(visit: Visit) -> None:
    bright = changed(np.full((13, 64, 64), 9000, np.uint16))
    visit.page.locator("#settings summary").click()
    visit.page.get_by_label("Clouds").select_option("none")
    visit.upload({"coast.tif": scene(2, 3, bright_cell=True), "wood.tif": FOREST, "bright.tif": bright})
    visit.says("3 files classified, 2 results need attention")
    card = visit.cards().first
    expect(card.locator(".rest")).to_have_text("Unlike the training data: 16.7 % of the scene")
    values = card.locator(".bars").first.locator(".value").all_text_contents()
    assert values == ["60 %", "40 %"]  # 3 and 2 of the 5 cells that have a class
    cell = drawn(card.locator(".overlay"))[:128, :128, :3].reshape(-1, 3)
    assert {tuple(colour) for colour in cell} == {UNLIKE_COLOUR, (30, 30, 30)}  # grey, with dark lines
    summary = visit.page.locator("#summary")
    expect(summary.get_by_role("row", name="Forest 1 tile")).to_be_visible()  # bright.tif is not among them
    expect(summary.get_by_role("row", name="Unlike the training data 1 tile")).to_be_visible()
    hatched = visit.page.locator("#map-drawing .footprint path[fill='url(#hatch)']")
    expect(hatched).to_have_count(1)


def test_the_map_of_a_scene_is_exported_in_four_forms(visit: Visit) -> None:
    visit.upload({"coast.tif": scene(2, 3)})
    visit.says("1 file classified")
    group = visit.page.get_by_role("group", name="Download the map of coast.tif")
    expect(visit.page.get_by_role("img", name="True colour picture of coast.tif")).to_be_visible()
    found: dict[str, bytes] = {}
    for form in ("GeoTIFF", "GeoJSON", "CSV", "PNG"):
        with visit.page.expect_download() as caught:
            group.get_by_role("button", name=form).click()
        found[caught.value.suggested_filename] = Path(caught.value.path()).read_bytes()
    assert list(found) == ["coast.classes.tif", "coast.geojson", "coast.csv", "coast.png"]
    assert len(json.loads(found["coast.geojson"])["features"]) == 6
    assert len(list(csv.DictReader(io.StringIO(found["coast.csv"].decode())))) == 6
    with Image.open(io.BytesIO(found["coast.png"])) as picture:
        assert picture.width > 384 + 250  # the map and the legend
    assert len([url for url in visit.requested if "/scene?" in url]) == 1  # nothing is classified twice


def test_a_sample_is_classified_by_one_click(visit: Visit) -> None:
    visit.page.get_by_role("button", name="Try a sample").click()
    visit.says("2 files classified")
    assert visit.cards().locator("h4").all_text_contents() == ["1sample-tile.tif", "2sample-patchwork.tif"]
    expect(visit.cards().nth(1).locator(".facts")).to_contain_text("6 windows")
    assert visit.hosts == set()
    assert sum(path.stat().st_size for path in FOLDER.glob("sample-*")) <= 200_000


@pytest.mark.realdata
def test_the_samples_are_what_the_script_makes(real_data: Path) -> None:
    for name, content in make_samples(real_data / "EuroSAT_MS.zip").items():
        for made, kept in zip(opened(content), opened((FOLDER / name).read_bytes()), strict=True):
            np.testing.assert_array_equal(made, kept)


def opened(content: bytes) -> tuple[Any, ...]:
    with MemoryFile(content) as memory, memory.open() as dataset:
        return dataset.read(), np.array(dataset.transform), np.array(dataset.descriptions)


# Maps of scenes: the choices that `tilewise batch` has.


def test_stride_clouds_and_warp_can_be_chosen(visit: Visit) -> None:
    visit.page.locator("#settings summary").click()
    visit.page.get_by_label("Stride: distance of the windows").select_option("32")
    visit.page.get_by_label("Clouds").select_option("none")
    visit.page.get_by_label("Resample to 10 m").check()
    summary = "32 pixels: overlapping, 4 times the work, kept, resampled to 10 m"
    expect(visit.page.locator("#settings-summary")).to_have_text(summary)
    visit.upload({"coast.tif": scene(2, 3)})
    visit.says("1 file classified")
    expect(visit.cards().first.locator(".facts")).to_contain_text("15 windows")  # 3 × 5 that overlap
    (url,) = (url for url in visit.requested if "/scene?" in url)
    assert parse_qs(urlsplit(url).query) == {
        "name": ["coast.tif"],
        "coverage": ["0.9"],
        "stride": ["32"],
        "clouds": ["none"],
        "warp": ["true"],
    }


def test_a_scene_in_degrees_is_resampled_by_one_click(visit: Visit) -> None:
    place = {"crs": CRS.from_epsg(4326), "transform": Affine(1.2e-4, 0, -8.5, 0, -9e-5, 42.8)}
    visit.upload({"degrees.tif": geotiff(land(2, 3), names=BAND_NAMES, tags=TAGS, **place)})
    visit.says("could not be classified")
    card = visit.cards().first
    expect(card).to_contain_text("Its pixels are measured in degrees")
    card.get_by_role("button", name="Resample scenes to 10 m").click()
    visit.says("1 file classified")
    picture = card.get_by_role("img", name="True colour picture of degrees.tif")
    expect(picture).to_be_visible()
    shapes = picture.evaluate("image => image.decode().then(() => image.naturalWidth / image.naturalHeight)")
    overlay = card.locator(".overlay").evaluate("image => image.naturalWidth / image.naturalHeight")
    assert shapes == pytest.approx(overlay, abs=0.02)  # both on the grid of 10 m


# Errors.

COMMANDS = re.compile(
    r"curl|gdal|tilewise |\b(GET|POST|DELETE)\b|--\w|[{}=]|multipart|_\w|parameter", re.IGNORECASE
)


def test_names_that_were_unfolded_stay_so_when_a_picture_comes(visit: Visit) -> None:
    held: list[Route] = []
    clicked = threading.Event()
    visit.page.route(
        "**/preview*", lambda route: route.continue_() if clicked.is_set() else held.append(route)
    )
    visit.upload({f"{n}.tif": PLAIN for n in range(7)} | {"wood.tif": FOREST})
    visit.says("1 file classified, 7 files could not be classified")
    problem = visit.page.locator("#problems .problem")
    problem.get_by_text("2 more").click()
    expect(problem.locator("li:visible")).to_have_count(7)
    for _ in range(100):
        if held:
            break
        visit.page.wait_for_timeout(100)
    assert held, "the page asks for a picture"
    clicked.set()
    for route in held:
        route.continue_()
    expect(visit.page.get_by_role("img", name="False colour picture of wood.tif")).to_be_visible()
    visit.page.wait_for_timeout(300)  # the page draws its lists again
    expect(problem.locator("li:visible")).to_have_count(7)


def test_the_same_error_of_many_files_is_told_once(visit: Visit) -> None:
    visit.upload({f"{n}.tif": PLAIN for n in range(7)} | {"wood.tif": FOREST})
    visit.says("1 file classified, 7 files could not be classified")
    problem = visit.page.locator("#problems .problem")
    expect(problem).to_have_count(1)
    expect(problem).to_contain_text("7 files not classified. Its 13 bands have no names.")
    assert problem.locator("li").all_text_contents() == [f"{n}.tif" for n in range(7)]
    expect(problem.locator("li:visible")).to_have_count(5)
    problem.get_by_text("2 more").click()
    expect(problem.locator("li:visible")).to_have_count(7)
    expect(visit.page.locator("#cards > li:visible")).to_have_count(1)
    problem.get_by_role("button", name="Use EuroSAT settings").click()
    visit.says("7 files classified, 1 file could not be classified")  # wood.tif names its bands itself
    expect(visit.page.locator("#cards > li:visible")).to_have_count(8)
    expect(problem).to_have_count(0)


def test_errors_have_no_words_of_the_command_line(visit: Visit) -> None:
    place = {"crs": CRS.from_epsg(4326), "transform": Affine(1e-4, 0, -8.5, 0, -1e-4, 42.8)}
    named = {"names": BAND_NAMES, "tags": TAGS}
    visit.upload(
        {
            "plain.tif": PLAIN,
            "levels.tif": geotiff(TILES["Forest"].pixels, names=BAND_NAMES),
            "degrees.tif": geotiff(land(2, 2), **named, **place),
            "nowhere.tif": geotiff(land(2, 2), **named, crs=None),
            "notes.tif": b"not a picture",
            "empty.tif": geotiff(np.zeros((13, 64, 64), np.uint16), **named),
            "photo.zip": b"PK",
        }
    )
    visit.says("7 files could not be classified")
    texts = visit.page.locator(".note.bad:visible").all_inner_texts()
    assert len(texts) >= 4
    assert [text for text in texts if COMMANDS.search(text.replace(".tif", ""))] == []


def test_no_figure_is_shown_that_means_nothing_to_a_reader(visit: Visit) -> None:
    visit.upload({"wood.tif": FOREST})
    visit.says("Forest")
    expect(visit.cards().first.locator(".facts")).to_contain_text("Like the training data")
    expect(visit.page.locator("#model-card")).not_to_contain_text("lost")
    text = visit.page.locator("main").inner_text()
    assert re.findall(r"(?<!\w)[-−]\d|\d\.\d{5,}", re.sub(r"[0-9a-f]{12,}", "", text)) == []


def test_a_long_scene_is_waited_for_as_a_task(visit: Visit) -> None:
    visit.upload({"long.tif": scene(3, 4)})
    visit.says("1 file classified")
    expect(visit.cards().first.locator(".facts")).to_contain_text("12 windows")
    assert len([url for url in visit.requested if "/scene?" in url]) == 1


def test_what_an_answer_is_based_on_is_shown_on_request(visit: Visit) -> None:
    visit.upload({"wood.tif": FOREST})
    visit.says("Forest")
    visit.page.get_by_role("button", name="Explain this result").click()
    image = visit.page.locator(".explanation img")
    expect(image).to_be_visible()
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 200
    expect(visit.page.locator(".explanation figcaption")).to_contain_text("“Forest”")


def test_the_model_describes_itself(visit: Visit) -> None:
    card = visit.page.locator("#model-card")
    for text in (
        "tiny, version 0",
        "linear on band means",
        "CC0-1.0",
        "Herbaceous vegetation",
        "Tiles classified correctly, validation tiles",
        "92.5 %",
    ):
        expect(card).to_contain_text(text)
    expect(card.locator("dd", has_text=re.compile(r"^[0-9a-f]{64}$"))).to_be_visible()
    expect(visit.page.locator("#model-warning")).to_contain_text("synthetic")


# File settings.


def test_a_file_that_does_not_say_its_bands_is_helped_out(visit: Visit) -> None:
    visit.upload({"plain.tif": PLAIN})
    visit.says("could not be classified")
    card = visit.cards().first
    expect(card).to_contain_text("Not classified.")
    expect(card).to_contain_text("Choose the bands in the settings.")
    card.get_by_role("button", name="Use EuroSAT settings").click()
    visit.says("plain.tif: Forest")
    expect(visit.page.locator("#settings-summary")).to_have_text("bands eurosat, level L1C, offset 0")
    expect(card.locator("h4")).to_be_focused()


def test_what_is_said_by_hand_holds_for_all_files(visit: Visit) -> None:
    pixels = TILES["Forest"].pixels.astype(np.float32) / 10_000
    floats = geotiff(np.concatenate([pixels, pixels[:1]]))
    visit.upload({"a.tif": floats, "b.tif": floats})
    visit.says("2 files could not be classified")
    visit.page.get_by_role("button", name="Open the settings").click()
    expect(visit.page.get_by_label("Bands, in the files' order")).to_be_focused()
    visit.page.get_by_label("Bands, in the files' order").select_option("custom")
    visit.page.get_by_label("Custom list of bands").fill(",".join((*BAND_NAMES, "_")))
    visit.page.get_by_label("Scale: reflectance per unit").fill("1,0")
    visit.page.get_by_label("Offset: added before scaling").fill("0")
    visit.page.get_by_role("button", name="Apply to all files").click()
    visit.says("2 files classified")
    visit.page.get_by_label("Offset: added before scaling").fill("nothing")
    visit.page.get_by_role("button", name="Apply to all files").click()
    visit.says("2 files could not be classified")
    expect(visit.page.locator("#problems")).to_contain_text("Offset is a number")


def test_the_coverage_of_sets_can_be_chosen(visit: Visit) -> None:
    visit.page.locator("#settings summary").click()
    assert visit.page.locator("#coverage option").all_text_contents() == ["80 %", "90 %"]
    visit.page.get_by_label("Certainty of the possible classes").select_option("0.8")
    visit.upload({"wood.tif": FOREST})
    visit.says("Forest")
    expect(visit.page.locator(".set")).to_contain_text("80 % hold the true class")


def test_what_is_no_tile_is_refused_by_itself(visit: Visit) -> None:
    visit.upload({"notes.tif": b"not a picture", "wood.tif": FOREST, "empty.tif": b""})
    visit.says("1 file classified, 2 files could not be")
    expect(visit.page.locator("#problems")).to_contain_text("notes.tif: not a GeoTIFF")
    expect(visit.page.locator("#problems")).to_contain_text("empty.tif")
    expect(visit.cards().nth(1)).to_contain_text("Forest")


def test_files_can_be_dropped(visit: Visit) -> None:
    given = visit.page.evaluate_handle(
        """content => {
            const given = new DataTransfer();
            given.items.add(new File([new Uint8Array(content)], "wood.tif", { type: "image/tiff" }));
            return given;
        }""",
        list(FOREST),
    )
    visit.page.dispatch_event("body", "dragover", {"dataTransfer": given})
    expect(visit.page.locator("#drop")).to_have_class("drop over")
    visit.page.dispatch_event("body", "drop", {"dataTransfer": given})
    visit.says("wood.tif: Forest")
    expect(visit.page.locator("#drop")).to_have_class("drop")


def test_asking_again_while_answers_come_shows_only_the_last_ones(visit: Visit) -> None:
    visit.page.locator("#settings summary").click()
    visit.upload({f"{n}.tif": FOREST for n in range(12)})
    visit.page.get_by_label("Certainty of the possible classes").select_option("0.8")
    visit.page.get_by_role("button", name="Apply to all files").click()
    visit.says("12 files classified")
    expect(visit.page.locator("figure img")).to_have_count(24)
    assert set(visit.page.locator(".set").all_text_contents()) == {
        "Possible classes: Forest. Of such lists, 80 % hold the true class."
    }
    assert visit.errors == []


# Downloads, and requests to other hosts.


def test_results_are_downloaded_as_geojson_and_csv(visit: Visit) -> None:
    visit.upload({'=wood, "old".tif': FOREST, "coast.tif": scene(2, 3), "notes.tif": b"not a picture"})
    visit.says("2 files classified, 1 file could not be")
    with visit.page.expect_download() as caught:
        visit.page.get_by_role("button", name="Download GeoJSON").click()
    assert caught.value.suggested_filename == "tilewise.geojson"
    features = json.loads(text_of(caught.value))["features"]
    assert [feature["properties"]["kind"] for feature in features] == ["tile", *["scene"] * 6, "tile"]
    assert features[0]["geometry"] == TILES["Forest"].footprint
    assert features[0]["properties"]["class"] == "Forest"
    assert features[0]["properties"]["probability"] == max(
        features[0]["properties"]["probabilities"].values()
    )
    assert features[7]["properties"]["error"]["code"] == "unreadable_image"
    with visit.page.expect_download() as caught:
        visit.page.get_by_role("button", name="Download CSV").click()
    rows = list(csv.DictReader(io.StringIO(text_of(caught.value))))
    assert len(rows) == 8
    assert rows[0]["file"] == '\'=wood, "old".tif'  # no spreadsheet takes it for a formula
    assert sum(float(rows[0][f"p_{name}"]) for name in CLASSES) == pytest.approx(1, abs=1e-4)
    assert (rows[1]["row"], rows[1]["column"], rows[7]["error_code"]) == ("0", "0", "unreadable_image")


def test_no_request_leaves_the_host_until_the_base_map_is_turned_on(visit: Visit) -> None:
    visit.upload({"wood.tif": FOREST, "coast.tif": scene(2, 3)})
    visit.says("2 files classified")
    visit.page.get_by_role("button", name="Explain this result").click()
    expect(visit.page.locator(".explanation img")).to_be_visible()
    visit.page.get_by_role("button", name="Zoom in").click()
    assert visit.hosts == set()

    referers = []

    def answer(route: Route) -> None:
        referers.append(route.request.all_headers().get("referer"))
        route.fulfill(body=(FOLDER / "icon.svg").read_bytes(), content_type="image/svg+xml")

    visit.page.route("https://tile.openstreetmap.org/**", answer)
    visit.page.get_by_label("OpenStreetMap base map").check()
    expect(visit.page.locator("#map-tiles img").first).to_be_visible()
    expect(visit.page.locator("#attribution")).to_contain_text("© OpenStreetMap contributors")
    assert visit.hosts == {"tile.openstreetmap.org"}
    assert set(referers) == {visit.url}  # the origin, which OpenStreetMap requires
    visit.page.get_by_label("OpenStreetMap base map").uncheck()
    requested = len(visit.requested)
    visit.page.get_by_role("button", name="Zoom out").click()
    expect(visit.page.locator("#map-tiles img")).to_have_count(0)
    assert len(visit.requested) == requested
    assert visit.errors == []


def test_a_base_map_that_cannot_be_reached_is_told(visit: Visit) -> None:
    visit.page.route("https://tile.openstreetmap.org/**", lambda route: route.abort())
    visit.upload({"wood.tif": FOREST})
    visit.says("Forest")
    visit.page.get_by_label("OpenStreetMap base map").check()
    expect(visit.page.locator("#base-map-error")).to_be_visible()


def test_names_that_are_markup_are_shown_as_text(visit: Visit) -> None:
    visit.upload({EVIL: FOREST, f"broken {EVIL}": b"II*\x00", f"scene {EVIL}": scene(2, 3)})
    visit.says("2 files classified, 1 file could not be")
    expect(visit.cards().first.locator("h4")).to_contain_text(EVIL)
    expect(visit.cards().nth(1).locator("h4")).to_contain_text(f"broken {EVIL}")
    assert visit.page.locator("img[src='x']").count() == 0
    assert "taken" not in visit.page.title()
    assert visit.hosts == set()


def test_the_browser_itself_keeps_text_from_becoming_code(visit: Visit) -> None:
    for attack in (
        "document.body.innerHTML = '<b>x</b>'",
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'document.title "
        "= 1'}))",
        "document.createElement('script').src = '/page/page.js'",
    ):
        with pytest.raises(Exception, match="Trusted"):
            visit.page.evaluate(f"() => {{ {attack} }}")


# Keys.


def test_a_key_is_asked_for_and_sent_where_the_service_wants_one(
    browser: Browser, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("bentoml")
    with served(model, home, TILEWISE_WORKERS="1", TILEWISE_API_KEYS=f"page:{KEY}") as server:
        visit = Visit(browser, f"{server.url}/")
        visit.says("This service needs an API key.")
        expect(visit.page.locator("#model-card")).not_to_contain_text("tiny")
        field = visit.page.get_by_label("API key", exact=True)
        field.fill("wrong-0123456789abcdef")
        field.press("Enter")
        expect(visit.page.locator("#key")).to_be_visible()
        visit.upload({"wood.tif": FOREST})
        expect(visit.cards().first).to_contain_text("needs an API key")
        field.fill(KEY)
        field.press("Enter")
        visit.says("wood.tif: Forest")
        expect(visit.page.locator("#key")).to_be_hidden()
        expect(visit.page.locator("#model-card")).to_contain_text("tiny, version 0")
        expect(visit.page.locator("figure img")).to_have_count(2)
        assert KEY not in visit.page.content()
        assert not any(KEY in url for url in visit.requested)
        visit.context.close()


# Accessibility.


def test_everything_can_be_done_by_keyboard(visit: Visit) -> None:
    page = visit.page
    wood: FilePayload = {"name": "wood.tif", "mimeType": "image/tiff", "buffer": FOREST}
    page.on("filechooser", lambda chooser: chooser.set_files([wood]))
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.locator("#file-input")).to_be_focused()
    page.keyboard.press("Enter")
    visit.says("Forest")
    expect(page.locator("figure img")).to_have_count(2)
    reached = tab_through(page)
    for wanted in ("Download GeoJSON", "Download CSV", "Zoom in", "map", "base-map", "Explain this result"):
        assert any(wanted in name for name in reached), wanted
    page.locator("#map").focus()
    before = page.locator("#map-drawing path").first.get_attribute("d")
    page.keyboard.press("ArrowRight")
    assert page.locator("#map-drawing path").first.get_attribute("d") != before
    page.keyboard.press("0")
    assert page.locator("#map-drawing path").first.get_attribute("d") == before
    page.get_by_role("button", name="Remove all").press("Enter")
    expect(page.locator("#results")).to_be_hidden()
    expect(page.locator("#file-input")).to_be_focused()


def tab_through(page: Page) -> list[str]:
    """The elements that get the focus, from the top of the page to its end; each must show it."""
    page.locator("#main").focus()
    reached: list[str] = []
    for _ in range(60):
        page.keyboard.press("Tab")
        name, shown = page.evaluate(
            """() => {
                const here = document.activeElement;
                const seen = here.classList.contains("visually-hidden") ? here.nextElementSibling : here;
                const name = `${here.id} ${here.textContent} ${here.ariaLabel ?? ""}`;
                return [here.tagName === "BODY" ? "" : name,
                        getComputedStyle(seen).outlineStyle !== "none"];
            }"""
        )
        if not name:
            break
        assert shown, name
        reached.append(name)
    return reached


def test_answers_are_told_to_screen_readers(visit: Visit) -> None:
    visit.upload({"wood.tif": FOREST, "notes.tif": b"x"})
    expect(visit.page.get_by_role("status").first).to_contain_text(
        "1 file classified, 1 file could not be classified."
    )
    expect(visit.page.get_by_role("list", name="Probabilities", exact=True)).to_be_visible()
    drawing = visit.page.get_by_role("img", name=re.compile(r"Footprints of 1 file, from .*° N"))
    expect(drawing).to_be_visible()


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_no_barrier_and_nothing_sticks_out(
    browser: Browser, server: Server, size: dict[str, int], colours: str
) -> None:
    visit = Visit(browser, f"{server.url}/", viewport=size, color_scheme=colours)
    visit.page.locator("#settings summary").click()
    bright = changed(np.full((13, 64, 64), 9000, np.uint16))
    unread = {"plain.tif": PLAIN, "other.tif": PLAIN, "notes.tif": b"not a picture"}
    visit.upload(
        {"wood.tif": FOREST, "bright.tif": bright, "coast.tif": scene(2, 3, bright_cell=True), **unread}
    )
    visit.says("3 files classified, 3 files could not be classified, 2 results need attention")
    expect(visit.page.locator("figure img")).to_have_count(7)
    visit.page.get_by_text("All windows").click()
    found = Axe().run(visit.page).response["violations"]
    assert [(rule["id"], [node["target"] for node in rule["nodes"]]) for rule in found] == []
    assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    visit.context.close()


def test_nothing_moves_for_those_who_want_it_still(visit: Visit) -> None:
    button = visit.page.locator("#apply")
    assert button.evaluate("button => getComputedStyle(button).transitionDuration") == "0s"
    assert visit.page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
