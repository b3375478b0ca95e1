"""A model file's own graph, run by torch: where gradients come from without the code that trained the network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from datasets.errors import ModelFileError
from models.modelfile import INPUT
from models.operators import OPERATORS

# What the operators here do not do; exporters of classifiers do not ask for it.
_UNUSUAL = {"auto_pad": (b"NOTSET", b"VALID"), "ceil_mode": (0,), "training_mode": (0,)}


class TorchGraph:
    """Tiles in, one output of the graph out, differentiable in the tiles.

    Args:
        graph: a model file's.
        output: which of its outputs.
        name: what the file is called in errors.

    Raises:
        ModelFileError: it has operators that are not among `models.operators.OPERATORS`.
    """

    def __init__(self, graph: onnx.ModelProto, output: str, name: str) -> None:
        self._output = output
        self._nodes = _needed(graph.graph, output)
        self._refuse_unknown(name)
        self._constants = {
            tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
            for tensor in graph.graph.initializer
        }

    def __call__(self, tiles: Tensor) -> Tensor:
        """Map DN, float32 (n, 13, 64, 64), to the output."""
        known: dict[str, Tensor] = {**self._constants, INPUT: tiles}
        for node, said in self._nodes:
            if node.op_type == "Constant":
                known[node.output[0]] = _constant(said)
            else:
                inputs = [known[name] if name else None for name in node.input]
                known[node.output[0]] = OPERATORS[node.op_type](said, *inputs)
        return known[self._output]

    def _refuse_unknown(self, name: str) -> None:
        unknown = {node.op_type for node, _ in self._nodes} - {*OPERATORS, "Constant"}
        unknown |= {
            f"{node.op_type} with {key}"
            for node, said in self._nodes
            for key, usual in _UNUSUAL.items()
            if said.get(key, usual[0]) not in usual
        }
        if unknown:
            raise ModelFileError(
                f"{name}: gradients do not pass its operators {', '.join(sorted(unknown))}; say --method occlusion"
            )


def load_torch_graph(path: Path, output: str) -> TorchGraph:
    """Return the graph of the model file `path` as far as `output`; raises ModelFileError as `TorchGraph` does."""
    return TorchGraph(onnx.load(path, load_external_data=False), output, str(path))


def _needed(graph: onnx.GraphProto, output: str) -> list[tuple[onnx.NodeProto, dict[str, Any]]]:
    """Return the nodes that `output` depends on, in order, with their attributes."""
    wanted, nodes = {output}, []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            wanted |= set(node.input)
            said = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
            nodes.append((node, said))
    return nodes[::-1]


def _constant(said: Mapping[str, Any]) -> Tensor:
    value = said["value"] if "value" in said else next(iter(said.values()))
    if isinstance(value, onnx.TensorProto):
        value = onnx.numpy_helper.to_array(value)
    return torch.from_numpy(np.array(value))
