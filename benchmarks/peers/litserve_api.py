"""The same model and reader behind LitServe with its own batching, as its documentation does it.

python benchmarks/peers/litserve_api.py PORT WORKERS
"""

import os
import sys
from pathlib import Path
from typing import Any

import litserve
import numpy as np
from fastapi import Request

from peers.readers import Read, read
from tilewise.bento.inference.engine import Engine


class TileAPI(litserve.LitAPI):
    """A request holds one or many tiles; LitServe batches requests."""

    def setup(self, device: str) -> None:
        self.engine = Engine(Path(os.environ["TILEWISE_MODEL"]), threads=1)

    def decode_request(
        self, request: Request
    ) -> list[tuple[str, Read]]:  # of a multipart request LitServe gives the form
        files = request.getlist("tiles")  # type: ignore[attr-defined]
        return [(file.filename, read(file.file.read(), file.filename)) for file in files]

    def batch(self, inputs: list[list[tuple[str, Read]]]) -> list[list[tuple[str, Read]]]:
        return inputs

    def predict(self, requests: list[list[tuple[str, Read]]]) -> list[list[dict[str, Any]]]:
        tiles = [tile for request in requests for tile in request]
        answers = iter(self.engine.classify(np.stack([tile.pixels for _, tile in tiles])).probabilities)
        return [[self._describe(name, tile, next(answers)) for name, tile in request] for request in requests]

    def unbatch(self, output: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
        return output

    def encode_response(self, output: list[dict[str, Any]]) -> dict[str, Any]:
        return {"results": output}

    def _describe(self, name: str, tile: Read, shares: np.ndarray) -> dict[str, Any]:
        classes = self.engine.metadata.classes
        return {
            "name": name,
            "class": classes[int(shares.argmax())],
            "probabilities": dict(zip(classes, shares.tolist(), strict=True)),
            "footprint": tile.footprint,
        }


if __name__ == "__main__":
    api = TileAPI(max_batch_size=64, batch_timeout=0.005, api_path="/classify")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=int(sys.argv[2]))
    server.run(port=int(sys.argv[1]), generate_client_file=False, num_api_servers=1)
