"""The prediction log: what was answered, with what the network made of it, kept as Parquet for audits and retraining.

Off by default. The log never holds a request up: tiles wait in a short queue for a thread that writes them, and where
it cannot keep up they are dropped, and counted. A file appears under its name when it is whole.
"""

import contextlib
import hashlib
import logging
import os
import queue
import secrets
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from rasterio.crs import CRS

from tilewise.bento import metrics
from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.uploads import Answer, Batch
from tilewise.bento.settings import Settings
from tilewise.datasets.core.bands import positions
from tilewise.datasets.core.errors import TilewiseError
from tilewise.datasets.core.tile import NO_DATA, Tile, rings_of

SCHEMA_VERSION = 1
MAX_WAITING = 512  # tiles: 54 MB of pixels
MAX_HELD = 32 * 2**20  # bytes of kept tiles in a file, before compression
_ABANDONED_S = 3600
_LOG = logging.getLogger("tilewise")

SCHEMA = pa.schema(
    [
        ("time", pa.timestamp("us", "UTC")),
        ("request_id", pa.string()),
        ("name", pa.string()),
        ("bbox", pa.struct([(side, pa.float64()) for side in ("xmin", "ymin", "xmax", "ymax")])),
        ("crs", pa.string()),
        ("transform", pa.list_(pa.float64())),
        ("class", pa.string()),
        ("probabilities", pa.map_(pa.string(), pa.float32())),
        ("prediction_set", pa.list_(pa.string())),
        ("coverage", pa.float32()),
        ("outlier_score", pa.float32()),
        ("outlier", pa.bool_()),
        ("embedding", pa.list_(pa.float16())),
        ("bands", pa.list_(pa.string())),
        ("band_mean", pa.list_(pa.float32())),
        ("band_std", pa.list_(pa.float32())),
        ("valid_fraction", pa.float32()),
        ("level", pa.string()),
        ("model_name", pa.string()),
        ("model_version", pa.string()),
        ("model_sha256", pa.string()),
        ("tile", pa.binary()),
    ],
    metadata={"tilewise.prediction_log": str(SCHEMA_VERSION)},
)
"""The columns; docs/observability.md says what they mean."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """What is kept, and for how long.

    Attributes:
        share: of requests (0-1).
        names: whether with the tiles' file names.
        tiles: whether with the tiles themselves.
        rows: in a file.
        seconds: after which a file with fewer is closed.
        max_bytes: of the folder.
    """

    share: float = 1.0
    names: bool = False
    tiles: bool = False
    rows: int = 10_000
    seconds: float = 600.0
    max_bytes: int = 2**30


@dataclass(frozen=True, slots=True)
class _Answered:
    when: float
    request_id: str
    tile: Tile
    answer: Answer
    embedding: npt.NDArray[np.float32]
    engine: Engine


class PredictionLog:
    """Keeps answers in `folder`, which may be shared with other processes and machines."""

    def __init__(self, folder: Path, keeping: Keeping) -> None:
        self._folder, self._keeping = folder, keeping
        self._queue: queue.Queue[_Answered | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name="prediction log", daemon=True)
        self._thread.start()

    @classmethod
    def start(cls, settings: Settings) -> "PredictionLog":
        """Return the log that the settings name; raises TilewiseError where its folder cannot be written to."""
        assert settings.predictions is not None  # noqa: S101 - asked by the caller
        folder = prepare(settings.predictions)
        for unfinished in folder.glob(".predictions-*.part"):
            _remove_if_abandoned(unfinished)
        keeping = Keeping(
            settings.predictions_fraction,
            bool(settings.predictions_names),
            bool(settings.predictions_tiles),
            settings.predictions_rows,
            settings.predictions_minutes * 60,
            settings.predictions_bytes,
        )
        return cls(folder, keeping)

    def look(self, batch: Batch) -> None:
        """Take the answers of a batch whose requests fall into the share."""
        now = time.time()
        chosen = {
            request_context
            for request_context in batch.requests
            if is_chosen(request_context.request_id, self._keeping.share)
        }
        for place, upload in enumerate(batch.uploads):
            tile, request_context = batch.outcomes[place], upload.request_context
            if (
                request_context in chosen
                and request_context is not None
                and isinstance(tile, Tile)
                and upload.engine is not None
            ):
                answer, embedding = batch.results[place], batch.embeddings[place]
                self._put(_Answered(now, request_context.request_id, tile, answer, embedding, upload.engine))

    def close(self) -> None:
        """Write what waits, and end the thread."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=30)
            self._thread.join(timeout=30)

    def _put(self, answered: _Answered) -> None:
        try:
            self._queue.put_nowait(answered)
        except queue.Full:
            metrics.PREDICTIONS.labels("dropped").inc()

    def _run(self) -> None:
        closed = False
        while not closed:
            rows, closed = self._collect()
            if rows:
                self._write(rows)

    def _collect(self) -> tuple[list[dict[str, Any]], bool]:
        """Return the rows of the next file, and whether it is the last one."""
        rows: list[dict[str, Any]] = []
        held, until = 0, time.monotonic() + self._keeping.seconds
        while len(rows) < self._keeping.rows and held < MAX_HELD:
            try:
                answered = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if answered is None:
                return rows, True
            row = self._row(answered)
            if row is not None:
                rows.append(row)
                held += len(row["tile"] or b"")
        return rows, False

    def _row(self, answered: _Answered) -> dict[str, Any] | None:
        try:
            return row_of(answered, self._keeping)
        except Exception:  # the thread must outlive it
            _LOG.exception("a prediction could not be kept")
            metrics.PREDICTIONS.labels("failed").inc()
            return None

    def _write(self, rows: list[dict[str, Any]]) -> None:
        """Write a file, whole or not at all, and make room for it."""
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")[:-3]
        path = self._folder / f"predictions-{moment}Z-{os.getpid()}-{secrets.token_hex(4)}.parquet"
        unfinished = path.with_name(f".{path.stem}.part")
        try:
            pq.write_table(pa.Table.from_pylist(rows, SCHEMA), unfinished, compression="zstd")
            unfinished.replace(path)
        except Exception:  # a full disk, a folder that has gone: the service goes on
            _LOG.exception("%d predictions could not be kept", len(rows))
            metrics.PREDICTIONS.labels("failed").inc(len(rows))
            unfinished.unlink(missing_ok=True)
        else:
            metrics.PREDICTIONS.labels("written").inc(len(rows))
            make_room(self._folder, self._keeping.max_bytes)


def is_chosen(request_id: str, share: float) -> bool:
    """Whether a request's answers are kept: decided by the hash of its id, so that several services keep the same."""
    drawn = int.from_bytes(hashlib.sha256(f"predictions:{request_id}".encode()).digest()[:8]) / 2**64
    return drawn < share


def prepare(overrides: str) -> Path:
    """Return the folder, made if need be.

    Raises:
        TilewiseError: it cannot be written to.
    """
    folder = Path(overrides)
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        probe = folder / f".predictions-probe-{secrets.token_hex(4)}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise TilewiseError(f"TILEWISE_PREDICTIONS: {folder} cannot be written to ({reason}); name another") from error
    return folder


def make_room(folder: Path, max_bytes: int) -> None:
    """Delete the oldest files until the rest take no more than `max_bytes`; the newest stays."""
    sizes = {}
    for path in folder.glob("predictions-*.parquet"):
        try:
            sizes[path] = path.stat().st_size
        except FileNotFoundError:  # another process was faster
            continue
    total = sum(sizes.values())
    for path in sorted(sizes)[:-1]:
        if total <= max_bytes:
            return
        path.unlink(missing_ok=True)
        total -= sizes[path]


def row_of(answered: _Answered, keeping: Keeping) -> dict[str, Any]:
    """Return the row of an answer, as `SCHEMA` has it."""
    tile, answer, metadata = answered.tile, answered.answer, answered.engine.metadata
    chosen, outlier = answer["prediction_set"] or {}, answer["outlier"] or {}
    values = tile.pixels[positions(tile.bands)]
    mean, std = band_features(values)
    place = tile.georeference
    return {
        "time": datetime.fromtimestamp(answered.when, UTC),
        "request_id": answered.request_id,
        "name": answer["name"] if keeping.names else None,
        "bbox": bbox_of(answer["footprint"]),
        "crs": _text_of(place.crs) if place else None,
        "transform": list(place.transform)[:6] if place else None,
        "class": answer["class"],
        "probabilities": list(answer["probabilities"].items()),
        "prediction_set": chosen.get("classes"),
        "coverage": chosen.get("coverage"),
        "outlier_score": outlier.get("score"),
        "outlier": outlier.get("flag"),
        "embedding": answered.embedding.astype(np.float16),
        "bands": list(tile.bands),
        "band_mean": mean,
        "band_std": std,
        "valid_fraction": answer["valid_fraction"],
        "level": answer["level"],
        "model_name": metadata.name,
        "model_version": metadata.version,
        "model_sha256": answered.engine.sha256,
        "tile": values.astype("<u2").tobytes() if keeping.tiles else None,
    }


@lru_cache(maxsize=256)  # tiles come from few zones, and looking a CRS up takes as long as reading a tile
def _text_of(crs: CRS) -> str:
    return str(crs.to_string())


def band_features(values: npt.NDArray[np.uint16]) -> tuple[list[float | None], list[float | None]]:
    """Return the mean and the standard deviation of each band's DN where it holds data; None where it holds none."""
    numbers = values.reshape(len(values), -1).astype(np.float64)
    counts = np.count_nonzero(numbers != NO_DATA, axis=1)
    some = np.maximum(counts, 1)
    mean = numbers.sum(axis=1) / some  # no data is 0, so it adds nothing to the sums
    variance = np.einsum("ij,ij->i", numbers, numbers) / some - mean**2
    std = np.sqrt(np.maximum(variance, 0))
    told = list(zip(mean.tolist(), std.tolist(), counts, strict=True))
    return [m if count else None for m, _, count in told], [s if count else None for _, s, count in told]


def bbox_of(footprint: dict[str, Any] | None) -> dict[str, float] | None:
    """Return the bounding box of a footprint, in degrees; `xmin` above `xmax` where it crosses the antimeridian."""
    if footprint is None:
        return None
    boxes = [_box(ring) for ring in rings_of(footprint)]
    west = min(boxes) if len(boxes) == 1 else max(boxes)  # of two parts, the one that ends at 180° comes first
    east = min(boxes)
    south, north = min(box[1] for box in boxes), max(box[3] for box in boxes)
    return {"xmin": west[0], "ymin": south, "xmax": east[2], "ymax": north}


def _box(ring: list[tuple[float, float]]) -> tuple[float, float, float, float]:
    xs, ys = zip(*ring, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _remove_if_abandoned(unfinished: Path) -> None:
    """Remove a file that a killed process left; a living one writes for seconds only."""
    try:
        if time.time() - unfinished.stat().st_mtime > _ABANDONED_S:
            unfinished.unlink()
    except FileNotFoundError:
        return
