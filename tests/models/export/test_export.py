import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tilewise.datasets.core.errors import ExportError
from tilewise.datasets.core.tile import DN
from tilewise.datasets.packs.pack import Pack
from tilewise.models.export.export import compare, export
from tilewise.models.model_file import INPUT, ModelMetadata, open_model
from tilewise.models.network.backbones import ResidualCNN, TorchvisionBackbone
from tilewise.models.network.classifier import Classifier, Exported


def make_classifier(backbone: torch.nn.Module | None = None) -> Classifier:
    torch.manual_seed(0)
    backbone = backbone or ResidualCNN(widths=(8, 16), depths=(1, 1), stem=(8,))
    return Classifier(backbone, 10, band_mean=[1500.0] * 13, band_std=[700.0] * 13).eval()


def metadata(pack: Pack) -> ModelMetadata:
    return ModelMetadata(name="test", version="1", classes=pack.summary.classes, network="ResidualCNN")


@pytest.fixture(scope="module")
def exported(pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model file of `make_classifier()`."""
    folder = tmp_path_factory.mktemp("exported")
    export(make_classifier(), metadata(pack), folder / "model.onnx", pack.fetch(np.arange(20)))
    return folder


def assert_answers_as(classifier: Classifier, path: Path, tiles: DN) -> None:
    """Hold every output of the model file against torch's, for several batch sizes."""
    session = open_model(path).session
    for count in (1, 2, 7, 20):
        probabilities, logits, embedding, outlier_score = session.run(None, {INPUT: tiles[:count]})
        with torch.no_grad():
            expected = Exported(classifier)(torch.from_numpy(tiles[:count]))
        np.testing.assert_allclose(probabilities, expected[0], atol=1e-4)
        np.testing.assert_allclose(logits, expected[1], atol=1e-3)
        assert embedding.shape == expected[2].shape
        assert outlier_score.shape == (count,)


def test_the_file_answers_as_torch_does_for_any_batch_size(exported: Path, pack: Pack) -> None:
    assert_answers_as(make_classifier(), exported / "model.onnx", pack.fetch(np.arange(20)))


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_small"])
def test_the_file_of_a_large_network_answers_as_torch_does(backbone: str, pack: Pack, tmp_path: Path) -> None:
    classifier, tiles = make_classifier(TorchvisionBackbone(backbone)), pack.fetch(np.arange(20))
    assert export(classifier, metadata(pack), tmp_path / "model.onnx", tiles) <= 1e-4
    assert_answers_as(classifier, tmp_path / "model.onnx", tiles)


def test_the_file_is_one_file_and_holds_its_metadata(exported: Path, pack: Pack) -> None:
    assert [path.name for path in exported.iterdir()] == ["model.onnx"]
    found = open_model(exported / "model.onnx").metadata
    assert found.model_copy(update={"self_test": None, "digest": ""}) == metadata(pack)


def test_the_temperature_softens_the_probabilities_and_not_the_logits(
    exported: Path, pack: Pack, tmp_path: Path
) -> None:
    tiles, classifier = pack.fetch(np.arange(4)), make_classifier()
    classifier.temperature.fill_(10.0)
    export(classifier, metadata(pack), tmp_path / "soft.onnx", tiles)
    sharp = open_model(exported / "model.onnx").session.run(None, {INPUT: tiles})
    soft = open_model(tmp_path / "soft.onnx").session.run(None, {INPUT: tiles})
    np.testing.assert_allclose(sharp[1], soft[1], atol=1e-5)
    assert (soft[0].max(axis=1) < sharp[0].max(axis=1)).all()


def test_an_export_that_answers_otherwise_is_refused_and_leaves_the_old_file(
    exported: Path, pack: Pack, tmp_path: Path
) -> None:
    path = Path(shutil.copy(exported / "model.onnx", tmp_path))
    before = path.read_bytes()
    other = make_classifier()
    other.head.weight.data.mul_(2)
    with pytest.raises(ExportError, match=r"differ by .* nothing was written"):
        export(other, metadata(pack), path, pack.fetch(np.arange(4)), tolerance=-1.0)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["model.onnx"]


def test_the_graph_is_sound(exported: Path) -> None:
    onnx.checker.check_model(onnx.load(exported / "model.onnx"), full_check=True)


@pytest.mark.realdata
def test_parity_holds_on_real_tiles(exported: Path, real_data: Path) -> None:
    with np.load(real_data / "l2a_unlabelled.npz") as archive:
        twelve = archive["tiles"][:64]
    tiles = np.insert(twelve, 10, 0, axis=1)  # Level-2A has no B10
    assert compare(make_classifier(), exported / "model.onnx", tiles) <= 1e-4


def test_a_model_file_tells_nothing_of_the_machine_that_made_it(model_file: Path) -> None:
    content = model_file.read_bytes()
    assert str(Path(__file__).parents[3]).encode() not in content
    assert b"forward" not in content  # no stack traces
