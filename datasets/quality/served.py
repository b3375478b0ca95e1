"""Read the tiles that a service answered from its prediction log, for people to review (docs/feedback.md).

A tile is identified by its pixels: the same tile sent twice is one tile, and its name is made of their hash,
so that a client's file name never becomes the name of a file here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError

from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.core.console import Report, silent
from tilewise.datasets.core.errors import ReviewError
from tilewise.datasets.core.radiometry import Level
from tilewise.datasets.core.tile import TILE_SIZE, Georeference, Tile, place_bands
from tilewise.datasets.readers.records import content_hash

PATTERN = "predictions-*.parquet"
PREFIX = "served_"
_KEY, _VERSION = b"tilewise.prediction_log", b"1"
_IN_MEMORY = 64  # rows at a time: 7 MB of pixels
_NAME_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Served:
    """A tile that a service answered, without its pixels.

    Attributes:
        sha256: hash of its bands' names and DN (`tilewise.datasets.readers.records.content_hash`).
        when: time of its latest answer.
        request_id: identifier of that request.
        file: the client's name of the file; empty where the log keeps none.
        answered, confidence: the answered class and its probability (0–1).
        second, p_second: the next class and its probability (0–1).
        outlier_score: None where the model has no threshold for it.
        outlier: whether it was flagged as unlike the training data.
        bands: its bands, in canonical order.
        level: processing level; None where it is unknown.
        centre: (longitude, latitude) of its centre in degrees, or None.
        model, version, model_sha256: the model that answered.
        classes: the model's classes.
    """

    sha256: str
    when: datetime
    request_id: str
    file: str
    answered: str
    confidence: float
    second: str
    p_second: float
    outlier_score: float | None
    outlier: bool
    bands: tuple[str, ...]
    level: Level | None
    centre: tuple[float, float] | None
    model: str
    version: str
    model_sha256: str
    classes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The tile's name from here on, and its file's."""
        return PREFIX + self.sha256[:_NAME_DIGITS]

    @property
    def margin(self) -> float:
        """The answer's lead over the next class (0–1): 0 is undecided."""
        return self.confidence - self.p_second


@dataclass(frozen=True, slots=True)
class Log:
    """The content of a prediction log, without pixels.

    Attributes:
        tiles: the different tiles, each with its latest answer.
        rows: number of answers.
        without_pixels: number of answers that were kept without their tile.
        broken: number of answers whose tile does not fit its row.
    """

    tiles: tuple[Served, ...]
    rows: int
    without_pixels: int
    broken: int


def read_log(folder: Path, since: datetime | None = None, progress: Report = silent) -> Log:
    """Return the answers in `folder` from `since` on; pixels are hashed and not kept.

    Raises:
        ReviewError: there is no log, or one of its files is not one.
    """
    found: dict[str, Served] = {}
    rows = without = broken = 0
    for row in _rows(folder, progress):
        if since is not None and row["time"] < since:
            continue
        rows += 1
        if row.get("tile") is None:
            without += 1
            continue
        tile = _tile_of(row)
        if tile is None:
            broken += 1
            continue
        served = _describe(row, tile)
        if served.sha256 not in found or found[served.sha256].when <= served.when:
            found[served.sha256] = served
    return Log(tuple(found.values()), rows, without, broken)


def fetch(
    folder: Path, wanted: Mapping[str, Served], progress: Report = silent
) -> Iterator[tuple[Served, Tile]]:
    """Yield the tiles of `wanted`, {sha256: tile}, with their pixels, in the log's order, each once.

    Raises:
        ReviewError: a file of the log is damaged.
    """
    missing = dict(wanted)
    for row in _rows(folder, progress):
        tile = _tile_of(row) if missing and row.get("tile") is not None else None
        served = missing.pop(content_hash(tile.pixels, tile.bands), None) if tile else None
        if tile is not None and served is not None:
            yield served, tile


def by_doubt(tiles: Sequence[Served]) -> list[Served]:
    """Return the tiles in the order in which their review is most useful.

    Two lists are taken in turn, so that neither crowds the other out: outliers, the most unusual first, and
    the others, the least decided first. Outlier scores of different models do not compare, so a tile is
    ranked by the fraction of its own model's tiles that it exceeds.
    """
    rank = _outlier_ranks(tiles)
    flagged = sorted((t for t in tiles if t.outlier), key=lambda t: (-rank[t.sha256], t.sha256))
    others = sorted((t for t in tiles if not t.outlier), key=lambda t: (t.margin, t.sha256))
    ordered: list[Served] = []
    for index in range(max(len(flagged), len(others))):
        ordered += [*flagged[index : index + 1], *others[index : index + 1]]
    return ordered


def _outlier_ranks(tiles: Sequence[Served]) -> dict[str, float]:
    """Return, by hash, the fraction (0–1) of the same model's tiles with a lower outlier score."""
    scores: dict[str, list[float]] = {}
    for tile in tiles:
        scores.setdefault(tile.model_sha256, []).append(tile.outlier_score or 0.0)
    ordered = {model: np.sort(found) for model, found in scores.items()}
    return {
        tile.sha256: float(np.searchsorted(ordered[tile.model_sha256], tile.outlier_score or 0.0))
        / len(ordered[tile.model_sha256])
        for tile in tiles
    }


def _rows(folder: Path, progress: Report) -> Iterator[dict[str, Any]]:
    paths = sorted(folder.glob(PATTERN))
    if not paths:
        raise ReviewError(
            f"{folder}: no prediction log; TILEWISE_PREDICTIONS={folder} TILEWISE_PREDICTIONS_TILES=1 make "
            "the service keep one"
        )
    for done, path in enumerate(paths):
        progress("reading the log", done, len(paths))
        try:
            with pq.ParquetFile(path) as file:
                if (file.schema_arrow.metadata or {}).get(_KEY) != _VERSION:
                    raise ReviewError(
                        f"{path}: not a prediction log of version {_VERSION.decode()}; move it elsewhere"
                    )
                for batch in file.iter_batches(_IN_MEMORY):
                    yield from batch.to_pylist()
        except FileNotFoundError:  # a running service deletes its oldest files
            continue
        except (pa.ArrowException, OSError) as error:
            raise ReviewError(f"{path}: not a valid Parquet file ({error}); move it elsewhere") from error
    progress("reading the log", len(paths), len(paths))


def _tile_of(row: Mapping[str, Any]) -> Tile | None:
    """Return the tile in a row, or None where its bytes do not fit its bands."""
    bands = tuple(row["bands"])
    if not bands or not set(bands) <= set(BAND_NAMES) or len(row["tile"]) != len(bands) * TILE_SIZE**2 * 2:
        return None
    values = np.frombuffer(row["tile"], "<u2").reshape(len(bands), TILE_SIZE, TILE_SIZE)
    level = Level(row["level"]) if row["level"] in tuple(Level) else None
    return Tile(row["name"] or "", place_bands(values, bands), bands, level, _georeference_of(row))


def _georeference_of(row: Mapping[str, Any]) -> Georeference | None:
    """Return a row's georeference; logs of earlier versions have only a bounding box, which is too large."""
    crs, transform = row.get("crs"), row.get("transform")
    if not crs or not transform or len(transform) != 6 or not np.isfinite(transform).all():
        return None
    try:
        return Georeference(CRS.from_string(crs), Affine(*transform))
    except CRSError:
        return None


def _describe(row: Mapping[str, Any], tile: Tile) -> Served:
    ranked = sorted(row["probabilities"], key=lambda pair: -pair[1])
    (answered, confidence), (second, p_second) = (*ranked, ("", 0.0))[:2]
    return Served(
        sha256=content_hash(tile.pixels, tile.bands),
        when=row["time"],
        request_id=row["request_id"],
        file=tile.name,
        answered=answered,
        confidence=confidence,
        second=second,
        p_second=p_second,
        outlier_score=row["outlier_score"],
        outlier=bool(row["outlier"]),
        bands=tile.bands,
        level=tile.level,
        centre=_centre_of(row["bbox"]),
        model=row["model_name"],
        version=row["model_version"],
        model_sha256=row["model_sha256"],
        classes=tuple(name for name, _ in row["probabilities"]),
    )


def _centre_of(box: Mapping[str, float] | None) -> tuple[float, float] | None:
    if box is None:
        return None
    width = (box["xmax"] - box["xmin"]) % 360  # across the antimeridian, it ends west of where it begins
    east = (box["xmin"] + width / 2 + 180) % 360 - 180
    return round(east, 5), round((box["ymin"] + box["ymax"]) / 2, 5)
