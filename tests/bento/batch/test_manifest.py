"""The lock of a folder of results, and what its manifest tells."""

import sqlite3
import threading
from pathlib import Path

import pytest

from tilewise.bento.batch.manifest import (
    MANIFEST,
    STAGING,
    Manifest,
    ResultFile,
    SceneOutcome,
    SceneState,
    is_intact,
    peek,
)
from tilewise.datasets.core.errors import FolderBusyError, ResultsError
from tilewise.datasets.core.files import sha256_of


def test_who_finds_a_folder_busy_keeps_nothing_of_its_lock(tmp_path: Path) -> None:
    Manifest(tmp_path).close()
    reader = sqlite3.connect(tmp_path / MANIFEST, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM scenes").fetchall()
    with pytest.raises(FolderBusyError) as refused:
        Manifest(tmp_path)
    reader.close()
    Manifest(tmp_path).close()
    assert "another run writes there" in str(
        refused.value
    )  # the error still lives, as while a consumer waits


def test_a_manifest_is_looked_at_without_a_lock_and_without_a_trace(tmp_path: Path) -> None:
    assert peek(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []
    done = SceneOutcome(
        "a", "/in/a.tif", SceneState.DONE, "key", windows=3, skipped=1, area_ha={"Forest": 2.5}
    )
    with Manifest(tmp_path) as manifest:
        manifest.enter(done, None)
    assert peek(tmp_path) == {"a": done}
    (tmp_path / MANIFEST).write_bytes(b"no manifest")
    with pytest.raises(ResultsError, match="cannot be read now"):
        peek(tmp_path)


@pytest.mark.parametrize(
    ("state", "broken", "complete"),
    [
        (SceneState.DONE, 0, True),
        (SceneState.KEPT, 0, True),
        (SceneState.DONE, 2, False),
        (SceneState.FAILED, 0, False),
    ],
)
def test_a_scene_is_complete_if_it_was_classified_and_every_block_was_decoded(
    state: SceneState, broken: int, complete: bool
) -> None:
    assert SceneOutcome("a", "/in/a.tif", state, broken=broken).is_complete is complete


def test_a_scene_that_failed_adds_nothing_to_any_sum() -> None:
    failed = SceneOutcome("a", "/in/a.tif", SceneState.FAILED, error="it is corrupt").to_json()
    numbers = {name: value for name, value in failed.items() if isinstance(value, int | float)}
    assert numbers == dict.fromkeys(("windows", "skipped", "broken", "outliers", "pixels", "seconds"), 0)
    assert (failed["key"], failed["area_ha"], failed["files"]) == ("", {}, ())


@pytest.mark.parametrize(("windows", "skipped", "fraction"), [(0, 0, 0.0), (0, 1, 1.0), (3, 1, 0.25)])
def test_the_windows_that_were_skipped_are_a_fraction_of_all(
    windows: int, skipped: int, fraction: float
) -> None:
    outcome = SceneOutcome("a", "/in/a.tif", SceneState.DONE, windows=windows, skipped=skipped)
    assert outcome.skipped_fraction == fraction


def test_results_are_intact_while_every_file_is_there_to_the_byte(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.classes.tif", "a.stac.json")]
    for file in files:
        file.write_bytes(file.name.encode())
    written = tuple(ResultFile(f.name, f.stat().st_size, sha256_of(f)) for f in files)
    outcome = SceneOutcome("a", "/in/a.tif", SceneState.DONE, files=written)
    assert is_intact(outcome, tmp_path)
    files[1].write_bytes(b"A.stac.json")
    assert not is_intact(outcome, tmp_path), "a byte is another"
    files[1].unlink()
    assert not is_intact(outcome, tmp_path), "a file is gone"


def test_a_file_that_is_no_manifest_is_named(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text("a list of scenes, of somebody's own\n" * 100)
    with pytest.raises(ResultsError, match=r"manifest\.sqlite: not a manifest of tilewise; choose another"):
        Manifest(tmp_path)


def test_a_scene_that_is_done_again_loses_the_files_that_it_no_longer_has_and_no_other(
    tmp_path: Path,
) -> None:
    def enter(*names: str) -> None:
        staged = tmp_path / f"{STAGING}a"
        staged.mkdir()
        for name in names:
            (staged / name).write_text(name)
        files = tuple(ResultFile(name, len(name), sha256_of(staged / name)) for name in names)
        manifest.enter(SceneOutcome("a", "/in/a.tif", SceneState.DONE, files=files), staged)

    with Manifest(tmp_path) as manifest:
        enter("a.classes.tif", "a.polygons.parquet")
        enter("a.classes.tif", "a.windows.parquet")
        assert {path.name for path in tmp_path.glob("a.*")} == {"a.classes.tif", "a.windows.parquet"}
        assert is_intact(manifest.known()["a"], tmp_path)


def written(folder: Path, *names: str) -> tuple[ResultFile, ...]:
    """Files of these names, and what a manifest tells of them."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(name)
    return tuple(ResultFile(name, len(name), sha256_of(folder / name)) for name in names)


@pytest.mark.parametrize("byte", range(8))
def test_another_byte_is_noticed_whatever_it_is(tmp_path: Path, byte: int) -> None:
    outcome = SceneOutcome("a", "/in/a.tif", SceneState.DONE, files=written(tmp_path, "a.tif"))
    (tmp_path / "a.tif").write_bytes(b"a.ti" + bytes([byte]))
    assert not is_intact(outcome, tmp_path)


def test_a_scene_that_fails_later_keeps_its_entry_and_its_files(tmp_path: Path) -> None:
    out = tmp_path / "results" / "of" / "today"
    done = SceneOutcome("a", "/in/a.tif", SceneState.DONE, files=written(tmp_path / "work", "a.tif"))
    with Manifest(out) as manifest:
        manifest.enter(done, tmp_path / "work")
        assert not (tmp_path / "work").exists()
        for state in (SceneState.FAILED, SceneState.OUTSIDE):
            manifest.enter(SceneOutcome("a", "/in/a.tif", state), None)
            manifest.enter(SceneOutcome("b", "/in/b.tif", state), None)
        assert manifest.known() == {"a": done}
        assert manifest.known_as("b") is None
    assert is_intact(done, out)


def test_a_file_that_somebody_removed_is_no_trouble_when_its_scene_is_done_again(tmp_path: Path) -> None:
    first = SceneOutcome(
        "a", "/in/a.tif", SceneState.DONE, files=written(tmp_path / "work", "a.old", "a.tif")
    )
    with Manifest(tmp_path) as manifest:
        manifest.enter(first, tmp_path / "work")
        (tmp_path / "a.old").unlink()
        again = SceneOutcome("a", "/in/a.tif", SceneState.DONE, files=written(tmp_path / "work", "a.tif"))
        manifest.enter(again, tmp_path / "work")
        assert manifest.known() == {"a": again}


def test_a_scene_may_be_entered_from_another_thread(tmp_path: Path) -> None:
    done = SceneOutcome("a", "/in/a.tif", SceneState.DONE)
    with Manifest(tmp_path) as manifest:
        thread = threading.Thread(target=manifest.enter, args=(done, None))
        thread.start()
        thread.join()
        assert manifest.known() == {"a": done}


@pytest.mark.parametrize("version", [-1, 2])
def test_a_manifest_of_another_version_is_refused_and_both_versions_are_named(
    tmp_path: Path, version: int
) -> None:
    Manifest(tmp_path).close()
    database = sqlite3.connect(tmp_path / MANIFEST)
    database.execute(f"PRAGMA user_version = {version}")
    database.close()
    says = rf"another version of tilewise \(manifest {version}, this one writes 1\); choose another folder"
    with pytest.raises(ResultsError, match=says):
        Manifest(tmp_path)


def test_a_manifest_that_cannot_be_written_is_an_error_of_the_disk(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(OSError, match=r"manifest\.sqlite cannot be written to: unable to open"):
        Manifest(tmp_path)


def test_what_a_killed_run_left_is_removed_and_all_else_stays(tmp_path: Path) -> None:
    written(tmp_path / f"{STAGING}old", "a.tif")
    written(tmp_path, ".summary.json.partial", ".report.html.partial", "a.tif", ".notes.partial")
    manifest = Manifest(tmp_path)
    manifest.staging.rmdir()
    manifest.close()
    assert {path.name for path in tmp_path.iterdir()} == {MANIFEST, "a.tif", ".notes.partial"}


def test_an_outcome_survives_the_way_through_json() -> None:
    files = (ResultFile("a.tif", 3, "f" * 64),)
    outcome = SceneOutcome("a", "/in/a.tif", SceneState.DONE, "key", files=files, no_data_ha=0.5)
    assert SceneOutcome.from_json(outcome.to_json()) == outcome
    assert outcome.kept() == SceneOutcome(
        "a", "/in/a.tif", SceneState.KEPT, "key", files=files, no_data_ha=0.5
    )
