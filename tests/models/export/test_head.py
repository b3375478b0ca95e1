"""A model file with another head keeps its network, byte for byte, and its input check."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tilewise.datasets.packs.pack import Pack
from tilewise.models.explain.graph import load_torch_graph
from tilewise.models.export.head import read_input_check, replace_head
from tilewise.models.model_file import INPUT, PRETRAINED_MODEL, ModelFile, int8_of, open_model
from tilewise.models.network.finetuned import FineTunedHead
from tilewise.models.network.outliers import InputCheck

CLASSES = ("a", "b", "c")


def new_head(base: ModelFile, check: InputCheck) -> FineTunedHead:
    torch.manual_seed(0)
    features = base.session.get_outputs()[2].shape[1]
    bank = torch.nn.functional.normalize(torch.randn(20, features))
    return FineTunedHead(torch.randn(3, features), torch.randn(3), 1.5, bank, check)


def replaced(source: Path, pack: Pack, target: Path) -> tuple[ModelFile, FineTunedHead]:
    base = open_model(source)
    head = new_head(base, read_input_check(source) or InputCheck())
    metadata = base.metadata.model_copy(update={"classes": CLASSES})
    assert replace_head(source, head, metadata, target, pack.fetch(np.arange(20))) < 1e-4
    return open_model(target), head


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_network_is_kept_and_the_head_is_new(
    precision: str, skilled_model: Path, pack: Pack, tmp_path: Path
) -> None:
    source = skilled_model if precision == "fp32" else int8_of(skilled_model)
    model, head = replaced(source, pack, tmp_path / "model.onnx")
    tiles = pack.fetch(np.arange(30, 40))
    before = open_model(source).session.run(["embedding"], {INPUT: tiles})[0]
    probabilities, logits, embedding, score = model.session.run(None, {INPUT: tiles})
    np.testing.assert_array_equal(embedding, before)
    with torch.no_grad():
        expected = head(torch.from_numpy(tiles), torch.from_numpy(embedding))
    for found, wanted in zip((probabilities, logits, score), expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-4)
    assert model.metadata.classes == CLASSES


def test_a_single_tile_and_none_at_all_are_answered(skilled_model: Path, pack: Pack, tmp_path: Path) -> None:
    model, _ = replaced(skilled_model, pack, tmp_path / "model.onnx")
    for count in (0, 1):
        assert len(model.session.run(None, {INPUT: pack.fetch(np.arange(count))})[0]) == count


def test_gradients_of_the_new_file_can_be_computed(skilled_model: Path, pack: Pack, tmp_path: Path) -> None:
    replaced(skilled_model, pack, tmp_path / "model.onnx")
    tiles = torch.from_numpy(pack.fetch(np.arange(2)).astype(np.float32)).requires_grad_()
    load_torch_graph(tmp_path / "model.onnx", "logits")(tiles)[:, 0].sum().backward()
    assert tiles.grad is not None
    assert tiles.grad.abs().sum() > 0


def test_the_input_check_of_the_shipped_file_is_taken_over_with_its_limit_at_1(
    pack: Pack, tmp_path: Path
) -> None:
    tiles = pack.fetch(np.arange(20))
    shuffled = np.ascontiguousarray(tiles[:, ::-1])
    check = read_input_check(PRETRAINED_MODEL)
    assert check is not None
    head = new_head(open_model(PRETRAINED_MODEL), check)
    with torch.no_grad():
        valid, faulty = (head.input_scores(torch.from_numpy(each))[:, 0] for each in (tiles, shuffled))
    assert faulty.median() > 1
    assert valid.median() < faulty.median()
    before = open_model(PRETRAINED_MODEL).session.run(["outlier_score"], {INPUT: shuffled})[0]
    np.testing.assert_allclose(faulty.numpy(), before, rtol=1e-3)
    replaced(PRETRAINED_MODEL, pack, tmp_path / "model.onnx")
    taken = read_input_check(tmp_path / "model.onnx")
    assert taken is not None
    again = new_head(open_model(tmp_path / "model.onnx"), taken)
    with torch.no_grad():
        np.testing.assert_allclose(
            again.input_scores(torch.from_numpy(shuffled))[:, 0].numpy(), faulty.numpy(), rtol=1e-4
        )


def test_a_file_whose_input_check_was_never_fitted_has_none(skilled_model: Path) -> None:
    assert read_input_check(skilled_model) is None
