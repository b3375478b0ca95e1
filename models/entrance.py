"""The entrance of an INT8 file in one step: from DN to eight bits, without a pass in floats. Free of torch.

`models.preprocess` computes clip(dn × scale + shift, −128 / 24, 127 / 24), each band with its own scale and shift. The
convolution behind it takes round(24 × that) + 128, a number of eight bits. Both together are what QuantizeLinear does
along the axis of bands: round(dn / step) + zero, saturated at 0 and 255, with step = 1 / (24 scale) and
zero = 128 + 24 shift, which `Preprocess` makes a whole number. The float passes that this
saves take as long as a third of the network (docs/decisions/0013).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from models.eight_bits import MIDDLE, STEPS


@dataclass(frozen=True, slots=True)
class Entrance:
    """Where a graph normalises bands.

    Attributes:
        source: the tensor of DN, float32.
        result: the normalised tensor, which convolutions take.
        step: float32 (13,), DN in one eight-bit step.
        zero: uint8 (13,), the eight-bit number of DN 0.
        nodes: the names of the nodes between `source` and `result`.
    """

    source: str
    result: str
    step: npt.NDArray[np.float32]
    zero: npt.NDArray[np.uint8]
    nodes: tuple[str, ...]


def find_entrance(graph: onnx.GraphProto) -> Entrance | None:
    """Return the entrance of a graph that `models.preprocess` made, or None.

    None is of another form, or has a band that no training tile had: QuantizeLinear cannot ignore one.
    """
    made_by = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    first = next((node for node in graph.node if node.op_type == "Conv"), None)
    clip = made_by.get(first.input[0]) if first is not None else None
    add = _before(clip, "Clip", made_by)
    multiply = _before(add, "Add", made_by)
    if clip is None or add is None or multiply is None or multiply.op_type != "Mul":
        return None
    source, scale = _parted(multiply, constants)
    _, shift = _parted(add, constants)
    if scale is None or shift is None:
        return None
    exact = MIDDLE + STEPS * shift
    zero = exact.round()
    if (scale <= 0).any() or np.abs(exact - zero).max() > 1e-2 or zero.min() < 0 or zero.max() >= 2 * MIDDLE:
        return None
    names = tuple(node.name for node in (multiply, add, clip))
    return Entrance(source, clip.output[0], (1 / (STEPS * scale)).astype(np.float32), zero.astype(np.uint8), names)


def overrides(entrance: Entrance) -> dict[str, list[dict[str, npt.NDArray[np.generic]]]]:
    """Return what makes onnxruntime's quantiser take the entrance's own steps, as its `TensorQuantOverrides`."""
    return {entrance.result: [{"scale": np.array(1 / STEPS, np.float32), "zero_point": np.array(MIDDLE, np.uint8)}]}


def fold(graph: onnx.GraphProto, entrance: Entrance) -> None:
    """Take the float passes out of a graph that was quantised with `overrides`, leaving one QuantizeLinear."""
    quantise = next(n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == entrance.result)
    for name, values in (("entrance_step", entrance.step), ("entrance_zero", entrance.zero)):
        graph.initializer.append(numpy_helper.from_array(values, name))
    quantise.input[:] = [entrance.source, "entrance_step", "entrance_zero"]
    quantise.attribute.append(helper.make_attribute("axis", 1))
    for node in [n for n in graph.node if n.name in entrance.nodes]:
        graph.node.remove(node)
    _fill_in_eight_bits(graph, quantise)
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)


def _fill_in_eight_bits(graph: onnx.GraphProto, quantise: onnx.NodeProto) -> None:
    """Fill absent bands behind `quantise` and not before it: by the byte 128, where floats are four times as much."""
    made_by = {output: node for node in graph.node for output in node.output}
    larger = made_by.get(quantise.input[0])
    if larger is None or larger.op_type != "Max":
        return
    fill = next((made_by[name] for name in larger.input if name in made_by and made_by[name].op_type == "Where"), None)
    if fill is None:
        return
    quantise.input[0] = next(name for name in larger.input if name != fill.output[0])
    bits, quantise.output[0] = quantise.output[0], f"{quantise.output[0]}_unfilled"
    graph.initializer.append(numpy_helper.from_array(np.array(MIDDLE, np.uint8), "entrance_middle"))
    chosen = helper.make_node(
        "Where", [fill.input[0], "entrance_middle", quantise.output[0]], [bits], name="entrance_fill"
    )
    graph.node.insert(list(graph.node).index(quantise) + 1, chosen)
    for node in (larger, fill):
        graph.node.remove(node)


def _before(node: onnx.NodeProto | None, kind: str, made_by: dict[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    """Return the node that made the first input of `node` that any node made, if `node` is of that kind."""
    if node is None or node.op_type != kind:
        return None
    return next((made_by[name] for name in node.input if name in made_by), None)


def _parted(
    node: onnx.NodeProto, constants: dict[str, npt.NDArray[np.generic]]
) -> tuple[str, npt.NDArray[np.float64] | None]:
    """Return a node's variable input and its constant one, (13,) in float64; None where it has none of that shape."""
    found = [constants[name] for name in node.input if name in constants]
    variable = next((name for name in node.input if name not in constants), "")
    flat = found[0].astype(np.float64).ravel() if found else np.zeros(0)
    return variable, flat if len(flat) > 1 else None
