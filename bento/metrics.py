"""What Prometheus sees of the service, beside BentoML's own request metrics."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram

TILES = Counter("sentile_tiles_total", "Tiles answered, by class and model version", ["class_name", "model"])
ERRORS = Counter("sentile_errors_total", "Tiles and requests refused, by error code", ["code"])
BATCH = Histogram(
    "sentile_batch_tiles", "Tiles in a batch of the network", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
)
WAITING = Gauge("sentile_waiting_tiles", "Tiles in the queue when a batch starts", multiprocess_mode="livesum")
SECONDS = Histogram(
    "sentile_seconds",
    "Seconds of a batch's stages, for each tile",
    ["stage"],
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5),
)
CONFIDENCE = Histogram(
    "sentile_confidence", "Probability of the answered class", ["model"], buckets=tuple(i / 10 for i in range(1, 11))
)
OUTLIER = Histogram(
    "sentile_outlier_score",
    "Outlier score over its threshold: above 1 a tile is flagged",
    ["model"],
    buckets=(0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 100.0),
)
MODEL_LOADED = Gauge(
    "sentile_model_loaded_timestamp_seconds",
    "When a model took its place, in seconds since 1970",
    ["place", "model"],
    multiprocess_mode="livemax",
)
MODEL_REFUSED = Counter(
    "sentile_model_refused_total", "Models that were not taken: missing, broken or unsound", ["place"]
)
SHADOW_TILES = Counter(
    "sentile_shadow_tiles_total", "Tiles that the candidate answered in secret, by agreement", ["agrees", "candidate"]
)
SHADOW_DISTANCE = Histogram(
    "sentile_shadow_distance",
    "Total variation between the champion's and the candidate's probabilities",
    ["candidate"],
    buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0),
)
INFER_SECONDS = Histogram(
    "sentile_infer_seconds",
    "Seconds of the network for each tile, by model",
    ["model"],
    buckets=(0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05),
)
SCENES = Counter("sentile_scenes_total", "Scenes answered, on their connection or as a task", ["way"])
TASKS_WAITING = Gauge("sentile_tasks_waiting", "Scenes that wait to be worked on", multiprocess_mode="livemax")


@contextmanager
def timed(stage: str, tiles: int) -> Iterator[None]:
    """Observe the seconds that the block takes for each of `tiles` tiles."""
    started = time.perf_counter()
    yield
    SECONDS.labels(stage).observe((time.perf_counter() - started) / max(tiles, 1))


@contextmanager
def timed_inference(model: str, tiles: int) -> Iterator[None]:
    """Observe the seconds that the network of version `model` takes for each of `tiles` tiles in the block."""
    started = time.perf_counter()
    yield
    INFER_SECONDS.labels(model).observe((time.perf_counter() - started) / max(tiles, 1))
