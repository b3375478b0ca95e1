"""The temporary folder that the processes of one service share."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from servers import ROOT

from tilewise.bento.serving.task_runner import check_folder
from tilewise.datasets.core.errors import TilewiseError

SAY_IT = """
import subprocess, sys
from tilewise.bento.serving.task_runner import shared_folder
code = "from tilewise.bento.serving.task_runner import shared_folder; print(shared_folder())"
child = [sys.executable, "-c", code]
print(shared_folder(), subprocess.run(child, capture_output=True, text=True).stdout.strip(), flush=True)
sys.stdin.read()
"""


def start(place: Path) -> tuple[subprocess.Popen[str], Path, Path]:
    """A process that shares a folder in `place` with its child, and where the two say it is."""
    environment = {key: value for key, value in os.environ.items() if key != "TILEWISE_TASKS"}
    process = subprocess.Popen(
        [sys.executable, "-c", SAY_IT],
        cwd=ROOT,
        env=environment | {"TMPDIR": str(place), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    own, childs = process.stdout.readline().split()
    return process, Path(own), Path(childs)


def test_it_is_shared_private_and_goes_with_the_process_that_made_it(tmp_path: Path) -> None:
    process, own, childs = start(tmp_path)
    assert own == childs
    assert own.parent == tmp_path
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    process.communicate(timeout=30)
    assert not own.exists()


def test_what_a_killed_process_left_goes_with_the_next_start_and_nothing_else_does(tmp_path: Path) -> None:
    killed, left, _ = start(tmp_path)
    (left / "scene.tif").write_bytes(b"scene")
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=30)
    assert left.exists()
    other = tmp_path / "tilewise-tasks-of-somebody"
    other.mkdir()
    living, own, _ = start(tmp_path)
    process, third, _ = start(tmp_path)
    assert not left.exists()
    assert {other, own, third} <= set(tmp_path.iterdir()), "the folders of living processes stay"
    living.communicate(timeout=30)
    process.communicate(timeout=30)


def test_a_folder_that_cannot_be_had_is_said_in_one_line(tmp_path: Path) -> None:
    check_folder(tmp_path / "new" / "one")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TilewiseError, match="TILEWISE_TASKS"):
        check_folder(tmp_path / "file" / "below")
