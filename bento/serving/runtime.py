"""Runtime of a serving process: what its routes share (`app.state.serving`), and observers of its batches."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from starlette.requests import Request

from tilewise.bento import metrics
from tilewise.bento.inference.device import Device, choose, precision_on
from tilewise.bento.inference.engine import TILES_A_GPU_RUN, Engine
from tilewise.bento.inference.precision import Precision
from tilewise.bento.inference.uploads import (
    Answer,
    Batch,
    DecodeBudget,
    InferenceError,
    ModelFailure,
    Upload,
    classify_batch,
    header_of,
    read_apart,
    successes,
    takes_long,
)
from tilewise.bento.monitoring.drift import Drift
from tilewise.bento.monitoring.prediction_log import PredictionLog
from tilewise.bento.monitoring.tracing import tracing_to
from tilewise.bento.request_context import current, note_requested, note_submitted
from tilewise.bento.serving.admission import Admission
from tilewise.bento.serving.background import BackgroundPool, Check
from tilewise.bento.serving.batcher import Batcher
from tilewise.bento.serving.fetching import Fetcher, parse_hosts
from tilewise.bento.serving.releases import Mode, Releases, source_of
from tilewise.bento.serving.task_runner import Scenes
from tilewise.bento.settings import Settings
from tilewise.datasets.core.errors import TilewiseError
from tilewise.datasets.core.tile import Tile

_LOG = logging.getLogger("tilewise")
_PREVIEW_THREADS = 2
_READER_THREADS = 2
_BATCH_SIZES = {Device.CPU: 64, Device.CUDA: TILES_A_GPU_RUN}  # tiles


@dataclass(frozen=True, slots=True)
class Serving:
    """What the routes of a process share.

    Attributes:
        settings: that the process was started with.
        releases: the champion and the candidate.
        admission: bounds the memory of request bodies.
        batcher: processes the tiles of all requests together.
        observers: called after each batch.
        scenes: runs scenes and explanations in the background.
        readers: read tiles that take long, so that no batch waits for them.
        previews: draws pictures in the background.
        fetcher: fetches tiles by their addresses.
    """

    settings: Settings
    releases: Releases
    admission: Admission
    batcher: Batcher[Upload, Answer | ModelFailure]
    observers: "BatchObservers"
    readers: BackgroundPool
    scenes: Scenes
    previews: BackgroundPool
    fetcher: Fetcher

    @classmethod
    def start(cls, settings: Settings) -> "Serving":
        """Load the models and start the threads.

        Raises:
            ModelFileError: the champion cannot be loaded.
            TilewiseError: the folder of the prediction log cannot be written to, or the hosts to fetch from
                are malformed.
        """
        releases = make_releases(settings)
        last: list[Batch] = []

        def work(uploads: list[Upload]) -> list[Answer | ModelFailure]:
            last[:] = [classify_batch(releases.champion, uploads)]
            return last[0].results

        def observe(tiles: int, waiting: int) -> None:
            metrics.BATCH.observe(tiles)
            metrics.WAITING.set(waiting)

        observers = BatchObservers.start(settings, releases)
        admission = Admission(
            settings.room,
            settings.room // 2,
            settings.max_waiting,
            settings.max_wait_seconds,
            metrics.WAITING_REQUESTS.set,
        )
        size = settings.max_batch_size or _BATCH_SIZES[releases.device]
        batcher = Batcher(work, size, observe, lambda: observers.observe(last.pop()), lone_in_loop=True)
        scenes = Scenes.start(settings, releases, batcher)
        wait, waiting = settings.max_wait_seconds, settings.max_waiting
        readers = BackgroundPool("readers", _READER_THREADS, wait, waiting)
        previews = BackgroundPool("previews", _PREVIEW_THREADS, wait)
        fetcher = Fetcher(parse_hosts(settings.url_hosts), settings.max_bytes)
        return cls(settings, releases, admission, batcher, observers, readers, scenes, previews, fetcher)

    @property
    def engine(self) -> Engine:
        """The champion."""
        return self.releases.champion

    @property
    def best_coverage(self) -> float:
        """The highest coverage that the champion's prediction sets are calibrated for; 0: it has none."""
        return max_coverage(self.engine) or 0.0

    async def classify(
        self, uploads: Sequence[Upload], key: str, caller: str = ""
    ) -> tuple[Engine, list[Answer]]:
        """Return the model that answered a request from `key`, and one result for each upload, in order.

        `caller` takes turns with others (`Batcher.submit`).

        One model answers all uploads: the champion, or the canary if `key` falls into its fraction. Where the
            canary
        fails, or is not calibrated for the requested coverage, the champion answers in its place.

        Raises:
            InferenceError: the champion failed.
            OverloadedError: too many requests wait for tiles that take long to be read.
            TilewiseError: a coverage is requested that the champion is not calibrated for.
            ClosedError: the process is shutting down.
        """
        champion = self.releases.champion
        engine = self._within_coverage(self.releases.canary(key) or champion, champion, uploads)
        try:
            return engine, await self._submit(uploads, engine, self.releases.shadow(key), caller)
        except InferenceError:
            if engine is champion:
                raise
            metrics.CANARY_FALLBACKS.labels("error", engine.metadata.version).inc()
        return champion, await self._submit(uploads, champion, None, caller)

    def close(self) -> None:
        """Stop the threads, and call the observers' `close`."""
        self.previews.close()
        self.readers.close()
        self.scenes.close()
        self.releases.close()
        self.batcher.close()
        self.observers.close()

    def _within_coverage(self, engine: Engine, champion: Engine, uploads: Sequence[Upload]) -> Engine:
        """Return `engine`, or `champion` if only that is calibrated for the coverage of the uploads."""
        coverage = max((upload.coverage for upload in uploads), default=0.0)
        if engine is not champion and not _covers(engine, coverage):
            metrics.CANARY_FALLBACKS.labels("coverage", engine.metadata.version).inc()
            engine = champion
        if not _covers(engine, coverage):  # a champion that took over since the request was checked
            raise TilewiseError(f"the model is calibrated for a coverage of at most {max_coverage(engine)}")
        return engine

    async def _submit(
        self, uploads: Sequence[Upload], engine: Engine, shadow: Engine | None, caller: str
    ) -> list[Answer]:
        """Queue the uploads for the next batches, to be classified by `engine`, and return the results."""
        note_requested(len(uploads), engine.metadata.version)
        context = current()
        budget = DecodeBudget()
        jobs = [
            replace(
                upload,
                engine=engine,
                shadow=shadow,
                request_context=context,
                budget=budget,
                header=header_of(upload.content),
            )
            for upload in uploads
        ]
        size = engine.metadata.tile_size
        if any(takes_long(job, size) for job in jobs):
            jobs = await self.readers.run_for(caller, lambda check: _read_long(jobs, size, check))
        note_submitted()
        return successes(await self.batcher.submit(jobs, caller))


def _read_long(uploads: Sequence[Upload], size: int, check: Check) -> list[Upload]:
    """Return the uploads, those that take long read or with their error."""
    read = []
    for upload in uploads:
        check()
        read.append(read_apart(upload, size) if takes_long(upload, size) else upload)
    return read


def make_releases(settings: Settings) -> Releases:
    """Return the models that the settings name.

    Raises:
        ModelFileError: the champion cannot be loaded.
        TilewiseError: the settings ask for a GPU that cannot be used.
    """
    device = choose(Device(settings.device))
    precision = precision_on(device, Precision(settings.precision))
    return Releases(
        champion=source_of(settings.model, precision),
        candidate=source_of(settings.candidate, precision) if settings.candidate else None,
        mode=Mode(settings.candidate_mode),
        fraction=settings.candidate_fraction,
        threads=settings.network_threads,
        device=device,
        every=settings.reload_seconds,
    )


def serving_of(request: Request) -> Serving:
    """Return what the process that received `request` serves with."""
    serving: Serving = request.app.state.serving
    return serving


def max_coverage(engine: Engine) -> float | None:
    """Return the highest calibrated coverage (0-1) of a model; None if it has no prediction sets."""
    sets = engine.metadata.prediction_sets
    return max(sets.thresholds) if sets else None


def _covers(engine: Engine, coverage: float) -> bool:
    highest = max_coverage(engine)
    return highest is None or coverage <= highest + 1e-9


# Observers of batches.


class BatchObservers:
    """Functions that are called after each batch. One that fails is logged and affects nothing else."""

    def __init__(self) -> None:
        self._observe: list[Callable[[Batch], None]] = []
        self._close: list[Callable[[], None]] = []

    @classmethod
    def start(cls, settings: Settings, releases: Releases) -> "BatchObservers":
        """Return the observers that the settings name.

        Raises:
            TilewiseError: the folder of the prediction log cannot be written to.
        """
        metrics.remove_gauges_of_dead_processes()
        metrics.initialise_counters()
        observers = cls()
        observers.add(observe_waits)
        observers.add(compare_with_shadow)
        if settings.drift_window:
            drift = make_drift(settings, releases)
            observers.add(drift.observe, drift.close)
        if settings.trace:
            tracing = tracing_to(settings.trace)
            observers.add(tracing.observe, tracing.close)
        if settings.predictions:
            log = PredictionLog.start(settings)
            observers.add(log.observe, log.close)
        return observers

    def add(self, observe: Callable[[Batch], None], close: Callable[[], None] | None = None) -> None:
        """Call `observe` after each batch, and `close` at the end."""
        self._observe.append(observe)
        if close is not None:
            self._close.append(close)

    def observe(self, batch: Batch) -> None:
        """Call every observer with a batch."""
        for observe in self._observe:
            try:
                observe(batch)
            except Exception:  # an observer must not stop the service
                _LOG.exception("an observer of a batch failed")

    def close(self) -> None:
        """Call every observer's `close`."""
        for close in self._close:
            close()


def observe_waits(batch: Batch) -> None:
    """Observe how long the requests of a batch waited for it."""
    for request_context in batch.requests:
        metrics.WAIT_SECONDS.observe((batch.stages[0].began - request_context.submitted) / 1e9)


def make_drift(settings: Settings, releases: Releases) -> Drift:
    """Return the observer of drift from the champion's training data."""
    shared = os.environ.get(metrics.SHARED_FOLDER)
    return Drift(
        lambda: releases.champion,
        settings.drift_window,
        settings.drift_min_tiles,
        settings.processes,
        Path(shared) if shared else None,
    )


# Shadow deployment: run the candidate on live traffic and compare its answers; never return them.


def compare_with_shadow(batch: Batch) -> None:
    """Classify the tiles of a batch by their shadow models too, and count the agreement with the answers."""
    groups: dict[Engine, list[tuple[Tile, Answer]]] = {}
    for index, tile, answer in batch.classified:
        shadow = batch.uploads[index].shadow
        if shadow is not None:
            groups.setdefault(shadow, []).append((tile, answer))
    for shadow, classified in groups.items():
        _compare_group(shadow, classified)


def _compare_group(shadow: Engine, classified: list[tuple[Tile, Answer]]) -> None:
    version, classes = shadow.metadata.version, shadow.metadata.classes
    with metrics.timed_inference(version, len(classified)):
        rows = shadow.classify(np.stack([tile.pixels for tile, _ in classified])).probabilities
    for (_, answer), row in zip(classified, rows, strict=True):
        probabilities = dict(zip(classes, row.tolist(), strict=True))
        agrees = answer["class"] == max(probabilities, key=probabilities.__getitem__)
        metrics.SHADOW_TILES.labels("yes" if agrees else "no", version).inc()
        metrics.SHADOW_DISTANCE.labels(version).observe(
            total_variation(answer["probabilities"], probabilities)
        )


def total_variation(one: dict[str, float], other: dict[str, float]) -> float:
    """Return the total variation distance of two distributions over classes (0-1); classes may differ."""
    return sum(abs(one.get(name, 0.0) - other.get(name, 0.0)) for name in one.keys() | other.keys()) / 2
