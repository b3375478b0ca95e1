"""From a model file to its INT8 sibling: static quantisation of the convolutional part, one scale a channel.

Weights get a scale for each output channel, activations one for each tensor, whose range is seen on real tiles
(Jacob et al. 2018, arXiv:1712.05877; Nagel et al. 2021, arXiv:2106.08295). Head, softmax and outlier score stay in
32-bit floats, so the outputs are what they were. Free of torch: it works on the file and not on the network.
"""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from datasets.errors import ExportError
from datasets.tile import DN
from models.entrance import find_entrance, fold, overrides
from models.modelfile import INPUT, METADATA_KEY, ModelMetadata, open_model
from models.precision import INT8

_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}
_QUANTISED = ["Conv", "Add", "Relu"]  # see `convolutional` for which of them
_BATCH = 32
_BATCHES_AT_ONCE = 1  # whose activations are kept before they are counted: a bound on memory


class _Tiles(CalibrationDataReader):
    """Hands tiles to onnxruntime's calibration, one batch each time that it asks for a range of batches."""

    def __init__(self, tiles: DN) -> None:
        self._tiles = tiles
        self._batches: list[int] = []

    def __len__(self) -> int:
        return -(-len(self._tiles) // _BATCH)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Hand out these batches next."""
        self._batches = list(range(start_index, end_index))

    def get_next(self) -> dict[str, DN] | None:
        """Return the next batch, or None."""
        if not self._batches:
            return None
        start = self._batches.pop(0) * _BATCH
        return {INPUT: self._tiles[start : start + _BATCH]}


def quantise(source: Path, target: Path, tiles: DN, method: str = "percentile", percentile: float = 99.99) -> None:
    """Write the INT8 form of the model file `source` to `target`, with its metadata, unchecked.

    Args:
        tiles: uint16 (n, 13, 64, 64), real ones, some with absent bands: ranges are taken from what they excite.
        method: how an activation's range is chosen from its values: all of them (`minmax`), `percentile` percent of
            them (`percentile`), or what loses least information (`entropy`).

    Raises:
        ModelFileError: `source` is no model file.
        ExportError: it is INT8 already, or has no convolution.
    """
    original = open_model(source)
    if method not in _METHODS:
        raise ExportError(f"{method!r} is no way to choose ranges; say {', '.join(_METHODS)}")
    if original.metadata.precision == INT8:
        raise ExportError(f"{source}: is INT8 already; name the fp32 file")
    graph = onnx.load(str(source))
    nodes = convolutional(graph.graph)
    if not nodes:
        raise ExportError(f"{source}: has no convolution, so INT8 would change nothing; serve it as it is")
    entrance = find_entrance(graph.graph)
    with _quiet():
        quantize_static(
            graph,
            str(target),
            _Tiles(tiles),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_QUANTISED,
            nodes_to_quantize=nodes,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=_METHODS[method],
            extra_options={
                "CalibPercentile": percentile,
                "CalibStridedMinMax": _BATCHES_AT_ONCE,
                "TensorQuantOverrides": overrides(entrance) if entrance else {},
            },
        )
    metadata = original.metadata.model_copy(update={"precision": INT8, "quantised_from": original.sha256})
    quantised = onnx.load(str(target))
    if entrance:
        fold(quantised.graph, entrance)
    _save(quantised, metadata, target)


def convolutional(graph: onnx.GraphProto) -> list[str]:
    """Return the names of the convolutions, and of the sums and rectifiers between them, in a graph in order.

    A sum of two grids of eight bits stays in eight bits; one in floats costs two passes over both and one back. Sums
    that no convolution leads to (of the input's normalisation, of the outlier score) are not among them.
    """
    names, grids = [], set[str]()
    for node in graph.node:
        between = node.op_type in ("Add", "Relu") and all(name in grids for name in node.input)
        if node.op_type == "Conv" or between:
            names.append(node.name)
            grids.update(node.output)
    return names


def rewrite_metadata(path: Path, metadata: ModelMetadata) -> None:
    """Put `metadata` into the model file `path`, in the place of any that it has."""
    _save(onnx.load(str(path)), metadata, path)


def _save(graph: onnx.ModelProto, metadata: ModelMetadata, path: Path) -> None:
    onnx.helper.set_model_props(graph, {METADATA_KEY: metadata.model_dump_json()})
    onnx.save(graph, str(path))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep onnxruntime's advice and its prints about its own insides away from the user."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
