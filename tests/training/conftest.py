"""A pack whose test split has 120 tiles, and linear models of known skill that answer it: made without
training."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from tiny_onnx import metadata, write_model

from tilewise.datasets.acquire.synthetic import render, synthesise
from tilewise.datasets.packs.pack import Pack
from tilewise.datasets.packs.packing import write_pack
from tilewise.datasets.packs.splits import SplitMethod, SplitPlan
from tilewise.datasets.readers.eurosat import CLASSES
from tilewise.datasets.readers.sources import find_source
from tilewise.models.model_file import Outliers, PredictionSets, open_model
from tilewise.models.network import calibration
from tilewise.training.evaluate.outputs import predict_rows

MakeModel = Callable[..., Path]
MadeOnce = Callable[[str, Callable[[Path], object]], Path]  # of tests/conftest.py


@pytest.fixture(scope="session")
def judged(made_once: MadeOnce) -> Path:
    """The folder of the pack that candidates are measured on."""

    def make(folder: Path) -> None:
        raw = synthesise(folder / "raw", tiles_per_class=24, seed=3)
        write_pack(
            [find_source(raw)], folder / "pack", SplitPlan(SplitMethod.RANDOM, fractions=(0.2, 0.3, 0.5))
        )

    return made_once("judged", make) / "pack"


@pytest.fixture(scope="session")
def make_model(judged: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """Make a linear model; `noise` blurs its weights (0.0: about 80 % right), `fields` change its
    metadata."""
    labels = np.repeat(np.arange(len(CLASSES)), 8)
    tiles = np.stack([render(CLASSES[label], n, seed=5) for n, label in enumerate(labels)])
    means = np.column_stack([tiles.mean(axis=(2, 3)), np.ones(len(tiles))])
    best = 8 * np.linalg.lstsq(means, np.eye(len(CLASSES))[labels], rcond=None)[0]

    def make(noise: float = 0.0, **fields: object) -> Path:
        random = np.random.default_rng(int(noise * 1000))
        weights = (best * (1 + noise * random.normal(size=best.shape))).astype(np.float32)
        path = tmp_path_factory.mktemp("model") / "model.onnx"
        plain = metadata(CLASSES)
        write_model(path, plain.model_dump_json(), weights=weights)
        pack = Pack(judged)
        answers = predict_rows(open_model(path), pack, pack.rows("val"))
        calibrated = plain.model_copy(
            update={
                "prediction_sets": PredictionSets(
                    method=calibration.METHOD,
                    thresholds=calibration.fit_thresholds(answers.probabilities, answers.labels),
                ),
                "outliers": Outliers(method="mean", threshold=1e9, false_alarms=0.05),
                **fields,
            }
        )
        return write_model(path, calibrated.model_dump_json(), weights=weights)

    return make


@pytest.fixture(scope="session")
def empty_store(made_once: MadeOnce) -> Path:
    """An MLflow store without runs: making one takes seconds, copying it none."""

    def make(folder: Path) -> None:
        MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db").search_registered_models()

    return made_once("empty-store", make) / "mlflow.db"


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> Path:
    """An empty store of the test's own."""
    return Path(shutil.copyfile(empty_store, tmp_path / "mlflow.db"))
