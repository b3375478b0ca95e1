"""What one process works on scenes and explanations with: beside the tiles of requests, and slower."""

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import Request

from bento.engine import Engine
from bento.process.admission import Admission
from bento.process.batcher import Batcher
from bento.process.releases import Releases
from bento.process.scene_answers import FORMS, SceneQuestion, answer_scene
from bento.process.shared_folder import shared_folder
from bento.process.task_runner import Share, StoppedError, TaskRunner, be_nice
from bento.process.tasks import Ledger, Limits, Task
from bento.process.turns import TurnTakingEngine
from bento.settings import Settings
from bento.watch import metrics

_MOST_AT_ONCE = 2
_MOST_WAITING = 32

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
        limits = Limits(settings.most_tasks, settings.tasks_bytes, settings.tasks_kept)
        ledger = Ledger(Path(settings.tasks or shared_folder()), limits)

        def work(task: Task, report: Callable[[Share], None]) -> Mapping[str, bytes]:
            engine = TurnTakingEngine(releases.champion, batcher, lambda: report(None))
            scene = answer_scene(engine, ledger.source(task.id), SceneQuestion.from_json(task.asked), report)
            metrics.SCENES.labels("task").inc()
            return {file_of(form): tell(scene) for form, tell in FORMS.items()}

        runner = TaskRunner(ledger, work, settings.task_seconds)
        room = Admission(_MOST_AT_ONCE, _MOST_WAITING, settings.most_seconds)
        threads = ThreadPoolExecutor(_MOST_AT_ONCE, "scenes", initializer=be_nice)
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
            doing = loop.run_in_executor(self.threads, work, lambda e: TurnTakingEngine(e, self.batcher, check))
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
