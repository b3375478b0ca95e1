"""A real file system of a few megabytes, also where nothing may be mounted: to fill it harms nobody."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from filelock import FileLock

MEGABYTE = 2**20
CONTAINER = (Path("/dev"), Path("/dev/shm"))  # noqa: S108 - file systems of 64 MB in a container without rights
LARGEST = 64 * MEGABYTE


@contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """Give a folder on a file system that has so many megabytes of room, for the length of the block.

    It is mounted where that is permitted. In a container without rights, it is a part of one that every
    container has; one test at a time takes all of its other room.
    """
    with tempfile.TemporaryDirectory(prefix="small-disk-") as name:
        if _mount(Path(name), megabytes):
            try:
                yield Path(name)
            finally:
                subprocess.run(["umount", "-l", name], check=True)
            return
    with _part_of_a_small_one(megabytes) as folder:
        yield folder


def _mount(folder: Path, megabytes: int) -> bool:
    if sys.platform != "linux":
        return False
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@contextmanager
def _part_of_a_small_one(megabytes: int) -> Iterator[Path]:
    parents = [path for path in CONTAINER if _is_small(path)]
    if not parents:
        reason = "a file system can be mounted by root on Linux, and there is no small one, as in a container"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with (
        FileLock(Path(tempfile.gettempdir(), "small-disk.lock")),
        tempfile.TemporaryDirectory(prefix="small-disk-", dir=parents[0]) as folder,
        tempfile.NamedTemporaryFile(dir=parents[0]) as filler,
    ):
        os.posix_fallocate(filler.fileno(), 0, shutil.disk_usage(folder).free - megabytes * MEGABYTE)
        yield Path(folder)


def _is_small(folder: Path) -> bool:
    return os.access(folder, os.W_OK) and shutil.disk_usage(folder).total <= LARGEST


def fill(folder: Path) -> Path:
    """Write a file that takes all that is left of a file system."""
    path = folder / "somebody-elses"
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return path
