"""Those who look on: told of each batch when its answers have been handed out, so that no request waits for them."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

from bento.process import shadow
from bento.process.releases import Releases
from bento.process.uploads import Batch
from bento.settings import Settings
from bento.watch import metrics
from bento.watch.drift import Drift
from bento.watch.prediction_log import PredictionLog
from bento.watch.tracing import tracing_to

_LOG = logging.getLogger("sentile")


class Onlookers:
    """Everybody who is told of batches. One that fails is logged, and keeps the others from nothing."""

    def __init__(self) -> None:
        self._looks: list[Callable[[Batch], None]] = []
        self._ends: list[Callable[[], None]] = []

    @classmethod
    def start(cls, settings: Settings, releases: Releases) -> "Onlookers":
        """Return those that the settings name.

        Raises:
            SentileError: the prediction log's folder cannot be written to.
        """
        metrics.forget_dead_processes()
        metrics.begin_at_zero()
        found = cls()
        found.add(observe_waits)
        found.add(shadow.compare)
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
    for notes in batch.requests:
        metrics.WAIT_SECONDS.observe((batch.stages[0].began - notes.submitted) / 1e9)


def make_drift(settings: Settings, releases: Releases) -> Drift:
    """Return what watches the drift from the champion's training data."""
    shared = os.environ.get(metrics.SHARED_FOLDER)
    return Drift(
        lambda: releases.champion,
        settings.drift_window,
        settings.drift_least,
        settings.processes,
        Path(shared) if shared else None,
    )
