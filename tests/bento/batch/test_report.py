"""The report of a run: a summary for programs and spreadsheets, and an HTML page that loads nothing."""

import base64
import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from geotiffs import CORNER, UTM
from PIL import Image
from shapely.geometry import box, mapping
from tiny_onnx import metadata

from tilewise.bento.batch.manifest import ResultFile, SceneOutcome, SceneState
from tilewise.bento.batch.report import write_reports
from tilewise.bento.inference.window_grid import SceneInfo
from tilewise.bento.results import quicklook as pictures
from tilewise.bento.results.maps import MapWriter, class_spec
from tilewise.bento.results.quicklook import write_quicklook
from tilewise.bento.results.writer import ModelFacts
from tilewise.datasets.core.tile import Georeference
from tilewise.models.class_colours import colours

CLASSES = ("Forest", "<b>Sea</b>", "=1+1")
MODEL = ModelFacts(metadata(CLASSES), "ab" * 32, Path("m.onnx"))
DONE = SceneOutcome(
    "one",
    "/in/one.tif",
    SceneState.DONE,
    "k",
    90,
    10,
    outliers=3,
    pixels=6400,
    seconds=2.5,
    area_ha={"Forest": 60.0},
)
KEPT = SceneOutcome(
    "two", "/in/two.tif", SceneState.KEPT, "k", 50, 0, seconds=1.5, area_ha={"<b>Sea</b>": 40.0}
)
HOSTILE = "<script>alert(1)</script>"
FAILED = SceneOutcome("three", f"/in/{HOSTILE}.tif", SceneState.FAILED, error=f"=cmd|{HOSTILE}")


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def quicklook(tmp_path: Path) -> SceneOutcome:
    """A scene with a picture in the folder of results."""
    scene_info = SceneInfo("pictured", Georeference(UTM, CORNER), 100, 128, datetime="2021-07-01T11:20:00Z")
    writer = MapWriter(tmp_path, scene_info, class_spec(MODEL.metadata), {})
    writer.add(np.repeat([[[0, 1, 2, 255]]], 100, axis=1).repeat(32, axis=2).astype(np.uint8))
    path = tmp_path / "pictured.quicklook.png"
    write_quicklook(writer.finish()[0], scene_info, MODEL.metadata, {"Forest": 32.0}, path)
    return SceneOutcome(
        "pictured", "/in/p.tif", SceneState.DONE, "k", files=(ResultFile(path.name, path.stat().st_size, ""),)
    )


def test_the_summary_adds_up(tmp_path: Path) -> None:
    write_reports(tmp_path, [DONE, KEPT, FAILED], MODEL)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["model"]["sha256"] == "ab" * 32
    assert (summary["scenes"], summary["failed"], summary["windows"]) == (3, 1, 140)
    assert summary["skipped_fraction"] == pytest.approx(10 / 150, abs=1e-4)
    assert summary["seconds"] == 4.0
    assert summary["area_ha"] == {"Forest": 60.0, "<b>Sea</b>": 40.0, "=1+1": 0.0, "out_of_distribution": 0.0}
    assert [scene["state"] for scene in summary["results"]] == ["done", "failed", "done"]


def place(west: float) -> dict[str, Any]:
    """An outline of one degree, from `west` on."""
    return mapping(box(west, 50, west + 1, 51))


def test_dates_of_one_place_are_not_added_and_the_clearest_counts(tmp_path: Path) -> None:
    dates = [
        replace(DONE, name="may", area_ha={"Forest": 60.0, "out_of_distribution": 30.0}, footprint=place(7)),
        replace(DONE, name="june", area_ha={"out_of_distribution": 100.0}, footprint=place(7.1)),
        replace(DONE, name="july", area_ha={"Forest": 80.0, "=1+1": 9.0}, footprint=place(7)),
        replace(DONE, name="neighbour", area_ha={"Forest": 5.0}, footprint=place(7.9)),
    ]
    write_reports(tmp_path, dates, MODEL)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["scenes"], summary["places"]) == (4, 2)
    assert summary["area_ha"] == {"Forest": 85.0, "<b>Sea</b>": 0.0, "=1+1": 9.0, "out_of_distribution": 0.0}
    assert "2 places in 4 scenes" in Page((tmp_path / "report.html").read_text()).text


def dates_of_one_place() -> list[SceneOutcome]:
    """Three dates: clear, half cloud, clear; and a neighbour that was seen once."""
    july, may, august = "2021-07-01T11:20:00Z", "2021-05-02T11:20:00Z", "2021-08-30T11:20:00Z"
    there = {"footprint": place(7), "no_data_ha": 0.0}
    return [
        replace(DONE, name="july", area_ha={"Forest": 50.0}, taken=july, **{**there, "no_data_ha": 50.0}),
        replace(DONE, name="may", area_ha={"Forest": 60.0, "<b>Sea</b>": 40.0}, taken=may, **there),
        replace(DONE, name="august", area_ha={"out_of_distribution": 100.0}, taken=august, **there),
        replace(DONE, name="neighbour", area_ha={"Forest": 5.0}, footprint=place(9), taken=july),
    ]


def test_the_summary_has_the_dates_of_a_place_in_order(tmp_path: Path) -> None:
    write_reports(tmp_path, dates_of_one_place(), MODEL)
    (series,) = json.loads((tmp_path / "summary.json").read_text())["time_series"]
    assert [(date["name"], date["no_data_ha"]) for date in series] == [
        ("may", 0.0),
        ("july", 50.0),
        ("august", 0.0),
    ]
    assert series[0]["area_ha"] == {"Forest": 60.0, "<b>Sea</b>": 40.0}


def test_the_page_draws_a_bar_a_date_as_high_as_its_hectares_with_a_gap_for_clouds(tmp_path: Path) -> None:
    write_reports(tmp_path, dates_of_one_place(), MODEL)
    page = Page((tmp_path / "report.html").read_text())
    boxes = [tag for name, tag in page.tags if name == "rect" and "x" in tag]
    forest_may, sea_may, forest_july, gap, unlike = boxes
    heights = [float(box["height"] or "") for box in boxes]
    assert heights == pytest.approx([132, 88, 110, 110, 220], abs=0.01)
    assert (gap["fill"], unlike["fill"]) == ("none", "url(#unlike)")
    assert "stroke-dasharray" in gap
    assert float(gap["y"] or "") == 0
    lefts = [float(box["x"] or "") for box in (forest_may, forest_july, unlike)]
    assert lefts[1] - lefts[0] == pytest.approx(lefts[2] - lefts[1], abs=0.02)  # 60 days each
    assert sea_may["x"] == forest_may["x"]
    assert "2021-07-01, no data, cloud, skipped: 50.0 ha" in page.text
    assert "may and 2 more" in page.text


def test_places_seen_once_have_no_figure(tmp_path: Path) -> None:
    write_reports(tmp_path, [o for o in dates_of_one_place() if o.name in ("may", "neighbour")], MODEL)
    assert "Over time" not in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "summary.json").read_text())["time_series"] == []


def test_what_is_unlike_the_training_data_has_a_row_and_a_column_of_its_own(tmp_path: Path) -> None:
    strange = replace(DONE, area_ha={"Forest": 60.0, "out_of_distribution": 140.0}, clouds="scl")
    write_reports(tmp_path, [strange], MODEL)
    page = (tmp_path / "report.html").read_text()
    assert re.search(r"Unlike the training data.*?140\.0 ha.*?70\.0 %", page, re.DOTALL)
    assert "width:70.000%;background:repeating-linear-gradient" in page
    (row,) = csv.DictReader(io.StringIO((tmp_path / "summary.csv").read_text()))
    assert (row["out_of_distribution_ha"], row["Forest_ha"], row["clouds"]) == ("140.0", "60.0", "scl")


def test_a_spreadsheet_gets_a_column_of_hectares_a_class_and_no_formula(tmp_path: Path) -> None:
    write_reports(tmp_path, [DONE, FAILED], MODEL)
    one, three = csv.DictReader(io.StringIO((tmp_path / "summary.csv").read_text()))
    assert (one["name"], float(one["Forest_ha"]), one["skipped_fraction"]) == ("one", 60.0, "0.1")
    assert three["error"].startswith("'=cmd")
    assert "'=1+1_ha" in one


def test_the_order_in_which_scenes_were_ready_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = write_reports(tmp_path / "a", [DONE, KEPT, FAILED], MODEL)
    second = write_reports(tmp_path / "b", [FAILED, KEPT, DONE], MODEL)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_the_page_asks_no_server_and_runs_no_script(tmp_path: Path, quicklook: SceneOutcome) -> None:
    write_reports(tmp_path, [DONE, FAILED, quicklook], MODEL)
    page = Page((tmp_path / "report.html").read_text())
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "form"} == set()
    sources = [
        value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")
    ]
    assert len(sources) == 1
    assert all(str(source).startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"url\(|@import", (tmp_path / "report.html").read_text())
    (policy,) = [a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert str(policy).startswith("default-src 'none'")


def test_names_and_errors_are_text_on_the_page_whatever_they_hold(tmp_path: Path) -> None:
    write_reports(tmp_path, [DONE, KEPT, FAILED], MODEL)
    page = Page((tmp_path / "report.html").read_text())
    assert HOSTILE in page.text
    assert "<b>Sea</b>" in page.text
    assert "b" not in {tag for tag, _ in page.tags}


def test_a_picture_shows_the_classes_in_their_colours(tmp_path: Path, quicklook: SceneOutcome) -> None:
    with Image.open(tmp_path / "pictured.quicklook.png") as image:
        picture = np.asarray(image.convert("RGB"))
    assert max(picture.shape[:2]) < 1600
    middle = picture[picture.shape[0] // 3]
    seen = [tuple(map(int, pixel)) for pixel in middle]
    for colour in colours(CLASSES):
        assert seen.count(colour) >= 32 * 3  # a small map is shown larger


def test_a_picture_hatches_what_is_unlike_the_training_data(tmp_path: Path) -> None:
    picture = pictures.paint(np.full((40, 40), 254, np.uint8), MODEL.metadata)
    tones, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    assert tones.tolist() == [[30, 30, 30], [175, 175, 175]]
    assert counts[0] == pytest.approx(400, abs=40)
    plain = pictures.paint(np.arange(3, dtype=np.uint8)[None], MODEL.metadata)
    assert [tuple(tone) for tone in plain[0].tolist()] == colours(CLASSES)


def test_the_page_shows_a_smaller_copy_of_each_picture(tmp_path: Path, quicklook: SceneOutcome) -> None:
    write_reports(tmp_path, [quicklook], MODEL)
    (source,) = re.findall(r'src="data:image/png;base64,([^"]+)"', (tmp_path / "report.html").read_text())
    with Image.open(io.BytesIO(base64.b64decode(source))) as image:
        assert image.width <= 480


def test_a_picture_that_has_vanished_does_not_stop_the_report(
    tmp_path: Path, quicklook: SceneOutcome
) -> None:
    (tmp_path / "pictured.quicklook.png").unlink()
    write_reports(tmp_path, [quicklook], MODEL)
    assert "pictured" in Page((tmp_path / "report.html").read_text()).text
