"""The same model and reader behind BentoML's own adaptive batching, as its documentation does it.

    bentoml serve peers.bentoml_batchable:Batchable

An entry service parses the upload and calls a batchable service by `bentoml.depends`: that is the documented
way to have several tiles in a request and tiles of several requests in a batch. The runner's connections are
kept for ever; with the defaults some requests fail when they are renewed (BentoML issue 5540).
"""

import os
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
import numpy.typing as npt

from tilewise.bento.inference.engine import Engine
from tilewise.datasets.core.radiometry import ReadOptions
from tilewise.datasets.core.tile import DN
from tilewise.datasets.readers.geotiff import read_tile
from tilewise.models.model_file import usable_cores

HALF = max(1, usable_cores() // 2)


@bentoml.service(workers=HALF, runner_connection={"max_requests": 10**9, "max_age": 1e9})
class Network:
    """The network, whose batches form across requests."""

    def __init__(self) -> None:
        self.engine = Engine(Path(os.environ["TILEWISE_MODEL"]), threads=1)

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=60_000)
    def classify(self, tiles: DN) -> npt.NDArray[np.float32]:
        return self.engine.classify(np.ascontiguousarray(tiles)).probabilities


@bentoml.service(
    name="batchable", workers=HALF, traffic={"timeout": 60}, logging={"access": {"enabled": False}}
)
class Batchable:
    """Reads the tiles of one request and asks the network for them together."""

    network = bentoml.depends(Network)

    def __init__(self) -> None:
        self.classes = Engine(Path(os.environ["TILEWISE_MODEL"]), threads=1).metadata.classes

    @bentoml.api
    async def classify(self, tiles: list[Path]) -> list[dict[str, Any]]:
        read = [read_tile(path, ReadOptions()) for path in tiles]
        answers = await self.network.to_async.classify(np.stack([tile.pixels for tile in read]))
        return [
            {
                "name": tile.name,
                "class": self.classes[int(shares.argmax())],
                "probabilities": dict(zip(self.classes, shares.tolist(), strict=True)),
                "footprint": tile.footprint,
            }
            for tile, shares in zip(read, answers, strict=True)
        ]
