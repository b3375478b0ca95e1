"""Programs of this machine, each run for the length of a block: in a process group of its own, which ends with it.

    with running("registry", mlflow_server(folder, port), folder, ready=f"http://127.0.0.1:{port}/health"):
        ...

For tests, rehearsals and releases on one machine. Only the groups that were started here are ended.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from tilewise.datasets.core.errors import TilewiseError

PROJECT = Path(__file__).resolve().parent.parent
START_S = 180.0  # on a machine whose cores are busy
_STOP_S = 15.0


class ProgramError(TilewiseError):
    """A program that does not start, or ends when it should not."""


@contextmanager
def running(
    name: str,
    command: Sequence[str],
    folder: Path,
    ready: str,
    settings: Mapping[str, str] | None = None,
    cwd: Path = PROJECT,
    patience: float = START_S,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` for the length of the block, which begins when its URL `ready` answers 200.

    What it says goes to `<folder>/<name>.log`.

    Raises:
        ProgramError: it is not installed, ends, or is not ready within `patience` seconds; says its last words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}.log"
    with log.open("ab") as stream:
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=os.environ | dict(settings or {}),
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise ProgramError(f"{command[0]} is not installed; apt-get install {command[0]}") from error
    try:
        _await_ready(name, process, ready, log, patience)
        yield process
    finally:
        stop(process)


def service(url: str, home: Path, model: str, **settings: str) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment of a service.

    Args:
        url: where it listens, http://HOST:PORT.
        home: where BentoML keeps its files: each service of a machine needs its own.
        model: a model file, or `models:/NAME@ALIAS`.
        settings: more environment variables.
    """
    at = httpx.URL(url)
    command = [sys.executable, "-m", "bentoml", "serve", ".", "--host", at.host, "--port", str(at.port)]
    own = {"TILEWISE_MODEL": model, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    return command, own | settings


def stop(process: subprocess.Popen[Any]) -> None:
    """End a program and what it started: kindly, then by force."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            continue
        return


def answers(url: str) -> bool:
    """Return whether a URL answers 200 within a few seconds."""
    try:
        return httpx.get(url, trust_env=False, timeout=5).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _await_ready(name: str, process: subprocess.Popen[bytes], url: str, log: Path, patience: float) -> None:
    end = time.monotonic() + patience
    while time.monotonic() < end and process.poll() is None:
        if answers(url):
            return
        time.sleep(0.2)
    words = log.read_text(errors="replace").strip().splitlines()[-5:]
    raise ProgramError(f"{name} is not ready ({url}); its last words: {' / '.join(words) or 'none'}")
