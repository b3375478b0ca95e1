"""A temporary folder that the processes of one service share, of this user alone."""

import atexit
import os
import re
import shutil
import tempfile
from pathlib import Path

from datasets.errors import SentileError

_VARIABLE = "SENTILE_TASKS"
_PREFIX = "sentile-tasks-"


def shared_folder() -> str:
    """Return the folder; it is made by the first process that asks, and its children find it in the environment.

    It goes with the process that made it. One that a process left which was killed goes with the next start.
    """
    folder = os.environ.get(_VARIABLE)
    if not folder:
        _clear_up()
        folder = os.environ[_VARIABLE] = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def check_folder(folder: Path) -> None:
    """Make the folder that the user said, if there is none.

    Raises:
        SentileError: it cannot be made or written to.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SentileError(f"{folder}: scenes cannot be kept there ({reason}); say a folder by {_VARIABLE}") from error


def _clear_up() -> None:
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        match = re.fullmatch(rf"{_PREFIX}(\d+)-\w+", path.name)
        if match and _is_mine(path) and not Path(f"/proc/{match.group(1)}").exists() and Path("/proc/self").exists():
            shutil.rmtree(path, ignore_errors=True)


def _is_mine(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.getuid() and path.is_dir() and not path.is_symlink()
    except OSError:
        return False
