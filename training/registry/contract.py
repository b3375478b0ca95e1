"""Contract test: start a service with a model as operators do, and check its API as clients use it."""

import io
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tilewise.datasets.core.tile import DN
from tilewise.models.model_file import INPUT, ModelFile

TILES = 5
_START_SECONDS = 60
_ALIKE = 1e-4  # responses have six digits


SERVICE = "tilewise.bento.service:Tilewise"


def violations(model: ModelFile, tiles: DN) -> list[str]:
    """Serve `model`, send it `tiles` (n, 13, 64, 64), and return what is wrong with the responses."""
    try:
        with _served(model.path) as url, httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
            return [*_card(client, model), *_answers(client, model, tiles), *_refusals(client)]
    except (TimeoutError, httpx.HTTPError) as error:
        return [f"the service does not respond: {error}"]


def _card(client: httpx.Client, model: ModelFile) -> Iterator[str]:
    card = client.get("/model").json()
    if card.get("sha256") != model.sha256:
        yield "GET /model describes another model"
    if tuple(card.get("classes", ())) != model.metadata.classes:
        yield "GET /model has other classes"


def _answers(client: httpx.Client, model: ModelFile, tiles: DN) -> Iterator[str]:
    body = io.BytesIO()
    np.save(body, tiles)
    answer = client.post(
        "/classify", content=body.getvalue(), headers={"Content-Type": "application/octet-stream"}
    )
    if answer.status_code != 200:
        yield f"POST /classify returns {answer.status_code} for valid tiles"
        return
    results: list[dict[str, Any]] = answer.json()["results"]
    if len(results) != len(tiles):
        yield f"POST /classify returns {len(results)} results for {len(tiles)} tiles"
        return
    expected = model.session.run(["probabilities"], {INPUT: tiles})[0]
    for index, (result, probabilities) in enumerate(zip(results, expected, strict=True)):
        found = [result.get("probabilities", {}).get(name, float("nan")) for name in model.metadata.classes]
        if not np.allclose(found, probabilities, atol=_ALIKE):
            yield f"tile {index} gets other probabilities than by the model file"


def _refusals(client: httpx.Client) -> Iterator[str]:
    answer = client.post("/classify", content=b"no tile", headers={"Content-Type": "image/tiff"})
    if not 400 <= answer.status_code < 500:
        yield f"POST /classify returns {answer.status_code} for an invalid tile"
    elif set(answer.json().get("error", {})) != {"code", "message", "hint"}:
        yield "an error lacks code, message or hint"


@contextmanager
def _served(model: Path) -> Iterator[str]:
    """Serve a model file on a free loopback port for the duration of the block; raises TimeoutError if it
    never does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with (
        tempfile.TemporaryDirectory(prefix="tilewise-contract-") as home,
        Path(home, "log.txt").open("wb") as log,
    ):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TILEWISE_")}
        own = {
            "TILEWISE_MODEL": str(model.resolve()),
            "TILEWISE_PRECISION": "fp32",
            "TILEWISE_WORKERS": "1",
            "BENTOML_HOME": home,
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "bentoml", "serve", SERVICE, "--host", "127.0.0.1", "--port", port],
            env=kept | own | {"BENTOML_DO_NOT_TRACK": "True"},
            stdout=log,
            stderr=log,
        )
        try:
            _wait(f"http://127.0.0.1:{port}", process, Path(log.name))
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    lines = log.read_text(errors="replace").strip().splitlines()
    raise TimeoutError(f"it never became ready; its last output: {lines[-1] if lines else 'none'}")
