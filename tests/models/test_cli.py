"""`tilewise`, as a user runs it."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from linear_model import write_linear_model
from PIL import Image
from tiny_onnx import metadata, write_model

from tilewise.models.cli import explain


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear_model(tmp_path_factory.mktemp("models") / "model.onnx")


@pytest.fixture(scope="module")
def tile(tiles_folder: Path) -> Path:
    return tiles_folder / "Forest" / "Forest_1.tif"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(explain, [*map(str, arguments)], catch_exceptions=False)


def test_a_page_holds_all_of_an_explanation_and_asks_nobody(model: Path, tile: Path, tmp_path: Path) -> None:
    done = run(tile, "--model", model, "--out", tmp_path / "new/page.html")
    assert done.exit_code == 0, done.output
    assert "Forest_1: Forest 0." in done.output
    assert "pixels by gradients" in done.output
    page = (tmp_path / "new/page.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=\"(?!data:)|<script|@import|url\(", page)
    for text in (
        "<h1>Forest: ",
        "B8A",
        "SeaLake",
        "Prediction set of 90%: ",
        "integrated gradients",
        "not calibrated",
    ):
        assert text in page, text
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]


def test_a_picture_shows_the_same(model: Path, tile: Path, tmp_path: Path) -> None:
    done = run(
        tile, "--model", model, "--out", tmp_path / "why.png", "--method", "occlusion", "--class", "River"
    )
    assert done.exit_code == 0, done.output
    assert ": River 0." in done.output
    with Image.open(tmp_path / "why.png") as picture:
        assert picture.size == (1210, 990)
        assert np.asarray(picture.convert("L")).std() > 20


def test_a_jpeg_is_read_as_eurosat_rgb_and_its_options_are_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "Forest").mkdir()
    path = tmp_path / "Forest/Forest_1.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    done = run(path, "--model", model, "--out", tmp_path / "why.html")
    assert done.exit_code == 0, done.output
    assert "B04" in done.output
    assert "L1C; B02, B03, B04" in (tmp_path / "why.html").read_text()
    refused = run(path, "--model", model, "--out", tmp_path / "why.html", "--level", "L2A")
    assert refused.exit_code == 1
    assert "leave --bands" in refused.output


def test_hostile_names_are_text_on_page_and_picture(tile: Path, tmp_path: Path) -> None:
    odd = ("<script>alert(1)</script>", r"$\frac{")
    path = write_model(tmp_path / "model.onnx", metadata(odd).model_dump_json())
    for name in ("why.html", "why.png"):
        done = run(tile, "--model", path, "--out", tmp_path / name)
        assert done.exit_code == 0, done.output
    page = (tmp_path / "why.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_mistakes_are_one_line_with_a_way_out(
    model: Path, tile: Path, in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TILEWISE_MODEL", raising=False)
    monkeypatch.setattr("tilewise.models.model_file.PRETRAINED_MODEL", in_folder / "none.onnx")
    out = in_folder / "why.html"
    for arguments, told in (
        ((tile, "--model", model, "--out", in_folder / "why.pdf"), "ends in .html or .png"),
        ((tile, "--model", "models:/tilewise@champion", "--out", out), "mlflow artifacts download"),
        ((tile, "--out", out), "and artifacts holds no model.onnx; `tilewise train` makes one"),
        ((in_folder / "none.tif", "--model", model, "--out", out), "none.tif: there is no such file"),
        ((tile, "--model", model, "--out", out, "--class", "Lake"), "has no class 'Lake'; it has AnnualCrop"),
    ):
        done = run(*arguments)
        assert done.exit_code == 1
        assert told in done.output
        assert done.output.count("\n") == 1
    assert not out.exists()


def test_the_newest_model_is_the_default(model: Path, tile: Path, in_folder: Path) -> None:
    there = in_folder / "artifacts/runs/one"
    there.mkdir(parents=True)
    (there / "model.onnx").write_bytes(model.read_bytes())
    assert run(tile, "--out", "why.html").exit_code == 0


def test_help_teaches() -> None:
    command = [sys.executable, "-m", "tilewise", "explain", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    for text in ("tilewise explain data/raw", "--method", "--bands", "PAGE.html"):
        assert text in done.stdout
