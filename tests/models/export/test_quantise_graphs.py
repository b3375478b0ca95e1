"""Quantisation's work on graphs, on small ones made by hand: input stage, filling, what is in eight bits."""

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from tilewise.models.export.quantise import InputStage, _Tiles, convolutional, find_input_stage, fold
from tilewise.models.model_file import INPUT
from tilewise.models.network.preprocess import STEPS

STEP = np.linspace(1000, 2200, 13, dtype=np.float32)


def begin(
    scale: npt.NDArray[np.float32],
    shift: npt.NDArray[np.float32],
    *,
    kind: str = "Mul",
    last: str = "Clip",
    clip: bool = True,
    left_out: tuple[str, ...] = (),
) -> onnx.GraphProto:
    """The beginning of a network: DN, normalised by band, clipped, and convolved."""
    names = ("scale", "shift", "low", "high", "weights")
    values = (
        scale.reshape(1, 13, 1, 1),
        shift.reshape(1, 13, 1, 1),
        *np.float32([[-4], [4]]).ravel(),
        KERNEL,
    )
    constants = [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in zip(names, values, strict=True)]
    nodes = [
        onnx.helper.make_node(kind, ["dn", "scale"], ["scaled"], "multiply"),
        onnx.helper.make_node("Add", ["scaled", "shift"], ["shifted"], "add"),
        onnx.helper.make_node(last, ["shifted", "low", "high"], ["clipped"], "clip"),
        onnx.helper.make_node("Conv", ["clipped" if clip else "shifted", "weights"], ["out"], "conv"),
    ]
    kept = nodes if clip else [*nodes[:2], nodes[3]]
    return onnx.helper.make_graph(kept, "begin", [], [], [c for c in constants if c.name not in left_out])


KERNEL = np.ones((1, 13, 1, 1), np.float32)
ZERO = np.full(13, -96 / STEPS, np.float32)  # DN 0 lies on the 8-bit value 32


def one_scale(graph: onnx.GraphProto) -> onnx.GraphProto:
    """The same scale for all bands, in one number."""
    (scale,) = (tensor for tensor in graph.initializer if tensor.name == "scale")
    scale.CopyFrom(onnx.numpy_helper.from_array(np.float32([[[[0.001]]]]), "scale"))
    return graph


def unscaled(graph: onnx.GraphProto) -> onnx.GraphProto:
    """Nothing before the shift."""
    graph.node[1].input[0] = "dn"
    del graph.node[0]
    return graph


@pytest.mark.parametrize("first", [0, 3, 15])
def test_every_eight_bit_value_may_be_that_of_no_reflectance(first: int) -> None:
    zeros = np.arange(13) * 20 + first
    found = find_input_stage(begin(1 / STEP, ((zeros - 128) / STEPS).astype(np.float32)))
    assert found is not None
    assert found.zero.tolist() == zeros.tolist()


def test_a_network_that_enlarges_its_tiles_has_the_stage_before_that() -> None:
    graph = begin(1 / STEP, ZERO)
    graph.node[3].input[0] = "large"
    graph.node.insert(3, onnx.helper.make_node("Resize", ["clipped", "", "scales"], ["large"], "resize"))
    found = find_input_stage(graph)
    assert found is not None
    assert found.result == "clipped"


def test_a_graph_that_normalises_by_band_has_its_input_in_eight_bits() -> None:
    found = find_input_stage(begin(1 / STEP, ZERO))
    assert found is not None
    assert (found.source, found.result, found.nodes) == ("dn", "clipped", ("multiply", "add", "clip"))
    np.testing.assert_allclose(found.step, STEP / STEPS, rtol=1e-5)
    assert (found.zero == 32).all()


@pytest.mark.parametrize(
    "graph",
    [
        begin(1 / STEP, ZERO, kind="Div"),
        begin(1 / STEP, ZERO, kind="Sub"),
        begin(1 / STEP, ZERO, clip=False),
        begin(1 / STEP, ZERO, last="Ceil"),
        begin(1 / STEP, ZERO, last="Relu"),
        begin(-1 / STEP, ZERO),
        one_scale(begin(1 / STEP, ZERO)),
        unscaled(begin(1 / STEP, ZERO)),
        begin(1 / STEP, ZERO, left_out=("scale",)),
        begin(1 / STEP, ZERO, left_out=("shift",)),
        begin(np.where(STEP > 2000, 0, 1 / STEP).astype(np.float32), ZERO),
        begin(1 / STEP, ZERO + np.float32(0.5 / STEPS)),
        begin(1 / STEP, np.full(13, 128 / STEPS, np.float32)),
        begin(1 / STEP, np.full(13, -129 / STEPS, np.float32)),
        onnx.helper.make_graph([onnx.helper.make_node("Conv", ["dn", "weights"], ["out"])], "bare", [], []),
        onnx.helper.make_graph([], "empty", [], []),
    ],
    ids=[
        "divided",
        "subtracted",
        "unclipped",
        "rounded",
        "cut",
        "negative",
        "one scale",
        "unscaled",
        "scale",
        "shift",
        "zero",
        "between",
        "above",
        "below",
        "bare",
        "empty",
    ],
)
def test_a_graph_that_begins_otherwise_has_none(graph: onnx.GraphProto) -> None:
    assert find_input_stage(graph) is None


def test_tiles_are_read_in_batches_of_32_and_the_last_is_what_is_left() -> None:
    tiles = np.arange(65, dtype=np.uint16)
    reader = _Tiles(tiles)
    assert len(reader) == 3
    assert reader.get_next() is None
    reader.set_range(0, 3)
    batches = [reader.get_next() for _ in range(4)]
    assert [batch and batch[INPUT].tolist() for batch in batches] == [
        list(range(32)),
        list(range(32, 64)),
        [64],
        None,
    ]
    assert [len(_Tiles(tiles[:count])) for count in (0, 1, 32, 33)] == [0, 1, 1, 2]


def test_convolutions_and_what_lies_between_them_are_in_eight_bits_and_nothing_else() -> None:
    nodes = [
        ("Add", ["dn", "shift"], "shifted"),
        ("Clip", ["shifted", "", "high"], "clipped"),
        ("Resize", ["clipped", "", "scales"], "large"),
        ("Conv", ["large", "weights"], "a"),
        ("Relu", ["a"], "b"),
        ("Conv", ["b", "weights"], "c"),
        ("Add", ["c", "b"], "d"),
        ("Clip", ["d", "", "high"], "e"),
        ("Add", ["e", "shifted"], "mixed"),
        ("Resize", ["e", "", "scales"], "enlarged"),
        ("Sigmoid", ["e"], "gate"),
        ("Relu", ["gate"], "last"),
    ]
    made = [onnx.helper.make_node(kind, names, [result], result) for kind, names, result in nodes]
    constants = [
        onnx.numpy_helper.from_array(KERNEL, name) for name in ("shift", "high", "scales", "weights")
    ]
    graph = onnx.helper.make_graph(made, "network", [], [], constants)
    assert convolutional(graph) == ["large", "a", "b", "c", "d", "e"]


def quantised(before: str | None, filled: bool) -> onnx.GraphProto:
    """A graph whose input stage was quantised: DN, filled by `before` or not, normalised, then bytes."""
    graph = begin(1 / STEP, ZERO)
    first = [onnx.helper.make_node("QuantizeLinear", ["other", "low"], ["other bytes"], "other")]
    if before:
        fill = "Where" if filled else "Mul"
        first += [
            onnx.helper.make_node("Cast", ["tiles"], ["floats"], "cast"),
            onnx.helper.make_node(fill, ["absent", "low", "high"], ["fill"], "fill"),
            onnx.helper.make_node(before, ["floats", "fill"], ["dn"], "larger"),
        ]
    bits = [onnx.helper.make_node("QuantizeLinear", ["clipped", "low", "high"], ["bytes"], "quantise")]
    bits += [onnx.helper.make_node("DequantizeLinear", ["bytes", "low", "high"], ["values"], "dequantise")]
    graph.node[3].input[0] = "values"
    made = onnx.helper.make_graph(
        [*first, *graph.node[:3], *bits, graph.node[3]],
        "quantised",
        [],
        [onnx.helper.make_tensor_value_info("result", 1, [1])],
        [*graph.initializer, onnx.numpy_helper.from_array(KERNEL, "result")],
    )
    zero = np.full(13, 32, np.uint8)
    fold(made, InputStage("dn", "clipped", STEP, zero, ("multiply", "add", "clip")))
    return made


@pytest.mark.parametrize(("before", "filled"), [(None, False), ("Add", True), ("Mul", True), ("Max", False)])
def test_the_input_stage_becomes_one_node_and_what_is_no_filling_stays(
    before: str | None, filled: bool
) -> None:
    graph = quantised(before, filled)
    kept = ["cast", "fill", "larger"] if before else []
    assert [node.name for node in graph.node] == ["other", *kept, "quantise", "dequantise", "conv"]
    (node,) = (node for node in graph.node if node.name == "quantise")
    assert list(node.input) == ["dn", "input_step", "input_zero"]
    assert [(attribute.name, attribute.i) for attribute in node.attribute] == [("axis", 1)]
    assert {"scale", "shift"}.isdisjoint(tensor.name for tensor in graph.initializer)
    assert {"result", "input_step", "input_zero"} <= {tensor.name for tensor in graph.initializer}


def test_filling_is_moved_behind_the_quantisation() -> None:
    graph = quantised("Max", filled=True)
    assert [node.name for node in graph.node] == [
        "other",
        "cast",
        "quantise",
        "input_fill",
        "dequantise",
        "conv",
    ]
    nodes = {node.name: node for node in graph.node}
    assert list(nodes["quantise"].input) == ["floats", "input_step", "input_zero"]
    assert list(nodes["input_fill"].input) == ["absent", "input_middle", "bytes_unfilled"]
    assert list(nodes["input_fill"].output) == ["bytes"]
    (middle,) = (tensor for tensor in graph.initializer if tensor.name == "input_middle")
    assert onnx.numpy_helper.to_array(middle) == 128
