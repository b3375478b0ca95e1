"""Task store: the scenes that the service holds, which wait, run or are done, and the bytes that they take.

All processes of a service share one folder with an SQLite database and the files of each task, so that any of
them can report on, process and remove what another accepted. Every scene has an entry from its first byte to
its last response: HELD while its request is being answered, and as a task WAITING, RUNNING, DONE or FAILED.

A process records every few seconds that it is alive. The tasks of one that died are run once more by another;
a scene that ended two processes is FAILED, since it may be the cause.
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

_MAX_SILENT = 20.0  # seconds without a heartbeat, after which a process counts as dead
_MAX_ATTEMPTS = 2
_SOURCE = "scene.tif"
_TABLES = """
CREATE TABLE IF NOT EXISTS workers (name TEXT PRIMARY KEY, alive REAL NOT NULL);
CREATE TABLE IF NOT EXISTS tasks (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, state TEXT NOT NULL, worker TEXT,
    question TEXT NOT NULL DEFAULT '{}',
    windows INTEGER NOT NULL DEFAULT 0, progress REAL NOT NULL DEFAULT 0, bytes INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL, finished REAL, error TEXT);
CREATE INDEX IF NOT EXISTS by_state ON tasks (state, created);
"""
_COLUMNS = "id, owner, state, question, windows, progress, created, finished, error"
LOST = {
    "code": "task_lost",
    "message": "the processes that worked on the scene ended before it was done",
    "hint": "send it again, or cut it into smaller ones",
}


class TaskState(StrEnum):
    """State of a scene; EXPIRED: a task whose results were deleted after their time."""

    HELD = "held"
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    EXPIRED = "expired"


class FullError(Exception):
    """The store is full: of bytes or, if `tasks`, of waiting tasks."""

    def __init__(self, tasks: bool) -> None:
        super().__init__("the task store is full")
        self.tasks = tasks


@dataclass(frozen=True, slots=True)
class StorageLimits:
    """How much is stored, and for how long.

    Attributes:
        max_waiting: tasks that wait.
        max_bytes: of all scenes and results together.
        kept: seconds that a result is kept; the entry of its task stays for as long again.
    """

    max_waiting: int = 32
    max_bytes: int = 4 * 2**30
    kept: float = 3600.0


@dataclass(frozen=True, slots=True)
class StoredTask:
    """The entry of a scene in the store.

    Attributes:
        id: random and unguessable.
        owner: digest of the caller.
        state: see `TaskState`.
        question: parameters of the request, JSON-ready.
        windows: number of windows in the scene.
        progress: fraction that is done (0-1).
        created, finished: in seconds since 1970; `finished` is None before the end.
        error: `{"code", "message", "hint"}` of a failed task.
    """

    id: str
    owner: str
    state: TaskState
    question: dict[str, Any]
    windows: int
    progress: float
    created: float
    finished: float | None
    error: dict[str, str] | None


def owner_of(caller: str) -> str:
    """Return the digest by which the store knows a caller's name or key."""
    return hashlib.sha256(caller.encode()).hexdigest()


class TaskStore:
    """The entries in `folder`, as seen by one process; every method may be called from any thread.

    Args:
        folder: used by the service alone; created, for this user only, if it is missing.
        limits: see `StorageLimits`.
    """

    def __init__(self, folder: Path, limits: StorageLimits) -> None:
        self.folder, self.limits = folder, limits
        self.worker = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with closing(self._connect()) as database:
            database.executescript(f"PRAGMA journal_mode=WAL; {_TABLES}")
        self.record_heartbeat()

    def source(self, task_id: str) -> Path:
        """Return the path of an entry's scene."""
        return self.folder / task_id / _SOURCE

    def result(self, task_id: str, name: str) -> Path:
        """Return the path of an entry's result `name`."""
        return self.folder / task_id / name

    # For the request that sends a scene.

    def hold(self, owner: str, size: int) -> str:
        """Reserve `size` bytes for the scene of a request to this process; return the entry's id.

        Raises:
            FullError: too many bytes are stored.
        """
        task_id = secrets.token_urlsafe(24)
        with self._changing() as database:
            (held,) = database.execute("SELECT coalesce(sum(bytes), 0) FROM tasks").fetchone()
            if held + size > self.limits.max_bytes:
                raise FullError(tasks=False)
            database.execute(
                "INSERT INTO tasks (id, owner, state, worker, bytes, created) VALUES (?, ?, ?, ?, ?, ?)",
                (task_id, owner, TaskState.HELD, self.worker, size, time.time()),
            )
        (self.folder / task_id).mkdir(mode=0o700)
        return task_id

    def submit(self, task_id: str, question: dict[str, Any], windows: int) -> None:
        """Turn a held scene into a task.

        Raises:
            FullError: too many wait.
        """
        size = self.source(task_id).stat().st_size
        with self._changing() as database:
            (waiting,) = database.execute(
                "SELECT count(*) FROM tasks WHERE state = ?", (TaskState.WAITING,)
            ).fetchone()
            if waiting >= self.limits.max_waiting:
                raise FullError(tasks=True)
            database.execute(
                "UPDATE tasks SET state = ?, worker = NULL, question = ?, windows = ?, bytes = ? "
                "WHERE id = ?",
                (TaskState.WAITING, json.dumps(question), windows, size, task_id),
            )

    def release(self, task_id: str) -> None:
        """Delete a scene that is still held; one that has become a task stays."""
        with self._changing() as database:
            cursor = database.execute(
                "DELETE FROM tasks WHERE id = ? AND state = ?", (task_id, TaskState.HELD)
            )
            gone = cursor.rowcount > 0
        if gone:
            self._delete_files(task_id)

    # For the owner of a task.

    def find(self, task_id: str, owner: str) -> StoredTask | None:
        """Return a task of `owner`, or None."""
        with self._changing() as database:
            row = database.execute(
                f"SELECT {_COLUMNS} FROM tasks "  # noqa: S608 - constant
                "WHERE id = ? AND owner = ? AND state != ?",
                (task_id, owner, TaskState.HELD),
            ).fetchone()
        return _task(row) if row else None

    def ahead(self, task: StoredTask) -> int:
        """Return the number of waiting tasks that were created before `task`."""
        with self._changing() as database:
            (count,) = database.execute(
                "SELECT count(*) FROM tasks WHERE state = ? AND created < ?",
                (TaskState.WAITING, task.created),
            ).fetchone()
        return int(count)

    def remove(self, task_id: str, owner: str) -> bool:
        """Delete a task of `owner` and its files; a process that runs it stops. False: there is none."""
        with self._changing() as database:
            cursor = database.execute(
                "DELETE FROM tasks WHERE id = ? AND owner = ? AND state NOT IN (?, ?)",
                (task_id, owner, TaskState.HELD, TaskState.EXPIRED),
            )
            gone = cursor.rowcount > 0
        if gone:
            self._delete_files(task_id)
        return gone

    # For the process that runs tasks.

    def waiting(self) -> int:
        """Return the number of waiting tasks."""
        with self._changing() as database:
            (count,) = database.execute(
                "SELECT count(*) FROM tasks WHERE state = ?", (TaskState.WAITING,)
            ).fetchone()
        return int(count)

    def take(self) -> StoredTask | None:
        """Make the task that has waited longest RUNNING in this process and return it; None if none waits."""
        with self._changing() as database:
            row = database.execute(
                f"SELECT {_COLUMNS} FROM tasks "  # noqa: S608 - constant
                "WHERE state = ? ORDER BY created LIMIT 1",
                (TaskState.WAITING,),
            ).fetchone()
            if row is None:
                return None
            database.execute(
                "UPDATE tasks SET state = ?, worker = ?, attempts = attempts + 1 WHERE id = ?",
                (TaskState.RUNNING, self.worker, row[0]),
            )
        return replace(_task(row), state=TaskState.RUNNING)

    def advance(self, task_id: str, progress: float) -> bool:
        """Record the progress (0-1) of a task; False: this process runs it no more, and must stop."""
        return self._change_own(task_id, "progress = ?", progress)

    def finish(self, task_id: str) -> bool:
        """Record that all results of a task are written, and delete its scene."""
        self.source(task_id).unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            size = sum(path.stat().st_size for path in (self.folder / task_id).iterdir())
            change = "state = ?, progress = 1, finished = ?, bytes = ?"
            return self._change_own(task_id, change, TaskState.DONE, time.time(), size)
        return False

    def fail(self, task_id: str, error: dict[str, str]) -> bool:
        """Record that a task has failed, and delete its files."""
        change = "state = ?, finished = ?, bytes = 0, error = ?"
        changed = self._change_own(task_id, change, TaskState.FAILED, time.time(), json.dumps(error))
        self._delete_files(task_id)
        return changed

    def give_back(self, task_id: str) -> None:
        """Let a task wait again that this process cannot finish, as if it had never been taken."""
        change = "state = ?, worker = NULL, progress = 0, attempts = attempts - 1"
        self._change_own(task_id, change, TaskState.WAITING)

    # Housekeeping.

    def record_heartbeat(self) -> None:
        """Record that this process is alive."""
        with self._changing() as database:
            database.execute("INSERT OR REPLACE INTO workers VALUES (?, ?)", (self.worker, time.time()))

    def sign_off(self) -> None:
        """Record that this process ends: what it held is deleted, what it ran waits again."""
        with self._changing() as database:
            database.execute("DELETE FROM workers WHERE name = ?", (self.worker,))
        self.tidy()

    def tidy(self) -> None:
        """Release what dead processes held or ran, and delete what has expired."""
        now = time.time()
        with self._changing() as database:
            _forget_dead(database, now)
            _release_orphans(database, now)
            self._expire(database, now)
            kept = database.execute(
                "SELECT id FROM tasks WHERE state NOT IN (?, ?)", _WITHOUT_FILES
            ).fetchall()
            # Listed inside the transaction: entries that come after it have no folder yet.
            folders = [entry.name for entry in self.folder.iterdir() if entry.is_dir()]
        for name in set(folders) - {task_id for (task_id,) in kept}:
            self._delete_files(name)

    def _expire(self, database: sqlite3.Connection, now: float) -> None:
        database.execute(
            "UPDATE tasks SET state = ?, bytes = 0 WHERE state IN (?, ?) AND finished < ?",
            (TaskState.EXPIRED, TaskState.DONE, TaskState.FAILED, now - self.limits.kept),
        )
        database.execute("DELETE FROM tasks WHERE finished < ?", (now - 2 * self.limits.kept,))

    def _change_own(self, task_id: str, change: str, *values: object) -> bool:
        with self._changing() as database:
            cursor = database.execute(
                f"UPDATE tasks SET {change} "  # noqa: S608 - constant
                "WHERE id = ? AND state = ? AND worker = ?",
                (*values, task_id, TaskState.RUNNING, self.worker),
            )
            return cursor.rowcount > 0

    def _delete_files(self, task_id: str) -> None:
        shutil.rmtree(self.folder / task_id, ignore_errors=True)

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """Give the database inside an exclusive transaction."""
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


_WITHOUT_FILES = (TaskState.FAILED, TaskState.EXPIRED)


def _forget_dead(database: sqlite3.Connection, now: float) -> None:
    for name, alive in database.execute("SELECT name, alive FROM workers").fetchall():
        if now - alive > _MAX_SILENT or _has_ended(name):
            database.execute("DELETE FROM workers WHERE name = ?", (name,))


def _release_orphans(database: sqlite3.Connection, now: float) -> None:
    """Delete the scenes that dead processes held; let the tasks that they ran wait again, or fail."""
    database.execute(
        "DELETE FROM tasks WHERE state = ? AND worker NOT IN (SELECT name FROM workers)",
        (TaskState.HELD,),
    )
    database.execute(
        "UPDATE tasks SET state = ?, worker = NULL, bytes = 0, finished = ?, error = ? "
        "WHERE state = ? AND attempts >= ? AND worker NOT IN (SELECT name FROM workers)",
        (TaskState.FAILED, now, json.dumps(LOST), TaskState.RUNNING, _MAX_ATTEMPTS),
    )
    database.execute(
        "UPDATE tasks SET state = ?, worker = NULL, progress = 0 "
        "WHERE state = ? AND worker NOT IN (SELECT name FROM workers)",
        (TaskState.WAITING, TaskState.RUNNING),
    )


def _task(row: tuple[Any, ...]) -> StoredTask:
    task_id, owner, state, question, windows, progress, created, finished, error = row
    known = json.loads(error) if error else None
    return StoredTask(
        task_id, owner, TaskState(state), json.loads(question), windows, progress, created, finished, known
    )


def _has_ended(worker: str) -> bool:
    """Return whether a process is known to have ended; False for processes of other machines."""
    host, pid, _ = worker.rsplit(":", 2)
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2]
    except ProcessLookupError:
        return True
    except (OSError, ValueError):  # another user's process, or a system without /proc
        return False
    return state.split()[:1] == ["Z"]  # ended, but not yet reaped by its parent
