"""The page of an explanation: complete, self-contained, and safe whatever a class or a tile is called."""

import re
from dataclasses import replace

import numpy as np
import pytest
from tiny_onnx import calibrated, write_model

from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.core.tile import BAND_COUNT, Tile
from tilewise.models.explain.attribution import AttributionMethod, TileExplanation, explain
from tilewise.models.explain.page import draw_page, draw_picture
from tilewise.models.model_file import ModelFile, open_model

CLASSES = ("Bare", "<script>alert(1)</script>", "$Wet & cold$")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    weights = np.zeros((BAND_COUNT + 1, 3), np.float32)
    weights[7, 1] = 0.004
    weights[-1] = (2, -5, -6)
    path = tmp_path_factory.mktemp("page") / "model.onnx"
    return open_model(write_model(path, calibrated(CLASSES).model_dump_json(), weights=weights))


@pytest.fixture(scope="module")
def found(model: ModelFile) -> TileExplanation:
    pixels = np.full((BAND_COUNT, 64, 64), 1000, np.uint16)
    pixels[7, :, 32:] = 3000
    return explain(
        model, Tile('"><img src=x>', pixels, BAND_NAMES, None), CLASSES[1], AttributionMethod.GRADIENTS
    )


def test_names_are_escaped_and_nothing_is_loaded(found: TileExplanation, model: ModelFile) -> None:
    page = draw_page(found, model)
    assert "<script" not in page
    assert "<img src=x>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "default-src 'none'; img-src data:" in page
    assert set(re.findall(r'src="(.{5})', page)) == {"data:"}


def test_every_band_and_class_has_its_bar_and_figure(found: TileExplanation, model: ModelFile) -> None:
    page = draw_page(found, model)
    assert page.count('<td class="chart">') == len(BAND_NAMES) + len(CLASSES)
    effect = found.bands["B08"]
    assert (
        f'<td class="number">{effect.log_odds:+.2f}</td><td class="number">{effect.probability:.1%}</td>'
        in page
    )
    assert (
        '<div class="half"><div></div><div><div class="bar" style="width:100.0%;background:var(--for)">'
        in page
    )
    assert page.index("&lt;script") < page.index(">Bare<")
    assert page.endswith("</body></html>\n")


def test_warnings_come_first(found: TileExplanation, model: ModelFile) -> None:
    page = draw_page(replace(found, is_outlier=True), model)
    assert '<p class="warn">This tile is out of distribution: neither the prediction' in page
    assert 'class="warn"' not in draw_page(
        replace(found, class_name=CLASSES[int(found.probabilities.argmax())]), model
    )


def test_the_picture_is_a_png(found: TileExplanation, model: ModelFile) -> None:
    assert draw_picture(found, model).startswith(b"\x89PNG")
