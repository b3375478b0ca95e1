"""A model that needs no training and no torch, yet tells the synthetic classes apart."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hardened import BODY_SECONDS, FILED_KEY, HEAD_SECONDS, KEY, ORIGIN, OTHER_KEY
from linear_model import write_linear_model
from servers import Server, served

from tilewise.bento.inference.engine import Engine


@pytest.fixture(scope="session")
def linear_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file: the ten classes by least squares on the bands' means."""
    return write_linear_model(tmp_path_factory.mktemp("linear") / "model.onnx")


@pytest.fixture(scope="session")
def engine(linear_model: Path) -> Engine:
    """The engine around it."""
    return Engine(linear_model, threads=1)


@pytest.fixture(scope="session")
def guarded(linear_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service with keys, an origin that may ask, and little patience."""
    home = tmp_path_factory.mktemp("guarded")
    file = home / "keys"
    file.write_text(f"# of the operator\ncarol:{FILED_KEY}  # since May\n\n")
    settings = {
        "TILEWISE_WORKERS": "1",
        "TILEWISE_API_KEYS": f"alice:{KEY}, {OTHER_KEY}",
        "TILEWISE_API_KEYS_FILE": str(file),
        "TILEWISE_CORS_ORIGINS": ORIGIN,
        "TILEWISE_HEAD_SECONDS": str(HEAD_SECONDS),
        "TILEWISE_BODY_SECONDS": str(BODY_SECONDS),
        "TILEWISE_BODY_RATE": "1000000",
        "TILEWISE_MAX_CONNECTIONS": "40",
        "TILEWISE_LOG": "json",
    }
    with served(linear_model, home, **settings) as server:
        yield server


@pytest.fixture(scope="session")
def unguarded(linear_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service as it is by default, in two processes, that waits only shortly for what does not come."""
    settings = {
        "TILEWISE_WORKERS": "2",
        "TILEWISE_HEAD_SECONDS": "1",
        "TILEWISE_BODY_SECONDS": "1",
        "TILEWISE_LOG": "json",
    }
    with served(linear_model, tmp_path_factory.mktemp("unguarded"), **settings) as server:
        yield server


@pytest.fixture(scope="session")
def client(unguarded: Server) -> Iterator[httpx.Client]:
    """A client of the service that is as by default."""
    with httpx.Client(base_url=unguarded.url, trust_env=False, timeout=30) as client:
        yield client
