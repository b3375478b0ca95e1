"""Scheduling of background work: share the network with the tiles of requests, which go first."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tilewise.bento.inference.engine import Answers, TileClassifier
from tilewise.bento.serving.batcher import Batcher
from tilewise.datasets.core.tile import DN
from tilewise.models.model_file import ModelMetadata

_PORTION_S = 0.02  # how long a request may have to wait for a portion to end
_FIRST_PORTION, _MAX_PORTION = 4, 64  # tiles


class ScheduledEngine:
    """Classify as `engine` does, in portions of about 20 ms between the batches of `batcher`.

    Args:
        engine: the model.
        batcher: its batches go first.
        check: called before each portion; whatever it raises ends the work.
    """

    def __init__(self, engine: TileClassifier, batcher: Batcher[Any, Any], check: Callable[[], None]) -> None:
        self._engine, self._batcher, self._check = engine, batcher, check
        self._portion = _FIRST_PORTION

    @property
    def metadata(self) -> ModelMetadata:
        """Metadata in the model file."""
        return self._engine.metadata

    @property
    def sha256(self) -> str:
        """SHA-256 of the model file, hexadecimal."""
        return self._engine.sha256

    @property
    def identity(self) -> dict[str, str]:
        """Name, version and SHA-256 of the model, as responses hold them."""
        return self._engine.identity

    @property
    def path(self) -> Path:
        """Path of the model file."""
        return self._engine.path

    def classify(self, tiles: DN) -> Answers:
        """Classify uint16 (n, 13, 64, 64); see `Engine.classify`. Never call it in the batcher's thread."""
        parts: list[Answers] = []
        start = 0
        while start < len(tiles) or not parts:
            self._check()
            portion = tiles[start : start + self._portion]
            parts.append(self._batcher.run_between(partial(self._classify_timed, portion)))
            start += len(portion)
        columns = zip(
            *((p.probabilities, p.logits, p.embedding, p.outlier_score) for p in parts), strict=True
        )
        return Answers(*(np.concatenate(outputs) for outputs in columns))

    def _classify_timed(self, portion: DN) -> Answers:
        """Classify a portion, and adapt the size of the next one to the time that it took."""
        started = time.perf_counter()
        answers = self._engine.classify(portion)
        seconds = max(time.perf_counter() - started, 1e-6)
        if len(portion) == self._portion:
            fitting = int(self._portion * _PORTION_S / seconds)
            self._portion = min(max(fitting, 1), 2 * self._portion, _MAX_PORTION)
        return answers
