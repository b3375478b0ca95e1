"""Settings: the environment variables TILEWISE_…, with their meaning, default and allowed values."""

from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from tilewise.datasets.core.errors import TilewiseError
from tilewise.models.model_file import usable_cores

_PREFIX = "TILEWISE_"
_MAX_PROCESSES = 8  # each takes about 200 MB

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]


class Settings(BaseSettings):
    """Settings of the service. The environment variable of each is TILEWISE_ and its name in capitals.

    An empty variable counts as not set. `Settings.model_fields` has every description and default.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_ignore_empty=True, frozen=True, extra="ignore", protected_namespaces=()
    )

    model: str | None = Field(
        default=None,
        description="model file, or models:/NAME@ALIAS in MLflow's registry; default: the newest exported, "
        "else the pretrained one",
    )
    precision: Literal["auto", "fp32", "int8"] = Field(
        default="auto",
        description="auto: the INT8 file beside the model's if it is faster on this processor; fp32: never; "
        "int8: wherever there is one",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="of the network. auto: an NVIDIA GPU where onnxruntime can use one, else the processor",
    )
    candidate: str | None = Field(default=None, description="a second model to try out, named like the model")
    candidate_mode: Literal["off", "shadow", "canary"] = Field(
        default="shadow",
        description="shadow: the candidate classifies tiles for comparison only; canary: it answers requests",
    )
    candidate_fraction: Fraction = Field(
        default=0.1, description="fraction of requests that the candidate gets"
    )
    reload_seconds: CountOrZero = Field(
        default=15, description="seconds between polls for a new model; 0: never"
    )
    workers: CountOrZero = Field(default=0, description="processes; 0: one for each core, at most 8")
    threads: CountOrZero = Field(
        default=0, description="threads of the network in each process; 0: the cores divided by the processes"
    )
    max_tiles: Count = Field(default=256, description="tiles in a request")
    max_bytes: Count = Field(default=64 * 2**20, description="bytes in the body of a request")
    max_batch_size: CountOrZero = Field(
        default=0, description="tiles in a batch of the network; 0: 64, and 256 on a GPU"
    )
    room: Count = Field(
        default=128 * 2**20,
        description="bytes of request bodies that each process holds; further requests wait, unread",
    )
    max_waiting: Count = Field(
        default=1024, description="requests that may wait in each process; more are rejected with status 503"
    )
    max_wait_seconds: Count = Field(default=30, description="seconds that a request may wait")
    turnover: Count = Field(
        default=64,
        description="requests after which a connection is closed, so that processes share them evenly; "
        "large requests count as several",
    )
    api_keys: str | None = Field(
        default=None,
        repr=False,
        description="API keys of callers, KEY or NAME:KEY, separated by commas; default: none needed",
    )
    api_keys_file: str | None = Field(default=None, description="file of further API keys, one a line")
    open_metrics: bool = Field(default=False, description="1: /metrics needs no API key")
    url_hosts: str | None = Field(
        default=None,
        description="hosts that tiles may be fetched from by their url: HOST, HOST:PORT or http://HOST:PORT, "
        "separated by commas; HOST=10.0.0.0/8 for one in a network of yours; default: none",
    )
    cors_origins: str | None = Field(
        default=None,
        description="origins of web pages that may call the service, separated by commas; default: none",
    )
    max_connections: Count = Field(default=1000, description="open connections in each process")
    head_seconds: Count = Field(
        default=10, description="seconds in which the request line and headers must arrive"
    )
    body_seconds: Count = Field(default=10, description="seconds in which any body may arrive")
    body_rate: Count = Field(
        default=32 * 2**10, description="bytes a second at which a body must arrive after that time"
    )
    refused_rate: CountOrZero = Field(
        default=20,
        description="refused requests and tiles of one caller a second, in each process, beyond which its "
        "requests wait; 0: they never do",
    )
    request_seconds: Count = Field(
        default=60, description="seconds for the whole request, until its response is taken"
    )
    max_pixels: Count = Field(default=4096 * 4096, description="pixels of a scene")
    max_scene_bytes: Count = Field(default=512 * 2**20, description="bytes in the body with a scene")
    max_sync_windows: Count = Field(
        default=256,
        description="windows of a scene that is answered in the response; larger scenes become tasks",
    )
    max_tasks: Count = Field(default=32, description="tasks that wait, in all processes together")
    tasks: str | None = Field(
        default=None,
        description="folder of tasks and their results; default: a temporary one, deleted at the end",
    )
    tasks_bytes: Count = Field(default=4 * 2**30, description="bytes in the folder of tasks")
    tasks_kept: Count = Field(default=3600, description="seconds that the result of a task is kept")
    task_seconds: Count = Field(default=3600, description="seconds that a task may run")
    log: Literal["json", "text", "off"] | None = Field(
        default=None,
        description="format of the request log on stderr; default: json, but off if stderr is a terminal",
    )
    trace: str | None = Field(
        default=None, description="URL of an OTLP collector of traces; default: no traces"
    )
    drift_window: CountOrZero = Field(
        default=4096, description="latest tiles of each band to compare with the training data; 0: none"
    )
    drift_min_tiles: Count = Field(
        default=256, description="tiles of a band that are needed to report its drift"
    )
    predictions: str | None = Field(
        default=None,
        description="folder in which answers are kept, for audits and retraining; default: not kept",
    )
    predictions_fraction: Fraction = Field(
        default=1.0, description="fraction of requests whose answers are kept"
    )
    predictions_names: bool = Field(default=False, description="1: keep the file names of tiles")
    predictions_tiles: bool = Field(default=False, description="1: keep the tiles")
    predictions_rows: Count = Field(default=10_000, description="tiles in a file of kept answers")
    predictions_minutes: Count = Field(
        default=10, description="minutes after which a file with fewer tiles is closed"
    )
    predictions_bytes: Count = Field(
        default=2**30, description="bytes in the folder of kept answers; beyond, the oldest files are deleted"
    )

    @property
    def processes(self) -> int:
        """Number of processes that serve."""
        return self.workers or min(usable_cores(), _MAX_PROCESSES)

    @property
    def network_threads(self) -> int:
        """Threads of the network in each process; times the processes, no more than there are cores."""
        return self.threads or max(1, usable_cores() // self.processes)

    @classmethod
    def from_environment(cls) -> "Settings":
        """Read the settings from the environment.

        Raises:
            TilewiseError: a variable has a value that is not allowed; the message is one line that names it.
        """
        try:
            return cls()
        except ValidationError as error:
            first: Any = error.errors()[0]
            name = str(first["loc"][0]).lower()
            allowed = allowed_values(cls.model_fields[name])
            raise TilewiseError(f"{cls.variable(name)} is {allowed}, not {first['input']!r}") from None

    @staticmethod
    def variable(name: str) -> str:
        """Return the environment variable of the setting `name`."""
        return _PREFIX + name.upper()


def allowed_values(field: FieldInfo) -> str:
    """Return the values that a setting allows, in words, such as `a whole number of 1 or more`."""
    choices = _choices(field.annotation)
    if choices:
        return f"{', '.join(choices[:-1])} or {choices[-1]}"
    if field.annotation is bool:
        return "1 or 0"
    bounds = {type(item).__name__: item for item in field.metadata}
    minimum = bounds["Ge"].ge if "Ge" in bounds else None
    if field.annotation is float:
        return f"a number from {minimum} to {bounds['Le'].le}"
    return f"a whole number of {minimum} or more" if field.annotation is int else "a text"


def _choices(annotation: Any) -> tuple[str, ...]:
    """Return the choices of a Literal, or of a Literal that may be None."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return next((found for part in get_args(annotation) if (found := _choices(part))), ())
