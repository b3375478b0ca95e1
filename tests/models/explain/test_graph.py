"""Graphs answer in torch as they do in onnxruntime, and gradients flow through them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import write_model

from tilewise.datasets.core.errors import ModelFileError
from tilewise.datasets.packs.pack import Pack
from tilewise.models.explain.graph import TorchGraph, load_torch_graph
from tilewise.models.model_file import INPUT, open_model

RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def whole(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def step(
    name: str, *constants: np.ndarray, **attributes: Any
) -> tuple[str, tuple[np.ndarray, ...], dict[str, Any]]:
    return name, constants, attributes


SCALES, ZEROS = np.float32([0.02, 0.03, 0.05]), np.array([128, 120, 0], np.uint8)
CHAINS = {
    "convolution": [step("Conv", normal(4, 3, 3, 3), normal(4), pads=[0, 1, 2, 1], strides=[2, 1])],
    "by channel": [
        step("Conv", normal(3, 1, 3, 3), group=3, dilations=[2, 2], pads=[2, 2, 2, 2]),
        step("HardSwish"),
    ],
    "pools": [
        step("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        step("GlobalAveragePool"),
    ],
    "normalised": [
        step("BatchNormalization", normal(3), normal(3), normal(3), np.float32([1, 2, 3])),
        step("Relu"),
    ],
    "head": [
        step("ReduceMean", whole(2, 3), keepdims=0),
        step("Gemm", normal(5, 3), normal(5), transB=1, alpha=0.5, beta=2.0),
        step("Softmax", axis=1),
    ],
    "shapes": [
        step("Transpose", perm=[0, 2, 3, 1]),
        step("Reshape", whole(0, -1, 3)),
        step("Unsqueeze", whole(1, -1)),
        step("Squeeze", whole(1)),
        step("Gather", whole(2, -1, 0), axis=2),
        step("Flatten"),
    ],
    "gates": [
        step("HardSigmoid", alpha=1 / 6),
        step("Clip", np.float32(0.4), np.float32(0.6)),
        step("Sigmoid"),
    ],
    "reductions": [step("Tanh"), step("ReduceMax", whole(3)), step("ReduceSum", whole(-2), keepdims=0)],
    "slices": [
        step("Slice", whole(1, 7), whole(3, -(2**31)), whole(1, 3), whole(1, -2)),
        step("Max", np.float32(-0.5)),
        step("Min", np.float32(0.5), np.float32(0.6)),
        step("Abs"),
        step("Pow", np.float32(2)),
    ],
    "quantised": [
        step("QuantizeLinear", SCALES, ZEROS, axis=1),
        step("DequantizeLinear", SCALES, ZEROS, axis=1),
        step("QuantizeLinear", np.float32(0.1), np.int8(3)),
        step("DequantizeLinear", np.float32(0.1), np.int8(3)),
    ],
}


def chained(steps: list[tuple[str, tuple[np.ndarray, ...], dict[str, Any]]]) -> onnx.ModelProto:
    """Return a graph of operators one after the other, from `tiles` float (n, 3, 8, 8) to `logits`."""
    nodes, constants, before = [], [], INPUT
    for place, (name, inputs, attributes) in enumerate(steps):
        after = "logits" if place == len(steps) - 1 else f"after{place}"
        names = [f"c{place}_{n}" for n in range(len(inputs))]
        constants += [
            numpy_helper.from_array(np.asarray(value), key) for key, value in zip(names, inputs, strict=True)
        ]
        nodes.append(helper.make_node(name, [before, *names], [after], **attributes))
        before = after
    shape = ["n", 3, 8, 8]
    tiles = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, shape)
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "chain", [tiles], [logits], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_mask_is_a_mask() -> None:
    graph = chained([step("LessOrEqual", np.float32(0.2)), step("Not"), step("Cast", to=TensorProto.FLOAT)])
    tiles = normal(2, 3, 8, 8)
    np.testing.assert_array_equal(
        TorchGraph(graph, "logits", "mask")(torch.from_numpy(tiles)).numpy(), tiles > 0.2
    )


@pytest.mark.parametrize("name", CHAINS)
def test_operators_answer_as_onnxruntime_does_and_pass_gradients(name: str) -> None:
    graph = chained(CHAINS[name])
    tiles = normal(2, 3, 8, 8)
    expected = ort.InferenceSession(graph.SerializeToString()).run(None, {INPUT: tiles})[0]
    asked = torch.from_numpy(tiles).requires_grad_()
    found = TorchGraph(graph, "logits", "chain")(asked)
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=2e-5)
    (found * torch.from_numpy(normal(*expected.shape))).sum().backward()
    assert asked.grad is not None
    assert asked.grad.abs().sum() > 0


def test_a_trained_networks_file_answers_in_torch_as_it_does_in_onnxruntime(
    model_file: Path, pack: Pack
) -> None:
    tiles = pack.fetch(np.arange(12))
    found = load_torch_graph(model_file, "logits")(torch.from_numpy(tiles.astype(np.float32)))
    expected = open_model(model_file).session.run(["logits"], {INPUT: tiles})[0]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_only_what_the_output_needs_is_run(tmp_path: Path) -> None:
    graph = onnx.load(write_model(tmp_path / "model.onnx"))
    graph.graph.node.append(helper.make_node("NonZero", ["embedding"], ["elsewhere"]))
    assert TorchGraph(graph, "logits", "model")(torch.ones(2, 13, 64, 64)).shape == (2, 2)


def test_unknown_operators_are_refused_by_name() -> None:
    steps = [step("Relu"), step("Elu"), step("MaxPool", kernel_shape=[2, 2], ceil_mode=1)]
    with pytest.raises(
        ModelFileError, match=r"odd\.onnx: .*Elu, MaxPool with ceil_mode; use --method occlusion"
    ):
        TorchGraph(chained(steps), "logits", "odd.onnx")
