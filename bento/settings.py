"""What can be set from outside, in one place: environment variables that begin with TILEWISE_."""

import os
from dataclasses import dataclass, field, fields
from typing import Any

from tilewise.datasets.core.errors import TilewiseError
from tilewise.models.model_file import usable_cores

_CHOICES = {
    "TILEWISE_CANDIDATE_MODE": ("off", "shadow", "canary"),
    "TILEWISE_LOG": ("json", "text", "off"),
    "TILEWISE_PRECISION": ("auto", "fp32", "int8"),
}
_MAY_BE_ZERO = ("TILEWISE_RELOAD_SECONDS", "TILEWISE_DRIFT_WINDOW")
_MAX_PROCESSES = 8  # each takes about 200 MB


@dataclass(frozen=True)
class Settings:
    """The service's settings; each is set by the environment variable of its name, in capitals, behind TILEWISE_.

    Attributes:
        model: path of the model file, or `models:/NAME@ALIAS` in MLflow's registry; None: the newest exported one.
        precision: `auto` serves the INT8 file beside the model's where the processor gains by it, `fp32` never,
            `int8` wherever there is one.
        candidate: a second model, likewise; None: there is none.
        candidate_mode: what it does: `shadow` answers in secret and is compared, `canary` answers requests.
        candidate_fraction: share of requests (0-1) that it shadows or answers.
        reload_seconds: seconds between looks for a new model under the same name; 0: never.
        workers: processes that serve; 0: one for each core, eight at most.
        threads: of the network in each process; 0: the cores shared out among the processes.
        max_tiles: tiles in one request.
        max_bytes: bytes in one request's body.
        max_batch_size: tiles that the network takes at once.
        room: bytes of requests that each process holds at once; further ones wait, unread.
        max_waiting: requests that may wait in each process; those beyond get 503.
        max_wait_seconds: that a request may wait for room.
        turnover: requests, large ones counting as several, after which a connection is closed at the latest, so that
            processes share connections evenly.
        api_keys: keys of callers, `KEY` or `name:KEY`, separated by commas; None: nobody needs one.
        api_keys_file: a file of further keys, one a line.
        open_metrics: 1: `/metrics` needs no key.
        cors_origins: of web pages that may ask, separated by commas, e.g. `https://maps.example`; None: no others.
        max_connections: open at once in each process.
        head_seconds: that a connection may take for a request's line and headers.
        body_seconds: that any body may take.
        body_rate: bytes per second at which a body must come beyond that.
        request_seconds: for everything, until the answer is taken.
        max_pixels: of a scene.
        max_scene_bytes: in the body that brings a scene.
        max_sync_windows: of a scene that is answered on its connection; those with more become tasks.
        max_tasks: scenes that wait to be worked on, in all processes together.
        tasks: the folder of the scenes that are worked on and of their results; None: a temporary one, which goes with
            the service.
        tasks_bytes: of all that is in it.
        tasks_kept: seconds that a result can be had.
        task_seconds: that a task may run.
        log: of requests, on stderr: `json`, `text` or `off`; None: `json`, but `off` where stderr is a terminal.
        trace: URL of an OTLP collector that gets a trace of each request; None: nothing is traced.
        drift_window: latest tiles of each band that are compared with the training data; 0: none.
        drift_min_tiles: tiles of a band before its drift is told.
        predictions: folder that answers are kept in, for audits and retraining; None: none are.
        predictions_fraction: share of requests (0-1) whose answers are kept.
        predictions_names: 1: with the tiles' file names.
        predictions_tiles: 1: with the tiles themselves.
        predictions_rows: tiles in a file of the folder.
        predictions_minutes: after which a file is closed that has fewer.
        predictions_bytes: of the folder; beyond it, the oldest files are deleted.
    """

    model: str | None = None
    precision: str = "auto"
    candidate: str | None = None
    candidate_mode: str = "shadow"
    candidate_fraction: float = 0.1
    reload_seconds: int = 15
    workers: int = 0
    threads: int = 0
    max_tiles: int = 256
    max_bytes: int = 64 * 2**20
    max_batch_size: int = 64
    room: int = 128 * 2**20
    max_waiting: int = 1024
    max_wait_seconds: int = 30
    turnover: int = 64
    api_keys: str | None = field(default=None, repr=False)
    api_keys_file: str | None = None
    open_metrics: int = 0
    cors_origins: str | None = None
    max_connections: int = 1000
    head_seconds: int = 10
    body_seconds: int = 10
    body_rate: int = 32 * 2**10
    request_seconds: int = 60
    max_pixels: int = 4096 * 4096
    max_scene_bytes: int = 512 * 2**20
    max_sync_windows: int = 256
    max_tasks: int = 32
    tasks: str | None = None
    tasks_bytes: int = 4 * 2**30
    tasks_kept: int = 3600
    task_seconds: int = 3600
    log: str | None = None
    trace: str | None = None
    drift_window: int = 4096
    drift_min_tiles: int = 256
    predictions: str | None = None
    predictions_fraction: float = 1.0
    predictions_names: int = 0
    predictions_tiles: int = 0
    predictions_rows: int = 10_000
    predictions_minutes: int = 10
    predictions_bytes: int = 2**30

    @property
    def processes(self) -> int:
        """How many processes serve."""
        return self.workers or min(usable_cores(), _MAX_PROCESSES)

    @property
    def network_threads(self) -> int:
        """How many threads the network has in each process: with the processes, no more than there are cores."""
        return self.threads or max(1, usable_cores() // self.processes)

    @classmethod
    def from_environment(cls) -> "Settings":
        """Read the settings from the environment.

        Raises:
            TilewiseError: one of them is not a number, or too small.
        """
        overrides = {}
        for item in fields(cls):
            name = f"TILEWISE_{item.name.upper()}"
            text = os.environ.get(name)
            if text:
                overrides[item.name] = _parse(name, text, item.default)
        return cls(**overrides)


def _parse(name: str, text: str, default: Any) -> Any:
    """Return a setting's value, of the type that its default has."""
    if isinstance(default, float):
        return _share(name, text)
    if isinstance(default, int):
        return _whole_number(name, text, minimum=0 if default == 0 or name in _MAY_BE_ZERO else 1)
    choices = _CHOICES.get(name, ())
    if choices and text not in choices:
        raise TilewiseError(f"{name} is {', '.join(choices[:-1])} or {choices[-1]}, not {text!r}")
    return text


def _whole_number(name: str, text: str, minimum: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = minimum - 1
    if number < minimum:
        raise TilewiseError(f"{name} is a whole number of {minimum} or more, not {text!r}")
    return number


def _share(name: str, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise TilewiseError(f"{name} is a share from 0 to 1, not {text!r}")
    return share
