"""Works on the tasks of the ledger, one at a time in each process, in a thread of low priority."""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping

from bento.http.http_errors import body_of, error_body
from bento.process.batcher import ClosedError
from bento.process.tasks import Ledger, Task
from bento.watch import metrics
from datasets.errors import SceneTooLargeError, SentileError

_LOG = logging.getLogger("sentile")
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
        most_seconds: that a task may run.
    """

    def __init__(self, ledger: Ledger, work: Work, most_seconds: float) -> None:
        self._ledger, self._work, self._most_seconds = ledger, work, most_seconds
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
        except SentileError as error:
            self._ledger.fail(task.id, body_of(error, task.asked.get("name", ""))["error"])
        except Exception:
            if not self._ledger.advance(task.id, 0):
                return  # it was taken away, and its folder with it
            _LOG.exception("a task failed for a reason that nobody thought of")
            self._ledger.fail(task.id, error_body("internal", "the scene could not be worked on")["error"])

    def _watch(self, task: Task) -> Callable[[Share], None]:
        until, told, share = time.monotonic() + self._most_seconds, 0.0, 0.0

        def report(done: Share) -> None:
            nonlocal told, share
            share = share if done is None else done
            now = time.monotonic()
            if self._closed.is_set():
                raise StoppedError
            if now > until:
                raise SceneTooLargeError(f"it took more than {self._most_seconds:.0f} s; cut it into smaller scenes")
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
