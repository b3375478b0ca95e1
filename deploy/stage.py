"""Infrastructure of the rehearsal: a git project, logged commands with checks, and clients of the service."""

import io
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import httpx
import numpy as np
import numpy.typing as npt
from monitoring import PROJECT, stop

from tilewise.datasets.acquire.synthetic import render
from tilewise.datasets.core.errors import TilewiseError
from tilewise.datasets.readers.eurosat import CLASSES

_COMMAND_S = 480.0  # on a machine that does other things, too
_WIDTH = 118


class RehearsalError(TilewiseError):
    """A check of the rehearsal failed."""


@dataclass
class Rehearsal:
    """Runs commands in a project of its own, and logs them.

    Attributes:
        folder: of logs, project and registry.
        log: receives all that is printed.
        settings: environment variables of the commands.
        steps: the number of steps.
    """

    folder: Path
    log: TextIO
    steps: int
    settings: dict[str, str] = field(default_factory=dict)
    _step: int = 0
    _started: float = field(default_factory=time.monotonic)

    @property
    def project(self) -> Path:
        """The folder of the git repository."""
        return self.folder / "project"

    def tell(self, line: str) -> None:
        """Print a line, and log it."""
        print(line, flush=True)
        self.log.write(f"{line}\n")
        self.log.flush()

    def step(self, title: str) -> None:
        """Begin the next step."""
        self._step += 1
        passed = int(time.monotonic() - self._started)
        self.tell(f"\n── {self._step}/{self.steps} {title} ── {passed // 60}:{passed % 60:02d}")

    def run(
        self, *words: str, expect: int | tuple[int, ...] = 0, show: int = 4, seconds: float = _COMMAND_S
    ) -> str:
        """Run a command in the project, print `show` lines of its output, and return all of it.

        The last lines are printed, or with a negative number the first.

        Raises:
            RehearsalError: its exit status is not among `expect`, or it takes longer than `seconds`.
        """
        self.tell(f"$ {self._shown(words)}")
        status, output = self._call(words, seconds)
        self._log(words, output)
        lines = [line for line in output.splitlines() if line.strip()]
        for line in lines[-show:] if show > 0 else lines[:-show]:
            self.tell(f"    {self._short(line)}")
        if status not in (expect if isinstance(expect, tuple) else (expect,)):
            rest = "\n".join(lines[-15:])
            raise RehearsalError(f"{shlex.join(words)} ended with {status}, not {expect}:\n{rest}")
        if expect:
            self.tell(f"    (exit status {status})")
        return output

    def python(
        self, *words: str, expect: int | tuple[int, ...] = 0, show: int = 4, seconds: float = _COMMAND_S
    ) -> str:
        """Run this Python, as `run` does."""
        return self.run(sys.executable, *words, expect=expect, show=show, seconds=seconds)

    def environment(self) -> dict[str, str]:
        """Return the environment of commands and services: without the caller's own TILEWISE_ and MLFLOW_
        variables."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("TILEWISE_", "MLFLOW_"))
        }
        tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        return kept | {"PATH": tools, "PYTHONPATH": str(self.project)} | self.settings

    def check(self, passed: bool, what: str) -> None:
        """Print a check that passed; raises RehearsalError if it failed."""
        if not passed:
            raise RehearsalError(f"failed: {what}")
        self.tell(f"  ✓ {what}")

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float = 90.0) -> None:
        """Wait until a condition holds; raises RehearsalError after `seconds`."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise RehearsalError(f"failed after {seconds:g} s: {what}")
            time.sleep(0.5)
        self.tell(f"  ✓ {what}")

    def _call(self, words: Sequence[str], seconds: float) -> tuple[int, str]:
        """Return exit status and output of a command; its children end with it."""
        process = subprocess.Popen(
            words,
            cwd=self.project,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise RehearsalError(f"{shlex.join(words)}: not done after {seconds:g} s") from error
        finally:
            stop(process)
        return process.returncode, output

    def _log(self, words: Sequence[str], text: str) -> None:
        with (self.folder / "commands.log").open("a", encoding="utf-8") as log:
            log.write(f"$ {self._shown(words)}\n{text}\n")

    def _shown(self, words: Sequence[str]) -> str:
        named = ["python" if word == sys.executable else word for word in words]
        return self._without_folders(shlex.join(named)).replace(str(PROJECT), "PROJECT")

    def _without_folders(self, text: str) -> str:
        """Return text with paths relative to this machine's folders."""
        for folder in (self.folder, PROJECT, tempfile.gettempdir()):
            text = text.replace(f"{folder}/", "")
        return text

    def _short(self, line: str) -> str:
        line = self._without_folders(line.rstrip())
        return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…"


class Client(threading.Thread):
    """A client that sends tiles to `/classify`, one request after another, until it is stopped.

    Args:
        url: of the balancer.
        tiles: in a request.
        pause: seconds between two.

    Attributes:
        pause: as above; may be changed while it runs.
        gain: factor of every DN: 1.0, or a drift.
        answered: number of requests with status 200.
        failed: number of other requests, by status or error.
    """

    def __init__(self, url: str, tiles: int = 32, pause: float = 0.2) -> None:
        super().__init__(name="client", daemon=True)
        self.gain, self.answered, self.failed = 1.0, 0, dict[str, int]()
        self.pause, self._url = pause, url
        self._stopped = threading.Event()
        self._requests = np.split(_tiles(8 * tiles), 8)

    def run(self) -> None:
        """Send requests until stopped."""
        with httpx.Client(base_url=self._url, timeout=30, trust_env=False) as client:
            number = 0
            while not self._stopped.wait(self.pause):
                self._send(client, self._requests[number % len(self._requests)])
                number += 1

    def stop(self) -> None:
        """Stop, after the request that is running."""
        self._stopped.set()
        self.join(40)

    def _send(self, client: httpx.Client, tiles: npt.NDArray[np.uint16]) -> None:
        body = io.BytesIO()
        np.save(body, (tiles * self.gain).astype(np.uint16))
        try:
            kind = {"Content-Type": "application/octet-stream"}
            outcome = str(client.post("/classify", content=body.getvalue(), headers=kind).status_code)
        except httpx.TransportError as error:
            outcome = type(error).__name__
        if outcome == "200":
            self.answered += 1
        else:
            self.failed[outcome] = self.failed.get(outcome, 0) + 1


def _tiles(count: int) -> npt.NDArray[np.uint16]:
    """Return synthetic tiles (count, 13, 64, 64) that were not trained on, of each class in turn."""
    return np.stack([render(CLASSES[n % len(CLASSES)], n // len(CLASSES), seed=99) for n in range(count)])


def git_identity() -> Mapping[str, str]:
    """Return the environment variables of git's author and committer."""
    who = {"NAME": "rehearsal", "EMAIL": "rehearsal@example.org"}
    return {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()}
