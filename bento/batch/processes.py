"""Classify scenes in several processes of this machine, or in this one.

Each process has a pool of its own: if the system kills one, only the scene that it worked on is affected.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.connection import wait as wait_for_end
from typing import Any

from tilewise.bento.batch.worker import FinishedScene, SceneTask, WorkPlan, process_scene
from tilewise.bento.inference.engine import Engine
from tilewise.datasets.core.errors import TilewiseError

_LOG = logging.getLogger("tilewise")
_MAX_DEATHS = 2  # of worker processes at the same scene; then the scene fails
_SECONDS_BETWEEN_REPORTS = 0.5
_ROWS, _TOTAL_ROWS, _WINDOWS, _PROCESS_ID = range(4)

WorkReport = Callable[[float, int], None]
"""Called with the finished part of the scenes in progress, counted in scenes, and their finished windows."""


def work_here(
    tasks: Iterator[SceneTask], plan: WorkPlan, engine: Engine, report: WorkReport
) -> Iterator[tuple[SceneTask, FinishedScene]]:
    """Classify one scene after another in this process."""
    for task in tasks:
        yield (
            task,
            process_scene(task, plan, engine, lambda rows, total, windows: report(rows / total, windows)),
        )
        report(0.0, 0)


def work_in_processes(
    tasks: Iterator[SceneTask], plan: WorkPlan, jobs: int, report: WorkReport
) -> Iterator[tuple[SceneTask, FinishedScene]]:
    """Classify scenes in `jobs` processes; yield them in the order in which they are finished."""
    workers = [_WorkerProcess(plan) for _ in range(jobs)]
    idle, running = list(workers), dict[Future[FinishedScene], tuple[_WorkerProcess, SceneTask]]()
    try:
        while True:
            while idle and (task := next(tasks, None)):
                worker = idle.pop()
                running[worker.submit(task)] = worker, task
            if not running:
                return
            ready, _ = wait(running, _SECONDS_BETWEEN_REPORTS, FIRST_COMPLETED)
            busy = [worker for worker, _ in running.values()]
            report(sum(worker.fraction for worker in busy), sum(worker.windows for worker in busy))
            for future in ready:
                worker, task = running.pop(future)
                finished = worker.result(future, task)
                if finished is None:
                    running[worker.submit(task)] = worker, task
                    continue
                idle.append(worker)
                yield task, finished
    finally:
        for worker in workers:
            worker.close()


class _WorkerProcess:
    """One worker process, replaced by a new one when it dies."""

    def __init__(self, plan: WorkPlan) -> None:
        self._plan = plan
        self._deaths = 0
        self._start()

    @property
    def fraction(self) -> float:
        """Finished fraction of its scene, 0-1."""
        return float(self._progress[_ROWS]) / max(self._progress[_TOTAL_ROWS], 1)

    @property
    def windows(self) -> int:
        """Finished windows of its scene."""
        return int(self._progress[_WINDOWS])

    def submit(self, task: SceneTask) -> Future[FinishedScene]:
        """Start with a scene."""
        self._progress[_ROWS] = self._progress[_TOTAL_ROWS] = self._progress[_WINDOWS] = 0
        return self._pool.submit(_process_in_worker, task)

    def result(self, future: Future[FinishedScene], task: SceneTask) -> FinishedScene | None:
        """Return the finished scene; None where the process died and the scene may be tried again."""
        try:
            finished = future.result()
        except BrokenProcessPool:
            self._deaths += 1
            self.close()
            self._start()
            if self._deaths < _MAX_DEATHS:
                _LOG.warning("%s: its worker process was killed; it is tried once more", task.location)
                return None
            finished = task.failed(
                f"the process that worked on it was killed {_MAX_DEATHS} times; "
                "give it more memory, or run fewer processes at once (--jobs)"
            )
        self._deaths = 0
        return finished

    def close(self) -> None:
        """End the process, also in the middle of a scene."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if process := self._progress[_PROCESS_ID]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process would share the threads' locks
        self._progress: Any = context.RawArray(
            "q", 4
        )  # without a lock, which a killed process could hold for ever
        self._pool = ProcessPoolExecutor(1, context, _set_up, (self._plan, self._progress))


_WORKER: dict[str, Any] = {}


def _set_up(plan: WorkPlan, progress: Any) -> None:
    """Set up a worker process: it ends with its parent and leaves Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    progress[_PROCESS_ID] = os.getpid()
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    _WORKER.update(plan=plan, progress=progress)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_end([parent.sentinel])
        os._exit(1)


def _process_in_worker(task: SceneTask) -> FinishedScene:
    progress = _WORKER["progress"]

    def advance(rows: int, total: int, windows: int) -> None:
        progress[_ROWS], progress[_TOTAL_ROWS], progress[_WINDOWS] = rows, total, windows

    try:
        engine = _WORKER.get("engine") or _WORKER.setdefault("engine", _WORKER["plan"].load())
    except TilewiseError as error:
        return task.failed(str(error))
    return process_scene(task, _WORKER["plan"], engine, advance)
