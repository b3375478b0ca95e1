"""`tilewise batch --mosaic`: one map of several scenes of a place."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from batch_runs import batch
from rasters import L1C_TAGS, write_tiff

from tilewise.bento.batch import (
    Output,
    OutputOptions,
    RunOptions,
    SceneOutcome,
    SceneState,
    classify_scenes,
)
from tilewise.bento.inference.engine import Engine
from tilewise.datasets.acquire.synthetic import render
from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.core.errors import TilewiseError
from tilewise.datasets.scenes import MosaicKind, SceneOptions
from tilewise.datasets.scenes.area import area_of_bounds

CORNER = (600_000, 5_000_000)
KINDS = (Output.CLASSES, Output.PROBABILITIES, Output.STAC)


def tiles(*labels: str, seed: int = 0) -> np.ndarray:
    """DN (13, 64, 64 × labels): cells side by side, in the bands' canonical order."""
    return np.concatenate([render(label, n, seed) for n, label in enumerate(labels)], axis=2)


def write(
    folder: Path, day: str, pixels: np.ndarray, corner: tuple[float, float] = CORNER, **more: Any
) -> Path:
    return write_tiff(folder / f"scene_{day}.tif", pixels, BAND_NAMES, L1C_TAGS, corner, **more)


def run(
    folder: Path, out: Path, model: Path, kind: MosaicKind | None, **reading: Any
) -> tuple[list[SceneOutcome], dict[str, np.ndarray]]:
    options = RunOptions(SceneOptions(clouds=None, **reading), outputs=OutputOptions(KINDS), mosaic=kind)
    outcomes = list(classify_scenes(folder, out, model=model, options=options))
    maps = {}
    for path in out.glob("*.tif"):
        with rasterio.open(path) as dataset:
            maps[path.name] = dataset.read()
    return outcomes, maps


def item_of(out: Path) -> Mapping[str, Any]:
    content: dict[str, Any] = json.loads((out / "mosaic.stac.json").read_text())
    return content


def test_clear_takes_each_pixel_from_the_most_recent_scene_that_has_it(
    linear_model: Path, tmp_path: Path
) -> None:
    old = tiles("Forest", "SeaLake", "Forest")
    new = tiles("SeaLake", "Forest", "SeaLake")
    new[:, :, 64:] = 0  # clouds: the two cells on the right are no data
    older = tiles("Residential", "Residential", "Residential")
    old[:, :, 128:] = 0
    write(tmp_path / "in", "20240601", old)
    write(tmp_path / "in", "20240603", new)
    write(tmp_path / "in", "20240530", older)
    seen = np.concatenate([new[:, :, :64], old[:, :, 64:128], older[:, :, 128:]], axis=2)
    write(tmp_path / "expected", "20240603", seen)
    (outcome,), maps = run(tmp_path / "in", tmp_path / "out", linear_model, MosaicKind.CLEAR)
    _, expected = run(tmp_path / "expected", tmp_path / "alone", linear_model, None)
    assert (outcome.name, outcome.state, outcome.windows) == ("mosaic", SceneState.DONE, 3)
    for kind in ("classes", "probabilities"):
        np.testing.assert_array_equal(maps[f"mosaic.{kind}.tif"], expected[f"scene_20240603.{kind}.tif"])


def test_mean_averages_the_probabilities_of_the_scenes_that_have_the_window(
    linear_model: Path, engine: Engine, tmp_path: Path
) -> None:
    first, second = tiles("Forest", "SeaLake"), tiles("SeaLake", "Highway", seed=1)
    second[:, :, 64:] = 0
    write(tmp_path / "in", "20240601", first)
    write(tmp_path / "in", "20240603", second)
    (outcome,), maps = run(tmp_path / "in", tmp_path / "out", linear_model, MosaicKind.MEAN)
    assert (outcome.windows, outcome.skipped) == (2, 0)
    answers = engine.classify(np.stack([first[:, :, :64], second[:, :, :64], first[:, :, 64:]])).probabilities
    found = maps["mosaic.probabilities.tif"] * 0.004
    np.testing.assert_allclose(found[:, 0, 0], answers[:2].mean(axis=0), atol=0.003)
    np.testing.assert_allclose(found[:, 0, 64], answers[2], atol=0.003)


def test_provenance_names_all_scenes_and_their_time_and_the_report_counts_the_place_once(
    linear_model: Path, tmp_path: Path
) -> None:
    for day in ("20240601", "20240603"):
        write(tmp_path / "in", day, tiles("Forest", "Forest"))
    out = tmp_path / "out"
    command = (
        tmp_path / "in",
        "--out",
        out,
        "--model",
        linear_model,
        "--mosaic",
        "clear",
        "--clouds",
        "none",
    )
    done = batch(*command)
    assert done.returncode == 0, done.stderr
    item = item_of(out)
    links = [link["href"] for link in item["links"] if link["rel"] == "derived_from"]
    assert links == ["../in/scene_20240601.tif", "../in/scene_20240603.tif"]
    times = {name: item["properties"][name] for name in ("datetime", "start_datetime", "end_datetime")}
    assert times == {
        "datetime": None,
        "start_datetime": "2024-06-01T00:00:00Z",
        "end_datetime": "2024-06-03T00:00:00Z",
    }
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["scenes"], summary["places"]) == (1, 1)
    assert sum(summary["area_ha"].values()) == pytest.approx(64 * 128 / 100)
    again = batch(*command)
    assert "mosaic: done already" in again.stderr
    write(tmp_path / "in", "20240605", tiles("SeaLake", "SeaLake"))
    assert "to do: 128 × 64 pixels" in batch(*command, "--dry-run").stdout


def test_neighbouring_scenes_share_one_map_and_other_grids_are_resampled_onto_it(
    linear_model: Path, tmp_path: Path
) -> None:
    write(tmp_path / "in", "20240601", tiles("Forest", "Forest"))
    write(tmp_path / "in", "20240602", tiles("SeaLake", "SeaLake"), (CORNER[0] + 1280, CORNER[1] - 640))
    shutil.copy(tmp_path / "in" / "scene_20240601.tif", tmp_path / "alone.tif")
    (outcome,), maps = run(tmp_path / "in", tmp_path / "out", linear_model, MosaicKind.CLEAR)
    _, alone = run(tmp_path / "alone.tif", tmp_path / "one", linear_model, None)
    classes = maps["mosaic.classes.tif"][0]
    assert classes.shape == (128, 256)
    np.testing.assert_array_equal(classes[:64, :128], alone["alone.classes.tif"][0])
    assert (classes[:64, 128:] == 255).all()
    assert (classes[64:, :128] == 255).all()
    assert (classes[64:, 128:] != 255).all()
    assert outcome.pixels == 128 * 256


def test_a_scene_in_another_zone_is_warped_onto_the_mosaic(linear_model: Path, tmp_path: Path) -> None:
    (x,), (y,) = rasterio.warp.transform("EPSG:32632", "EPSG:32633", [CORNER[0]], [CORNER[1]])
    for day in ("20240601", "20240602"):
        write(tmp_path / "in", day, tiles("Forest", "Forest"))
    there = {"crs": "EPSG:32633", "transform": Affine(10, 0, x, 0, -10, y)}
    write(tmp_path / "in", "20240603", tiles("SeaLake", "SeaLake"), **there)
    (outcome,), maps = run(tmp_path / "in", tmp_path / "out", linear_model, MosaicKind.CLEAR)
    assert outcome.state is SceneState.DONE, outcome.error
    with rasterio.open(tmp_path / "out" / "mosaic.classes.tif") as dataset:
        assert dataset.crs == "EPSG:32632"
    values, counts = np.unique(maps["mosaic.classes.tif"], return_counts=True)
    assert len(values) >= 2
    assert counts.sum() > 64 * 128


def test_scenes_of_other_bands_or_unreadable_ones_fail_the_mosaic_by_name(
    linear_model: Path, tmp_path: Path
) -> None:
    write(tmp_path / "in", "20240601", tiles("Forest"))
    write_tiff(tmp_path / "in" / "rgb_20240602.tif", tiles("Forest")[:4], BAND_NAMES[:4], L1C_TAGS, CORNER)
    (outcome,), _ = run(tmp_path / "in", tmp_path / "out", linear_model, MosaicKind.MEAN)
    assert outcome.state is SceneState.FAILED
    assert "its bands are not those of" in str(outcome.error)
    (tmp_path / "in" / "rgb_20240602.tif").write_bytes(b"no picture")
    (outcome,), _ = run(tmp_path / "in", tmp_path / "out", linear_model, MosaicKind.MEAN)
    assert "rgb_20240602.tif" in str(outcome.error)


def test_scenes_outside_the_area_are_no_part_of_the_mosaic(linear_model: Path, tmp_path: Path) -> None:
    write(tmp_path / "in", "20240601", tiles("Forest", "Forest"))
    write(tmp_path / "in", "20240602", tiles("SeaLake"), (CORNER[0] + 50_000, CORNER[1]))
    (west, east), (north, south) = rasterio.warp.transform(
        "EPSG:32632", "EPSG:4326", [CORNER[0] + 100, CORNER[0] + 900], [CORNER[1] - 100, CORNER[1] - 500]
    )
    area = area_of_bounds(west, south, east, north)
    (outcome,), maps = run(tmp_path / "in", tmp_path / "out", linear_model, MosaicKind.CLEAR, area=area)
    assert maps["mosaic.classes.tif"][0].shape == (64, 128)
    assert len([link for link in item_of(tmp_path / "out")["links"] if link["rel"] == "derived_from"]) == 1
    assert sum(outcome.area_ha.values()) == pytest.approx(80 * 40 / 100, rel=0.05)
    with pytest.raises(TilewiseError, match="no scene has a pixel inside the area; 2 were looked at"):
        run(
            tmp_path / "in",
            tmp_path / "none",
            linear_model,
            MosaicKind.CLEAR,
            area=area_of_bounds(0, 0, 1, 1),
        )
