"""The same model and reader behind a plain FastAPI route, as its tutorial would write it."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, UploadFile

from tilewise.bento.inference.engine import Engine
from tilewise.datasets.core.radiometry import ReadOptions
from tilewise.datasets.readers.geotiff import read_tile

app = FastAPI()
engine = Engine(Path(os.environ["TILEWISE_MODEL"]), threads=1)


@app.post("/classify")
def classify(tiles: list[UploadFile]) -> list[dict[str, Any]]:
    """Answer the tiles of one request: FastAPI runs a plain function in its thread pool."""
    read = [read_tile(tile.file.read(), ReadOptions(), tile.filename) for tile in tiles]
    answers = engine.classify(np.stack([tile.pixels for tile in read]))
    classes = engine.metadata.classes
    return [
        {
            "name": tile.name,
            "class": classes[int(shares.argmax())],
            "probabilities": dict(zip(classes, shares.tolist(), strict=True)),
            "footprint": tile.footprint,
        }
        for tile, shares in zip(read, answers.probabilities, strict=True)
    ]
