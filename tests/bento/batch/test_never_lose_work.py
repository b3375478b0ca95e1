"""However a run ends, the same command again completes it and repeats next to nothing."""

import errno
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import rasterio
from batch_runs import ROOT, batch, batch_process, command, environment, errors, names, results_in
from small_disk import small_disk

from tilewise.bento.batch import Output, OutputOptions, RunOptions, SceneState, classify_scenes
from tilewise.bento.batch.manifest import MANIFEST, Manifest
from tilewise.datasets.acquire.synthetic import synthesise_scene
from tilewise.datasets.core.errors import ResultsError
from tilewise.datasets.scenes import SceneOptions
from tilewise.models.model_file import usable_cores

COUNT = 4
MAPS = RunOptions(SceneOptions(clouds=None), outputs=OutputOptions((Output.CLASSES,)))
needs_two_cores = pytest.mark.skipif(usable_cores() < 2, reason="two processes need two cores")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for number in range(COUNT):
        synthesise_scene(folder / f"s{number}.tif", number, 5, 5)
    return folder


@pytest.fixture(scope="module")
def undisturbed(
    scenes: Path, linear_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The results of an undisturbed run, in a folder of the same depth, since links lead out of it."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert batch(scenes, "--out", out, "--model", linear_model).returncode == 0
    return results_in(out)


@contextmanager
def started(*arguments: object, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start the command with output to `log`; at the end of the block it is killed if it still runs."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            command(*arguments, "--json"), cwd=ROOT, env=environment(), stdout=file, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait(timeout=30)


def events_in(log: Path) -> list[dict[str, object]]:
    """The events in a log, without the half line that a kill may leave."""
    events = []
    for line in log.read_text().splitlines():
        with suppress(ValueError):
            events.append(json.loads(line))
    return events


def wait_until(condition: object, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


def children(process: int) -> set[int]:
    """The worker processes of a run."""
    found = set()
    for task in Path(f"/proc/{process}/task").iterdir():
        with suppress(OSError):
            found |= {int(child) for child in (task / "children").read_text().split()}
    return {child for child in found if b"spawn_main" in command_line(child)}


def command_line(process: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes()
    return b""


def is_alive(process: int) -> bool:
    return b"spawn_main" in command_line(process)


def has_begun(process: "subprocess.Popen[bytes]", out: Path) -> bool:
    """Whether a run may write results, or has ended: a fast machine may leave it nothing to do."""
    return process.poll() is not None or ((out / MANIFEST).exists() and any(out.glob(".staging-*")))


# kill -9.


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=needs_two_cores)])
@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_an_undisturbed_one(
    scenes: Path, linear_model: Path, undisturbed: dict[str, bytes], tmp_path: Path, jobs: int
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    run = (scenes, "--out", out, "--model", linear_model, "--jobs", jobs)
    draw = random.Random(jobs)  # noqa: S311 - nothing is secret here
    for _ in range(3):
        with started(*run, log=log) as process:
            # From when results may be written until somewhere within the next scenes.
            begun = partial(has_begun, process, out)
            wait_until(begun)
            workers = set()
            until = time.monotonic() + draw.uniform(0, 0.8)
            while time.monotonic() < until and process.poll() is None:
                workers |= children(process.pid)
                time.sleep(0.02)
            process.kill()
        wait_until(lambda workers=workers: not any(map(is_alive, workers)), 20)
        for name, content in results_in(out).items():
            assert content == undisturbed[name], f"{name} is not whole"
    done = batch(*run)
    assert done.returncode == 0, done.stderr
    assert results_in(out) == undisturbed
    finished = Counter(event["name"] for event in events_in(log) if event.get("state") == "done")
    assert all(count == 1 for count in finished.values()), f"done more than once: {finished}"
    assert not list(out.glob(".*"))


def test_a_run_killed_after_one_scene_does_only_the_others(
    scenes: Path, linear_model: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    run = (scenes, "--out", out, "--model", linear_model)
    with started(*run, log=log) as process:
        wait_until(lambda: any(event["event"] == "scene" for event in events_in(log)))
        process.kill()
    before = {event["name"] for event in events_in(log) if event["event"] == "scene"}
    again = batch(*run, "--json")
    states = {
        event["name"]: event["state"]
        for event in map(json.loads, again.stdout.splitlines())
        if "name" in event
    }
    assert {name for name, state in states.items() if state == "kept"} >= before
    assert sum(state == "done" for state in states.values()) <= COUNT - len(before)
    assert results_in(out) == undisturbed


@needs_two_cores
def test_a_worker_that_the_system_kills_is_replaced_and_its_scene_done(
    scenes: Path, linear_model: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    with started(scenes, "--out", out, "--model", linear_model, "--jobs", 2, log=log) as process:
        wait_until(lambda: any(out.glob(".staging-*/scene-*")))
        os.kill(min(children(process.pid)), signal.SIGKILL)
        assert process.wait(timeout=90) == 0
    assert results_in(out) == undisturbed
    assert "was killed; it is tried once more" in log.read_text()


@needs_two_cores
def test_a_scene_that_kills_every_worker_is_reported_and_leaves_nothing(
    scenes: Path, linear_model: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    with started(scenes / "s0.tif", "--out", out, "--model", linear_model, "--jobs", 2, log=log) as process:
        while process.poll() is None:
            for child in children(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            time.sleep(0.05)
        assert process.returncode == 1
    (scene,) = [event for event in events_in(log) if event["event"] == "scene"]
    assert scene["state"] == "failed"
    assert "was killed 2 times; give it more memory" in str(scene["error"])
    assert names(out) == ["manifest.sqlite", "report.html", "summary.csv", "summary.json"]


def test_ctrl_c_ends_a_run_in_a_line_and_the_next_goes_on(
    scenes: Path, linear_model: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    with started(scenes, "--out", out, "--model", linear_model, log=log) as process:
        wait_until(lambda: any(event["event"] == "scene" for event in events_in(log)))
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    assert log.read_text().splitlines()[-1] == "stopped"
    assert not list(out.glob(".*"))
    assert batch(scenes, "--out", out, "--model", linear_model).returncode == 0
    assert results_in(out) == undisturbed


# What was changed in between.


def test_a_result_that_was_damaged_is_made_again(scenes: Path, linear_model: Path, tmp_path: Path) -> None:
    first = {o.name: o for o in classify_scenes(scenes, tmp_path, model=linear_model, options=MAPS)}
    path = tmp_path / "s1.classes.tif"
    intact = path.read_bytes()
    path.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    (tmp_path / "s2.classes.tif").unlink()
    again = {o.name: o.state for o in classify_scenes(scenes, tmp_path, model=linear_model, options=MAPS)}
    assert again == {
        "s0": SceneState.KEPT,
        "s1": SceneState.DONE,
        "s2": SceneState.DONE,
        "s3": SceneState.KEPT,
    }
    assert path.read_bytes() == intact
    assert first.keys() == again.keys()


def test_what_is_asked_for_otherwise_is_done_again_and_leaves_no_strays(
    scenes: Path, linear_model: Path, tmp_path: Path
) -> None:
    both = RunOptions(outputs=OutputOptions((Output.CLASSES, Output.OUTLIER)))
    scene = scenes / "s0.tif"
    assert [o.state for o in classify_scenes(scene, tmp_path, model=linear_model, options=both)] == [
        SceneState.DONE
    ]
    assert "s0.outlier.tif" in names(tmp_path)
    assert [o.state for o in classify_scenes(scene, tmp_path, model=linear_model, options=MAPS)] == [
        SceneState.DONE
    ]
    assert "s0.outlier.tif" not in names(tmp_path)


def test_a_scene_that_changed_is_done_again(linear_model: Path, tmp_path: Path) -> None:
    scene, out = tmp_path / "scene.tif", tmp_path / "out"
    states, maps = [], []
    for seed in (1, 1, 2):
        synthesise_scene(scene, seed, 1, 2)
        (outcome,) = classify_scenes(scene, out, model=linear_model, options=MAPS)
        states.append(outcome.state)
        maps.append((out / "scene.classes.tif").read_bytes())
    assert states == [SceneState.DONE, SceneState.KEPT, SceneState.DONE]
    assert maps[1] != maps[2]


def test_another_scene_of_the_same_name_does_not_overwrite_results(
    linear_model: Path, tmp_path: Path
) -> None:
    for side, seed in (("north", 1), ("south", 2)):
        synthesise_scene(tmp_path / side / "scene.tif", seed, 1, 2)
        list(classify_scenes(tmp_path / side, tmp_path / "out", model=linear_model, options=MAPS))
    assert {"scene.classes.tif", "scene-2.classes.tif"} <= set(names(tmp_path / "out"))
    again = classify_scenes([tmp_path / "south"], tmp_path / "out", model=linear_model, options=MAPS)
    assert [(o.name, o.state) for o in again] == [("scene-2", SceneState.KEPT)]
    # A folder that was moved is not another one.
    (tmp_path / "south").rename(tmp_path / "moved")
    moved = classify_scenes(tmp_path / "moved", tmp_path / "out2", model=linear_model, options=MAPS)
    assert [o.name for o in moved] == ["scene"]


def test_two_runs_do_not_write_to_one_folder_at_a_time(
    scenes: Path, linear_model: Path, tmp_path: Path
) -> None:
    with Manifest(tmp_path):
        done = batch(scenes / "s0.tif", "--out", tmp_path, "--model", linear_model)
    assert done.returncode == 1
    assert errors(done) == [
        f"error: {tmp_path}: another run writes there; wait for it, or choose another folder"
    ]


def test_a_manifest_that_is_none_is_an_error_that_leaves_it(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(b"somebody's own file, not a database at all" * 20)
    with pytest.raises(ResultsError, match="not a manifest"):
        Manifest(tmp_path)
    assert (tmp_path / MANIFEST).read_bytes().startswith(b"somebody's own")


# Failures of what is read and written.


def test_a_file_that_vanishes_while_the_run_goes_on_fails_alone(linear_model: Path, tmp_path: Path) -> None:
    for number in range(3):
        synthesise_scene(tmp_path / "in" / f"s{number}.tif", number, 1, 1)
    outcomes = []
    for outcome in classify_scenes(tmp_path / "in", tmp_path / "out", model=linear_model, options=MAPS):
        outcomes.append(outcome)
        (tmp_path / "in" / "s1.tif").unlink(missing_ok=True)
    assert [outcome.state for outcome in outcomes] == [SceneState.DONE, SceneState.FAILED, SceneState.DONE]
    assert "s1.tif" in str(outcomes[1].error)


def test_a_corrupt_block_is_no_data_counted_and_told_again(linear_model: Path, tmp_path: Path) -> None:
    scene = tmp_path / "scene.tif"
    synthesise_scene(scene, 1, 8, 8)  # 2 × 2 blocks of 256
    with rasterio.open(scene) as dataset:
        start = int(dataset.get_tag_item("BLOCK_OFFSET_1_0", "TIFF", bidx=1))
    with scene.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * 64)
    for _ in range(2):
        done = batch(
            scene,
            "--out",
            tmp_path / "out",
            "--model",
            linear_model,
            "--outputs",
            "classes,windows",
            "--clouds",
            "none",
        )
        assert done.returncode == 1
        assert len(errors(done)) == 1
        assert "blocks could not be decoded and are no data" in errors(done)[0]
    with rasterio.open(tmp_path / "out" / "scene.classes.tif") as dataset:
        pixels = dataset.read(1)
    assert (pixels[:256, 256:] == 255).all()
    assert (pixels[256:] != 255).all()


@pytest.mark.parametrize("max_bytes", [3000, 20_000])
def test_a_disk_that_takes_no_more_is_reported_and_nothing_half_written_is_left(
    scenes: Path, linear_model: Path, tmp_path: Path, max_bytes: int
) -> None:
    """The limit meets a raw map, or a later file of the same scene."""
    out = tmp_path / "out"
    with Manifest(out):  # the manifest is there already: SQLite's own failure is another test
        pass
    done = batch_process(scenes / "s0.tif", "--out", out, "--model", linear_model, max_bytes=max_bytes)
    assert done.returncode == 1
    assert len(errors(done)) >= 1
    assert "File too large" in errors(done)[0] or "could not be written whole" in errors(done)[0]
    assert not results_in(out)
    assert not list(out.glob(".*"))


def test_a_run_on_a_full_disk_goes_on_when_there_is_room(
    scenes: Path, linear_model: Path, undisturbed: dict[str, bytes]
) -> None:
    with small_disk(1) as disk:
        filler, out = disk / "filler", disk / "out"
        filler.write_bytes(bytes(700_000))
        done = batch(scenes, "--out", out, "--model", linear_model)
        assert done.returncode == 1
        assert os.strerror(errno.ENOSPC) in done.stderr
        written = results_in(out)
        assert all(
            undisturbed[name] == written[name] for name in written if not name.endswith(".json")
        )  # links in JSON lead out of the folder
        filler.unlink()
        assert batch(scenes, "--out", out, "--model", linear_model).returncode == 0
        assert results_in(out).keys() == undisturbed.keys()


def test_windows_of_a_scene_are_skipped_and_counted(linear_model: Path, tmp_path: Path) -> None:
    scene = tmp_path / "scene.tif"
    synthesise_scene(scene, 1, 2, 2)
    with rasterio.open(scene, "r+") as dataset:
        pixels = dataset.read()
        pixels[:, :64, :64] = 0
        dataset.write(pixels)
    (outcome,) = classify_scenes(scene, tmp_path / "out", model=linear_model, options=MAPS)
    assert (outcome.windows, outcome.skipped, outcome.skipped_fraction) == (3, 1, 0.25)
    assert np.isclose(sum(outcome.area_ha.values()), 3 * 64**2 / 100)
