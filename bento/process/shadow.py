"""A candidate that answers in secret: its answers are compared with those that were given, and never given."""

import numpy as np

from bento.engine import Engine
from bento.process.uploads import Batch
from bento.watch import metrics
from datasets.tile import Tile


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
