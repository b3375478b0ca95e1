"""Static INT8 quantisation of the convolutional part of a model file, with one scale a channel.

Weights get a scale for each output channel, activations one for each tensor, calibrated on real tiles (Jacob
et al. 2018, arXiv:1712.05877; Nagel et al. 2021, arXiv:2106.08295). Head, softmax and outlier score stay in
32-bit floats. The input stage, from DN to eight bits, becomes one QuantizeLinear. It works on the file and
needs no network.
"""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from tilewise.datasets.core.errors import ExportError
from tilewise.datasets.core.files import atomic_write
from tilewise.datasets.core.tile import BAND_COUNT, DN
from tilewise.models.export.stamp import save_model
from tilewise.models.model_file import INPUT, INT8, ModelMetadata, open_model
from tilewise.models.network.preprocess import MIDDLE, STEPS


@dataclass(frozen=True, slots=True)
class InputStage:
    """The nodes of a graph that normalise bands.

    Attributes:
        source: the tensor of DN, float32.
        result: the normalised tensor, the input of the convolutions.
        step: float32 (13,), DN of one 8-bit step.
        zero: uint8 (13,), the 8-bit value of DN 0.
        nodes: the names of the nodes between `source` and `result`.
    """

    source: str
    result: str
    step: npt.NDArray[np.float32]
    zero: npt.NDArray[np.uint8]
    nodes: tuple[str, ...]


def find_input_stage(graph: onnx.GraphProto) -> InputStage | None:
    """Return the input stage of a graph with `tilewise.models.network.preprocess.Preprocess`, or None.

    None: the graph begins otherwise, or has a band that no training tile had, which QuantizeLinear cannot
        ignore.
    """
    made_by = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    first = next((node for node in graph.node if node.op_type == "Conv"), None)
    clip = made_by.get(first.input[0]) if first is not None else None
    if clip is not None and clip.op_type == "Resize":  # a network that works on larger tiles
        clip = made_by.get(clip.input[0])
    add = _before(clip, "Clip", made_by)
    multiply = _before(add, "Add", made_by)
    if clip is None or add is None or multiply is None or multiply.op_type != "Mul":
        return None
    source, scale = _variable_and_constant(multiply, constants)
    _, shift = _variable_and_constant(add, constants)
    if scale is None or shift is None:
        return None
    exact = MIDDLE + STEPS * shift
    zero = exact.round()
    if (scale <= 0).any() or np.abs(exact - zero).max() > 1e-2 or zero.min() < 0 or zero.max() >= 2 * MIDDLE:
        return None
    names = tuple(node.name for node in (multiply, add, clip))
    return InputStage(
        source, clip.output[0], (1 / (STEPS * scale)).astype(np.float32), zero.astype(np.uint8), names
    )


def quantisation_overrides(input_stage: InputStage) -> dict[str, list[dict[str, npt.NDArray[np.generic]]]]:
    """Return the input stage's scale and zero point, as `TensorQuantOverrides` of onnxruntime's quantiser."""
    return {
        input_stage.result: [
            {"scale": np.array(1 / STEPS, np.float32), "zero_point": np.array(MIDDLE, np.uint8)}
        ]
    }


def fold(graph: onnx.GraphProto, input_stage: InputStage) -> None:
    """Replace the input stage of a graph that was quantised with `quantisation_overrides` by one
    QuantizeLinear."""
    quantise = next(
        n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == input_stage.result
    )
    for name, values in (("input_step", input_stage.step), ("input_zero", input_stage.zero)):
        graph.initializer.append(numpy_helper.from_array(values, name))
    quantise.input[:] = [input_stage.source, "input_step", "input_zero"]
    quantise.attribute.append(helper.make_attribute("axis", 1))
    for node in [n for n in graph.node if n.name in input_stage.nodes]:
        graph.node.remove(node)
    _fill_in_eight_bits(graph, quantise)
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)


def _fill_in_eight_bits(graph: onnx.GraphProto, quantise: onnx.NodeProto) -> None:
    """Move the filling of absent bands behind `quantise`: on bytes, a quarter of the memory of floats."""
    made_by = {output: node for node in graph.node for output in node.output}
    larger = made_by.get(quantise.input[0])
    if larger is None or larger.op_type != "Max":
        return
    fill = next(
        (made_by[name] for name in larger.input if name in made_by and made_by[name].op_type == "Where"), None
    )
    if fill is None:
        return
    quantise.input[0] = next(name for name in larger.input if name != fill.output[0])
    bits, quantise.output[0] = quantise.output[0], f"{quantise.output[0]}_unfilled"
    graph.initializer.append(numpy_helper.from_array(np.array(MIDDLE, np.uint8), "input_middle"))
    chosen = helper.make_node(
        "Where", [fill.input[0], "input_middle", quantise.output[0]], [bits], name="input_fill"
    )
    graph.node.insert(list(graph.node).index(quantise) + 1, chosen)
    for node in (larger, fill):
        graph.node.remove(node)


def _before(
    node: onnx.NodeProto | None, kind: str, made_by: dict[str, onnx.NodeProto]
) -> onnx.NodeProto | None:
    """Return the node that computes the first computed input of `node`, if `node` is of that kind."""
    if node is None or node.op_type != kind:
        return None
    return next((made_by[name] for name in node.input if name in made_by), None)


def _variable_and_constant(
    node: onnx.NodeProto, constants: dict[str, npt.NDArray[np.generic]]
) -> tuple[str, npt.NDArray[np.float64] | None]:
    """Return a node's variable input and its constant, float64 (13,); None: it has none of that shape."""
    found = [constants[name] for name in node.input if name in constants]
    variable = next((name for name in node.input if name not in constants), "")
    flat = found[0].astype(np.float64).ravel() if found else np.zeros(0)
    return variable, flat if len(flat) == BAND_COUNT else None


_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}
_BATCH = 32
_BATCHES_AT_ONCE = 1  # whose activations are in memory at once


class _Tiles(CalibrationDataReader):
    """Reads tiles for onnxruntime's calibration, batch by batch."""

    def __init__(self, tiles: DN) -> None:
        self._tiles = tiles
        self._batches: list[int] = []

    def __len__(self) -> int:
        return -(-len(self._tiles) // _BATCH)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Read these batches next."""
        self._batches = list(range(start_index, end_index))

    def get_next(self) -> dict[str, DN] | None:
        """Return the next batch, or None."""
        if not self._batches:
            return None
        start = self._batches.pop(0) * _BATCH
        return {INPUT: self._tiles[start : start + _BATCH]}


def quantise(
    source: Path, target: Path, tiles: DN, method: str = "percentile", percentile: float = 99.99
) -> None:
    """Write the INT8 file of the model file `source` to `target`, with its metadata, without a check.

    Args:
        tiles: uint16 (n, 13, 64, 64), real tiles, some with absent bands: activation ranges are calibrated on
            them.
        method: how an activation's range is chosen from its values: all of them (`minmax`), `percentile`
            percent of them (`percentile`), or by least loss of information (`entropy`).

    Raises:
        ModelFileError: `source` is no model file.
        ExportError: it is INT8 already, or has no convolution.
    """
    original = open_model(source)
    if method not in _METHODS:
        raise ExportError(f"{method!r} is no method to choose ranges; use {', '.join(_METHODS)}")
    if original.metadata.precision == INT8:
        raise ExportError(f"{source}: is INT8 already; name the fp32 file")
    graph = onnx.load(str(source))
    nodes = convolutional(graph.graph)
    if not nodes:
        raise ExportError(f"{source}: has no convolution, so INT8 would change nothing; serve it as it is")
    input_stage = find_input_stage(graph.graph)
    with _quiet():
        quantize_static(
            graph,
            str(target),
            _Tiles(tiles),
            quant_format=QuantFormat.QDQ,
            # No others: every node of these types is measured, and some vary too little for that.
            op_types_to_quantize=sorted({node.op_type for node in graph.graph.node if node.name in nodes}),
            nodes_to_quantize=nodes,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=_METHODS[method],
            extra_options={
                "CalibPercentile": percentile,
                "ForceQuantizeNoInputCheck": True,  # the Resize before the first convolution
                "CalibStridedMinMax": _BATCHES_AT_ONCE,
                "TensorQuantOverrides": quantisation_overrides(input_stage) if input_stage else {},
            },
        )
    metadata = original.metadata.model_copy(update={"precision": INT8, "quantised_from": original.sha256})
    quantised = onnx.load(str(target))
    if input_stage:
        fold(quantised.graph, input_stage)
    _save(quantised, metadata, target)


def convolutional(graph: onnx.GraphProto) -> list[str]:
    """Return the names of the convolutions of a graph, and of the nodes between them, in order.

    Between them are activations (Relu, Clip), and the Add of two 8-bit tensors, which in floats would need
    three conversions; other Adds (of the input's normalisation, of the outlier score) are not. A Resize
    before the first convolution is: it then reads a quarter of the bytes.
    """
    names, grids, constants = [], set[str](), {tensor.name for tensor in graph.initializer}
    first = next((node.input[0] for node in graph.node if node.op_type == "Conv"), "")
    for node in graph.node:
        variable = [name for name in node.input if name and name not in constants]
        between = node.op_type in ("Add", "Relu", "Clip") and all(name in grids for name in variable)
        resized = node.op_type == "Resize" and first in node.output
        if node.op_type == "Conv" or between or resized:
            names.append(node.name)
            grids.update(node.output)
    return names


def rewrite_metadata(path: Path, metadata: ModelMetadata) -> None:
    """Put `metadata` into the model file `path`, in place of any that it has."""
    _save(onnx.load(str(path)), metadata, path)


def _save(graph: onnx.ModelProto, metadata: ModelMetadata, path: Path) -> None:
    with atomic_write(path, durable=False) as partial:
        save_model(graph, metadata, partial)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress onnxruntime's advice and internal output."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
