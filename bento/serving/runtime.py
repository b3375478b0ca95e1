"""What one process serves with, shared by all routes as `app.state.serving`."""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from starlette.requests import Request

from tilewise.bento import metrics
from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.precision import Precision
from tilewise.bento.inference.uploads import Answer, Batch, Upload, classify_batch
from tilewise.bento.monitoring.drift import Drift
from tilewise.bento.monitoring.prediction_log import PredictionLog
from tilewise.bento.monitoring.tracing import tracing_to
from tilewise.bento.request_context import current
from tilewise.bento.serving.admission import Admission
from tilewise.bento.serving.batcher import Batcher
from tilewise.bento.serving.releases import Mode, Releases, source_of
from tilewise.bento.serving.task_runner import Scenes
from tilewise.bento.settings import Settings
from tilewise.datasets.core.tile import Tile


def compare(batch: Batch) -> None:
    """Let the shadows of a batch's uploads answer, and count how far they agree with what was answered."""
    groups: dict[Engine, list[int]] = {}
    for place, (upload, outcome) in enumerate(zip(batch.uploads, batch.outcomes, strict=True)):
        if upload.shadow is not None and isinstance(outcome, Tile):
            groups.setdefault(upload.shadow, []).append(place)
    for shadow, places in groups.items():
        _compare_group(shadow, batch, places)


def _compare_group(shadow: Engine, batch: Batch, places: list[int]) -> None:
    tiles = [outcome for place in places if isinstance(outcome := batch.outcomes[place], Tile)]
    version = shadow.metadata.version
    with metrics.timed_inference(version, len(tiles)):
        found = shadow.classify(np.stack([tile.pixels for tile in tiles])).probabilities
    for place, probabilities in zip(places, found, strict=True):
        given = batch.results[place]["probabilities"]
        secret = dict(zip(shadow.metadata.classes, probabilities.tolist(), strict=True))
        agrees = batch.results[place]["class"] == max(secret, key=secret.__getitem__)
        metrics.SHADOW_TILES.labels("yes" if agrees else "no", version).inc()
        metrics.SHADOW_DISTANCE.labels(version).observe(total_variation(given, secret))


def total_variation(one: dict[str, float], other: dict[str, float]) -> float:
    """Return half the sum of the absolute differences of two distributions over classes (0-1); classes may differ."""
    return sum(abs(one.get(name, 0.0) - other.get(name, 0.0)) for name in one.keys() | other.keys()) / 2


_LOG = logging.getLogger("tilewise")


class Observers:
    """Everybody who is told of batches. One that fails is logged, and keeps the others from nothing."""

    def __init__(self) -> None:
        self._looks: list[Callable[[Batch], None]] = []
        self._ends: list[Callable[[], None]] = []

    @classmethod
    def start(cls, settings: Settings, releases: Releases) -> "Observers":
        """Return those that the settings name.

        Raises:
            TilewiseError: the prediction log's folder cannot be written to.
        """
        metrics.forget_dead_processes()
        metrics.begin_at_zero()
        found = cls()
        found.add(observe_waits)
        found.add(compare)
        if settings.drift_window:
            drift = make_drift(settings, releases)
            found.add(drift.look, drift.close)
        if settings.trace:
            tracing = tracing_to(settings.trace)
            found.add(tracing.look, tracing.close)
        if settings.predictions:
            log = PredictionLog.start(settings)
            found.add(log.look, log.close)
        return found

    def add(self, look: Callable[[Batch], None], end: Callable[[], None] | None = None) -> None:
        """Let `look` be told of each batch, and `end` be called when there are no more."""
        self._looks.append(look)
        if end is not None:
            self._ends.append(end)

    def look(self, batch: Batch) -> None:
        """Tell everybody of a batch."""
        for look in self._looks:
            try:
                look(batch)
            except Exception:  # whoever looks on must not stop the work
                _LOG.exception("what was to be done after a batch failed")

    def close(self) -> None:
        """Tell everybody that it is over."""
        for end in self._ends:
            end()


def observe_waits(batch: Batch) -> None:
    """Observe how long the requests of a batch waited for it."""
    for request_context in batch.requests:
        metrics.WAIT_SECONDS.observe((batch.stages[0].began - request_context.submitted) / 1e9)


def make_drift(settings: Settings, releases: Releases) -> Drift:
    """Return what watches the drift from the champion's training data."""
    shared = os.environ.get(metrics.SHARED_FOLDER)
    return Drift(
        lambda: releases.champion,
        settings.drift_window,
        settings.drift_min_tiles,
        settings.processes,
        Path(shared) if shared else None,
    )


@dataclass(frozen=True, slots=True)
class Serving:
    """What the routes share.

    Attributes:
        settings: as the process was started with.
        releases: the models that answer.
        admission: room for the bodies of requests.
        batcher: works on the tiles of all requests together.
        observers: are told of each batch.
        scenes: works on what is slower, in between.
    """

    settings: Settings
    releases: Releases
    admission: Admission
    batcher: Batcher[Upload, Answer]
    observers: Observers
    scenes: Scenes

    @classmethod
    def start(cls, settings: Settings) -> "Serving":
        """Load the model and start the batcher; raises ModelFileError where the model cannot be had."""
        releases = make_releases(settings)
        seen: list[Batch] = []

        def work(uploads: list[Upload]) -> list[Answer]:
            seen[:] = [classify_batch(releases.champion, uploads)]
            return seen[0].results

        def observe(tiles: int, waiting: int) -> None:
            metrics.BATCH.observe(tiles)
            metrics.WAITING.set(waiting)

        observers = Observers.start(settings, releases)
        waiting_requests = metrics.WAITING_REQUESTS.set
        admission = Admission(settings.room, settings.max_waiting, settings.max_wait_seconds, waiting_requests)
        batcher = Batcher(work, settings.max_batch_size, observe, lambda: observers.look(seen.pop()))
        return cls(settings, releases, admission, batcher, observers, Scenes.start(settings, releases, batcher))

    @property
    def engine(self) -> Engine:
        """The model that answers."""
        return self.releases.champion

    def assign(self, uploads: list[Upload], key: str) -> tuple[Engine, list[Upload]]:
        """Return the model that answers a request from `key`, and its uploads bound to it (and to its shadow)."""
        engine, secret = self.releases.route(key), self.releases.shadow(key)
        request_context = current()
        if request_context is not None:
            request_context.tiles, request_context.model, request_context.submitted = (
                len(uploads),
                engine.metadata.version,
                time.perf_counter_ns(),
            )
        return engine, [
            replace(upload, engine=engine, shadow=secret, request_context=request_context) for upload in uploads
        ]

    @property
    def best_coverage(self) -> float:
        """The highest coverage that the model's prediction sets are calibrated for; 0: it has none."""
        sets = self.engine.metadata.prediction_sets
        return max(sets.thresholds) if sets else 0.0

    def close(self) -> None:
        """End what runs beside the requests."""
        self.scenes.close()
        self.releases.close()
        self.batcher.close()
        self.observers.close()


def make_releases(settings: Settings) -> Releases:
    """Return the models that the settings name; raises ModelFileError where the answering one cannot be had."""
    precision = Precision(settings.precision)
    return Releases(
        champion=source_of(settings.model, precision),
        candidate=source_of(settings.candidate, precision) if settings.candidate else None,
        mode=Mode(settings.candidate_mode),
        share=settings.candidate_fraction,
        threads=settings.network_threads,
        every=settings.reload_seconds,
    )


def serving_of(request: Request) -> Serving:
    """Return what the process that got `request` serves with."""
    serving: Serving = request.app.state.serving
    return serving
