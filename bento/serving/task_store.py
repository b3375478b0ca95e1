"""Task store: the scenes that the service holds, which wait, run or are done, and the bytes that they take.

All processes of a service share one folder with an SQLite database and the files of each task, so that any of
them can report on, process and remove what another accepted. Every scene has an entry from its first byte to
its last response: HELD while its request is being answered, and as a task WAITING, RUNNING, DONE or FAILED.

A process records every few seconds that it is alive. The tasks of one that died are run once more by another;
a scene that ended two processes is FAILED, since it may be the cause. Silence is measured by the monotonic
clock of each observer: a step of the wall clock, or a pause of all processes, ends nothing.

A full disk is an answer, not a failure: scenes are refused before the disk is full, a file kept in reserve is
deleted where it is full nevertheless, and files are deleted before the database is changed.
"""

import errno
import hashlib
import json
import logging
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

from tilewise.datasets.core.errors import TilewiseError

_LOG = logging.getLogger("tilewise")
_MAX_ATTEMPTS = 2
_SOURCE = "scene.tif"
_RESERVE, _RESERVE_BYTES = "reserve", 2**20
_MIN_FREE_BYTES, _MIN_FREE_FRACTION = 64 * 2**20, 0.05  # of the disk, the lesser: below it, no scene
_TABLES = """
CREATE TABLE IF NOT EXISTS workers (name TEXT PRIMARY KEY, alive REAL NOT NULL);
CREATE TABLE IF NOT EXISTS tasks (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, state TEXT NOT NULL, worker TEXT,
    question TEXT NOT NULL DEFAULT '{}',
    windows INTEGER NOT NULL DEFAULT 0, progress REAL NOT NULL DEFAULT 0, bytes INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL, finished REAL, error TEXT,
    caller TEXT NOT NULL DEFAULT '');
CREATE INDEX IF NOT EXISTS by_state ON tasks (state, created);
"""
_COLUMNS = "id, owner, state, question, windows, progress, created, finished, error"
LOST = {
    "code": "task_lost",
    "message": "the processes that worked on the scene ended before it was done",
    "hint": "send it again, or cut it into smaller ones",
}
FULL = {
    "code": "storage_full",
    "message": "there is no disk space for another scene",
    "hint": "try again in 30 s, or DELETE the tasks whose results you have",
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
    """The store is full: of bytes or, if `tasks`, of waiting tasks; or the caller has its share of them."""

    def __init__(self, tasks: bool) -> None:
        super().__init__("the task store is full")
        self.tasks = tasks


def is_full(error: BaseException) -> bool:
    """Return whether an error means that the store, a disk, a quota or the largest file allowed is full."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return isinstance(error, FullError) or (isinstance(error, OSError) and error.errno in full)


@dataclass(frozen=True, slots=True)
class StorageLimits:
    """How much is stored, and for how long. One caller has at most half of the tasks and bytes.

    Attributes:
        max_waiting: tasks that wait.
        max_bytes: of all scenes and results together.
        kept: seconds that a result is kept; the entry of its task stays for as long again.
        max_silent: seconds without a heartbeat after which a process loses the task that it runs.
    """

    max_waiting: int = 32
    max_bytes: int = 4 * 2**30
    kept: float = 3600.0
    max_silent: float = 20.0


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
        self.worker = f"{socket.gethostname()}:{os.getpid()}:{_start_of(os.getpid())}-{secrets.token_hex(4)}"
        self._beat, self._tidied = 0, time.monotonic()
        self._heard: dict[str, tuple[float, float]] = {}  # the last beat of each process, and when it came
        self._held: set[str] = set()
        self._released: set[str] = set()  # whose entries are still to be deleted
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._create()
        self.record_heartbeat()
        self._keep_reserve()

    def source(self, task_id: str) -> Path:
        """Return the path of an entry's scene."""
        return self.folder / task_id / _SOURCE

    def result(self, task_id: str, name: str) -> Path:
        """Return the path of an entry's result `name`."""
        return self.folder / task_id / name

    # For the request that sends a scene.

    def hold(self, owner: str, caller: str) -> str:
        """Make an entry for the scene of a request to this process; return its id.

        Args:
            owner: who may see it; see `owner_of`.
            caller: to whose share it is charged.

        Raises:
            FullError: the store or the disk is full.
        """
        task_id = secrets.token_urlsafe(24)
        with self._changing() as database:
            self._check_bytes(database, task_id, caller, 0)
            database.execute(
                "INSERT INTO tasks (id, owner, state, worker, bytes, created, caller) "
                "VALUES (?, ?, ?, ?, 0, ?, ?)",
                (task_id, owner, TaskState.HELD, self.worker, time.time(), caller),
            )
        self._held.add(task_id)
        try:
            (self.folder / task_id).mkdir(mode=0o700)
        except OSError as error:
            self.release(task_id)
            raise FullError(tasks=False) from error
        return task_id

    def grow(self, task_id: str, size: int) -> None:
        """Reserve `size` bytes in all for a scene that is held, before they are written.

        Raises:
            FullError: the store or the disk is full, or the caller has its share.
        """
        with self._changing() as database:
            row = database.execute("SELECT caller, bytes FROM tasks WHERE id = ?", (task_id,)).fetchone()
            if row is None:  # the database was deleted by hand
                raise FullError(tasks=False)
            self._check_bytes(database, task_id, row[0], size)
            self._check_disk(size - row[1])
            database.execute("UPDATE tasks SET bytes = ? WHERE id = ?", (size, task_id))

    def submit(self, task_id: str, question: dict[str, Any], windows: int) -> None:
        """Turn a held scene into a task.

        Raises:
            FullError: too many wait, of all callers or of this one.
        """
        size = self.source(task_id).stat().st_size
        with self._changing() as database:
            waiting, own = database.execute(
                "SELECT count(*), coalesce(sum(caller = (SELECT caller FROM tasks WHERE id = ?)), 0) "
                "FROM tasks WHERE state = ?",
                (task_id, TaskState.WAITING),
            ).fetchone()
            if waiting >= self.limits.max_waiting or own >= max(1, self.limits.max_waiting // 2):
                raise FullError(tasks=True)
            database.execute(
                "UPDATE tasks SET state = ?, worker = NULL, question = ?, windows = ?, bytes = ? "
                "WHERE id = ?",
                (TaskState.WAITING, json.dumps(question), windows, size, task_id),
            )
        self._held.discard(task_id)

    def release(self, task_id: str) -> None:
        """Delete a scene that is still held; one that has become a task stays.

        Where the database cannot be changed, `tidy` tries again.
        """
        if task_id not in self._held:
            return
        self._held.discard(task_id)
        self._delete_files(task_id)
        self._released.add(task_id)
        with suppress(FullError):
            self._delete_released()

    def _check_bytes(self, database: sqlite3.Connection, task_id: str, caller: str, size: int) -> None:
        """Check that all others and `size` bytes of `task_id` fit; the only scene of a caller may be any."""
        all_others, own_others = database.execute(
            "SELECT coalesce(sum(bytes), 0), coalesce(sum(bytes * (caller = ?)), 0) FROM tasks WHERE id != ?",
            (caller, task_id),
        ).fetchone()
        if all_others + size > self.limits.max_bytes or (
            own_others and own_others + size > self.limits.max_bytes // 2
        ):
            raise FullError(tasks=False)

    def _check_disk(self, size: int) -> None:
        disk = shutil.disk_usage(self.folder)
        if disk.free - size < min(_MIN_FREE_BYTES, _MIN_FREE_FRACTION * disk.total):
            raise FullError(tasks=False)

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
        task = self.find(task_id, owner)
        if task is None or task.state is TaskState.EXPIRED:
            return False
        self._delete_files(task_id)  # first: a full disk has no room to record it
        with self._changing() as database:
            database.execute("DELETE FROM tasks WHERE id = ?", (task_id,))
        return True

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
        """Record that a task has failed, and delete its files; False: this process runs it no more."""
        change = "state = ?, finished = ?, bytes = 0, error = ?"
        values = (TaskState.FAILED, time.time(), json.dumps(error))
        try:
            changed = self._change_own(task_id, change, *values)
        except FullError:
            self._delete_files(task_id)  # which makes room to record it
            changed = self._change_own(task_id, change, *values)
        if changed:
            self._delete_files(task_id)
        return changed

    def give_back(self, task_id: str) -> None:
        """Let a task wait again that this process cannot finish, as if it had never been taken."""
        change = "state = ?, worker = NULL, progress = 0, attempts = attempts - 1"
        self._change_own(task_id, change, TaskState.WAITING)

    # Housekeeping.

    def record_heartbeat(self) -> None:
        """Record that this process is alive."""
        self._beat += 1
        with self._changing() as database:
            database.execute("INSERT OR REPLACE INTO workers VALUES (?, ?)", (self.worker, self._beat))

    def sign_off(self) -> None:
        """Record that this process ends: what it held is deleted, what it ran waits again."""
        with self._changing() as database:
            database.execute("DELETE FROM workers WHERE name = ?", (self.worker,))
        self.tidy()

    def tidy(self) -> None:
        """Release what dead processes held or ran, and delete what has expired."""
        now = time.time()
        self._delete_released()
        with self._changing() as database:
            silent = self._silent(database)
            _forget_dead(database, silent)
            _release_orphans(database, now, silent)
            self._expire(database, now)
            kept = database.execute(
                "SELECT id FROM tasks WHERE state NOT IN (?, ?)", _WITHOUT_FILES
            ).fetchall()
            # Listed inside the transaction: entries that come after it have no folder yet.
            folders = [entry.name for entry in self.folder.iterdir() if entry.is_dir()]
        for name in set(folders) - {task_id for (task_id,) in kept}:
            self._delete_files(name)
        self._keep_reserve()

    def _silent(self, database: sqlite3.Connection) -> set[str]:
        """Return the other processes that were without a heartbeat for too long while this one looked on."""
        now = time.monotonic()
        if now - self._tidied > self.limits.max_silent / 2:  # this process was paused, and perhaps all were
            self._heard.clear()
        self._tidied = now
        beats = dict(database.execute("SELECT name, alive FROM workers").fetchall())
        self._heard = {
            name: known if (known := self._heard.get(name)) and known[0] == beat else (beat, now)
            for name, beat in beats.items()
        }
        silent = {name for name, (_, since) in self._heard.items() if now - since > self.limits.max_silent}
        return silent - {self.worker}

    def _delete_released(self) -> None:
        for task_id in tuple(self._released):
            with self._changing() as database:
                database.execute("DELETE FROM tasks WHERE id = ?", (task_id,))
            self._released.discard(task_id)

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

    def _keep_reserve(self) -> None:
        """Keep a file to delete when the disk is full, so that the database can be changed even then."""
        path = self.folder / _RESERVE
        with suppress(OSError, FullError):
            self._check_disk(_RESERVE_BYTES)
            if not path.exists():
                path.write_bytes(bytes(_RESERVE_BYTES))

    def _create(self) -> None:
        """Create the tables, or add what tables of former versions lack."""
        try:
            self._create_tables()
        except sqlite3.OperationalError:
            (self.folder / _RESERVE).unlink(missing_ok=True)
            try:
                self._create_tables()
            except sqlite3.OperationalError as error:
                raise TilewiseError(
                    f"{self.folder}: scenes cannot be kept there ({error}); make room on its disk, or name "
                    "another folder by TILEWISE_TASKS"
                ) from error

    def _create_tables(self) -> None:
        with closing(self._connect()) as database:
            database.executescript(f"PRAGMA journal_mode=WAL; {_TABLES}")
            columns = [row[1] for row in database.execute("PRAGMA table_info(tasks)")]
            if "caller" not in columns:
                database.execute("ALTER TABLE tasks ADD COLUMN caller TEXT NOT NULL DEFAULT ''")

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """Give the database inside an exclusive transaction.

        Raises:
            FullError: it cannot be read or written, most often as the disk is full.
        """
        try:
            with closing(self._connect()) as database:
                database.execute("BEGIN IMMEDIATE")
                try:
                    yield database
                except BaseException:
                    database.rollback()
                    raise
                database.execute("COMMIT")
        except sqlite3.OperationalError as error:
            _LOG.warning("%s: the task store cannot be changed: %s", self.folder, error)
            (self.folder / _RESERVE).unlink(missing_ok=True)
            raise FullError(tasks=False) from error

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.folder / "tasks.db", timeout=30, isolation_level=None)
        database.execute("PRAGMA synchronous=NORMAL")
        return database


_WITHOUT_FILES = (TaskState.FAILED, TaskState.EXPIRED)


def _forget_dead(database: sqlite3.Connection, silent: set[str]) -> None:
    for (name,) in database.execute("SELECT name FROM workers").fetchall():
        if _has_ended(name) or (name in silent and not _is_here(name)):
            database.execute("DELETE FROM workers WHERE name = ?", (name,))


_RUNS_NO_MORE = "(worker NOT IN (SELECT name FROM workers) OR worker IN (SELECT value FROM json_each(?)))"


def _release_orphans(database: sqlite3.Connection, now: float, silent: set[str]) -> None:
    """Delete the scenes that dead processes held; let the tasks that they ran wait again, or fail.

    A process that is only silent loses the tasks that it runs, and keeps the uploads that it receives.
    """
    names = json.dumps(sorted(silent))
    database.execute(
        "DELETE FROM tasks WHERE state = ? AND worker NOT IN (SELECT name FROM workers)",
        (TaskState.HELD,),
    )
    database.execute(
        "UPDATE tasks SET state = ?, worker = NULL, bytes = 0, finished = ?, error = ? "  # noqa: S608 - constant
        f"WHERE state = ? AND attempts >= ? AND {_RUNS_NO_MORE}",
        (TaskState.FAILED, now, json.dumps(LOST), TaskState.RUNNING, _MAX_ATTEMPTS, names),
    )
    database.execute(
        "UPDATE tasks SET state = ?, worker = NULL, progress = 0 "  # noqa: S608 - constant
        f"WHERE state = ? AND {_RUNS_NO_MORE}",
        (TaskState.WAITING, TaskState.RUNNING, names),
    )


def _task(row: tuple[Any, ...]) -> StoredTask:
    task_id, owner, state, question, windows, progress, created, finished, error = row
    known = json.loads(error) if error else None
    return StoredTask(
        task_id, owner, TaskState(state), json.loads(question), windows, progress, created, finished, known
    )


def _has_ended(worker: str) -> bool:
    """Return whether a process is known to have ended; False for processes of other machines."""
    if not _is_here(worker):
        return False
    _, pid, rest = worker.rsplit(":", 2)
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError):  # another user's process
        return False
    return _start_of(int(pid)) != rest.partition("-")[0]  # its number belongs to another process now


def _is_here(worker: str) -> bool:
    """Return whether a process runs, or ran, on this machine."""
    return worker.rsplit(":", 2)[0] == socket.gethostname()


def _start_of(pid: int) -> str:
    """Return when a process started, in clock ticks since boot; empty if it has ended or nobody can tell."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    state, *fields = text.rpartition(")")[2].split()  # from the 3rd field of proc_pid_stat(5) on
    return "" if state == "Z" else fields[18]  # Z: not yet reaped by its parent
