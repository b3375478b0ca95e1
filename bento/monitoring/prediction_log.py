"""Prediction log: answers and embeddings of live tiles, kept as Parquet for audits and retraining.

Off by default. No request waits for it: tiles wait in a short queue for a thread that writes them; where it
cannot keep up, they are dropped and counted. A file appears under its name only when it is complete.
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
from tilewise.datasets.core.files import atomic_write
from tilewise.datasets.core.tile import NO_DATA, Tile, rings_of

SCHEMA_VERSION = 1
MAX_WAITING = 512  # tiles: 54 MB of pixels
MAX_FILE_BYTES = 32 * 2**20  # of tiles in a file, before compression
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
"""The columns; docs/observability.md explains them."""


@dataclass(frozen=True, slots=True)
class LogOptions:
    """What is kept, and how much.

    Attributes:
        fraction: of requests whose answers are kept (0-1).
        names: whether file names of tiles are kept.
        tiles: whether the tiles are kept.
        rows: in a file.
        seconds: after which a file with fewer rows is closed.
        max_bytes: in the folder.
    """

    fraction: float = 1.0
    names: bool = False
    tiles: bool = False
    rows: int = 10_000
    seconds: float = 600.0
    max_bytes: int = 2**30


@dataclass(frozen=True, slots=True)
class _Entry:
    when: float
    request_id: str
    tile: Tile
    answer: Answer
    embedding: npt.NDArray[np.float32]
    engine: Engine


class PredictionLog:
    """Keep answers in `folder`, which other processes and machines may share."""

    def __init__(self, folder: Path, options: LogOptions) -> None:
        self._folder, self._options = folder, options
        self._queue: queue.Queue[_Entry | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name="prediction log", daemon=True)
        self._thread.start()

    @classmethod
    def start(cls, settings: Settings) -> "PredictionLog":
        """Return the log that the settings name; raises TilewiseError if its folder cannot be written to."""
        assert settings.predictions is not None  # noqa: S101 - the caller checks
        folder = prepare(settings.predictions)
        for unfinished in folder.glob(".predictions-*.partial"):
            _remove_if_abandoned(unfinished)
        options = LogOptions(
            settings.predictions_fraction,
            settings.predictions_names,
            settings.predictions_tiles,
            settings.predictions_rows,
            settings.predictions_minutes * 60,
            settings.predictions_bytes,
        )
        return cls(folder, options)

    def observe(self, batch: Batch) -> None:
        """Queue the answers of those requests in a batch that fall into the fraction to keep."""
        now, fraction = time.time(), self._options.fraction
        chosen = {context for context in batch.requests if is_chosen(context.request_id, fraction)}
        for index, tile, answer in batch.classified:
            context, engine = batch.uploads[index].request_context, batch.uploads[index].engine
            if context is not None and context in chosen and engine is not None:
                self._put(_Entry(now, context.request_id, tile, answer, batch.embeddings[index], engine))

    def close(self) -> None:
        """Write the queued entries, and end the thread."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=30)
            self._thread.join(timeout=30)

    def _put(self, entry: _Entry) -> None:
        try:
            self._queue.put_nowait(entry)
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
        size, deadline = 0, time.monotonic() + self._options.seconds
        while len(rows) < self._options.rows and size < MAX_FILE_BYTES:
            try:
                entry = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if entry is None:
                return rows, True
            row = self._row(entry)
            if row is not None:
                rows.append(row)
                size += len(row["tile"] or b"")
        return rows, False

    def _row(self, entry: _Entry) -> dict[str, Any] | None:
        try:
            return row_of(entry, self._options)
        except Exception:  # the thread must outlive it
            _LOG.exception("a prediction could not be kept")
            metrics.PREDICTIONS.labels("failed").inc()
            return None

    def _write(self, rows: list[dict[str, Any]]) -> None:
        """Write a file atomically, then delete the oldest files if there are too many bytes."""
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")[:-3]
        path = self._folder / f"predictions-{moment}Z-{os.getpid()}-{secrets.token_hex(4)}.parquet"
        try:
            if not self._folder.is_dir():  # do not write to the disk below an unmounted volume
                raise FileNotFoundError(self._folder)
            with atomic_write(path, durable=False) as temporary:
                pq.write_table(pa.Table.from_pylist(rows, SCHEMA), temporary, compression="zstd")
        except Exception:  # a full disk, or a missing folder: the service goes on
            _LOG.exception("%d predictions could not be kept", len(rows))
            metrics.PREDICTIONS.labels("failed").inc(len(rows))
        else:
            metrics.PREDICTIONS.labels("written").inc(len(rows))
            delete_oldest(self._folder, self._options.max_bytes)


def is_chosen(request_id: str, fraction: float) -> bool:
    """Return whether a request's answers are kept; by the hash of its ID, so equally in several services."""
    drawn = int.from_bytes(hashlib.sha256(f"predictions:{request_id}".encode()).digest()[:8]) / 2**64
    return drawn < fraction


def prepare(name: str) -> Path:
    """Create the folder `name` if it is missing, and return its path.

    Raises:
        TilewiseError: it cannot be written to.
    """
    folder = Path(name)
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        probe = folder / f".predictions-probe-{secrets.token_hex(4)}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise TilewiseError(
            f"TILEWISE_PREDICTIONS: {folder} cannot be written to ({reason}); name another folder"
        ) from error
    return folder


def delete_oldest(folder: Path, max_bytes: int) -> None:
    """Delete the oldest files until the rest take no more than `max_bytes`; the newest one stays."""
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


def row_of(entry: _Entry, options: LogOptions) -> dict[str, Any]:
    """Return the row of an entry, with the columns of `SCHEMA`."""
    tile, answer, metadata = entry.tile, entry.answer, entry.engine.metadata
    prediction_set, outlier = answer["prediction_set"] or {}, answer["outlier"] or {}
    values = tile.pixels[positions(tile.bands)]
    mean, std = band_features(values)
    georeference = tile.georeference
    return {
        "time": datetime.fromtimestamp(entry.when, UTC),
        "request_id": entry.request_id,
        "name": answer["name"] if options.names else None,
        "bbox": bbox_of(answer["footprint"]),
        "crs": _text_of(georeference.crs) if georeference else None,
        "transform": list(georeference.transform)[:6] if georeference else None,
        "class": answer["class"],
        "probabilities": list(answer["probabilities"].items()),
        "prediction_set": prediction_set.get("classes"),
        "coverage": prediction_set.get("coverage"),
        "outlier_score": outlier.get("score"),
        "outlier": outlier.get("flag"),
        "embedding": entry.embedding.astype(np.float16),
        "bands": list(tile.bands),
        "band_mean": mean,
        "band_std": std,
        "valid_fraction": answer["valid_fraction"],
        "level": answer["level"],
        "model_name": metadata.name,
        "model_version": metadata.version,
        "model_sha256": entry.engine.sha256,
        "tile": values.astype("<u2").tobytes() if options.tiles else None,
    }


@lru_cache(maxsize=256)  # tiles are from few zones, and a CRS takes as long to look up as a tile to read
def _text_of(crs: CRS) -> str:
    return str(crs.to_string())


def band_features(values: npt.NDArray[np.uint16]) -> tuple[list[float | None], list[float | None]]:
    """Return mean and standard deviation of each band's valid DN; None for a band without any."""
    numbers = values.reshape(len(values), -1).astype(np.float64)
    counts = np.count_nonzero(numbers != NO_DATA, axis=1)
    some = np.maximum(counts, 1)
    mean = numbers.sum(axis=1) / some  # no data is 0, so it adds nothing to the sums
    variance = np.einsum("ij,ij->i", numbers, numbers) / some - mean**2
    std = np.sqrt(np.maximum(variance, 0))
    rows = list(zip(mean.tolist(), std.tolist(), counts, strict=True))
    return [m if count else None for m, _, count in rows], [s if count else None for _, s, count in rows]


def bbox_of(footprint: dict[str, Any] | None) -> dict[str, float] | None:
    """Return the bounding box of a footprint, in degrees; `xmin` > `xmax` if it crosses the antimeridian."""
    if footprint is None:
        return None
    boxes = [_box(ring) for ring in rings_of(footprint)]
    west = min(boxes) if len(boxes) == 1 else max(boxes)  # of two parts, the western one ends at 180°
    east = min(boxes)
    south, north = min(box[1] for box in boxes), max(box[3] for box in boxes)
    return {"xmin": west[0], "ymin": south, "xmax": east[2], "ymax": north}


def _box(ring: list[tuple[float, float]]) -> tuple[float, float, float, float]:
    xs, ys = zip(*ring, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _remove_if_abandoned(unfinished: Path) -> None:
    """Remove a file that a killed process left unfinished; a living one finishes within seconds."""
    try:
        if time.time() - unfinished.stat().st_mtime > _ABANDONED_S:
            unfinished.unlink()
    except FileNotFoundError:
        return
