"""Small ONNX graphs of the model file's form, or almost: made without torch, in a millisecond."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from tilewise.datasets.core.tile import BAND_COUNT, TILE_SIZE
from tilewise.models.model_file import INPUT, METADATA_KEY, OUTPUTS, ModelMetadata, Outliers, PredictionSets


def metadata(classes: Sequence[str] = ("A", "B")) -> ModelMetadata:
    """Return sound metadata of a model that answers `classes`."""
    return ModelMetadata(name="tiny", version="0", classes=tuple(classes), network="linear on band means")


def calibrated(classes: Sequence[str]) -> ModelMetadata:
    """Return metadata of a model that knows all that a model can: prediction sets, and what is unlike its
    training."""
    sets = PredictionSets(method="split", thresholds={0.9: 0.05})
    outliers = Outliers(method="distance", threshold=1e5, false_alarms=0.01)
    return metadata(classes).model_copy(update={"prediction_sets": sets, "outliers": outliers})


def linear_graph(
    text: str | None,
    weights: npt.NDArray[np.float32] | None = None,
    *,
    size: int = TILE_SIZE,
    number_type: int = TensorProto.UINT16,
    outputs: Sequence[str] = OUTPUTS,
) -> onnx.ModelProto:
    """Return a graph whose logits are the bands' means times `weights` (14, classes), the last row a bias."""
    weights = np.zeros((BAND_COUNT + 1, 2), np.float32) if weights is None else weights
    nodes = [
        helper.make_node("Cast", [INPUT], ["dn"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["dn", "pixels"], ["embedding"], keepdims=0),
        helper.make_node("Gemm", ["embedding", "weights", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ReduceMean", ["embedding", "features"], ["outlier_score"], keepdims=0),
    ]
    constants = {
        "pixels": np.array([2, 3]),
        "features": np.array([1]),
        "weights": weights[:-1],
        "bias": weights[-1],
    }
    classes = weights.shape[1]
    widths = {"probabilities": [classes], "logits": [classes], "embedding": [BAND_COUNT], "outlier_score": []}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(INPUT, number_type, ["batch", BAND_COUNT, size, size])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *widths[name]])
            for name in outputs
        ],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if text is not None:
        helper.set_model_props(model, {METADATA_KEY: text})
    return model


def write_model(path: Path, text: str | None = None, **form: Any) -> Path:
    """Write a graph with `text` as its metadata, sound ones by default."""
    onnx.save(linear_graph(metadata().model_dump_json() if text is None else text, **form), str(path))
    return path
