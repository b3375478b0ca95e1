"""Prometheus metrics of the service; docs/observability.md explains each."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.multiprocess import mark_process_dead

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable that `bentoml serve` sets: the folder in which each process keeps its own counts."""

REQUESTS = Counter(
    "tilewise_requests_total",
    "Requests answered, by route, status and model version",
    ["path", "status", "model"],
)
REQUEST_SECONDS = Histogram(
    "tilewise_request_seconds",
    "Seconds from the first line of a request to the end of its response, by route and model version",
    ["path", "model"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
TILES = Counter("tilewise_tiles_total", "Tiles answered, by class and model version", ["class_name", "model"])
ERRORS = Counter("tilewise_errors_total", "Tiles and requests refused, by error code", ["code"])
BATCH = Histogram("tilewise_batch_tiles", "Tiles in a batch", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512))
WAITING = Gauge(
    "tilewise_waiting_tiles", "Tiles in the queue when a batch starts", multiprocess_mode="livesum"
)
WAITING_REQUESTS = Gauge(
    "tilewise_waiting_requests",
    "Requests whose bodies are not read yet, for lack of memory",
    multiprocess_mode="livesum",
)
SLOWED_REQUESTS = Counter(
    "tilewise_slowed_requests_total", "Requests that waited, for too many refusals of their caller"
)
WAIT_SECONDS = Histogram(
    "tilewise_wait_seconds",
    "Seconds that the tiles of a request wait for a batch",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
SECONDS = Histogram(
    "tilewise_seconds",
    "Seconds per tile of each stage of a request or a batch",
    ["stage"],
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5),
)
CONFIDENCE = Histogram(
    "tilewise_confidence",
    "Probability of the predicted class",
    ["model"],
    buckets=tuple(i / 10 for i in range(1, 11)),
)
OUTLIER = Histogram(
    "tilewise_outlier_score",
    "Outlier score divided by its threshold; above 1 a tile is flagged",
    ["model"],
    buckets=(0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 100.0),
)
MODEL_LOADED = Gauge(
    "tilewise_model_loaded_timestamp_seconds",
    "When a model was loaded, in seconds since 1970",
    ["role", "model"],
    multiprocess_mode="livemax",
)
MODEL_SERVES = Gauge(
    "tilewise_model_serves",
    "1 for the model that is champion or candidate now, 0 for former ones",
    ["role", "model"],
    multiprocess_mode="livemax",
)
MODEL_CREATED = Gauge(
    "tilewise_model_created_timestamp_seconds",
    "When the model was exported, in seconds since 1970; 0: its file does not say",
    ["role"],
    multiprocess_mode="livemax",
)
MODEL_FALSE_ALARMS = Gauge(
    "tilewise_model_false_alarms",
    "Fraction of in-distribution tiles that the model flags as outliers; 0: it flags none",
    ["role"],
    multiprocess_mode="livemax",
)
MODEL_REFUSED = Counter(
    "tilewise_model_refused_total", "Models that were not loaded: missing, corrupt or invalid", ["role"]
)
SHADOW_TILES = Counter(
    "tilewise_shadow_tiles_total",
    "Tiles classified by the shadow model, by agreement with the champion",
    ["agrees", "candidate"],
)
SHADOW_DISTANCE = Histogram(
    "tilewise_shadow_distance",
    "Total variation between the champion's and the candidate's probabilities",
    ["candidate"],
    buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0),
)
CANARY_FALLBACKS = Counter(
    "tilewise_canary_fallbacks_total",
    "Requests for the canary that the champion answered, by reason (error, coverage) and candidate",
    ["reason", "candidate"],
)
INFER_SECONDS = Histogram(
    "tilewise_infer_seconds",
    "Seconds of inference per tile, by model",
    ["model"],
    buckets=(0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05),
)
SCENES = Counter("tilewise_scenes_total", "Scenes answered, in the response or as a task", ["way"])
TASKS_WAITING = Gauge("tilewise_tasks_waiting", "Scene tasks that wait", multiprocess_mode="livemax")
DRIFT = Gauge(
    "tilewise_drift",
    "Distance of the latest tiles from the training data, by band and measure",
    ["band", "measure"],
    multiprocess_mode="mostrecent",
)
DRIFT_TILES = Gauge(
    "tilewise_drift_tiles",
    "Tiles that tilewise_drift is computed from, by band",
    ["band"],
    multiprocess_mode="mostrecent",
)
PREDICTIONS = Counter(
    "tilewise_predictions_total",
    "Tiles for the prediction log, by outcome: written, dropped or failed",
    ["outcome"],
)

SERIOUS = ("internal", "overloaded")
"""Error codes that alerts watch."""

# Cached: they are looked up for every request, and their labels are few (routes, statuses, stages).
requests_of = lru_cache(maxsize=512)(REQUESTS.labels)
request_seconds_of = lru_cache(maxsize=128)(REQUEST_SECONDS.labels)
seconds_of = lru_cache(maxsize=32)(SECONDS.labels)


@dataclass(frozen=True, slots=True)
class TimedStage:
    """A stage of a batch: its name, beginning and end, in nanoseconds of `time.perf_counter_ns`."""

    name: str
    began: int
    ended: int

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return (self.ended - self.began) / 1e9


@contextmanager
def timed(stage: str, tiles: int, stages: list[TimedStage] | None = None) -> Iterator[None]:
    """Observe the block's seconds per tile as stage `stage`, and append the stage to `stages`."""
    began = time.perf_counter_ns()
    yield
    took = TimedStage(stage, began, time.perf_counter_ns())
    seconds_of(stage).observe(took.seconds / max(tiles, 1))
    if stages is not None:
        stages.append(took)


@contextmanager
def timed_inference(model: str, tiles: int, stages: list[TimedStage] | None = None) -> Iterator[None]:
    """Observe the seconds per tile of inference by model version `model`; otherwise like `timed`."""
    began = time.perf_counter_ns()
    yield
    took = TimedStage("infer", began, time.perf_counter_ns())
    INFER_SECONDS.labels(model).observe(took.seconds / max(tiles, 1))
    if stages is not None:
        stages.append(took)


def initialise_counters() -> None:
    """Create the series that alerts watch at 0: Prometheus sees no increase in one that begins with 1."""
    for code in SERIOUS:
        ERRORS.labels(code)
    for role in ("champion", "candidate"):
        MODEL_REFUSED.labels(role)
    for outcome in ("written", "dropped", "failed"):
        PREDICTIONS.labels(outcome)


def remove_gauges_of_dead_processes() -> None:
    """Remove the gauges of killed processes from `/metrics`, where they would stay for ever.

    Each process calls this when it starts to serve, such as one that replaces a killed one.
    """
    folder = os.environ.get(SHARED_FOLDER)
    files = Path(folder).glob("gauge_live*_*.db") if folder else ()
    for pid in {file.stem.rpartition("_")[2] for file in files}:
        if pid.isdecimal() and not is_alive(int(pid)):
            mark_process_dead(int(pid))


def is_alive(pid: int) -> bool:
    """Return whether the process `pid` runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
