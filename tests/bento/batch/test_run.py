"""Classifying scenes from Python, and watching a folder for new ones."""

import shutil
import threading
import time
from pathlib import Path

import pytest
import rasterio
from batch_runs import names

from tilewise.bento.batch import (
    Output,
    OutputOptions,
    RunOptions,
    RunProgress,
    SceneState,
    VectorFormat,
    classify_scenes,
)
from tilewise.bento.batch.manifest import SceneOutcome
from tilewise.bento.batch.run import name_results, watch_scenes
from tilewise.bento.inference.windows import GridOptions
from tilewise.datasets.acquire.synthetic import synthesise_scene
from tilewise.datasets.core.errors import NoTilesError, TilewiseError
from tilewise.datasets.scenes import SceneSource, find_scenes

MAPS = RunOptions(outputs=OutputOptions((Output.CLASSES,)))


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    for number in range(3):
        synthesise_scene(tmp_path / "in" / f"s{number}.tif", number, 2, 2)
    return tmp_path / "in"


def test_outcomes_come_one_by_one_and_the_report_at_the_end(
    scenes: Path, linear_model: Path, tmp_path: Path
) -> None:
    seen: list[RunProgress] = []
    found = classify_scenes(scenes, tmp_path / "out", model=linear_model, options=MAPS, progress=seen.append)
    assert not (tmp_path / "out").exists()
    first = next(found)
    assert (first.name, first.state, first.windows) == ("s0", SceneState.DONE, 4)
    assert (tmp_path / "out" / "s0.classes.tif").exists()
    assert not (tmp_path / "out" / "s1.classes.tif").exists()
    assert [outcome.name for outcome in found] == ["s1", "s2"]
    assert {"report.html", "summary.csv", "summary.json"} <= set(names(tmp_path / "out"))
    assert (seen[-1].done, seen[-1].total, seen[-1].fraction, seen[-1].windows) == (3, 3, 1.0, 12)
    assert sorted(standing.fraction for standing in seen) == [standing.fraction for standing in seen]


def test_who_stops_listening_stops_the_run_and_the_next_goes_on(
    scenes: Path, linear_model: Path, tmp_path: Path
) -> None:
    found = classify_scenes(scenes, tmp_path / "out", model=linear_model, options=MAPS)
    next(found)
    found.close()
    again = classify_scenes(scenes, tmp_path / "out", model=linear_model, options=MAPS)
    assert [outcome.state for outcome in again] == [SceneState.KEPT, SceneState.DONE, SceneState.DONE]


def test_every_output_can_be_asked_for(scenes: Path, linear_model: Path, tmp_path: Path) -> None:
    forms = (VectorFormat.PARQUET, VectorFormat.GEOJSON)
    options = RunOptions(grid=GridOptions(stride=32, cell=16), outputs=OutputOptions(tuple(Output), forms))
    (outcome,) = classify_scenes(scenes / "s0.tif", tmp_path / "out", model=linear_model, options=options)
    kinds = {file.name.split(".", 1)[1] for file in outcome.files}
    tables = {f"{kind}.{form}" for kind in ("windows", "polygons") for form in forms}
    maps = {
        "classes.tif",
        "classes.tif.aux.xml",
        "classes.qml",
        "probability.tif",
        "outlier.tif",
        "probabilities.tif",
    }
    assert kinds == tables | maps | {"quicklook.png", "truecolour.jpg", "stac.json"}
    with rasterio.open(tmp_path / "out" / "s0.probabilities.tif") as dataset:
        assert (dataset.count, dataset.shape, dataset.transform.a) == (10, (8, 8), 160)


def test_polygons_alone_leave_no_map(scenes: Path, linear_model: Path, tmp_path: Path) -> None:
    options = RunOptions(outputs=OutputOptions((Output.POLYGONS,), (VectorFormat.GEOJSON,)))
    (outcome,) = classify_scenes(scenes / "s0.tif", tmp_path / "out", model=linear_model, options=options)
    assert [file.name for file in outcome.files] == ["s0.polygons.geojson"]
    assert len(names(tmp_path / "out")) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (RunOptions(outputs=OutputOptions(())), "no output is requested"),
        (RunOptions(jobs=10_000), "are more than the"),
        (RunOptions(grid=GridOptions(stride=32, cell=5)), "cell of 5"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_written(
    scenes: Path, linear_model: Path, tmp_path: Path, options: RunOptions, message: str
) -> None:
    with pytest.raises(TilewiseError, match=message):
        list(classify_scenes(scenes, tmp_path / "out", model=linear_model, options=options))
    assert not (tmp_path / "out").exists()


def test_a_folder_without_scenes_is_an_error(linear_model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(NoTilesError):
        list(classify_scenes(tmp_path / "in", tmp_path / "out", model=linear_model))


def test_results_among_the_scenes_are_not_taken_for_scenes(scenes: Path, linear_model: Path) -> None:
    for expected in (SceneState.DONE, SceneState.KEPT):
        outcomes = list(classify_scenes(scenes, scenes / "maps", model=linear_model, options=MAPS))
        assert [outcome.state for outcome in outcomes] == [expected] * 3


# Names of results.


def known(name: str, source: str) -> dict[str, SceneOutcome]:
    return {name: SceneOutcome(name, source, SceneState.DONE)}


def test_a_scene_keeps_the_name_that_its_results_have(tmp_path: Path) -> None:
    here, there = str(tmp_path / "here.tif"), str(tmp_path / "there.tif")
    Path(here).touch()
    assert name_results([("a", here)], known("a-2", here)) == ["a-2"]
    assert name_results([("a", there)], known("a", here)) == ["a-2"]
    assert name_results([("a", here)], known("a", there)) == ["a"]  # which is gone: the folder was moved


# Watching.


def settle(folder: Path, idle: float = 0.3) -> list[list[str]]:
    def find() -> list[SceneSource]:
        return find_scenes([folder])

    return [[source.name for source in batch] for batch in watch_scenes(find, 0.1, idle)]


def test_scenes_that_are_there_are_taken_once(scenes: Path) -> None:
    assert settle(scenes) == [["s0", "s1", "s2"]]


def test_an_empty_folder_is_waited_for(tmp_path: Path) -> None:
    assert settle(tmp_path) == []


def test_a_scene_that_is_still_being_written_is_left_until_it_is_whole(scenes: Path, tmp_path: Path) -> None:
    content = (scenes / "s0.tif").read_bytes()
    slow, step = scenes / "slow.tif", len(content) // 20 + 1
    sizes = []

    def write() -> None:
        with slow.open("wb") as file:
            for start in range(0, len(content), step):
                file.write(content[start : start + step])
                file.flush()
                time.sleep(0.03)

    writer = threading.Thread(target=write)
    writer.start()
    for batch in watch_scenes(lambda: find_scenes([scenes]), 0.1, 0.5):
        sizes += [slow.stat().st_size for source in batch if source.name == "slow"]
    writer.join()
    assert sizes == [len(content)]


def test_a_scene_that_comes_later_and_one_that_changes_are_taken(scenes: Path) -> None:
    batches = []
    for batch in watch_scenes(lambda: find_scenes([scenes]), 0.05, 0.4):
        batches.append([source.name for source in batch])
        if len(batches) == 1:
            shutil.copy(scenes / "s0.tif", scenes / "new.tif")
        if len(batches) == 2:
            synthesise_scene(scenes / "s1.tif", 9, 2, 2)
    assert batches == [["s0", "s1", "s2"], ["new"], ["s1"]]
