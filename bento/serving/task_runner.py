"""Background work of a process: tasks for large scenes, and scenes and explanations answered in the response.

It runs in threads of low priority and shares the network with the tiles of requests (`ScheduledEngine`).
"""

import atexit
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import Request

from tilewise.bento import metrics
from tilewise.bento.errors import body_of, error_body
from tilewise.bento.inference.engine import TileClassifier
from tilewise.bento.serving.background import BackgroundPool, Check, WorkStoppedError, lower_priority
from tilewise.bento.serving.batcher import Batcher, ClosedError
from tilewise.bento.serving.releases import Releases
from tilewise.bento.serving.scene_answers import FORMS, SceneRequest, answer_scene
from tilewise.bento.serving.scheduler import ScheduledEngine
from tilewise.bento.serving.task_store import FULL, StorageLimits, StoredTask, TaskStore, is_full
from tilewise.bento.settings import Settings
from tilewise.datasets.core.errors import SceneTooLargeError, TilewiseError

_LOG = logging.getLogger("tilewise")
_THREADS = 3

Value = TypeVar("Value")
BackgroundJob = Callable[[Callable[[TileClassifier], TileClassifier]], Value]
"""Called in a thread of low priority, with a function that returns a scheduled version of an engine."""


@dataclass(frozen=True, slots=True)
class Scenes:
    """Run scenes and explanations in threads of low priority.

    Attributes:
        store: the scenes of all processes of the service.
        runner: runs tasks.
        pool: runs what is answered in the response.
        batcher: its batches go first.
    """

    store: TaskStore
    runner: "TaskRunner"
    pool: BackgroundPool
    batcher: Batcher[Any, Any]

    @classmethod
    def start(cls, settings: Settings, releases: Releases, batcher: Batcher[Any, Any]) -> "Scenes":
        """Open the task store and start to run tasks, each by the model that is champion when it starts."""
        limits = StorageLimits(settings.max_tasks, settings.tasks_bytes, settings.tasks_kept)
        store = TaskStore(Path(settings.tasks or shared_folder()), limits)

        def work(task: StoredTask, report: Callable[[Progress], None]) -> Mapping[str, bytes]:
            engine = ScheduledEngine(releases.champion, batcher, lambda: report(None))
            scene = answer_scene(engine, store.source(task.id), SceneRequest.from_json(task.question), report)
            metrics.SCENES.labels("task").inc()
            return {file_of(form): serialise(scene) for form, serialise in FORMS.items()}

        runner = TaskRunner(store, work, settings.task_seconds)
        pool = BackgroundPool("scenes", _THREADS, settings.max_wait_seconds)
        return cls(store, runner, pool, batcher)

    async def answer(self, request: Request, work: BackgroundJob[Value]) -> Value:
        """Return the result of `work`, which shares the network with tiles; see `BackgroundPool.run`."""

        def scheduled(check: Check) -> Value:
            return work(lambda engine: ScheduledEngine(engine, self.batcher, check))

        return await self.pool.run(request, scheduled)

    def close(self) -> None:
        """Stop; tasks wait for another process, or for the next start."""
        self.pool.close()
        self.runner.close()


def file_of(form: str) -> str:
    """Return the file name of a task's result in the media type `form`."""
    return f"{form.partition('/')[2]}.result"


# Tasks.

_POLL_S = 1.0  # between polls for tasks that other processes accepted
_TIDY_S = 2.0
_REPORT_S = 0.3

Progress = float | None
Work = Callable[[StoredTask, Callable[[Progress], None]], Mapping[str, bytes]]
"""Called with a task and a function to report progress to, often: the fraction that is done (0-1), or None if
unchanged. That function may raise to stop the work. Returns the results by file name."""


class TaskRunner:
    """Run tasks: one thread works, another one records heartbeats and tidies the store.

    Args:
        store: of tasks and their results.
        work: runs one task; what it raises fails the task.
        max_seconds: that a task may run.
    """

    def __init__(self, store: TaskStore, work: Work, max_seconds: float) -> None:
        self._store, self._work, self._max_seconds = store, work, max_seconds
        self._closed, self._changed = threading.Event(), threading.Event()
        self._threads = [
            threading.Thread(target=run, name=name, daemon=True)
            for name, run in (("tasks", self._run), ("tasks-tidy", self._maintain))
        ]
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Look for a new task now."""
        self._changed.set()

    def close(self) -> None:
        """Stop; the task in progress waits for another process, or for the next start."""
        self._closed.set()
        self.wake()
        for thread in self._threads:
            thread.join(timeout=10)
        self._store.sign_off()

    def _run(self) -> None:
        lower_priority()
        while not self._closed.is_set():
            try:
                task = self._store.take()
                if task:
                    self._run_task(task)
                    continue
            except Exception:  # the disk may be full or gone for a while
                _LOG.exception("the task store cannot be read or written")
            self._changed.wait(_POLL_S)
            self._changed.clear()

    def _run_task(self, task: StoredTask) -> None:
        try:
            results = self._work(task, self._reporter(task))
            for name, content in results.items():
                self._store.result(task.id, name).write_bytes(content)
            self._store.finish(task.id)
        except (WorkStoppedError, ClosedError):
            self._store.give_back(task.id)  # has no effect if the task was removed
        except TilewiseError as error:
            self._store.fail(task.id, body_of(error, task.question.get("name", ""))["error"])
        except Exception as error:
            if is_full(error):
                self._store.fail(task.id, FULL)
                return
            if not self._store.advance(task.id, 0):
                return  # the task was removed, and its folder with it
            _LOG.exception("a task failed for an unexpected reason")
            self._store.fail(task.id, error_body("internal", "the scene could not be worked on")["error"])

    def _reporter(self, task: StoredTask) -> Callable[[Progress], None]:
        """Return the function by which the work on a task reports its progress, and is stopped."""
        deadline, reported, progress = time.monotonic() + self._max_seconds, 0.0, 0.0

        def report(done: Progress) -> None:
            nonlocal reported, progress
            progress = progress if done is None else done
            now = time.monotonic()
            if self._closed.is_set():
                raise WorkStoppedError
            if now > deadline:
                raise SceneTooLargeError(
                    f"it took more than {self._max_seconds:.0f} s; cut it into smaller scenes"
                )
            if now - reported > _REPORT_S:
                reported = now
                if not self._store.advance(task.id, progress):
                    raise WorkStoppedError

        return report

    def _maintain(self) -> None:
        while not self._closed.wait(_TIDY_S):
            try:
                self._store.record_heartbeat()
                self._store.tidy()
                metrics.TASKS_WAITING.set(self._store.waiting())
            except Exception:  # as above
                _LOG.exception("the task store cannot be tidied")


# The folder of the task store, which all processes share.

_PREFIX = "tilewise-tasks-"
_VARIABLE = Settings.variable("tasks")


def shared_folder() -> str:
    """Return the folder of TILEWISE_TASKS, or a temporary one, which child processes find by that variable.

    A temporary folder is deleted when the process that made it ends; one of a killed process, at the next
    start.
    """
    folder = Settings.from_environment().tasks
    if not folder:
        _delete_abandoned()
        folder = os.environ[_VARIABLE] = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def check_folder(folder: Path) -> None:
    """Create the folder if it is missing.

    Raises:
        TilewiseError: it cannot be created or written to.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise TilewiseError(
            f"{folder}: scenes cannot be kept there ({reason}); name another folder by {_VARIABLE}"
        ) from error


def _delete_abandoned() -> None:
    """Delete the temporary folders of processes of this user that have ended."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        match = re.fullmatch(rf"{_PREFIX}(\d+)-\w+", path.name)
        if (
            match
            and _is_mine(path)
            and not Path(f"/proc/{match[1]}").exists()
            and Path("/proc/self").exists()
        ):
            shutil.rmtree(path, ignore_errors=True)


def _is_mine(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.getuid() and path.is_dir() and not path.is_symlink()
    except OSError:
        return False
