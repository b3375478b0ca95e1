"""What a rehearsal stands on: its commands, its page, its way out. The story itself is played by
`deploy/rehearsal`."""

import io
import os
import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from rehearse import MARKS, digest_of, main, revision, write_down
from stage import Rehearsal, RehearsalError, git_identity

ROOT = Path(__file__).parents[2]


@pytest.fixture
def rehearsal(tmp_path: Path) -> Rehearsal:
    (tmp_path / "project").mkdir()
    return Rehearsal(tmp_path, io.StringIO(), steps=2)


def test_a_command_is_shown_with_the_end_of_what_it_says_and_all_of_it_is_kept(
    rehearsal: Rehearsal, capsys: pytest.CaptureFixture[str]
) -> None:
    rehearsal.step("count")
    printed_text = rehearsal.python("-c", "print('one\\ntwo\\nthree')", show=1)
    assert printed_text == "one\ntwo\nthree\n"
    printed = capsys.readouterr().out
    assert "── 1/2 count ──" in printed
    assert printed.splitlines()[-2:] == ["$ python -c 'print('\"'\"'one\\ntwo\\nthree'\"'\"')'", "    three"]
    assert "one\ntwo\nthree" in (rehearsal.folder / "commands.log").read_text()


def test_a_command_that_ends_otherwise_than_it_must_stops_the_story_and_shows_why(
    rehearsal: Rehearsal,
) -> None:
    assert rehearsal.python("-c", "raise SystemExit(3)", expect=(0, 3)) == ""
    with pytest.raises(RehearsalError, match=r"(?s)ended with 1, not 0:.*no luck"):
        rehearsal.python("-c", "raise SystemExit('no luck')")
    with pytest.raises(RehearsalError, match=r"not done after 0\.5 s"):
        rehearsal.python("-c", "import time; time.sleep(60)", seconds=0.5)


def test_what_must_be_so_and_is_not_is_said(rehearsal: Rehearsal) -> None:
    rehearsal.check(True, "water is wet")
    rehearsal.wait_until(lambda: True, "it comes")
    with pytest.raises(RehearsalError, match="failed: pigs fly"):
        rehearsal.check(False, "pigs fly")
    with pytest.raises(RehearsalError, match=r"failed after 0\.1 s: pigs fly"):
        rehearsal.wait_until(lambda: False, "pigs fly", seconds=0.1)


def test_the_service_of_who_calls_has_no_say_in_it(
    rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILEWISE_MODEL", "mine.onnx")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://production")
    assert not [name for name in rehearsal.environment() if name.startswith(("TILEWISE_", "MLFLOW_"))]


def test_its_output_takes_its_place_in_the_page(tmp_path: Path) -> None:
    log, page = tmp_path / "rehearsal.log", tmp_path / "page.md"
    page.write_text(f"before\n{MARKS[0]}old\n{MARKS[1]}\nafter\n")
    for printed_text in ("first", "second"):
        log.write_text(f"\n── {printed_text} ──\n")
        write_down(log, page, "1a2b3c4 with changes")
    text = page.read_text()
    assert "second" in text
    assert re.search(
        r"^Printed on \d{4}-\d\d-\d\d from commit 1a2b3c4 with changes, on \d+ cores:$", text, re.MULTILINE
    )
    assert not {"old", "first"} & set(text.split())
    assert text.startswith("before\n")
    assert text.endswith(f"{MARKS[1]}\nafter\n")
    page.write_text("no marks")
    with pytest.raises(RehearsalError, match="no marks for the output"):
        write_down(log, page, "1a2b3c4")


def test_a_checkout_is_named_by_its_commit_and_whether_files_were_changed(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        command = ["git", *words]
        environment = os.environ | git_identity()
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout

    with pytest.raises(RehearsalError, match="a rehearsal needs a clone"):
        revision(tmp_path)
    git("init", "--quiet")
    (tmp_path / "code.py").write_text("1")
    git("add", "code.py")
    git("commit", "--quiet", "--message", "one")
    commit = git("rev-parse", "HEAD")
    assert len(revision(tmp_path)) >= 7
    assert commit.startswith(revision(tmp_path))
    (tmp_path / "code.py").write_text("2")
    assert commit.startswith(revision(tmp_path).removesuffix(" with changes"))
    assert revision(tmp_path).endswith(" with changes")


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


def test_data_are_compared_by_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "Forest").mkdir()
    (tmp_path / "Forest/1.tif").write_bytes(b"one")
    before = digest_of(tmp_path)
    (tmp_path / "Forest/1.tif").write_bytes(b"two")
    assert digest_of(tmp_path) != before, "as many files, of the same size"
    (tmp_path / "Forest/1.tif").write_bytes(b"one")
    assert digest_of(tmp_path) == before
    (tmp_path / "Forest/1.tif").rename(tmp_path / "Forest/2.tif")
    assert digest_of(tmp_path) != before
