"""The same model behind a plain FastAPI route, as its tutorial would write it."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, UploadFile

from peers.readers import read
from tilewise.bento.inference.engine import Engine

app = FastAPI()
engine = Engine(Path(os.environ["TILEWISE_MODEL"]), threads=1)


@app.post("/classify")
def classify(tiles: list[UploadFile]) -> list[dict[str, Any]]:
    """Answer the tiles of one request: FastAPI runs a plain function in its thread pool."""
    names = [tile.filename or "" for tile in tiles]
    found = [read(tile.file.read(), name) for tile, name in zip(tiles, names, strict=True)]
    answers = engine.classify(np.stack([tile.pixels for tile in found]))
    classes = engine.metadata.classes
    return [
        {
            "name": name,
            "class": classes[int(shares.argmax())],
            "probabilities": dict(zip(classes, shares.tolist(), strict=True)),
            "footprint": tile.footprint,
        }
        for name, tile, shares in zip(names, found, answers.probabilities, strict=True)
    ]
