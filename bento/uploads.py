"""Uploaded tiles: read, classified, answered one by one. A bad tile gets its own error and harms no other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bento.engine import Engine
from bento.http_errors import body_of
from datasets.errors import NoDataError, SentileError
from datasets.geotiff import read_tile
from datasets.radiometry import Statement
from datasets.tile import Tile

_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Upload:
    """A file as it came: its name and its bytes."""

    name: str
    content: bytes


def classify_uploads(engine: Engine, uploads: Sequence[Upload], said: Statement) -> list[dict[str, Any]]:
    """Return one JSON-ready result for each upload, in order: an answer, or `{"name", "error"}`."""
    read = [_read(upload, said, engine.metadata.tile_size) for upload in uploads]
    tiles = [outcome for outcome in read if isinstance(outcome, Tile)]
    if not tiles:
        return [_refusal(u, o) for u, o in zip(uploads, read, strict=True) if isinstance(o, SentileError)]
    answers = iter(engine.classify(np.stack([tile.pixels for tile in tiles])).probabilities)
    return [
        _refusal(upload, outcome)
        if isinstance(outcome, SentileError)
        else describe(outcome, next(answers), engine.metadata.classes)
        for upload, outcome in zip(uploads, read, strict=True)
    ]


def describe(tile: Tile, probabilities: Sequence[float], classes: Sequence[str]) -> dict[str, Any]:
    """Return the answer to one tile, JSON-ready."""
    shares = {name: round(float(p), _DIGITS) for name, p in zip(classes, probabilities, strict=True)}
    return {
        "name": tile.name,
        "class": max(shares, key=shares.__getitem__),
        "probabilities": shares,
        "valid_share": round(tile.valid_share, _DIGITS),
        "bands": list(tile.bands),
        "level": tile.level.value,
        "footprint": tile.footprint,
    }


def _read(upload: Upload, said: Statement, size: int) -> Tile | SentileError:
    try:
        tile = read_tile(upload.content, said, upload.name, size)
        if tile.valid_share == 0:
            raise NoDataError(
                f"{upload.name}: no pixel holds data in all of {', '.join(tile.bands)}; nothing to classify"
            )
    except SentileError as error:
        return error
    return tile


def _refusal(upload: Upload, error: SentileError) -> dict[str, Any]:
    return {"name": upload.name, **body_of(error, upload.name)}
