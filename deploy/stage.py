"""What a rehearsal needs: a project in git, commands that show what they gave, and callers of the service."""

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
from programs import PROJECT, stop

from tilewise.datasets.acquire.synthetic import render
from tilewise.datasets.core.errors import TilewiseError
from tilewise.datasets.readers.eurosat import CLASSES

_COMMAND_S = 480.0  # on a machine that does other things, too
_WIDTH = 118


class RehearsalError(TilewiseError):
    """Something in the story went otherwise than it must."""


@dataclass
class Stage:
    """Where the story is played, and what is written down of it.

    Attributes:
        folder: of all that it leaves: logs, the project, the registry.
        log: what is printed, once more.
        settings: environment of its commands.
        steps: how many the story has.
    """

    folder: Path
    log: TextIO
    steps: int
    settings: dict[str, str] = field(default_factory=dict)
    _step: int = 0
    _begun: float = field(default_factory=time.monotonic)

    @property
    def project(self) -> Path:
        """The git repository that is worked in."""
        return self.folder / "project"

    def tell(self, line: str) -> None:
        """Print a line, and keep it."""
        print(line, flush=True)
        self.log.write(f"{line}\n")
        self.log.flush()

    def step(self, title: str) -> None:
        """Begin a step of the story."""
        self._step += 1
        passed = int(time.monotonic() - self._begun)
        self.tell(f"\n── {self._step}/{self.steps} {title} ── {passed // 60}:{passed % 60:02d}")

    def run(self, *words: str, expect: int | tuple[int, ...] = 0, show: int = 4, seconds: float = _COMMAND_S) -> str:
        """Run a command in the project, show `show` lines of what it says, and return all of it.

        The last lines are shown, or with a negative number the first.

        Raises:
            RehearsalError: its exit status is not `expect`, or none of them, or it takes longer than `seconds`.
        """
        self.tell(f"$ {self._spoken(words)}")
        status, overrides = self._call(words, seconds)
        self._keep(words, overrides)
        lines = [line for line in overrides.splitlines() if line.strip()]
        for line in lines[-show:] if show > 0 else lines[:-show]:
            self.tell(f"    {self._short(line)}")
        if status not in (expect if isinstance(expect, tuple) else (expect,)):
            rest = "\n".join(lines[-15:])
            raise RehearsalError(f"{shlex.join(words)} ended with {status}, not {expect}:\n{rest}")
        if expect:
            self.tell(f"    (exit status {status})")
        return overrides

    def python(self, *words: str, expect: int | tuple[int, ...] = 0, show: int = 4, seconds: float = _COMMAND_S) -> str:
        """As `run`, for this Python."""
        return self.run(sys.executable, *words, expect=expect, show=show, seconds=seconds)

    def environment(self) -> dict[str, str]:
        """Return the environment of its commands and services: without settings of the caller's own service."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TILEWISE_", "MLFLOW_"))}
        tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        return kept | {"PATH": tools, "PYTHONPATH": str(self.project)} | self.settings

    def must(self, true: bool, what: str) -> None:
        """Say what was found; raises RehearsalError where it is not so."""
        if not true:
            raise RehearsalError(f"not so: {what}")
        self.tell(f"  ✓ {what}")

    def until(self, true: Callable[[], bool], what: str, seconds: float = 90.0) -> None:
        """Wait until something is so; raises RehearsalError after `seconds`."""
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end:
                raise RehearsalError(f"not so after {seconds:g} s: {what}")
            time.sleep(0.5)
        self.tell(f"  ✓ {what}")

    def _call(self, words: Sequence[str], seconds: float) -> tuple[int, str]:
        """Return exit status and output of a command; what it started ends with it, however it ends."""
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
            overrides, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise RehearsalError(f"{shlex.join(words)}: not done after {seconds:g} s") from error
        finally:
            stop(process)
        return process.returncode, overrides

    def _keep(self, words: Sequence[str], text: str) -> None:
        with (self.folder / "commands.log").open("a", encoding="utf-8") as log:
            log.write(f"$ {self._spoken(words)}\n{text}\n")

    def _spoken(self, words: Sequence[str]) -> str:
        named = ["python" if word == sys.executable else word for word in words]
        return self._without_places(shlex.join(named)).replace(str(PROJECT), "PROJECT")

    def _without_places(self, text: str) -> str:
        """Return text without this machine's folders before the files in them."""
        for place in (self.folder, PROJECT, tempfile.gettempdir()):
            text = text.replace(f"{place}/", "")
        return text

    def _short(self, line: str) -> str:
        line = self._without_places(line.rstrip())
        return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…"


class Callers(threading.Thread):
    """Callers who send tiles to `/classify`, one request after another, until they are told to stop.

    Args:
        url: of the balancer.
        tiles: in a request.
        pause: seconds between two.

    Attributes:
        pause: as above; may be changed while they call.
        gain: what each DN is multiplied with: 1.0, or a drift.
        answered: requests that were answered with 200.
        failed: those that were not, by what came instead.
    """

    def __init__(self, url: str, tiles: int = 32, pause: float = 0.2) -> None:
        super().__init__(name="callers", daemon=True)
        self.gain, self.answered, self.failed = 1.0, 0, dict[str, int]()
        self.pause, self._url = pause, url
        self._stopped = threading.Event()
        self._requests = np.split(_tiles(8 * tiles), 8)

    def run(self) -> None:
        """Send until stopped."""
        with httpx.Client(base_url=self._url, timeout=30, trust_env=False) as client:
            number = 0
            while not self._stopped.wait(self.pause):
                self._send(client, self._requests[number % len(self._requests)])
                number += 1

    def stop(self) -> None:
        """Send no more."""
        self._stopped.set()
        self.join(40)

    def _send(self, client: httpx.Client, tiles: npt.NDArray[np.uint16]) -> None:
        body = io.BytesIO()
        np.save(body, (tiles * self.gain).astype(np.uint16))
        try:
            kind = {"Content-Type": "application/octet-stream"}
            overrides = str(client.post("/classify", content=body.getvalue(), headers=kind).status_code)
        except httpx.TransportError as error:
            overrides = type(error).__name__
        if overrides == "200":
            self.answered += 1
        else:
            self.failed[overrides] = self.failed.get(overrides, 0) + 1


def _tiles(count: int) -> npt.NDArray[np.uint16]:
    """Return synthetic tiles (count, 13, 64, 64) that no training saw, of each class in turn."""
    return np.stack([render(CLASSES[n % len(CLASSES)], n // len(CLASSES), seed=99) for n in range(count)])


def git_identity() -> Mapping[str, str]:
    """Return the environment in which git knows who commits."""
    who = {"NAME": "rehearsal", "EMAIL": "rehearsal@example.org"}
    return {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()}
