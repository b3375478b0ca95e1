"""What a folder of results holds, kept so that no work is done twice and none is lost.

An SQLite file in the folder remembers of each scene what it was made from and which files it left. A scene is entered
only after all its files lie in their place, so whatever is not entered, or not as it was entered, is done again. The
run that writes to a folder holds its manifest locked; the lock ends with the process, however that ends.
"""

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from tilewise.datasets.core.errors import FolderBusyError, ResultsError
from tilewise.datasets.core.files import sha256_of, sync


class State(StrEnum):
    """How far a scene came."""

    DONE = "done"
    KEPT = "kept"  # done by an earlier run with the same input, options and model
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ResultFile:
    """A file that a scene left: its name in the folder of results, its bytes and their SHA-256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class SceneOutcome:
    """What became of one scene.

    Attributes:
        name: stem of the results.
        source: where the scene lies.
        state: how far it came.
        key: of input, options and model together; empty where the scene could not be read.
        windows: how many were classified.
        skipped: how many had too few valid pixels.
        broken: blocks of its files that could not be decoded, and so became no data.
        outliers: windows unlike the training data.
        pixels: width × height.
        seconds: that it took, when it was done.
        area_ha: hectares of each class that occurs.
        files: what lies in the folder of results.
        error: why it failed, or None.
    """

    name: str
    source: str
    state: State
    key: str = ""
    windows: int = 0
    skipped: int = 0
    broken: int = 0
    outliers: int = 0
    pixels: int = 0
    seconds: float = 0.0
    area_ha: dict[str, float] = field(default_factory=dict)
    files: tuple[ResultFile, ...] = ()
    error: str | None = None

    @property
    def is_sound(self) -> bool:
        """Whether the scene was done, and all of it could be read."""
        return self.state is not State.FAILED and not self.broken

    @property
    def skipped_fraction(self) -> float:
        """Share of windows (0-1) that have no class."""
        return self.skipped / max(self.windows + self.skipped, 1)

    def kept(self) -> "SceneOutcome":
        """Return it as the outcome of a later run that found it done."""
        return replace(self, state=State.KEPT)

    def to_json(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return asdict(self)

    @classmethod
    def from_json(cls, known: dict[str, Any]) -> "SceneOutcome":
        """Return what `to_json` was called on."""
        files = tuple(ResultFile(**file) for file in known["files"])
        return cls(**{**known, "state": State(known["state"]), "files": files})


MANIFEST = "manifest.sqlite"
STAGING = ".staging-"
_VERSION = 1
_SCHEMA = "CREATE TABLE scenes (name TEXT PRIMARY KEY, source TEXT NOT NULL, outcome TEXT NOT NULL)"
_STRAYS = ("summary.json", "summary.csv", "report.html")


class Manifest:
    """The manifest of a folder, locked for this process until it is closed.

    Args:
        out: the folder; made where it is missing.

    Raises:
        FolderBusyError: another run writes there.
        ResultsError: the manifest is of another version or no manifest.
        OSError: the folder cannot be made or written to.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        out.mkdir(parents=True, exist_ok=True)
        self._path = out / MANIFEST
        try:
            self._database = sqlite3.connect(self._path, timeout=1.0, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except BaseException:
                # It keeps what it got of the lock for as long as it is open, and the error keeps it open.
                self._database.close()
                raise
        except sqlite3.Error as error:
            raise self._explain(error) from error
        self._sweep()
        self.staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=out))

    def close(self) -> None:
        """Remove what is not finished, and let the next run in."""
        shutil.rmtree(self.staging, ignore_errors=True)
        self._database.close()

    def __enter__(self) -> "Manifest":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def known(self) -> dict[str, SceneOutcome]:
        """Return every scene that was entered, by the name of its results."""
        rows = self._database.execute("SELECT outcome FROM scenes ORDER BY name")
        outcomes = (SceneOutcome.from_json(json.loads(text)) for (text,) in rows)
        return {outcome.name: outcome for outcome in outcomes}

    def enter(self, outcome: SceneOutcome, staged: Path | None) -> None:
        """Move a scene's files from the folder `staged` to their place, and enter it.

        Files of an earlier outcome that this one does not have are removed.

        Raises:
            OSError: the disk does not take them; the scene then counts as not done.
        """
        before = self.known_as(outcome.name)
        if before and outcome.state is State.DONE:
            self._database.execute("DELETE FROM scenes WHERE name = ?", (outcome.name,))
        if staged:
            for file in outcome.files:
                sync(staged / file.name)
                (staged / file.name).replace(self.out / file.name)
            sync(self.out)
            shutil.rmtree(staged, ignore_errors=True)
        if outcome.state is State.DONE and before:
            for name in {file.name for file in before.files} - {file.name for file in outcome.files}:
                (self.out / name).unlink(missing_ok=True)
        if outcome.state is State.DONE:
            row = (outcome.name, outcome.source, json.dumps(outcome.to_json(), sort_keys=True))
            self._database.execute("INSERT OR REPLACE INTO scenes VALUES (?, ?, ?)", row)

    def known_as(self, name: str) -> SceneOutcome | None:
        """Return the scene that was entered under a name."""
        row = self._database.execute("SELECT outcome FROM scenes WHERE name = ?", (name,)).fetchone()
        return SceneOutcome.from_json(json.loads(row[0])) if row else None

    def _prepare(self) -> None:
        # An exclusive lock is taken by the first writing and kept: two runs would take each other's staging away.
        self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute("BEGIN EXCLUSIVE")
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._database.execute(_SCHEMA)
            self._database.execute(f"PRAGMA user_version = {_VERSION}")
        elif version != _VERSION:
            raise ResultsError(
                f"{self._path}: made by another version of tilewise (manifest {version}, this one writes {_VERSION}); "
                "choose another folder for the results"
            )
        self._database.execute("COMMIT")

    def _explain(self, error: sqlite3.Error) -> Exception:
        if "locked" in str(error):
            return FolderBusyError(f"{self.out}: another run writes there; wait for it, or choose another folder")
        if "not a database" in str(error):
            return ResultsError(f"{self._path}: no manifest of tilewise; choose another folder for the results")
        return OSError(f"{self._path} cannot be written to: {error}")

    def _sweep(self) -> None:
        """Remove what a run that was killed left unfinished."""
        for left in self.out.glob(f"{STAGING}*"):
            shutil.rmtree(left, ignore_errors=True)
        for name in _STRAYS:
            (self.out / f".{name}.partial").unlink(missing_ok=True)


def peek(out: Path) -> Mapping[str, SceneOutcome]:
    """Return what a folder's manifest has entered, without locking or making anything.

    Raises:
        ResultsError: another run writes there, or it is no manifest.
    """
    path = out / MANIFEST
    if not path.is_file():
        return {}
    try:
        database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=1.0)
        try:
            rows = database.execute("SELECT outcome FROM scenes ORDER BY name").fetchall()
        finally:
            database.close()
    except sqlite3.Error as error:
        raise ResultsError(f"{out}: its manifest cannot be read now ({error}); wait for the run that writes") from error
    outcomes = (SceneOutcome.from_json(json.loads(text)) for (text,) in rows)
    return {outcome.name: outcome for outcome in outcomes}


def is_intact(outcome: SceneOutcome, out: Path) -> bool:
    """Whether all files that a scene left still lie in `out`, byte by byte as they were."""
    for file in outcome.files:
        path = out / file.name
        try:
            if path.stat().st_size != file.size or sha256_of(path) != file.sha256:
                return False
        except OSError:
            return False
    return True
