"""The manifest of a folder of results: no scene is classified twice, and no finished work is lost.

An SQLite file in the folder keeps, for each scene, what it was made from and which files it left. A scene is
entered only after all its files have been moved into the folder; a scene that is not entered, or whose files
differ from the entry, is classified again. A run locks the manifest of its folder; the lock ends with the
process.
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


class SceneState(StrEnum):
    """The state of a scene after a run."""

    DONE = "done"
    KEPT = "kept"  # classified by an earlier run with the same input, options and model
    FAILED = "failed"
    OUTSIDE = "outside"  # no pixel of it is inside the area of interest


@dataclass(frozen=True, slots=True)
class ResultFile:
    """A file of a scene's results: its name in the folder, its size in bytes and its SHA-256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class SceneOutcome:
    """The outcome of one scene.

    Attributes:
        name: stem of the result files.
        source: path or URL of the scene.
        state: done, kept from an earlier run, failed, or outside the area of interest.
        key: hash of input, options and model together; empty where the scene could not be read.
        windows: number of classified windows.
        skipped: number of windows with too few valid pixels.
        broken: number of blocks of its files that could not be decoded and are no data.
        outliers: number of windows with a score above the model's threshold.
        pixels: width × height.
        seconds: wall-clock time that the work took.
        area_ha: hectares of each class that occurs, and of what is unlike the training data.
        no_data_ha: hectares without data, of cloud or of skipped windows; None: unknown.
        footprint: outline as GeoJSON in EPSG:4326; None: unknown.
        taken: acquisition time, ISO 8601; None: unknown.
        clouds: the kind of the scene's cloud mask; None: clouds were not looked for.
        files: its files in the folder of results.
        error: why it failed; None where it did not.
    """

    name: str
    source: str
    state: SceneState
    key: str = ""
    windows: int = 0
    skipped: int = 0
    broken: int = 0
    outliers: int = 0
    pixels: int = 0
    seconds: float = 0.0
    area_ha: dict[str, float] = field(default_factory=dict)
    no_data_ha: float | None = None
    footprint: dict[str, Any] | None = None
    taken: str | None = None
    clouds: str | None = None
    files: tuple[ResultFile, ...] = ()
    error: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the scene was classified and all of its blocks could be decoded."""
        return self.state is not SceneState.FAILED and not self.broken

    @property
    def skipped_fraction(self) -> float:
        """Fraction of windows (0-1) that were skipped."""
        return self.skipped / max(self.windows + self.skipped, 1)

    def kept(self) -> "SceneOutcome":
        """Return the outcome as a later run reports it that found the scene done."""
        return replace(self, state=SceneState.KEPT)

    def to_json(self) -> dict[str, Any]:
        """Return the outcome JSON-ready."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "SceneOutcome":
        """Return the outcome from what `to_json` returned."""
        files = tuple(ResultFile(**file) for file in content["files"])
        return cls(**{**content, "state": SceneState(content["state"]), "files": files})


MANIFEST = "manifest.sqlite"
STAGING = ".staging-"
_VERSION = 1
_SCHEMA = "CREATE TABLE scenes (name TEXT PRIMARY KEY, source TEXT NOT NULL, outcome TEXT NOT NULL)"
_REPORTS = ("summary.json", "summary.csv", "report.html")


class Manifest:
    """The manifest of a folder of results, locked for this process until it is closed.

    Args:
        out: the folder; made if it is missing.

    Raises:
        FolderBusyError: another run writes to the folder.
        ResultsError: the file is no manifest, or one of another version.
        OSError: the folder cannot be made or written to.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        out.mkdir(parents=True, exist_ok=True)
        self._path = out / MANIFEST
        try:
            self._database = sqlite3.connect(
                self._path, timeout=1.0, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare()
            except BaseException:
                # An open connection keeps its part of the lock, and the traceback would keep the connection.
                self._database.close()
                raise
        except sqlite3.Error as error:
            raise self._explain(error) from error
        self._sweep()
        self.staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=out))

    def close(self) -> None:
        """Remove unfinished files and release the lock."""
        shutil.rmtree(self.staging, ignore_errors=True)
        self._database.close()

    def __enter__(self) -> "Manifest":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def known(self) -> dict[str, SceneOutcome]:
        """Return the outcomes of all entered scenes, by the stem of their results."""
        rows = self._database.execute("SELECT outcome FROM scenes ORDER BY name")
        outcomes = (SceneOutcome.from_json(json.loads(text)) for (text,) in rows)
        return {outcome.name: outcome for outcome in outcomes}

    def enter(self, outcome: SceneOutcome, staged: Path | None) -> None:
        """Move a scene's files from the folder `staged` into the folder of results, then enter the scene.

        Files of the scene's earlier outcome that the new one does not have are removed.

        Raises:
            OSError: the disk does not take the files; the scene then counts as not done.
        """
        before = self.known_as(outcome.name)
        if before and outcome.state is SceneState.DONE:
            self._database.execute("DELETE FROM scenes WHERE name = ?", (outcome.name,))
        if staged:
            for file in outcome.files:
                sync(staged / file.name)
                (staged / file.name).replace(self.out / file.name)
            sync(self.out)
            shutil.rmtree(staged, ignore_errors=True)
        if outcome.state is SceneState.DONE and before:
            for name in {file.name for file in before.files} - {file.name for file in outcome.files}:
                (self.out / name).unlink(missing_ok=True)
        if outcome.state is SceneState.DONE:
            row = (outcome.name, outcome.source, json.dumps(outcome.to_json(), sort_keys=True))
            self._database.execute("INSERT OR REPLACE INTO scenes VALUES (?, ?, ?)", row)

    def known_as(self, name: str) -> SceneOutcome | None:
        """Return the outcome of the scene that was entered under a name, None if there is none."""
        row = self._database.execute("SELECT outcome FROM scenes WHERE name = ?", (name,)).fetchone()
        return SceneOutcome.from_json(json.loads(row[0])) if row else None

    def _prepare(self) -> None:
        # The first write takes an exclusive lock and keeps it: two runs would remove each other's files.
        self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute("BEGIN EXCLUSIVE")
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._database.execute(_SCHEMA)
            self._database.execute(f"PRAGMA user_version = {_VERSION}")
        elif version != _VERSION:
            raise ResultsError(
                f"{self._path}: made by another version of tilewise (manifest {version}, this one writes "
                f"{_VERSION}); choose another folder for the results"
            )
        self._database.execute("COMMIT")

    def _explain(self, error: sqlite3.Error) -> Exception:
        if "locked" in str(error):
            return FolderBusyError(
                f"{self.out}: another run writes there; wait for it, or choose another folder"
            )
        if "not a database" in str(error):
            return ResultsError(
                f"{self._path}: not a manifest of tilewise; choose another folder for the results"
            )
        return OSError(f"{self._path} cannot be written to: {error}")

    def _sweep(self) -> None:
        """Remove the unfinished files of a run that was killed."""
        for folder in self.out.glob(f"{STAGING}*"):
            shutil.rmtree(folder, ignore_errors=True)
        for name in _REPORTS:
            (self.out / f".{name}.partial").unlink(missing_ok=True)


def peek(out: Path) -> Mapping[str, SceneOutcome]:
    """Return the outcomes that a folder's manifest has, by name, without locking or creating anything.

    Raises:
        ResultsError: another run writes to the folder, or the file is no manifest.
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
        raise ResultsError(
            f"{out}: its manifest cannot be read now ({error}); wait for the run that writes"
        ) from error
    outcomes = (SceneOutcome.from_json(json.loads(text)) for (text,) in rows)
    return {outcome.name: outcome for outcome in outcomes}


def is_intact(outcome: SceneOutcome, out: Path) -> bool:
    """Whether all files of a scene are in `out`, byte for byte as they were written."""
    for file in outcome.files:
        path = out / file.name
        try:
            if path.stat().st_size != file.size or sha256_of(path) != file.sha256:
                return False
        except OSError:
            return False
    return True
