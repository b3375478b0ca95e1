"""`tilewise batch` as its users meet it: its exit status, its lines, and the files it leaves."""

import json
import os
import pty
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from affine import Affine
from batch_runs import (
    ROOT,
    Done,
    batch,
    batch_process,
    command,
    environment,
    errors,
    names,
    results_in,
    results_of,
)
from geotiffs import geotiff, jpeg
from rasterio.crs import CRS

from tilewise.bento.inference.blending import NO_CLASS
from tilewise.bento.inference.engine import Engine
from tilewise.datasets.acquire.synthetic import TAGS, render, synthesise_scene
from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.readers.eurosat import CLASSES

Run = tuple[Done, Path]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good scenes, two of the same name, and every kind of bad one."""
    folder = tmp_path_factory.mktemp("scenes")
    synthesise_scene(folder / "north" / "scene.tif", 1, 2, 3)
    synthesise_scene(folder / "south" / "scene.tif", 2, 2, 3)
    good = (folder / "north" / "scene.tif").read_bytes()
    forest = render("Forest", 1, 1)
    degrees = {"crs": CRS.from_epsg(4326), "transform": Affine(0.0001, 0, 2.8, 0, -0.0001, 42.3)}
    for name, content in {
        "photo.tiff": jpeg(),
        "unnamed.TIF": geotiff(forest, tags=TAGS),
        "degrees.tif": geotiff(forest, names=BAND_NAMES, tags=TAGS, **degrees),
        "[bold]odd; name.tif": good,
        "notes.text": b"no scene",
    }.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def first_run(scenes: Path, linear_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("results") / "new" / "folder"
    return batch_process(scenes, "--out", out, "--model", linear_model), out


# A folder of good and bad scenes.


def test_good_scenes_are_done_although_others_fail(first_run: Run) -> None:
    done, out = first_run
    assert done.returncode == 1
    of_the_run = ["manifest.sqlite", "report.html", "summary.csv", "summary.json"]
    assert names(out) == sorted([*results_of("north-scene", "south-scene", "_bold_odd_ name"), *of_the_run])
    assert "3 of 6 scenes are in" in done.stdout


def test_each_failed_scene_has_one_line_that_says_which_and_why(first_run: Run, scenes: Path) -> None:
    lines = errors(first_run[0])
    why = {
        "degrees.tif": "--warp",
        "photo.tiff": "not a GeoTIFF but a JPEG",
        "unnamed.TIF": "its 13 bands have no names",
    }
    assert len(lines) == len(why)
    for name, reason in why.items():
        (line,) = [line for line in lines if line.startswith(f"error: {scenes / name}: ")]
        assert reason in line


def test_the_table_names_every_scene_as_it_is_called(first_run: Run) -> None:
    rows = first_run[0].stdout
    assert "_bold_odd_ name" in rows
    assert rows.count("failed") == 3
    assert rows.count("done") == 3


def test_scenes_of_the_same_name_keep_their_own_results(first_run: Run, scenes: Path, engine: Engine) -> None:
    maps = {}
    for side in ("north", "south"):
        with rasterio.open(scenes / side / "scene.tif") as scene:
            order = [scene.descriptions.index(band) + 1 for band in BAND_NAMES]
            corner = scene.read(order, window=((0, 64), (0, 64)))
        with rasterio.open(first_run[1] / f"{side}-scene.classes.tif") as dataset:
            maps[side] = dataset.read(1)
        assert maps[side][0, 0] == engine.classify(corner[None]).probabilities.argmax()
    assert (maps["north"] != maps["south"]).any()


def test_maps_lie_on_the_scenes_grid_and_the_table_tells_the_same_classes(
    first_run: Run, scenes: Path
) -> None:
    _, out = first_run
    with rasterio.open(scenes / "north" / "scene.tif") as scene:
        for kind in ("classes", "probability", "outlier"):
            with rasterio.open(out / f"north-scene.{kind}.tif") as found:
                assert (found.crs, found.transform, found.shape) == (scene.crs, scene.transform, scene.shape)
    with rasterio.open(out / "north-scene.classes.tif") as found:
        pixels = found.read(1)
    with rasterio.open(out / "north-scene.probability.tif") as found:
        probabilities = found.read(1) * found.scales[0]
    rows = pq.read_table(out / "north-scene.windows.parquet").to_pylist()
    assert len(rows) == 6
    for row in rows:
        window = np.s_[row["row"] : row["row"] + 64, row["column"] : row["column"] + 64]
        clear = pixels[window] != NO_CLASS  # but for some bright roofs, which are taken for cloud
        assert clear.mean() > 0.9
        assert (pixels[window][clear] == CLASSES.index(row["class"])).all()
        assert probabilities[window][clear] == pytest.approx(row["probability"], abs=0.003)


def test_polygons_and_summary_tell_the_areas_of_the_map(first_run: Run) -> None:
    _, out = first_run
    with rasterio.open(out / "north-scene.classes.tif") as dataset:
        counts = np.bincount(dataset.read(1).ravel(), minlength=256)[:NO_CLASS] / 100
    summary = json.loads((out / "summary.json").read_text())
    (scene,) = [scene for scene in summary["results"] if scene["name"] == "north-scene"]
    assert scene["area_ha"] == pytest.approx({name: n for name, n in zip(CLASSES, counts, strict=False) if n})
    rows = pq.read_table(out / "north-scene.polygons.parquet").to_pylist()
    assert sum(row["area_ha"] for row in rows) == pytest.approx(counts.sum())


# Again.


def test_the_same_command_again_does_nothing_and_tells_the_same(
    first_run: Run, scenes: Path, linear_model: Path
) -> None:
    done, out = first_run
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    again = batch(scenes, "--out", out, "--model", linear_model)
    assert again.returncode == done.returncode
    assert errors(again) == errors(done)
    assert again.stdout.count("done before") == 3
    for name, (content, written) in before.items():
        if name != "manifest.sqlite":
            assert (out / name).read_bytes() == content, name
        if name in results_in(out):
            assert (out / name).stat().st_mtime_ns == written, name


def test_a_run_into_another_folder_makes_the_same_bytes(
    first_run: Run, scenes: Path, linear_model: Path, tmp_path: Path
) -> None:
    batch(
        scenes, "--out", tmp_path, "--model", linear_model, "--outputs", "classes,probability,outlier,windows"
    )
    for name, content in results_in(tmp_path).items():
        assert (first_run[1] / name).read_bytes() == content, name


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    first_run: Run, scenes: Path, linear_model: Path, tmp_path: Path
) -> None:
    done = batch(scenes, "--out", first_run[1], "--model", linear_model, "--dry-run")
    assert done.returncode == 1
    assert f"{scenes / 'north' / 'scene.tif'}: done already" in done.stdout.splitlines()
    assert "unnamed.TIF: would fail: " in done.stdout
    fresh = batch(scenes / "north", "--out", tmp_path / "out", "--model", linear_model, "--dry-run")
    assert fresh.stdout.splitlines() == [f"{scenes / 'north' / 'scene.tif'}: to do: 192 × 128 pixels"]
    assert not (tmp_path / "out").exists()


# Options.


def test_what_a_scene_does_not_say_can_be_said(linear_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "plain.tif"
    path.write_bytes(geotiff(render("Forest", 1, 1) + np.uint16(1000)))
    options = (
        "--bands",
        "l1c",
        "--level",
        "l1c",
        "--offset",
        "-1000",
        "--outputs",
        "windows",
        "--threads",
        "1",
    )
    done = batch(path, "--out", tmp_path / "out", *options, TILEWISE_MODEL=str(linear_model))
    assert done.returncode == 0, done.stderr
    assert list(results_in(tmp_path / "out")) == ["plain.windows.parquet"]
    (row,) = pq.read_table(tmp_path / "out" / "plain.windows.parquet").to_pylist()
    assert row["class"] == "Forest"
    assert f"1 of 1 scenes are in {tmp_path / 'out'}, by {linear_model}" in done.stdout.splitlines()


def test_programs_are_told_in_json(scenes: Path, linear_model: Path, tmp_path: Path) -> None:
    done = batch(
        scenes / "north", scenes / "photo.tiff", "--out", tmp_path, "--model", linear_model, "--json"
    )
    events = [json.loads(line) for line in done.stdout.splitlines()]
    outcomes = {event["name"]: event for event in events if event["event"] == "scene"}
    assert outcomes["scene"]["state"] == "done"
    assert {file["name"] for file in outcomes["scene"]["files"]} == set(results_of("scene"))
    assert outcomes["photo"]["state"] == "failed"
    assert "JPEG" in outcomes["photo"]["error"]
    assert events[-1] == {
        "event": "end",
        "scenes": 2,
        "unsound": 1,
        "out": str(tmp_path),
        "model": str(linear_model),
    }


def test_a_terminal_sees_a_bar_with_the_rate(scenes: Path, linear_model: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    arguments = command(scenes / "north", "--out", tmp_path, "--model", linear_model)
    with subprocess.Popen(
        arguments, cwd=ROOT, env=environment(TERM="xterm"), stdout=-3, stderr=theirs
    ) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                seen += os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    assert process.returncode == 0
    assert b"1 of 1 scenes (100 %)" in seen
    assert b"windows/s" in seen


# Errors of one line.


def test_an_empty_folder_is_an_error(linear_model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    done = batch(tmp_path / "in", "--out", tmp_path / "out", "--model", linear_model)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'in'}: no GeoTIFF")


def test_without_a_sound_model_nothing_is_begun(scenes: Path, tmp_path: Path) -> None:
    done = batch(scenes, "--out", tmp_path / "out", "--model", tmp_path / "model.onnx")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'model.onnx'}: there is no such model")
    assert not (tmp_path / "out").exists()


def test_results_that_cannot_be_written_are_one_line_and_leave_nothing(
    scenes: Path, linear_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    done = batch(scenes / "north", "--out", tmp_path / "file" / "out", "--model", linear_model)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "Not a directory" in line
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((".",), "'--out'"),
        ((".", "--out", "x", "--min-valid", "2"), "'--min-valid'"),
        ((".", "--out", "x", "--outputs", "classes,maps"), "choose from classes, probability"),
        ((".", "--out", "x", "--format", "shp"), "choose from parquet, geojson, fgb, gpkg"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[str, ...], message: str) -> None:
    done = batch(*arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())


def test_more_processes_than_cores_are_refused(scenes: Path, linear_model: Path, tmp_path: Path) -> None:
    done = batch(scenes, "--out", tmp_path, "--model", linear_model, "--jobs", 999)
    assert done.returncode == 1
    assert "more than the" in done.stderr


def test_help_teaches_the_results_the_options_and_the_exit_status() -> None:
    done = batch("--help")
    assert done.returncode == 0
    for word in (
        "NAME.classes.tif",
        "NAME.windows.parquet",
        "--out",
        "--dry-run",
        "--warp",
        "--engine",
        "Exit status",
    ):
        assert word in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 110


# Real scenes.


@pytest.mark.realdata
def test_real_scenes_are_classified_in_place(real_data: Path, linear_model: Path, tmp_path: Path) -> None:
    folder = real_data / "scenes" / "lahinch_l1c"
    done = batch(folder, "--out", tmp_path, "--model", linear_model, "--offset", 0, "--scale", 0.0001)
    assert done.returncode == 0, done.stderr
    for path in sorted(folder.glob("*.tif")):
        with rasterio.open(path) as scene, rasterio.open(tmp_path / f"{path.stem}.classes.tif") as found:
            assert (found.crs, found.transform, found.shape) == (
                CRS.from_epsg(32629),
                scene.transform,
                scene.shape,
            )
            missing = np.isnan(scene.read(1))
            pixels = found.read(1)
        assert missing.any()
        assert (pixels[missing] == 255).all()
        clouded = path.stem == "2017-10-18"
        assert (pixels[~missing] == 255).mean() == pytest.approx(float(clouded), abs=0.05)


def test_a_watch_takes_scenes_that_come_and_ends_when_nothing_does(
    scenes: Path, linear_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    watch = ("--watch", 0.2, "--idle", 4, "--outputs", "classes")
    arguments = command(folder, "--out", tmp_path / "out", "--model", linear_model, *watch)
    with subprocess.Popen(arguments, cwd=ROOT, env=environment(), stdout=-3, stderr=-3) as process:
        for name, side in (("first.tif", "north"), ("second.tif", "south")):
            (folder / name).write_bytes((scenes / side / "scene.tif").read_bytes())
            until = time.monotonic() + 60
            while not (tmp_path / "out" / name.replace(".tif", ".classes.tif")).exists():
                assert time.monotonic() < until
                time.sleep(0.05)
        assert process.wait(timeout=60) == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["scenes"] == 2


def test_fine_smoothed_maps_say_so_in_their_item(linear_model: Path, tmp_path: Path) -> None:
    synthesise_scene(tmp_path / "in" / "scene.tif", 1, 2, 3)
    maps = {}
    for name, options in {
        "plain": ["--stride", "8"],
        "fine": ["--detail", "fine", "--smooth", "240"],
    }.items():
        given = [
            "--out",
            tmp_path / name,
            "--model",
            linear_model,
            "--cell",
            "4",
            "--clouds",
            "none",
            *options,
        ]
        done = batch(tmp_path / "in", *given)
        assert done.returncode == 0, done.stderr
        with rasterio.open(tmp_path / name / "scene.classes.tif") as dataset:
            maps[name] = dataset.read(1)
    assert maps["fine"].shape == maps["plain"].shape
    assert (maps["fine"] != maps["plain"]).any()
    item = json.loads((tmp_path / "fine" / "scene.stac.json").read_text())
    assert item["properties"]["processing:lineage"].startswith(
        "Windows of 32 and 64 pixels, 8 pixels apart; smoothed by the majority in squares of 240 m"
    )


def test_a_stride_too_long_for_fine_maps_is_refused(linear_model: Path, tmp_path: Path) -> None:
    synthesise_scene(tmp_path / "in" / "scene.tif", 1, 2, 3)
    given = ["--out", tmp_path / "out", "--model", linear_model, "--detail", "fine", "--stride", "64"]
    done = batch(tmp_path / "in", *given)
    assert done.returncode != 0
    assert "choose 4 to 16" in done.stderr
