"""Files are written whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from tilewise.datasets.core.files import atomic_write


def test_what_was_there_stays_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "result.txt"
    path.write_text("the old one")

    def fail() -> None:
        with atomic_write(path) as partial:
            partial.write_text("half of the n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "the old one"
    assert [path.name for path in tmp_path.iterdir()] == ["result.txt"]


def test_what_is_whole_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "result.txt"
    path.write_text("the old one")
    with atomic_write(path) as partial:
        partial.write_text("the new one")
        assert path.read_text() == "the old one"
    assert path.read_text() == "the new one"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_is_an_error_and_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "result.txt"
    path.write_text("the old one")
    (tmp_path / ".result.txt.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught, atomic_write(path) as partial:
        partial.write_text("the new one")
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["result.txt"]
    assert path.read_text() == "the old one"


def test_the_folder_is_made(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "new" / "folder" / "result.txt") as partial:
        partial.write_text("it")
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["result.txt"]


@pytest.mark.parametrize(("durable", "expected"), [(True, ["sync", "replace", "sync"]), (False, ["replace"])])
def test_the_disk_holds_the_file_before_it_replaces_the_former_one(
    durable: bool, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, replace, fsync = [], Path.replace, os.fsync
    monkeypatch.setattr(Path, "replace", lambda path, to: (done.append("replace"), replace(path, to))[1])
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("sync"), fsync(handle))[1])
    with atomic_write(tmp_path / "result.txt", durable=durable) as partial:
        partial.write_text("it")
    assert done == expected
