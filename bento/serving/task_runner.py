"""What one process works on scenes and explanations with: beside the tiles of requests, and slower."""

import asyncio
import atexit
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import Request

from tilewise.bento import metrics
from tilewise.bento.errors import body_of, error_body
from tilewise.bento.inference.engine import Engine
from tilewise.bento.serving.admission import Admission
from tilewise.bento.serving.batcher import Batcher, ClosedError
from tilewise.bento.serving.releases import Releases
from tilewise.bento.serving.scene_answers import FORMS, SceneRequest, answer_scene
from tilewise.bento.serving.scheduler import ScheduledEngine
from tilewise.bento.serving.task_store import Ledger, Limits, Task
from tilewise.bento.settings import Settings
from tilewise.datasets.core.errors import SceneTooLargeError, TilewiseError

_VARIABLE = "TILEWISE_TASKS"
_PREFIX = "tilewise-tasks-"


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
        TilewiseError: it cannot be made or written to.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise TilewiseError(f"{folder}: scenes cannot be kept there ({reason}); say a folder by {_VARIABLE}") from error


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


_LOG = logging.getLogger("tilewise")
_NICENESS = 10
_POLL_S = 1.0  # between looks for tasks that other processes took in
_TIDY_S = 2.0
_TELL_S = 0.3

Share = float | None
Work = Callable[[Task, Callable[[Share], None]], Mapping[str, bytes]]
"""Called with a task and a function to call often, with the share that is done (0-1) or None where that has not
changed; it may raise, to end the work. Returns the results by name."""


class StoppedError(Exception):
    """The work is no longer wanted, or must end now: raised by the function that is told the progress."""


class TaskRunner:
    """Two threads: one works, the other tells that this process lives and tidies up.

    Args:
        ledger: where tasks come from and results go to.
        work: does one; what it raises fails the task.
        max_wait_seconds: that a task may run.
    """

    def __init__(self, ledger: Ledger, work: Work, max_wait_seconds: float) -> None:
        self._ledger, self._work, self._max_wait_seconds = ledger, work, max_wait_seconds
        self._closed, self._changed = threading.Event(), threading.Event()
        self._threads = [
            threading.Thread(target=run, name=name, daemon=True)
            for name, run in (("tasks", self._run), ("tasks-tidy", self._keep_house))
        ]
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Say that there is a new task."""
        self._changed.set()

    def close(self) -> None:
        """Stop; the task that is being worked on waits for another process, or for the next start."""
        self._closed.set()
        self.wake()
        for thread in self._threads:
            thread.join(timeout=10)
        self._ledger.sign_off()

    def _run(self) -> None:
        be_nice()
        while not self._closed.is_set():
            try:
                task = self._ledger.take()
                if task:
                    self._do(task)
                    continue
            except Exception:  # the disk may be full or gone for a while
                _LOG.exception("the tasks cannot be got at")
            self._changed.wait(_POLL_S)
            self._changed.clear()

    def _do(self, task: Task) -> None:
        try:
            results = self._work(task, self._watch(task))
            for name, content in results.items():
                self._ledger.result(task.id, name).write_bytes(content)
            self._ledger.finish(task.id)
        except (StoppedError, ClosedError):
            self._ledger.give_back(task.id)  # does nothing where it was taken away
        except TilewiseError as error:
            self._ledger.fail(task.id, body_of(error, task.asked.get("name", ""))["error"])
        except Exception:
            if not self._ledger.advance(task.id, 0):
                return  # it was taken away, and its folder with it
            _LOG.exception("a task failed for a reason that nobody thought of")
            self._ledger.fail(task.id, error_body("internal", "the scene could not be worked on")["error"])

    def _watch(self, task: Task) -> Callable[[Share], None]:
        until, told, share = time.monotonic() + self._max_wait_seconds, 0.0, 0.0

        def report(done: Share) -> None:
            nonlocal told, share
            share = share if done is None else done
            now = time.monotonic()
            if self._closed.is_set():
                raise StoppedError
            if now > until:
                raise SceneTooLargeError(
                    f"it took more than {self._max_wait_seconds:.0f} s; cut it into smaller scenes"
                )
            if now - told > _TELL_S:
                told = now
                if not self._ledger.advance(task.id, share):
                    raise StoppedError

        return report

    def _keep_house(self) -> None:
        while not self._closed.wait(_TIDY_S):
            try:
                self._ledger.tell_alive()
                self._ledger.tidy()
                metrics.TASKS_WAITING.set(self._ledger.waiting())
            except Exception:  # as above
                _LOG.exception("the tasks cannot be tidied")


def be_nice() -> None:
    """Give this thread a lower priority than those that answer requests, where the system knows such."""
    if hasattr(os, "setpriority") and hasattr(threading, "get_native_id"):
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        except OSError:
            _LOG.debug("the priority of a thread cannot be set here")


_MAX_AT_ONCE = 2
_MAX_WAITING = 32

CLIENT_GONE = 499  # nobody reads it; it is what logs know such a request by

Value = TypeVar("Value")
Unhurried = Callable[[Callable[[Engine], Engine]], Value]
"""Called, in a thread of low priority, with what makes an engine take turns."""


class ClientGoneError(Exception):
    """Whoever asked has closed the connection: nobody wants the answer."""


@dataclass(frozen=True, slots=True)
class Scenes:
    """Threads of low priority, with the ledger of scenes.

    Attributes:
        ledger: of all scenes that the processes of the service hold.
        runner: works on tasks.
        room: for two at once of what is answered on a connection; further ones wait.
        threads: in which those are answered.
        batcher: whose batches go first.
    """

    ledger: Ledger
    runner: TaskRunner
    room: Admission
    threads: ThreadPoolExecutor
    batcher: Batcher[Any, Any]

    @classmethod
    def start(cls, settings: Settings, releases: Releases, batcher: Batcher[Any, Any]) -> "Scenes":
        """Open the ledger and begin to work on tasks, by the model that answers when each is begun."""
        limits = Limits(settings.max_tasks, settings.tasks_bytes, settings.tasks_kept)
        ledger = Ledger(Path(settings.tasks or shared_folder()), limits)

        def work(task: Task, report: Callable[[Share], None]) -> Mapping[str, bytes]:
            engine = ScheduledEngine(releases.champion, batcher, lambda: report(None))
            scene = answer_scene(engine, ledger.source(task.id), SceneRequest.from_json(task.asked), report)
            metrics.SCENES.labels("task").inc()
            return {file_of(form): serialise(scene) for form, serialise in FORMS.items()}

        runner = TaskRunner(ledger, work, settings.task_seconds)
        room = Admission(_MAX_AT_ONCE, _MAX_WAITING, settings.max_wait_seconds)
        threads = ThreadPoolExecutor(_MAX_AT_ONCE, "scenes", initializer=be_nice)
        return cls(ledger, runner, room, threads, batcher)

    async def answer(self, request: Request, work: Unhurried[Value]) -> Value:
        """Return what `work` returns, having waited for room; it ends soon after the client has gone.

        Raises:
            ClientGoneError: it has.
            OverloadedError: too many wait.
        """
        stop = threading.Event()

        def check() -> None:
            if stop.is_set():
                raise StoppedError

        async with self.room.room(1):
            loop = asyncio.get_running_loop()
            doing = loop.run_in_executor(self.threads, work, lambda e: ScheduledEngine(e, self.batcher, check))
            leaving = asyncio.create_task(_gone(request))
            either: list[asyncio.Future[Any]] = [doing, leaving]
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if not doing.done():
                    raise ClientGoneError
                return doing.result()
            finally:
                stop.set()
                leaving.cancel()
                with suppress(Exception):  # heard above, or nobody wants to know
                    await doing

    def close(self) -> None:
        """Stop; tasks wait for another process, or for the next start."""
        self.threads.shutdown(wait=False, cancel_futures=True)
        self.runner.close()


def file_of(form: str) -> str:
    """Return the name of a task's result in a form."""
    return f"{form.partition('/')[2]}.result"


async def _gone(request: Request) -> None:
    """Return when the client has closed the connection; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
