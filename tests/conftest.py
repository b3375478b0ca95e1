"""Fake data for all tests: made once a session by the project's own generator, never real."""

import os
from pathlib import Path

import numpy as np
import pytest

from datasets.pack import Pack
from datasets.packing import write_pack
from datasets.sources import find_source
from datasets.splits import Method, SplitPlan
from datasets.synthetic import synthesise

REAL_DATA = Path(os.environ.get("SENTILE_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real Sentinel-2 data; the test skips where it is absent."""
    if not (REAL_DATA / "EuroSAT_MS.zip").is_file():
        pytest.skip(f"no real data in {REAL_DATA}; set SENTILE_REAL_DATA to the folder that holds them")
    return REAL_DATA


@pytest.fixture(scope="session")
def tiles_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic GeoTIFF tiles in EuroSAT's layout: ten classes of twelve."""
    return synthesise(tmp_path_factory.mktemp("raw") / "synthetic", tiles_per_class=12, seed=1)


@pytest.fixture(scope="session")
def pack_folder(tiles_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic tiles packed, split at random 60/20/20."""
    out = tmp_path_factory.mktemp("packed") / "pack"
    write_pack([find_source(tiles_folder)], out, SplitPlan(Method.RANDOM, shares=(0.6, 0.2, 0.2)))
    return out


@pytest.fixture(scope="session")
def pack(pack_folder: Path) -> Pack:
    """The opened pack."""
    return Pack(pack_folder)


@pytest.fixture(scope="session")
def model_file(pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of a small network with random weights: sound in form, of no skill."""
    torch = pytest.importorskip("torch")
    from models.classifier import Classifier
    from models.export import export
    from models.modelfile import ModelMetadata
    from models.network import ResidualCNN

    torch.manual_seed(0)
    statistics = pack.statistics()
    classifier = Classifier(
        ResidualCNN(widths=(8, 16), depths=(1, 1), stem=(8,)),
        classes=len(pack.summary.classes),
        band_mean=[band["mean"] for band in statistics],
        band_std=[band["std"] for band in statistics],
    ).eval()
    metadata = ModelMetadata(
        name="test", version="0", classes=pack.summary.classes, network="ResidualCNN", synthetic=True
    )
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    export(classifier, metadata, path, pack.fetch(np.arange(8)))
    return path


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh folder that the test runs in, for commands with default paths."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
