"""What a rehearsal stands on: its commands, its page, its way out. The story itself is played by `deploy/rehearsal`."""

import io
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from rehearse import MARKS, main, write_down
from stage import RehearsalError, Stage

ROOT = Path(__file__).parents[2]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    (tmp_path / "project").mkdir()
    return Stage(tmp_path, io.StringIO(), steps=2)


def test_a_command_is_shown_with_the_end_of_what_it_says_and_all_of_it_is_kept(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.step("count")
    overrides = stage.python("-c", "print('one\\ntwo\\nthree')", show=1)
    assert overrides == "one\ntwo\nthree\n"
    printed = capsys.readouterr().out
    assert "── 1/2 count ──" in printed
    assert printed.splitlines()[-2:] == ["$ python -c 'print('\"'\"'one\\ntwo\\nthree'\"'\"')'", "    three"]
    assert "one\ntwo\nthree" in (stage.folder / "commands.log").read_text()


def test_a_command_that_ends_otherwise_than_it_must_stops_the_story_and_shows_why(stage: Stage) -> None:
    assert stage.python("-c", "raise SystemExit(3)", expect=(0, 3)) == ""
    with pytest.raises(RehearsalError, match=r"(?s)ended with 1, not 0:.*no luck"):
        stage.python("-c", "raise SystemExit('no luck')")
    with pytest.raises(RehearsalError, match=r"not done after 0\.5 s"):
        stage.python("-c", "import time; time.sleep(60)", seconds=0.5)


def test_what_must_be_so_and_is_not_is_said(stage: Stage) -> None:
    stage.must(True, "water is wet")
    stage.until(lambda: True, "it comes")
    with pytest.raises(RehearsalError, match="not so: pigs fly"):
        stage.must(False, "pigs fly")
    with pytest.raises(RehearsalError, match=r"not so after 0\.1 s: pigs fly"):
        stage.until(lambda: False, "pigs fly", seconds=0.1)


def test_the_service_of_who_calls_has_no_say_in_it(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWISE_MODEL", "mine.onnx")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://production")
    assert not [name for name in stage.environment() if name.startswith(("TILEWISE_", "MLFLOW_"))]


def test_its_output_takes_its_place_in_the_page(tmp_path: Path) -> None:
    log, page = tmp_path / "rehearsal.log", tmp_path / "page.md"
    page.write_text(f"before\n{MARKS[0]}old\n{MARKS[1]}\nafter\n")
    for overrides in ("first", "second"):
        log.write_text(f"\n── {overrides} ──\n")
        write_down(log, page)
    text = page.read_text()
    assert "second" in text
    assert not {"old", "first"} & set(text.split())
    assert text.startswith("before\n")
    assert text.endswith(f"{MARKS[1]}\nafter\n")
    page.write_text("no marks")
    with pytest.raises(RehearsalError, match="no place for the output"):
        write_down(log, page)


def test_the_page_has_its_place_for_it() -> None:
    assert all(mark in (ROOT / "docs/lifecycle.md").read_text(encoding="utf-8") for mark in MARKS)


def test_programs_that_are_absent_are_named_with_the_way_to_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = CliRunner().invoke(main, ["--folder", str(tmp_path / "run")])
    assert done.exit_code == 1
    assert "apt-get install" in done.stderr
    assert "haproxy" in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_script_finds_its_python_from_anywhere(tmp_path: Path) -> None:
    words = [str(ROOT / "deploy/rehearsal"), "--help"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "a model's whole life" in done.stdout
