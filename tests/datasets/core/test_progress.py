"""Progress is lines in a log and a bar in a terminal, on standard error."""

import os
import pty
import subprocess
import sys

import pytest

from tilewise.datasets.core import console
from tilewise.datasets.core.console import shown

WORK = """
from tilewise.datasets.core.console import shown
with shown() as report:
    for done in range(1, 4):
        report("packing", done, 3)
        report("fetching", done * 1000, None)
"""


def test_a_log_gets_the_last_line_of_each_step_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with shown() as report:
        for done in range(1, 2001):
            report("packing", done, 2000)
        for done in range(1, 6):
            report("validating", done, 5)
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ["packing: 2,000 of 2,000", "validating: 5 of 5"]
    assert captured.out == ""


def test_a_log_of_long_work_gets_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LINES", 0.0)
    with shown() as report:
        report("fetching", 1_000_000, None)
        report("fetching", 2_000_000, 3_000_000)
    assert capsys.readouterr().err.splitlines() == ["fetching: 1,000,000", "fetching: 2,000,000 of 3,000,000"]


def test_a_terminal_gets_a_bar_for_each_step() -> None:
    reader, writer = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", WORK],
        stderr=writer,
        stdout=subprocess.PIPE,
        env=environment,
        check=True,
        timeout=60,
    )
    screen = os.read(reader, 100_000).decode()
    os.close(writer)
    os.close(reader)
    assert "packing" in screen
    assert "3/3" in screen
    assert "3,000/3,000" in screen
    assert "\x1b[" in screen
    assert done.stdout == b""
