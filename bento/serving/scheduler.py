"""An engine for long work: it shares the network with the requests' tiles, and lets those go first."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from tilewise.bento.inference.engine import Answers, Engine
from tilewise.bento.serving.batcher import Batcher
from tilewise.datasets.core.tile import DN

_TURN_S = 0.02  # what a request may have to wait for a portion to end
_FIRST_PORTION, _MAX_IN_PORTION = 4, 64  # tiles


class ScheduledEngine(Engine):
    """Answers as `engine` does, in portions of about 20 ms between the batches of `batcher`.

    Args:
        engine: the model.
        batcher: whose batches go first.
        check: called before each portion; what it raises ends the work.
    """

    def __init__(self, engine: Engine, batcher: Batcher[Any, Any], check: Callable[[], None]) -> None:
        self._engine, self._file = engine, engine._file
        self._batcher, self._check = batcher, check
        self._portion = _FIRST_PORTION

    def classify(self, tiles: DN) -> Answers:
        """Answer uint16 (n, 13, 64, 64); see `Engine.classify`. Not to be called in the batcher's own thread."""
        parts: list[Answers] = []
        start = 0
        while start < len(tiles) or not parts:
            self._check()
            portion = tiles[start : start + self._portion]
            parts.append(self._batcher.between(partial(self._timed, portion)))
            start += len(portion)
        columns = zip(*((p.probabilities, p.logits, p.embedding, p.outlier_score) for p in parts), strict=True)
        return Answers(*(np.concatenate(outputs) for outputs in columns))

    def _timed(self, portion: DN) -> Answers:
        """Answer a portion, and fit the size of the next one to the time that it took."""
        started = time.perf_counter()
        answers = self._engine.classify(portion)
        seconds = max(time.perf_counter() - started, 1e-6)
        if len(portion) == self._portion:
            fitting = int(self._portion * _TURN_S / seconds)
            self._portion = min(max(fitting, 1), 2 * self._portion, _MAX_IN_PORTION)
        return answers
