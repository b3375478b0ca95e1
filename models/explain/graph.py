"""Run the ONNX graph of a model file in torch, operator by operator, to have gradients without the training
code."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional

from tilewise.datasets.core.errors import ModelFileError
from tilewise.models.model_file import INPUT

Attributes = Mapping[str, Any]
Operator = Callable[..., Tensor]


def _cast(attributes: Attributes, x: Tensor) -> Tensor:
    kind = onnx.helper.tensor_dtype_to_np_dtype(attributes["to"])
    return x.to(getattr(torch, kind.name))


def _clip(_: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return torch.clamp(x, min=low, max=high)


def _convolve(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    padded = functional.pad(x, _sides(attributes))
    strides, dilations = attributes.get("strides", 1), attributes.get("dilations", 1)
    return functional.conv2d(padded, weight, bias, strides, 0, dilations, attributes.get("group", 1))


def _max_pool(attributes: Attributes, x: Tensor) -> Tensor:
    padded = functional.pad(x, _sides(attributes), value=-torch.inf)
    return functional.max_pool2d(
        padded, attributes["kernel_shape"], attributes.get("strides", 1), 0, attributes.get("dilations", 1)
    )


def _sides(attributes: Attributes) -> list[int]:
    """Return ONNX's padding (top, left, bottom, right) in torch's order."""
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    return [left, right, top, bottom]


def _batch_norm(
    attributes: Attributes, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    return functional.batch_norm(x, mean, variance, scale, shift, eps=attributes.get("epsilon", 1e-5))


def _gemm(attributes: Attributes, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    product = (a.t() if attributes.get("transA") else a) @ (b.t() if attributes.get("transB") else b)
    product = attributes.get("alpha", 1.0) * product
    return product if c is None else product + attributes.get("beta", 1.0) * c


def _hard_sigmoid(attributes: Attributes, x: Tensor) -> Tensor:
    return torch.clamp(attributes.get("alpha", 0.2) * x + attributes.get("beta", 0.5), 0, 1)


def _reduced(reduce: Callable[..., Tensor]) -> Operator:
    def run(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        dims = attributes.get("axes") if axes is None else axes.tolist()
        if not dims and attributes.get("noop_with_empty_axes"):
            return x
        return reduce(x, dim=tuple(dims or range(x.ndim)), keepdim=bool(attributes.get("keepdims", 1)))

    return run


def _reshape(attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    lengths = shape.tolist()
    if not attributes.get("allowzero"):
        lengths = [x.shape[axis] if length == 0 else length for axis, length in enumerate(lengths)]
    return x.reshape(lengths)


def _shape(attributes: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(x.shape[attributes.get("start", 0) : attributes.get("end")])


def _flatten(attributes: Attributes, x: Tensor) -> Tensor:
    return x.flatten(attributes.get("axis", 1)) if attributes.get("axis", 1) else x.reshape(1, -1)


def _squeeze(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    dims = attributes.get("axes") if axes is None else axes.tolist()
    return x.squeeze() if dims is None else x.squeeze(tuple(dims))


def _unsqueeze(attributes: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    dims = attributes.get("axes", []) if axes is None else axes.tolist()
    final = x.ndim + len(dims)
    for dim in sorted(dim % final for dim in dims):
        x = x.unsqueeze(dim)
    return x


def _gather(attributes: Attributes, x: Tensor, index: Tensor) -> Tensor:
    axis = attributes.get("axis", 0) % x.ndim
    found = x.index_select(axis, index.flatten() % x.shape[axis])
    return found.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _slice(
    _: Attributes,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    dims = range(len(starts)) if axes is None else axes.tolist()
    strides = [1] * len(starts) if steps is None else steps.tolist()
    for start, end, dim, stride in zip(starts.tolist(), ends.tolist(), dims, strides, strict=True):
        # By indices, as torch has no slices of negative stride.
        chosen = range(x.shape[dim])[slice(start, None if end < -x.shape[dim] else end, stride)]
        x = x.index_select(dim, torch.tensor(chosen))
    return x


def _resize(
    _: Attributes, x: Tensor, region: Tensor | None, scales: Tensor | None, sizes: Tensor | None = None
) -> Tensor:
    """Resample height and width bilinearly; other modes are not supported."""
    if sizes is not None:
        side = tuple(sizes.tolist()[2:])
    else:
        assert scales is not None  # noqa: S101 - ONNX asks for one of them
        side = tuple(int(n * scale) for n, scale in zip(x.shape[2:], scales.tolist()[2:], strict=True))
    return functional.interpolate(x, size=side, mode="bilinear", align_corners=False)


def _folded(fold: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda _, *parts: functools.reduce(fold, parts)


def _quantise(attributes: Attributes, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Return whole numbers as float; gradients pass rounding unchanged (straight-through estimator).

    Bengio, Léonard & Courville 2013, https://arxiv.org/abs/1308.3432.
    """
    limits = torch.iinfo(torch.uint8 if zero is None else zero.dtype)
    exact = x / _along(attributes, scale, x)
    rounded = exact + (exact.round() - exact).detach()
    return (rounded + (0 if zero is None else _along(attributes, zero, x).float())).clamp(
        limits.min, limits.max
    )


def _dequantise(attributes: Attributes, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    offset = 0 if zero is None else _along(attributes, zero, x).float()
    return (x.float() - offset) * _along(attributes, scale, x)


def _along(attributes: Attributes, values: Tensor, x: Tensor) -> Tensor:
    """Return one number, or one for each slice of `x` along the attribute `axis`, in a shape that
    broadcasts."""
    if values.numel() == 1:
        return values.reshape(())
    shape = [1] * x.ndim
    shape[attributes.get("axis", 1)] = -1
    return values.reshape(shape)


OPERATORS: dict[str, Operator] = {
    "Abs": lambda _, x: x.abs(),
    "Add": lambda _, a, b: a + b,
    "And": lambda _, a, b: a & b,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda attributes, *parts: torch.cat(parts, attributes["axis"]),
    "Conv": _convolve,
    "DequantizeLinear": _dequantise,
    "Div": lambda _, a, b: a / b,
    "Equal": lambda _, a, b: a == b,
    "Exp": lambda _, x: x.exp(),
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda _, x: x.mean((2, 3), keepdim=True),
    "Greater": lambda _, a, b: a > b,
    "GreaterOrEqual": lambda _, a, b: a >= b,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda _, x: functional.hardswish(x),
    "Identity": lambda _, x: x,
    "Less": lambda _, a, b: a < b,
    "LessOrEqual": lambda _, a, b: a <= b,
    "Log": lambda _, x: x.log(),
    "MatMul": lambda _, a, b: a @ b,
    "Max": _folded(torch.maximum),
    "MaxPool": _max_pool,
    "Min": _folded(torch.minimum),
    "Mul": lambda _, a, b: a * b,
    "Neg": lambda _, x: -x,
    "Not": lambda _, x: ~x,
    "Or": lambda _, a, b: a | b,
    "Pow": lambda _, a, b: a**b,
    "QuantizeLinear": _quantise,
    "Range": lambda _, start, end, step: torch.arange(start.item(), end.item(), step.item()),
    "ReduceMax": _reduced(torch.amax),
    "ReduceMin": _reduced(torch.amin),
    "ReduceMean": _reduced(torch.mean),
    "ReduceSum": _reduced(torch.sum),
    "Relu": lambda _, x: functional.relu(x),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Sigmoid": lambda _, x: torch.sigmoid(x),
    "Slice": _slice,
    "Softmax": lambda attributes, x: torch.softmax(x, attributes.get("axis", -1)),
    "Sqrt": lambda _, x: x.sqrt(),
    "Squeeze": _squeeze,
    "Sub": lambda _, a, b: a - b,
    "Tanh": lambda _, x: torch.tanh(x),
    "Transpose": lambda attributes, x: x.permute(attributes["perm"]),
    "Unsqueeze": _unsqueeze,
    "Where": lambda _, condition, a, b: torch.where(condition, a, b),
}


# Attribute values that the operators support; exporters of classifiers use no others.
_SUPPORTED = {
    "auto_pad": (b"NOTSET", b"VALID"),
    "ceil_mode": (0,),
    "training_mode": (0,),
    "mode": (b"linear",),
    "coordinate_transformation_mode": (b"half_pixel", b"pytorch_half_pixel"),
}


class TorchGraph:
    """One output of an ONNX graph as a function of tiles, differentiable in the tiles.

    Args:
        graph: a model file's graph.
        output: name of the output.
        name: name of the file, for errors.

    Raises:
        ModelFileError: it has operators that are not among `tilewise.models.explain.graph.OPERATORS`.
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
        for node, attributes in self._nodes:
            if node.op_type == "Constant":
                known[node.output[0]] = _constant(attributes)
            else:
                inputs = [known[name] if name else None for name in node.input]
                known[node.output[0]] = OPERATORS[node.op_type](attributes, *inputs)
        return known[self._output]

    def _refuse_unknown(self, name: str) -> None:
        unknown = {node.op_type for node, _ in self._nodes} - {*OPERATORS, "Constant"}
        unknown |= {
            f"{node.op_type} with {key}"
            for node, attributes in self._nodes
            for key, usual in _SUPPORTED.items()
            if attributes.get(key, usual[0]) not in usual
        }
        if unknown:
            raise ModelFileError(
                f"{name}: gradients are not supported for its operators {', '.join(sorted(unknown))}; "
                "use --method occlusion"
            )


def load_torch_graph(path: Path, output: str) -> TorchGraph:
    """Return the graph of the model file `path` as far as `output`; raises ModelFileError as `TorchGraph`
    does."""
    return TorchGraph(onnx.load(path, load_external_data=False), output, str(path))


def _needed(graph: onnx.GraphProto, output: str) -> list[tuple[onnx.NodeProto, dict[str, Any]]]:
    """Return the nodes that `output` depends on, in order, with their attributes."""
    wanted, nodes = {output}, []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            wanted |= set(node.input)
            attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
            nodes.append((node, attributes))
    return nodes[::-1]


def _constant(attributes: Mapping[str, Any]) -> Tensor:
    value = attributes["value"] if "value" in attributes else next(iter(attributes.values()))
    if isinstance(value, onnx.TensorProto):
        value = onnx.numpy_helper.to_array(value)
    return torch.from_numpy(np.array(value))
