"""Scenes spread over processes of this machine; or, with one job, worked on in this very process.

Each process has a pool of its own: when the system kills one, only the scene that it worked on is concerned.
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

from tilewise.bento.batch.worker import Done, Task, WorkPlan, perform
from tilewise.bento.inference.engine import Engine
from tilewise.datasets.core.errors import TilewiseError

_LOG = logging.getLogger("tilewise")
_MAX_DEATHS = 2  # of a worker at the same scene, after which the scene is given up
_SECONDS_BETWEEN_LOOKS = 0.5
_ROWS, _OF, _WINDOWS, _PROCESS = range(4)

InFlight = Callable[[float, int], None]
"""Called with how much of the scenes in work is done, counted in scenes, and how many of their windows."""


def work_here(tasks: Iterator[Task], plan: WorkPlan, engine: Engine, report: InFlight) -> Iterator[tuple[Task, Done]]:
    """Work on one scene after another in this process."""
    for task in tasks:
        yield task, perform(task, plan, engine, lambda rows, of, windows: report(rows / of, windows))
        report(0.0, 0)


def work_in_processes(
    tasks: Iterator[Task], plan: WorkPlan, jobs: int, report: InFlight
) -> Iterator[tuple[Task, Done]]:
    """Work on scenes in `jobs` processes; answers come in the order in which they are ready."""
    seats = [_Seat(plan) for _ in range(jobs)]
    idle, running = list(seats), dict[Future[Done], tuple[_Seat, Task]]()
    try:
        while True:
            while idle and (task := next(tasks, None)):
                seat = idle.pop()
                running[seat.take(task)] = seat, task
            if not running:
                return
            ready, _ = wait(running, _SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED)
            report(sum(seat.share for seat, _ in running.values()), sum(seat.windows for seat, _ in running.values()))
            for future in ready:
                seat, task = running.pop(future)
                answer = seat.answer(future, task)
                if answer is None:
                    running[seat.take(task)] = seat, task
                    continue
                idle.append(seat)
                yield task, answer
    finally:
        for seat in seats:
            seat.close()


class _Seat:
    """A place for one process, which is filled anew when the process dies."""

    def __init__(self, plan: WorkPlan) -> None:
        self._plan = plan
        self._deaths = 0
        self._fill()

    @property
    def share(self) -> float:
        """How much of its scene is done, 0-1."""
        return float(self._board[_ROWS]) / max(self._board[_OF], 1)

    @property
    def windows(self) -> int:
        """How many windows of its scene are done."""
        return int(self._board[_WINDOWS])

    def take(self, task: Task) -> Future[Done]:
        """Begin with a scene."""
        self._board[_ROWS] = self._board[_OF] = self._board[_WINDOWS] = 0
        return self._pool.submit(_perform, task)

    def answer(self, future: Future[Done], task: Task) -> Done | None:
        """Return what became of the scene; None where the process died and the scene may be tried again."""
        try:
            answer = future.result()
        except BrokenProcessPool:
            self._deaths += 1
            self.close()
            self._fill()
            if self._deaths < _MAX_DEATHS:
                _LOG.warning("%s: the process that worked on it was killed; it is tried once more", task.place)
                return None
            answer = task.failed(
                f"the process that worked on it was killed {_MAX_DEATHS} times; "
                "give it more memory, or run fewer processes at once (--jobs)"
            )
        self._deaths = 0
        return answer

    def close(self) -> None:
        """End the process, whatever it does."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if process := self._board[_PROCESS]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)

    def _fill(self) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process would share the threads' locks
        self._board: Any = context.RawArray("q", 4)  # without a lock, which a killed process might hold for ever
        self._pool = ProcessPoolExecutor(1, context, _begin, (self._plan, self._board))


_WORKER: dict[str, Any] = {}


def _begin(plan: WorkPlan, board: Any) -> None:
    """Set a new process up: it ends with its parent and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    board[_PROCESS] = os.getpid()
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    _WORKER.update(plan=plan, board=board)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_end([parent.sentinel])
        os._exit(1)


def _perform(task: Task) -> Done:
    board = _WORKER["board"]

    def advance(rows: int, of: int, windows: int) -> None:
        board[_ROWS], board[_OF], board[_WINDOWS] = rows, of, windows

    try:
        engine = _WORKER.get("engine") or _WORKER.setdefault("engine", _WORKER["plan"].load())
    except TilewiseError as error:
        return task.failed(str(error))
    return perform(task, _WORKER["plan"], engine, advance)
