"""`python -m bento.batch` as its users meet it: its exit status, its lines, and the files it leaves."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from affine import Affine
from geotiffs import geotiff, jpeg
from rasterio.crs import CRS

from bento.batch import classify_scenes, find_scenes, output_names
from bento.engine import Engine
from bento.outputs import MAP_SUFFIX, TABLE_SUFFIX
from datasets.bands import BAND_NAMES
from datasets.errors import NoTilesError
from datasets.eurosat import CLASSES
from datasets.radiometry import Statement
from datasets.synthetic import TAGS, render, synthesise_scene

ROOT = Path(__file__).parents[2]


def batch(*arguments: object, most_bytes: int | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m bento.batch`, in which no file may grow beyond `most_bytes`."""

    def limit() -> None:
        if most_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    done = subprocess.run(
        [sys.executable, "-m", "bento.batch", *map(str, arguments)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "SENTILE_MODEL"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=limit,
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def results_of(*stems: str) -> list[str]:
    return sorted(f"{stem}{suffix}" for stem in stems for suffix in (MAP_SUFFIX, f"{MAP_SUFFIX}.aux.xml", TABLE_SUFFIX))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good scenes of the same name, and every kind of bad one."""
    folder = tmp_path_factory.mktemp("scenes")
    synthesise_scene(folder / "north" / "scene.tif", 1, 2, 3)
    synthesise_scene(folder / "south" / "scene.tif", 2, 2, 3)
    good = (folder / "north" / "scene.tif").read_bytes()
    forest = render("Forest", 1, 1)
    degrees = {"crs": CRS.from_epsg(4326), "transform": Affine(0.0001, 0, 2.8, 0, -0.0001, 42.3)}
    for name, content in {
        "cut.tif": good[: len(good) // 2],
        "photo.tiff": jpeg(),
        "unnamed.TIF": geotiff(forest, tags=TAGS),
        "degrees.tif": geotiff(forest, names=BAND_NAMES, tags=TAGS, **degrees),
        "nowhere.tif": geotiff(forest, names=BAND_NAMES, tags=TAGS, crs=None),
        "[bold]odd; name.tif": good,
        "notes.txt": b"no scene",
    }.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def first_run(
    scenes: Path, linear_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[subprocess.CompletedProcess[str], Path]:
    out = tmp_path_factory.mktemp("results") / "new" / "folder"
    return batch(scenes, "--out", out, "--model", linear_model), out


# A folder of good and bad scenes.


def test_good_scenes_are_done_although_others_fail(
    first_run: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, out = first_run
    assert done.returncode == 1
    assert names(out) == results_of("north-scene", "south-scene", "[bold]odd; name")
    assert "3 of 8 scenes are in" in done.stdout


def test_each_failed_scene_has_one_line_that_says_which_and_why(
    first_run: tuple[subprocess.CompletedProcess[str], Path], scenes: Path
) -> None:
    lines = errors(first_run[0])
    why = {
        "cut.tif": "truncated or corrupt",
        "degrees.tif": "gdalwarp -t_srs EPSG:32631 -tr 10 10",
        "nowhere.tif": "gdal_edit.py -a_srs",
        "photo.tiff": "not a GeoTIFF but a JPEG",
        "unnamed.TIF": "its 13 bands have no names",
    }
    assert len(lines) == len(why)
    for name, reason in why.items():
        (line,) = [line for line in lines if line.startswith(f"error: {scenes / name}: ")]
        assert reason in line


def test_the_table_names_every_scene_as_it_is_called(
    first_run: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    rows = first_run[0].stdout
    assert rows.count("scene.tif") == 2
    assert "[bold]odd; name.tif" in rows
    assert rows.count("failed") == 5
    assert rows.count("done") == 3


def test_scenes_of_the_same_name_keep_their_own_results(
    first_run: tuple[subprocess.CompletedProcess[str], Path], scenes: Path, engine: Engine
) -> None:
    _, out = first_run
    maps = {}
    for side in ("north", "south"):
        with rasterio.open(scenes / side / "scene.tif") as scene:
            order = [scene.descriptions.index(band) + 1 for band in BAND_NAMES]
            corner = scene.read(order, window=((0, 64), (0, 64)))
        with rasterio.open(out / f"{side}-scene{MAP_SUFFIX}") as dataset:
            maps[side] = dataset.read(1)
        assert maps[side][0, 0] == engine.classify(corner[None]).probabilities.argmax()
    assert (maps["north"] != maps["south"]).any()


def test_the_map_lies_on_the_scenes_grid_and_the_table_tells_the_same_classes(
    first_run: tuple[subprocess.CompletedProcess[str], Path], scenes: Path
) -> None:
    _, out = first_run
    with (
        rasterio.open(scenes / "north" / "scene.tif") as scene,
        rasterio.open(out / f"north-scene{MAP_SUFFIX}") as found,
    ):
        assert (found.crs, found.transform, found.shape) == (scene.crs, scene.transform, scene.shape)
        pixels = found.read(1)
    rows = pq.read_table(out / f"north-scene{TABLE_SUFFIX}").to_pylist()
    assert len(rows) == 6
    for row in rows:
        block = pixels[row["row"] : row["row"] + 64, row["column"] : row["column"] + 64]
        assert (block == CLASSES.index(row["class"])).all()


def test_a_second_run_makes_the_same_bytes(
    first_run: tuple[subprocess.CompletedProcess[str], Path], scenes: Path, linear_model: Path, tmp_path: Path
) -> None:
    _, out = first_run
    batch(scenes, "--out", tmp_path, "--model", linear_model)
    assert names(tmp_path) == names(out)
    for name in names(out):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes(), name


# One scene.


def test_a_single_scene_is_done_with_exit_status_0(scenes: Path, linear_model: Path, tmp_path: Path) -> None:
    scene = scenes / "south" / "scene.tif"
    done = batch(scene, "--out", tmp_path, "--threads", 1, SENTILE_MODEL=str(linear_model))
    assert done.returncode == 0, done.stderr
    assert names(tmp_path) == results_of("scene")
    assert f"1 of 1 scenes are in {tmp_path}, by {linear_model}" in done.stdout.splitlines()


def test_what_a_scene_does_not_say_can_be_said(linear_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "plain.tif"
    path.write_bytes(geotiff(render("Forest", 1, 1) + np.uint16(1000)))
    said = ("--bands", "l1c", "--level", "l1c", "--offset", "-1000")
    done = batch(path, "--out", tmp_path / "out", "--model", linear_model, *said)
    assert done.returncode == 0, done.stderr
    (row,) = pq.read_table(tmp_path / "out" / f"plain{TABLE_SUFFIX}").to_pylist()
    assert row["class"] == "Forest"


def test_results_that_lie_among_the_scenes_are_not_taken_for_scenes(linear_model: Path, tmp_path: Path) -> None:
    synthesise_scene(tmp_path / "scene.tif", 1, 1, 1)
    for _ in range(2):
        done = batch(tmp_path, "--out", tmp_path / "maps", "--model", linear_model)
        assert done.returncode == 0, done.stderr
        assert "1 of 1 scenes" in done.stdout
    assert names(tmp_path / "maps") == results_of("scene")


# What cannot work, said in one line.


def test_an_empty_folder_is_an_error(linear_model: Path, tmp_path: Path) -> None:
    done = batch(tmp_path, "--out", tmp_path / "out", "--model", linear_model)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"error: {tmp_path}: no GeoTIFF (.tif, .tiff) is there; name a scene or a folder of scenes"
    ]


@pytest.mark.parametrize("model", ["missing", "corrupt"])
def test_without_a_sound_model_nothing_is_begun(scenes: Path, tmp_path: Path, model: str) -> None:
    path = tmp_path / "model.onnx"
    if model == "corrupt":
        path.write_bytes(b"nonsense")
    done = batch(scenes, "--out", tmp_path / "out", "--model", path)
    said = {
        "missing": "there is no such model; `python -m training` makes one",
        "corrupt": "not a readable ONNX",
    }
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {path}: {said[model]}")
    assert not (tmp_path / "out").exists()


def test_an_unknown_band_is_refused_before_anything_is_read(scenes: Path, tmp_path: Path) -> None:
    done = batch(scenes, "--out", tmp_path / "out", "--bands", "B02,B99", "--model", tmp_path / "none.onnx")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "'B99'" in line
    assert "B8A" in line


def test_a_result_that_cannot_be_written_is_one_line_and_leaves_nothing_behind(
    scenes: Path, linear_model: Path, tmp_path: Path
) -> None:
    scene = scenes / "north" / "scene.tif"
    done = batch(scene, "--out", tmp_path / "out", "--model", linear_model, most_bytes=500)
    assert done.returncode == 1
    assert errors(done) == [f"error: {scene}: {tmp_path / 'out'} cannot be written to: File too large"]
    assert names(tmp_path / "out") == []
    (tmp_path / "file").write_text("mine")
    done = batch(scene, "--out", tmp_path / "file" / "out", "--model", linear_model)
    assert done.returncode == 1
    assert errors(done) == [f"error: {scene}: {tmp_path / 'file' / 'out'} cannot be written to: Not a directory"]


def test_a_table_that_cannot_be_written_is_not_left_half_written(
    scenes: Path, linear_model: Path, tmp_path: Path
) -> None:
    scene = scenes / "north" / "scene.tif"
    done = batch(scene, "--out", tmp_path, "--model", linear_model, most_bytes=4500)
    assert done.returncode == 1
    assert len(errors(done)) == 1
    assert names(tmp_path) == [f"scene{MAP_SUFFIX}", f"scene{MAP_SUFFIX}.aux.xml"]
    with rasterio.open(tmp_path / f"scene{MAP_SUFFIX}") as dataset:
        assert dataset.read(1).shape == (128, 192)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("no/such/folder", "--out", "x"), "'no/such/folder' does not exist"),
        ((".",), "'--out'"),
        ((".", "--out", "x", "--least-valid", "2"), "'--least-valid'"),
        ((".", "--out", "x", "--threads", "-1"), "'--threads'"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[str, ...], said: str) -> None:
    done = batch(*arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_help_names_the_results_and_every_option() -> None:
    done = batch("--help")
    assert done.returncode == 0
    for word in (
        ".classes.tif",
        ".windows.parquet",
        "--out",
        "--model",
        "--bands",
        "--offset",
        "Exit status",
    ):
        assert word in done.stdout


# Finding scenes, and naming their results.


def test_scenes_are_found_in_folders_below_in_a_fixed_order(scenes: Path) -> None:
    found = [path.relative_to(scenes).as_posix() for path in find_scenes(scenes)]
    assert found == sorted(found)
    assert set(found) >= {"north/scene.tif", "south/scene.tif", "unnamed.TIF", "photo.tiff"}
    assert "notes.txt" not in found


def test_a_folder_called_like_a_scene_is_none(tmp_path: Path) -> None:
    (tmp_path / "folder.tif").mkdir()
    with pytest.raises(NoTilesError, match="no GeoTIFF"):
        find_scenes(tmp_path)


@pytest.mark.parametrize(
    ("scenes", "expected"),
    [
        (["a.tif", "b.tif"], ["a", "b"]),
        (["x/a.tif", "y/a.tif", "y/b.tif"], ["x-a", "y-a", "b"]),
        (["/in/x/z/a.tif", "/in/y/z/a.tif"], ["x-z-a", "y-z-a"]),
        (["x/a.tif", "x/a.tiff"], ["a", "a-2"]),
        (["x-a.tif", "x/a.tif", "y/a.tif"], ["x-a", "x-a-2", "y-a"]),
        ([], []),
    ],
)
def test_results_are_named_after_their_scene_and_never_share_a_name(scenes: list[str], expected: list[str]) -> None:
    assert list(output_names([Path(scene) for scene in scenes]).values()) == expected


# Real scenes.


@pytest.mark.realdata
def test_real_scenes_are_classified_in_place(real_data: Path, linear_model: Path, tmp_path: Path) -> None:
    folder = real_data / "scenes" / "lahinch_l1c"
    done = batch(folder, "--out", tmp_path, "--model", linear_model, "--offset", 0, "--scale", 0.0001)
    assert done.returncode == 0, done.stderr
    paths = sorted(folder.glob("*.tif"))
    assert names(tmp_path) == results_of(*[path.stem for path in paths])
    for path in paths:
        with rasterio.open(path) as scene, rasterio.open(tmp_path / f"{path.stem}{MAP_SUFFIX}") as found:
            assert found.crs == CRS.from_epsg(32629)
            assert (found.transform, found.shape) == (scene.transform, scene.shape)
            missing = np.isnan(scene.read(1))
            pixels = found.read(1)
        assert missing.any()
        assert (pixels[missing] == 255).all()
        assert (pixels[~missing] != 255).mean() > 0.5


@pytest.mark.realdata
def test_real_scenes_in_degrees_are_refused_with_the_way_to_warp_them(
    real_data: Path, engine: Engine, tmp_path: Path
) -> None:
    found = find_scenes(real_data / "scenes" / "boadella_l2a")
    outcomes = list(classify_scenes(engine, found, tmp_path / "out", Statement()))
    assert len(outcomes) == 3
    for outcome in outcomes:
        assert outcome.error is not None
        assert outcome.error.startswith(f"{outcome.path}: its pixels are measured in degrees")
        assert "gdalwarp -t_srs EPSG:32631 -tr 10 10 -r cubic" in outcome.error
    assert not (tmp_path / "out").exists()
