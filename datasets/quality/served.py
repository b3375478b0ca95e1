"""What a service answered, read back from its prediction log for people to review (docs/feedback.md).

A tile is known by its pixels: the same tile sent twice is one tile, and its name is made of their hash, so that no name
that a client chose ever becomes a file's.
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
        sha256: of its bands' names and DN (`tilewise.datasets.readers.records.content_hash`).
        when: it was answered last.
        request_id: of that request.
        file: its name as it was sent; empty where the log keeps none.
        answered, confidence: the answered class and its probability (0-1).
        second, p_second: the next class and its probability.
        outlier_score: None where the model has no threshold for it.
        outlier: whether it was flagged as unlike the training data.
        bands: that it has, in canonical order.
        level: None where nobody said.
        place: (longitude, latitude) of its middle in degrees, or None.
        model, version, model_sha256: what answered.
        classes: that the model knows.
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
    place: tuple[float, float] | None
    model: str
    version: str
    model_sha256: str
    classes: tuple[str, ...]

    @property
    def name(self) -> str:
        """What the tile is called from here on, and its file."""
        return PREFIX + self.sha256[:_NAME_DIGITS]

    @property
    def margin(self) -> float:
        """How far the answer is ahead of the next class (0-1): 0 is undecided."""
        return self.confidence - self.p_second


@dataclass(frozen=True, slots=True)
class Log:
    """What a prediction log holds.

    Attributes:
        tiles: different ones, each with its latest answer.
        rows: answers in all.
        without_pixels: answers that were kept without their tile.
        broken: answers whose tile is not what its row says.
    """

    tiles: tuple[Served, ...]
    rows: int
    without_pixels: int
    broken: int


def read_log(folder: Path, since: datetime | None = None, progress: Report = silent) -> Log:
    """Return the answers in `folder`, of `since` and later; pixels are hashed and not kept.

    Raises:
        ReviewError: there is no log, or a file in it that is none.
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


def fetch(folder: Path, wanted: Mapping[str, Served], progress: Report = silent) -> Iterator[tuple[Served, Tile]]:
    """Yield the tiles of `wanted`, {sha256: tile}, with their pixels, in the log's order, each once.

    Raises:
        ReviewError: a file of the log has gone bad.
    """
    open_ones = dict(wanted)
    for row in _rows(folder, progress):
        tile = _tile_of(row) if open_ones and row.get("tile") is not None else None
        served = open_ones.pop(content_hash(tile.pixels, tile.bands), None) if tile else None
        if tile is not None and served is not None:
            yield served, tile


def by_doubt(tiles: Sequence[Served]) -> list[Served]:
    """Return the tiles in the order in which a person's look teaches most.

    Two lists are taken in turn, so that neither crowds the other out: tiles flagged as unlike the training data, the
    strangest first, and the others, the least decided first. Scores of different models do not compare, so how strange
    a tile is, is the share of its own model's tiles that it exceeds.
    """
    strangeness = _strangeness(tiles)
    flagged = sorted((t for t in tiles if t.outlier), key=lambda t: (-strangeness[t.sha256], t.sha256))
    others = sorted((t for t in tiles if not t.outlier), key=lambda t: (t.margin, t.sha256))
    ordered: list[Served] = []
    for place in range(max(len(flagged), len(others))):
        ordered += [*flagged[place : place + 1], *others[place : place + 1]]
    return ordered


def _strangeness(tiles: Sequence[Served]) -> dict[str, float]:
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
            f"{folder}: no prediction log; TILEWISE_PREDICTIONS={folder} TILEWISE_PREDICTIONS_TILES=1 make the service "
            "keep one"
        )
    for done, path in enumerate(paths):
        progress("reading the log", done, len(paths))
        try:
            with pq.ParquetFile(path) as file:
                if (file.schema_arrow.metadata or {}).get(_KEY) != _VERSION:
                    raise ReviewError(f"{path}: no prediction log of version {_VERSION.decode()}; move it elsewhere")
                for batch in file.iter_batches(_IN_MEMORY):
                    yield from batch.to_pylist()
        except FileNotFoundError:  # a running service deletes its oldest files
            continue
        except (pa.ArrowException, OSError) as error:
            raise ReviewError(f"{path}: not a sound Parquet file ({error}); move it elsewhere") from error
    progress("reading the log", len(paths), len(paths))


def _tile_of(row: Mapping[str, Any]) -> Tile | None:
    """Return the tile that a row holds; None where its bytes do not fit its bands."""
    bands = tuple(row["bands"])
    if not bands or not set(bands) <= set(BAND_NAMES) or len(row["tile"]) != len(bands) * TILE_SIZE**2 * 2:
        return None
    values = np.frombuffer(row["tile"], "<u2").reshape(len(bands), TILE_SIZE, TILE_SIZE)
    level = Level(row["level"]) if row["level"] in tuple(Level) else None
    return Tile(row["name"] or "", place_bands(values, bands), bands, level, _georeference_of(row))


def _georeference_of(row: Mapping[str, Any]) -> Georeference | None:
    """Return where a row's tile lies; logs of earlier versions kept a box only, which is too large to be it."""
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
        place=_middle_of(row["bbox"]),
        model=row["model_name"],
        version=row["model_version"],
        model_sha256=row["model_sha256"],
        classes=tuple(name for name, _ in row["probabilities"]),
    )


def _middle_of(box: Mapping[str, float] | None) -> tuple[float, float] | None:
    if box is None:
        return None
    width = (box["xmax"] - box["xmin"]) % 360  # across the antimeridian, it ends west of where it begins
    east = (box["xmin"] + width / 2 + 180) % 360 - 180
    return round(east, 5), round((box["ymin"] + box["ymax"]) / 2, 5)
