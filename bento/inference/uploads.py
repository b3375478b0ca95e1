"""Uploads: read and classify uploaded tiles in batches; an invalid tile gets its own error, and no other."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewise.bento import metrics
from tilewise.bento.errors import body_of, error_body
from tilewise.bento.inference.engine import Answers, Engine, TileClassifier
from tilewise.bento.request_context import RequestContext
from tilewise.datasets.core.errors import (
    NoDataError,
    RadiometryUnknownError,
    SceneTooLargeError,
    TilewiseError,
    UnreadableImageError,
)
from tilewise.datasets.core.radiometry import QUANTIFICATION, Level, Radiometry, ReadOptions
from tilewise.datasets.core.tile import DN, Tile
from tilewise.datasets.readers.eurosat import PICTURE_STARTS, read_picture
from tilewise.datasets.readers.geotiff import isolated_gdal, needs_gdal, read_tile, valid_numbers
from tilewise.datasets.readers.plain_tiff import PlainTiff, parse_plain

MAX_DECODED_BYTES = 512 * 2**20  # of the tiles of one request
MAX_LITTLE_BYTES = 2**19  # decoded; 13 bands take 0.1 MiB, as 64-bit floats 0.4
NPY_START = b"\x93NUMPY"
_DIGITS = 6
_LOG = logging.getLogger("tilewise")

Answer = dict[str, Any]


class InferenceError(Exception):
    """The model failed on a batch of valid tiles: a fault of the service, not of the request."""


@dataclass(slots=True)
class DecodeBudget:
    """Bounds what the tiles of one request take when decoded, padding of their blocks included.

    Attributes:
        left: bytes.
    """

    left: int = MAX_DECODED_BYTES

    def take(self, name: str, size: int) -> None:
        """Take `size` bytes; raises SceneTooLargeError if fewer are left."""
        if size > self.left:
            raise SceneTooLargeError(
                f"{name}: the tiles of this request take more than {MAX_DECODED_BYTES / 2**20:.0f} MiB when "
                "decoded; send fewer at once, or rewrite them with blocks of 64 × 64"
            )
        self.left -= size


@dataclass(frozen=True, slots=True)
class Upload:
    """An uploaded tile.

    Attributes:
        name: file name of the upload.
        content: bytes of a GeoTIFF, JPEG or PNG, a tile that is read already, or why there is none.
        overrides: bands and radiometry given by the request, which the file does not state.
        coverage: requested coverage of the prediction set (0-1).
        raw: whether the answer also has the model's outputs, unrounded, as the arrays of `raw_outputs`.
        engine: the model that classifies it; None: the default one of `classify_batch`.
        shadow: a second model that classifies it for comparison only.
        request_context: of the request that it belongs to.
        budget: of the request that it belongs to.
        header: of a plain GeoTIFF, where it is parsed already.
    """

    name: str
    content: bytes | Tile | Exception
    overrides: ReadOptions = ReadOptions()  # noqa: RUF009 - frozen
    coverage: float = 0.9
    raw: bool = False
    engine: Engine | None = None
    shadow: Engine | None = None
    request_context: RequestContext | None = None
    budget: DecodeBudget = field(default_factory=DecodeBudget)
    header: PlainTiff | None = None


@dataclass(frozen=True, slots=True)
class ModelFailure:
    """The result of an upload whose model failed: there is no answer, and the upload is not at fault."""

    model: str
    error: Exception

    def __str__(self) -> str:
        return f"model version {self.model} failed: {type(self.error).__name__}"


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of uploads and its results, as observers of batches see it.

    Attributes:
        uploads: in the order in which they were submitted.
        outcomes: of reading each upload: the tile, or the error `{"name", "error"}`.
        results: one for each upload: a JSON-ready answer or error, or `ModelFailure`.
        embeddings: float32 (features,), by the index of each upload that was classified.
        stages: with their times.
    """

    uploads: Sequence[Upload]
    outcomes: Sequence[Tile | Answer]
    results: list[Answer | ModelFailure]
    embeddings: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)
    stages: list[metrics.TimedStage] = field(default_factory=list)

    @property
    def requests(self) -> list[RequestContext]:
        """Contexts of the requests that the uploads belong to, each once."""
        contexts = (upload.request_context for upload in self.uploads)
        return list(dict.fromkeys(context for context in contexts if context is not None))

    @property
    def classified(self) -> list[tuple[int, Tile, Answer]]:
        """Index, tile and answer of each upload that was classified."""
        classified = []
        for index in sorted(self.embeddings):
            tile, answer = self.outcomes[index], self.results[index]
            if isinstance(tile, Tile) and isinstance(answer, dict):
                classified.append((index, tile, answer))
        return classified


def classify_uploads(engine: Engine, uploads: Sequence[Upload]) -> list[Answer]:
    """Return one JSON-ready result for each upload, in order: an answer, or `{"name", "error"}`.

    Raises:
        InferenceError: the model failed.
    """
    return successes(classify_batch(engine, uploads).results)


def successes(results: Sequence[Answer | ModelFailure]) -> list[Answer]:
    """Return the results unchanged if no model failed.

    Raises:
        InferenceError: one did.
    """
    for result in results:
        if isinstance(result, ModelFailure):
            raise InferenceError(str(result)) from result.error
    return list(results)  # type: ignore[arg-type]


def header_of(content: bytes | Tile | Exception) -> PlainTiff | None:
    """Return the header of what an upload contains, where it is a plain GeoTIFF and not read already."""
    if not isinstance(content, bytes):
        return None
    try:
        return parse_plain(content)
    except Exception:  # not plain, or whatever it is: reading it will tell
        return None


def takes_long(upload: Upload, size: int) -> bool:
    """Whether an upload with the header that it has may take more than a millisecond or two to be read.

    Pictures and arrays do not: their size is checked before they are decoded.
    """
    if not isinstance(upload.content, bytes) or upload.content.startswith((NPY_START, *PICTURE_STARTS)):
        return False
    header = upload.header
    return header is None or header.decoded_bytes > MAX_LITTLE_BYTES or needs_gdal(header, size)


def read_apart(upload: Upload, size: int) -> Upload:
    """Return an upload with its tile of `size` × `size` pixels, or with why there is none."""
    with metrics.timed("read_apart", 1), isolated_gdal():
        try:
            return replace(upload, content=read_upload(upload, size))
        except Exception as error:  # whatever it is: its batch tells it
            return replace(upload, content=error)


def classify_batch(engine: Engine, uploads: Sequence[Upload]) -> Batch:
    """Read and classify uploads, each by its own model or else by `engine`.

    A model that fails affects only its own uploads: their results are `ModelFailure`.
    """
    stages: list[metrics.TimedStage] = []
    with metrics.timed("read", len(uploads), stages), isolated_gdal():
        outcomes = [_read(upload, engine.metadata.tile_size) for upload in uploads]
    results: list[Answer | ModelFailure] = [
        outcome if isinstance(outcome, dict) else {} for outcome in outcomes
    ]
    batch = Batch(uploads, outcomes, results, stages=stages)
    groups: dict[Engine, list[int]] = {}
    for index, (upload, outcome) in enumerate(zip(uploads, outcomes, strict=True)):
        if isinstance(outcome, Tile):
            groups.setdefault(upload.engine or engine, []).append(index)
    for model, indices in groups.items():
        _classify_group(model, batch, indices)
    return batch


def _classify_group(engine: Engine, batch: Batch, indices: list[int]) -> None:
    """Classify the uploads at `indices` by `engine`; if it fails, mark them and no others."""
    try:
        results, embeddings = _answer_group(engine, batch, indices)
    except Exception as error:  # onnxruntime's own exceptions share no base but Exception
        version = engine.metadata.version
        _LOG.exception("model version %s failed on a batch of %d tiles", version, len(indices))
        failure = ModelFailure(version, error)
        for index in indices:
            batch.results[index] = failure
        return
    for index, result in zip(indices, results, strict=True):
        batch.results[index] = result
    batch.embeddings.update(zip(indices, embeddings, strict=True))


def _answer_group(
    engine: Engine, batch: Batch, indices: list[int]
) -> tuple[list[Answer], npt.NDArray[np.float32]]:
    """Return the answers and embeddings of the uploads at `indices`."""
    tiles = [tile for index in indices if isinstance(tile := batch.outcomes[index], Tile)]
    with metrics.timed_inference(engine.metadata.version, len(tiles), batch.stages):
        answers = engine.classify(np.stack([tile.pixels for tile in tiles]))
    with metrics.timed("describe", len(tiles), batch.stages):
        results = [
            describe(engine, tile, answers, row, batch.uploads[index].coverage)
            for row, (index, tile) in enumerate(zip(indices, tiles, strict=True))
        ]
        for result in results:
            count(engine, result)
        for row, index in enumerate(indices):
            if batch.uploads[index].raw:
                results[row]["outputs"] = raw_outputs(answers, row)
    return results, answers.embedding


def array_to_dn(numbers: npt.NDArray[Any], options: ReadOptions) -> DN:
    """Return DN (uint16, the shape of `numbers`) of an array without metadata; NaN and 0 become no data.

    Integers of 16 bits or more are DN where the options have no scale.

    Raises:
        RadiometryUnknownError: floats or bytes, and no scale.
    """
    if options.scale is None and (numbers.dtype.kind == "f" or numbers.dtype.itemsize == 1):
        raise RadiometryUnknownError(
            f"an array of {numbers.dtype} needs a scale: scale=1 for reflectance 0-1, scale=0.0001 for DN"
        )
    scale = 1 / QUANTIFICATION if options.scale is None else options.scale
    radiometry = Radiometry(options.level or Level.L1C, scale, options.offset or 0.0)
    if numbers.dtype == np.uint16 and radiometry.is_identity:
        return numbers
    return radiometry.to_dn(numbers, valid_numbers(numbers, None))


def raw_outputs(answers: Answers, row: int) -> dict[str, npt.NDArray[np.float32]]:
    """Return row `row` of `probabilities` (classes,), `logits` (classes,) and `embedding` (features,)."""
    return {
        "probabilities": answers.probabilities[row],
        "logits": answers.logits[row],
        "embedding": answers.embedding[row],
    }


def describe(engine: TileClassifier, tile: Tile, answers: Answers, row: int, coverage: float) -> Answer:
    """Return row `row` of `answers`, which is of `tile`, as a JSON-ready answer."""
    classes, probabilities = engine.metadata.classes, answers.probabilities[row]
    return {
        "name": tile.name,
        "class": classes[int(probabilities.argmax())],
        "probabilities": {
            name: round(float(probability), _DIGITS)
            for name, probability in zip(classes, probabilities, strict=True)
        },
        "prediction_set": describe_set(engine, probabilities, coverage),
        "outlier": describe_outlier(engine, float(answers.outlier_score[row])),
        "valid_fraction": round(tile.valid_fraction, _DIGITS),
        "bands": list(tile.bands),
        "level": tile.level,
        "footprint": tile.footprint,
    }


def describe_set(engine: TileClassifier, probabilities: Sequence[float], coverage: float) -> Answer | None:
    """Return the prediction set at `coverage` (0-1), likeliest class first; None without calibration."""
    classes = engine.metadata.prediction_set(probabilities, coverage)
    return None if classes is None else {"coverage": coverage, "classes": classes}


def describe_outlier(engine: TileClassifier, score: float) -> Answer | None:
    """Return the outlier score and whether it is above the threshold; None if the model has no threshold."""
    outliers = engine.metadata.outliers
    return {"score": round(score, _DIGITS), "flag": score > outliers.threshold} if outliers else None


def count(engine: Engine, answer: Answer) -> None:
    """Count a classified tile in the metrics."""
    version, outliers = engine.metadata.version, engine.metadata.outliers
    metrics.TILES.labels(answer["class"], version).inc()
    metrics.CONFIDENCE.labels(version).observe(answer["probabilities"][answer["class"]])
    if answer["outlier"] and outliers:
        metrics.OUTLIER.labels(version).observe(answer["outlier"]["score"] / outliers.threshold)


def _read(upload: Upload, size: int) -> Tile | Answer:
    """Return the tile, or a JSON-ready error."""
    try:
        tile = read_upload(upload, size)
        if tile.valid_fraction == 0:
            bands = ", ".join(tile.bands)
            raise NoDataError(f"{upload.name}: no pixel holds data in all of {bands}; nothing to classify")
    except TilewiseError as error:
        body = body_of(error, upload.name)
    except Exception:  # a tile on which a library fails must not fail the other tiles
        _LOG.exception("a tile could not be read, for an unexpected reason")
        body = error_body("internal", f"{upload.name}: could not be read")
    else:
        return tile
    metrics.ERRORS.labels(body["error"]["code"]).inc()
    if upload.request_context is not None:
        upload.request_context.codes[body["error"]["code"]] += 1
    return {"name": upload.name, **body}


def read_upload(upload: Upload, size: int) -> Tile:
    """Return the tile of `size` × `size` pixels in an upload, by what its first bytes say that it is.

    Raises:
        UnreadableImageError: it is a NumPy array, or broken.
        Exception: the one that is its content.
        TilewiseError: as `read_tile` and `read_picture` raise.
    """
    content, name = upload.content, upload.name
    if isinstance(content, Exception):
        raise content
    if isinstance(content, Tile):
        return content
    if content.startswith(NPY_START):
        raise UnreadableImageError(
            f"{name}: a NumPy array, which is sent as the body and not in a form: curl --data-binary @{name} "
            "-H 'Content-Type: application/octet-stream'"
        )
    if content.startswith(PICTURE_STARTS):
        return read_picture(content, upload.overrides, name, size)

    def admit(decoded: int) -> None:
        upload.budget.take(name, decoded)

    return read_tile(content, upload.overrides, name, size, admit, upload.header)
