"""The ledger of scenes that the service holds: what waits, what runs, what is done, and how many bytes all of it takes.

All processes of a service share one folder with an SQLite database and the files of each task, so that any of them can
tell of, work on and take back what another took in. Every scene has an entry from its first byte to its last answer:
that of a request which is being answered on its connection is HELD, that of a task WAITING, RUNNING, DONE or FAILED.

A process tells every few seconds that it lives. What one that died was working on is worked on once more by another; a
scene that ends two processes is FAILED, for it may well be the cause.
"""

import hashlib
import json
import os
import secrets
import shutil
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

_MAX_SILENT = 20.0  # seconds without a sign of life, after which a process is taken for dead
_MAX_ATTEMPTS = 2
_SOURCE = "scene.tif"
_TABLES = """
CREATE TABLE IF NOT EXISTS workers (name TEXT PRIMARY KEY, alive REAL NOT NULL);
CREATE TABLE IF NOT EXISTS tasks (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, state TEXT NOT NULL, worker TEXT, asked TEXT NOT NULL DEFAULT '{}',
    windows INTEGER NOT NULL DEFAULT 0, progress REAL NOT NULL DEFAULT 0, bytes INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL, finished REAL, error TEXT);
CREATE INDEX IF NOT EXISTS by_state ON tasks (state, created);
"""
_COLUMNS = "id, owner, state, asked, windows, progress, created, finished, error"
LOST = {
    "code": "task_lost",
    "message": "the processes that worked on the scene ended before it was done",
    "hint": "send it again, or cut it into smaller ones",
}


class State(StrEnum):
    """What can be said of a scene; EXPIRED is a task whose results were deleted when their time had passed."""

    HELD = "held"
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    EXPIRED = "expired"


class FullError(Exception):
    """Too much is held already: bytes, or (`tasks`) scenes that wait."""

    def __init__(self, tasks: bool) -> None:
        super().__init__("the service holds all that it may")
        self.tasks = tasks


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is held, and for how long.

    Attributes:
        max_waiting: tasks that wait.
        max_bytes: of all scenes and results together.
        kept: seconds that a result can be had; for as long again it is known that there was one.
    """

    max_waiting: int = 32
    max_bytes: int = 4 * 2**30
    kept: float = 3600.0


@dataclass(frozen=True, slots=True)
class Task:
    """What is known of a scene.

    Attributes:
        id: unguessable.
        owner: digest of who sent it.
        state: see `State`.
        asked: JSON-ready, as it was submitted.
        windows: how many it has.
        progress: share of it that is done (0-1).
        created, finished: seconds since 1970; `finished` is None before the end.
        error: `{"code", "message", "hint"}` of a task that failed.
    """

    id: str
    owner: str
    state: State
    asked: dict[str, Any]
    windows: int
    progress: float
    created: float
    finished: float | None
    error: dict[str, str] | None


def owner_of(caller: str) -> str:
    """Return what the ledger keeps of a caller's name or key."""
    return hashlib.sha256(caller.encode()).hexdigest()


class Ledger:
    """The entries in `folder`, seen from one process; every method may be called from any thread.

    Args:
        folder: of the service alone; made, for this user only, where there is none.
        limits: see `Limits`.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder, self.limits = folder, limits
        self.worker = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with closing(self._connect()) as database:
            database.executescript(f"PRAGMA journal_mode=WAL; {_TABLES}")
        self.tell_alive()

    def source(self, task_id: str) -> Path:
        """Return where the scene of an entry lies."""
        return self.folder / task_id / _SOURCE

    def result(self, task_id: str, name: str) -> Path:
        """Return where the result `name` of an entry lies."""
        return self.folder / task_id / name

    # A request's own scene.

    def hold(self, owner: str, size: int) -> str:
        """Make room for a scene of `size` bytes of a request that is connected here; return the entry's id.

        Raises:
            FullError: there is no room.
        """
        task_id = secrets.token_urlsafe(24)
        with self._changing() as database:
            (held,) = database.execute("SELECT coalesce(sum(bytes), 0) FROM tasks").fetchone()
            if held + size > self.limits.max_bytes:
                raise FullError(tasks=False)
            database.execute(
                "INSERT INTO tasks (id, owner, state, worker, bytes, created) VALUES (?, ?, ?, ?, ?, ?)",
                (task_id, owner, State.HELD, self.worker, size, time.time()),
            )
        (self.folder / task_id).mkdir(mode=0o700)
        return task_id

    def submit(self, task_id: str, asked: dict[str, Any], windows: int) -> None:
        """Make a task of a scene that was held.

        Raises:
            FullError: too many wait.
        """
        size = self.source(task_id).stat().st_size
        with self._changing() as database:
            (waiting,) = database.execute("SELECT count(*) FROM tasks WHERE state = ?", (State.WAITING,)).fetchone()
            if waiting >= self.limits.max_waiting:
                raise FullError(tasks=True)
            database.execute(
                "UPDATE tasks SET state = ?, worker = NULL, asked = ?, windows = ?, bytes = ? WHERE id = ?",
                (State.WAITING, json.dumps(asked), windows, size, task_id),
            )

    def let_go(self, task_id: str) -> None:
        """Forget a scene that is still held; one that has become a task stays."""
        with self._changing() as database:
            cursor = database.execute("DELETE FROM tasks WHERE id = ? AND state = ?", (task_id, State.HELD))
            gone = cursor.rowcount > 0
        if gone:
            self._delete_files(task_id)

    # What its owner asks.

    def find(self, task_id: str, owner: str) -> Task | None:
        """Return a task of `owner`'s, or None."""
        with self._changing() as database:
            row = database.execute(
                f"SELECT {_COLUMNS} FROM tasks WHERE id = ? AND owner = ? AND state != ?",  # noqa: S608 - constant
                (task_id, owner, State.HELD),
            ).fetchone()
        return _task(row) if row else None

    def ahead(self, task: Task) -> int:
        """Return how many waiting tasks came before `task`."""
        with self._changing() as database:
            (count,) = database.execute(
                "SELECT count(*) FROM tasks WHERE state = ? AND created < ?", (State.WAITING, task.created)
            ).fetchone()
        return int(count)

    def remove(self, task_id: str, owner: str) -> bool:
        """Delete a task of `owner`'s with all that belongs to it; the process that works on it stops. False: none."""
        with self._changing() as database:
            cursor = database.execute(
                "DELETE FROM tasks WHERE id = ? AND owner = ? AND state NOT IN (?, ?)",
                (task_id, owner, State.HELD, State.EXPIRED),
            )
            gone = cursor.rowcount > 0
        if gone:
            self._delete_files(task_id)
        return gone

    # What the process that works on it says.

    def waiting(self) -> int:
        """Return how many tasks wait."""
        with self._changing() as database:
            (count,) = database.execute("SELECT count(*) FROM tasks WHERE state = ?", (State.WAITING,)).fetchone()
        return int(count)

    def take(self) -> Task | None:
        """Return the task that has waited longest, RUNNING here from now on, or None."""
        with self._changing() as database:
            row = database.execute(
                f"SELECT {_COLUMNS} FROM tasks WHERE state = ? ORDER BY created LIMIT 1",  # noqa: S608 - constant
                (State.WAITING,),
            ).fetchone()
            if row is None:
                return None
            database.execute(
                "UPDATE tasks SET state = ?, worker = ?, attempts = attempts + 1 WHERE id = ?",
                (State.RUNNING, self.worker, row[0]),
            )
        return replace(_task(row), state=State.RUNNING)

    def advance(self, task_id: str, progress: float) -> bool:
        """Note how far a task is; False: it is no longer this process's to work on."""
        return self._change_own(task_id, "progress = ?", progress)

    def finish(self, task_id: str) -> bool:
        """Note that the results of a task lie in place; its scene is deleted."""
        self.source(task_id).unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            size = sum(path.stat().st_size for path in (self.folder / task_id).iterdir())
            change = "state = ?, progress = 1, finished = ?, bytes = ?"
            return self._change_own(task_id, change, State.DONE, time.time(), size)
        return False

    def fail(self, task_id: str, error: dict[str, str]) -> bool:
        """Note that a task has failed; its files are deleted."""
        change = "state = ?, finished = ?, bytes = 0, error = ?"
        changed = self._change_own(task_id, change, State.FAILED, time.time(), json.dumps(error))
        self._delete_files(task_id)
        return changed

    def give_back(self, task_id: str) -> None:
        """Let a task wait again that this process has no time to finish, as if it had never been taken."""
        change = "state = ?, worker = NULL, progress = 0, attempts = attempts - 1"
        self._change_own(task_id, change, State.WAITING)

    # Housekeeping.

    def tell_alive(self) -> None:
        """Tell the other processes that this one lives."""
        with self._changing() as database:
            database.execute("INSERT OR REPLACE INTO workers VALUES (?, ?)", (self.worker, time.time()))

    def sign_off(self) -> None:
        """Tell the other processes that this one ends; what it held is forgotten, what it ran is taken up again."""
        with self._changing() as database:
            database.execute("DELETE FROM workers WHERE name = ?", (self.worker,))
        self.tidy()

    def tidy(self) -> None:
        """Take up what dead processes left, and delete what is past its time."""
        now = time.time()
        with self._changing() as database:
            _forget_dead(database, now)
            _take_up(database, now)
            self._expire(database, now)
            kept = database.execute("SELECT id FROM tasks WHERE state NOT IN (?, ?)", _WITHOUT_FILES).fetchall()
            # Listed inside the transaction: what comes to be held after it has no folder yet.
            folders = [entry.name for entry in self.folder.iterdir() if entry.is_dir()]
        for name in set(folders) - {task_id for (task_id,) in kept}:
            self._delete_files(name)

    def _expire(self, database: sqlite3.Connection, now: float) -> None:
        database.execute(
            "UPDATE tasks SET state = ?, bytes = 0 WHERE state IN (?, ?) AND finished < ?",
            (State.EXPIRED, State.DONE, State.FAILED, now - self.limits.kept),
        )
        database.execute("DELETE FROM tasks WHERE finished < ?", (now - 2 * self.limits.kept,))

    def _change_own(self, task_id: str, change: str, *values: object) -> bool:
        with self._changing() as database:
            cursor = database.execute(
                f"UPDATE tasks SET {change} WHERE id = ? AND state = ? AND worker = ?",  # noqa: S608 - our own words
                (*values, task_id, State.RUNNING, self.worker),
            )
            return cursor.rowcount > 0

    def _delete_files(self, task_id: str) -> None:
        shutil.rmtree(self.folder / task_id, ignore_errors=True)

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """Give the database, in a transaction of its own that no other process comes between."""
        with closing(self._connect()) as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.folder / "tasks.db", timeout=30, isolation_level=None)
        database.execute("PRAGMA synchronous=NORMAL")
        return database


_WITHOUT_FILES = (State.FAILED, State.EXPIRED)


def _forget_dead(database: sqlite3.Connection, now: float) -> None:
    for name, alive in database.execute("SELECT name, alive FROM workers").fetchall():
        if now - alive > _MAX_SILENT or _has_ended(name):
            database.execute("DELETE FROM workers WHERE name = ?", (name,))


def _take_up(database: sqlite3.Connection, now: float) -> None:
    """Forget the scenes that requests to dead processes held, and let their tasks wait again, or fail."""
    database.execute(
        "DELETE FROM tasks WHERE state = ? AND worker NOT IN (SELECT name FROM workers)",
        (State.HELD,),
    )
    database.execute(
        "UPDATE tasks SET state = ?, worker = NULL, bytes = 0, finished = ?, error = ? "
        "WHERE state = ? AND attempts >= ? AND worker NOT IN (SELECT name FROM workers)",
        (State.FAILED, now, json.dumps(LOST), State.RUNNING, _MAX_ATTEMPTS),
    )
    database.execute(
        "UPDATE tasks SET state = ?, worker = NULL, progress = 0 "
        "WHERE state = ? AND worker NOT IN (SELECT name FROM workers)",
        (State.WAITING, State.RUNNING),
    )


def _task(row: tuple[Any, ...]) -> Task:
    task_id, owner, state, asked, windows, progress, created, finished, error = row
    known = json.loads(error) if error else None
    return Task(task_id, owner, State(state), json.loads(asked), windows, progress, created, finished, known)


def _has_ended(worker: str) -> bool:
    """Whether a process of this machine is known to have ended; of other machines' nobody here can tell."""
    host, pid, _ = worker.rsplit(":", 2)
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2]
    except ProcessLookupError:
        return True
    except (OSError, ValueError):  # it is another user's, or this system has no /proc
        return False
    return state.split()[:1] == ["Z"]  # dead, though its parent has not looked yet
