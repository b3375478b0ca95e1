"""Uploaded tiles: read, classified, answered one by one. A bad tile gets its own error and harms no other."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewise.bento import metrics
from tilewise.bento.errors import body_of, error_body
from tilewise.bento.inference.engine import Answers, Engine
from tilewise.bento.request_context import RequestContext
from tilewise.datasets.core.errors import NoDataError, TilewiseError
from tilewise.datasets.core.radiometry import ReadOptions
from tilewise.datasets.core.tile import Tile
from tilewise.datasets.readers.geotiff import isolated_gdal, read_tile

_DIGITS = 6
_LOG = logging.getLogger("tilewise")

Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Upload:
    """A tile as it came.

    Attributes:
        name: the upload's file name.
        content: a GeoTIFF's bytes, or a tile that needs no reading.
        said: what the request says of it.
        coverage: asked of its prediction set (0-1).
        engine: the model that answers it; None: the one that `classify_uploads` is given.
        shadow: a model that answers it too, in secret, to be compared.
        notes: of the request that it came with.
    """

    name: str
    content: bytes | Tile
    overrides: ReadOptions = ReadOptions()  # noqa: RUF009 - frozen
    coverage: float = 0.9
    engine: Engine | None = None
    shadow: Engine | None = None
    request_context: RequestContext | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """What became of a batch, for those who look on.

    Attributes:
        uploads: as they came.
        outcomes: the tile that each was read to, or its refusal.
        results: JSON-ready, one for each upload.
        embeddings: float32 (features,) of each upload that was answered.
        stages: what was done when.
    """

    uploads: Sequence[Upload]
    outcomes: Sequence[Tile | Answer]
    results: list[Answer]
    embeddings: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)
    stages: list[metrics.Stage] = field(default_factory=list)

    @property
    def requests(self) -> list[RequestContext]:
        """The notes of the requests that it holds tiles of."""
        return list(
            dict.fromkeys(upload.request_context for upload in self.uploads if upload.request_context is not None)
        )


def classify_uploads(engine: Engine, uploads: Sequence[Upload]) -> list[Answer]:
    """Return one JSON-ready result for each upload, in order: an answer, or `{"name", "error"}`."""
    return classify_batch(engine, uploads).results


def classify_batch(engine: Engine, uploads: Sequence[Upload]) -> Batch:
    """Read and answer uploads, each by its own model or by `engine`."""
    stages: list[metrics.Stage] = []
    with metrics.timed("read", len(uploads), stages), isolated_gdal():
        outcomes = [_read(upload, engine.metadata.tile_size) for upload in uploads]
    results: list[Answer] = [outcome if isinstance(outcome, dict) else {} for outcome in outcomes]
    batch = Batch(uploads, outcomes, results, stages=stages)
    groups: dict[Engine, list[int]] = {}
    for place, (upload, outcome) in enumerate(zip(uploads, outcomes, strict=True)):
        if isinstance(outcome, Tile):
            groups.setdefault(upload.engine or engine, []).append(place)
    for answering, places in groups.items():
        _answer_group(answering, batch, places)
    return batch


def _answer_group(engine: Engine, batch: Batch, places: list[int]) -> None:
    """Write the answers of `engine` to the uploads at `places` into the batch."""
    tiles = [outcome for place in places if isinstance(outcome := batch.outcomes[place], Tile)]
    with metrics.timed_inference(engine.metadata.version, len(tiles), batch.stages):
        answers = engine.classify(np.stack([tile.pixels for tile in tiles]))
    with metrics.timed("describe", len(tiles), batch.stages):
        for index, (place, tile) in enumerate(zip(places, tiles, strict=True)):
            batch.results[place] = describe(engine, tile, answers, index, batch.uploads[place].coverage)
            batch.embeddings[place] = answers.embedding[index]


def describe(engine: Engine, tile: Tile, answers: Answers, index: int, coverage: float) -> Answer:
    """Return the answer to one tile, the `index`-th of `answers`, JSON-ready."""
    metadata = engine.metadata
    probabilities = answers.probabilities[index]
    shares = {name: round(float(p), _DIGITS) for name, p in zip(metadata.classes, probabilities, strict=True)}
    answer = metadata.classes[int(probabilities.argmax())]
    outlier = describe_outlier(engine, float(answers.outlier_score[index]))
    count(engine, answer, float(probabilities.max()), outlier)
    return {
        "name": tile.name,
        "class": answer,
        "probabilities": shares,
        "prediction_set": describe_set(engine, probabilities, coverage),
        "outlier": outlier,
        "valid_fraction": round(tile.valid_fraction, _DIGITS),
        "bands": list(tile.bands),
        "level": tile.level,
        "footprint": tile.footprint,
    }


def describe_set(engine: Engine, probabilities: Sequence[float], coverage: float) -> Answer | None:
    """Return the prediction set at `coverage`, likeliest class first, or None where the model has none."""
    sets = engine.metadata.prediction_sets
    if sets is None:
        return None
    threshold = sets.threshold(coverage)
    ranked = sorted(zip(probabilities, engine.metadata.classes, strict=True), reverse=True)
    return {"coverage": coverage, "classes": [name for share, name in ranked if share >= threshold]}


def describe_outlier(engine: Engine, score: float) -> Answer | None:
    """Return the outlier score and whether it is flagged, or None where the model has no threshold."""
    outliers = engine.metadata.outliers
    return {"score": round(score, _DIGITS), "flag": score > outliers.threshold} if outliers else None


def count(engine: Engine, answer: str, confidence: float, outlier: Answer | None) -> None:
    """Count an answered tile in the metrics."""
    version = engine.metadata.version
    metrics.TILES.labels(answer, version).inc()
    metrics.CONFIDENCE.labels(version).observe(confidence)
    if outlier and engine.metadata.outliers:
        metrics.OUTLIER.labels(version).observe(outlier["score"] / engine.metadata.outliers.threshold)


def _read(upload: Upload, size: int) -> Tile | Answer:
    """Return the tile, or the JSON-ready refusal."""
    try:
        tile = upload.content if isinstance(upload.content, Tile) else _read_bytes(upload, size)
        if tile.valid_fraction == 0:
            bands = ", ".join(tile.bands)
            raise NoDataError(f"{upload.name}: no pixel holds data in all of {bands}; nothing to classify")
    except TilewiseError as error:
        body = body_of(error, upload.name)
    except Exception:  # one tile that trips a library over must not take its neighbours along
        _LOG.exception("a tile could not be read for a reason that nobody thought of")
        body = error_body("internal", f"{upload.name}: could not be read")
    else:
        return tile
    metrics.ERRORS.labels(body["error"]["code"]).inc()
    if upload.request_context is not None:
        upload.request_context.codes[body["error"]["code"]] += 1
    return {"name": upload.name, **body}


def _read_bytes(upload: Upload, size: int) -> Tile:
    assert isinstance(upload.content, bytes)  # noqa: S101 - told apart by the caller
    return read_tile(upload.content, upload.overrides, upload.name, size)
