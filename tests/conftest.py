"""Fake data for all tests: made once a session by the project's own generator, never real.

`make test` runs files of tests side by side, each within one process (pytest-xdist, `--dist=loadfile`).
Fixtures of a session are made once in each process; what is dear goes through `made_once`.
"""

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from tilewise.datasets.acquire.synthetic import synthesise
from tilewise.datasets.packs.pack import Pack
from tilewise.datasets.packs.packing import write_pack
from tilewise.datasets.packs.splits import SplitMethod, SplitPlan
from tilewise.datasets.readers.sources import find_source

REAL_DATA = Path(os.environ.get("TILEWISE_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
ONE_OF_SEVERAL = "PYTEST_XDIST_WORKER" in os.environ
if (
    ONE_OF_SEVERAL
):  # as many processes as cores, each with as many threads as cores, would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # a shell's background job: what tests start would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)

MadeOnce = Callable[[str, Callable[[Path], object]], Path]


def pytest_xdist_auto_num_workers() -> int:
    """Run one process more than there are cores: a fifth of the time, tests wait for another program."""
    return min(8, (os.cpu_count() or 1) + 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files with the most slow tests first: one begun last would outlast all others."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Make a folder for all processes of a run of the tests, which only read what is in it.

    `made_once(name, make)` returns the folder's path; the first who asks for it calls `make` with that path.
    """
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if ONE_OF_SEVERAL else own

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder = shared / name
        made = folder / ".made"
        with FileLock(f"{folder}.lock"):
            if not made.exists():
                folder.mkdir(exist_ok=True)
                make(folder)
                made.touch()
        return folder

    return once


@pytest.fixture(autouse=True)
def mlflow_forgets_where_it_was() -> Iterator[None]:
    """Reset MLflow's tracking address, which a process keeps once it has trained or registered."""
    yield
    if mlflow := sys.modules.get("mlflow"):
        mlflow.set_tracking_uri(None)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real Sentinel-2 data; the test skips where it is absent."""
    if not (REAL_DATA / "EuroSAT_MS.zip").is_file():
        pytest.skip(f"no real data in {REAL_DATA}; set TILEWISE_REAL_DATA to the folder that holds them")
    return REAL_DATA


@pytest.fixture(scope="session")
def tiles_folder(made_once: MadeOnce) -> Path:
    """Synthetic GeoTIFF tiles in EuroSAT's layout: ten classes of twelve."""
    return (
        made_once("raw", lambda raw: synthesise(raw / "synthetic", tiles_per_class=12, seed=1)) / "synthetic"
    )


@pytest.fixture(scope="session")
def pack_folder(tiles_folder: Path, made_once: MadeOnce) -> Path:
    """The synthetic tiles packed, split at random 60/20/20."""
    plan = SplitPlan(SplitMethod.RANDOM, fractions=(0.6, 0.2, 0.2))
    return (
        made_once("packed", lambda folder: write_pack([find_source(tiles_folder)], folder / "pack", plan))
        / "pack"
    )


@pytest.fixture(scope="session")
def pack(pack_folder: Path) -> Pack:
    """The opened pack."""
    return Pack(pack_folder)


@pytest.fixture(scope="session")
def model_file(pack: Pack, made_once: MadeOnce) -> Path:
    """A model file of a small network with random weights: sound in form, of no skill."""
    pytest.importorskip("torch")
    return made_once("model", lambda folder: export_untrained(pack, folder / "model.onnx")) / "model.onnx"


def export_untrained(pack: Pack, path: Path) -> None:
    import torch

    from tilewise.models.export.export import export
    from tilewise.models.model_file import ModelMetadata
    from tilewise.models.network.backbones import ResidualCNN
    from tilewise.models.network.classifier import Classifier

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
    export(classifier, metadata, path, pack.fetch(np.arange(8)))


@pytest.fixture(scope="session")
def skilled_model(pack: Pack, made_once: MadeOnce) -> Path:
    """A model file that tells the synthetic classes apart, with its INT8 file beside it; read only."""
    pytest.importorskip("torch")
    return made_once("skilled", lambda folder: export_skilled(pack, folder / "model.onnx")) / "model.onnx"


def export_skilled(pack: Pack, path: Path) -> None:
    """Fit a head by least squares on a random network's embeddings: skill without training."""
    import torch

    from tilewise.models.export.export import export
    from tilewise.models.export.quantise import quantise
    from tilewise.models.model_file import ModelMetadata, int8_of
    from tilewise.models.network.backbones import PatchCNN
    from tilewise.models.network.classifier import Classifier

    torch.manual_seed(0)
    statistics = pack.statistics()
    bands = [[band[name] for band in statistics] for name in ("mean", "std")]
    classifier = Classifier(PatchCNN(16, (24, 32), (1, 1)), len(pack.summary.classes), *bands).eval()
    rows = pack.rows("train")
    with torch.no_grad():
        embedding = classifier(torch.from_numpy(pack.fetch(rows)))[1].numpy()
        known = np.column_stack([embedding, np.ones(len(rows))])
        weights = (
            8 * np.linalg.lstsq(known, np.eye(len(pack.summary.classes))[pack.labels[rows]], rcond=3e-2)[0]
        )
        classifier.head.weight.copy_(torch.from_numpy(weights[:-1].T))
        classifier.head.bias.copy_(torch.from_numpy(weights[-1]))
    metadata = ModelMetadata(
        name="test", version="0", classes=pack.summary.classes, network="PatchCNN", synthetic=True
    )
    tiles = pack.fetch(rows)
    export(classifier, metadata, path, tiles)
    tiles[::3, 5:] = 0
    quantise(path, int8_of(path), tiles)


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh folder that the test runs in, for commands with default paths."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
