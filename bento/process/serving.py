"""What one process serves with, shared by all routes as `app.state.serving`."""

import time
from dataclasses import dataclass, replace

from starlette.requests import Request

from bento.engine import Engine
from bento.precision import Precision
from bento.process.admission import Admission
from bento.process.batcher import Batcher
from bento.process.releases import Mode, Releases
from bento.process.scenes import Scenes
from bento.process.sources import source_of
from bento.process.uploads import Answer, Batch, Upload, classify_batch
from bento.settings import Settings
from bento.watch import metrics
from bento.watch.notes import current
from bento.watch.onlookers import Onlookers


@dataclass(frozen=True, slots=True)
class Serving:
    """What the routes share.

    Attributes:
        settings: as the process was started with.
        releases: the models that answer.
        admission: room for the bodies of requests.
        batcher: works on the tiles of all requests together.
        onlookers: are told of each batch.
        scenes: works on what is slower, in between.
    """

    settings: Settings
    releases: Releases
    admission: Admission
    batcher: Batcher[Upload, Answer]
    onlookers: Onlookers
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

        onlookers = Onlookers.start(settings, releases)
        waiting_requests = metrics.WAITING_REQUESTS.set
        admission = Admission(settings.room, settings.most_waiting, settings.most_seconds, waiting_requests)
        batcher = Batcher(work, settings.most_in_batch, observe, lambda: onlookers.look(seen.pop()))
        return cls(settings, releases, admission, batcher, onlookers, Scenes.start(settings, releases, batcher))

    @property
    def engine(self) -> Engine:
        """The model that answers."""
        return self.releases.champion

    def assign(self, uploads: list[Upload], key: str) -> tuple[Engine, list[Upload]]:
        """Return the model that answers a request from `key`, and its uploads bound to it (and to its shadow)."""
        engine, secret = self.releases.route(key), self.releases.shadow(key)
        notes = current()
        if notes is not None:
            notes.tiles, notes.model, notes.submitted = len(uploads), engine.metadata.version, time.perf_counter_ns()
        return engine, [replace(upload, engine=engine, shadow=secret, notes=notes) for upload in uploads]

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
        self.onlookers.close()


def make_releases(settings: Settings) -> Releases:
    """Return the models that the settings name; raises ModelFileError where the answering one cannot be had."""
    precision = Precision(settings.precision)
    return Releases(
        champion=source_of(settings.model, precision),
        candidate=source_of(settings.candidate, precision) if settings.candidate else None,
        mode=Mode(settings.candidate_mode),
        share=settings.candidate_share,
        threads=settings.network_threads,
        every=settings.reload_seconds,
    )


def serving_of(request: Request) -> Serving:
    """Return what the process that got `request` serves with."""
    serving: Serving = request.app.state.serving
    return serving
