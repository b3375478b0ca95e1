"""The lock of a folder of results."""

import sqlite3
from pathlib import Path

import pytest

from tilewise.bento.batch.manifest import MANIFEST, Manifest
from tilewise.datasets.core.errors import FolderBusyError


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
