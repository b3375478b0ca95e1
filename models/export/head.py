"""Give a model file another head: the graph up to the embedding is kept, fp32 or INT8, of any network.

What follows the embedding is a `FineTunedHead`, so that no layer of the file is looked for by name but the
input check, which export names.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import helper, numpy_helper
from onnx.compose import add_prefix
from onnx.utils import Extractor

from tilewise.datasets.core.errors import ExportError
from tilewise.datasets.core.files import atomic_write
from tilewise.datasets.core.tile import BAND_COUNT, DN, TILE_SIZE
from tilewise.models.export.export import MAX_DIFFERENCE, quiet, strip_debug_info
from tilewise.models.export.stamp import save_model
from tilewise.models.model_file import CPU_PROVIDER, INPUT, OUTPUTS, ModelMetadata
from tilewise.models.network.finetuned import FineTunedHead
from tilewise.models.network.outliers import InputCheck

_EMBEDDING = "embedding"
_PREFIX = "finetuned/"
_CHECK = "check."
_SCORE = ("outliers.usual", "outliers.per_limit")  # of the input check, the second of two scores


def read_input_check(path: Path) -> InputCheck | None:
    """Return the input check in a model file, scaled so that 1 is its limit; None: it has none that was
    fitted."""
    arrays = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    check = InputCheck()
    for name, buffer in check.named_buffers():
        found = [array for key, array in arrays.items() if key.endswith(_CHECK + name)]
        if len(found) != 1 or found[0].shape != tuple(buffer.shape):
            return None
        buffer.copy_(torch.from_numpy(found[0].copy()))
    usual, per_limit = (_second(arrays, name) for name in _SCORE)
    if usual is not None and per_limit is not None:
        check.get_buffer("w2").mul_(per_limit)
        check.get_buffer("b2").sub_(usual).mul_(per_limit)
    return check


def _second(arrays: dict[str, np.ndarray], name: str) -> float | None:
    """Return the second number of the array whose name ends in `name`; None: a fine-tuned file has none."""
    return next((float(array[1]) for key, array in arrays.items() if key.endswith(name)), None)


def replace_head(
    source: Path, head: FineTunedHead, metadata: ModelMetadata, target: Path, tiles: DN
) -> float:
    """Write the model file `target`: the network of the file `source`, followed by `head`.

    Args:
        source: a model file, fp32 or INT8.
        metadata: of the new file.
        tiles: uint16 (n, 13, 64, 64), real tiles to check with; the file only appears if the check passes.

    Returns:
        The largest difference of a probability between torch and onnxruntime, on the same embeddings.

    Raises:
        ExportError: it is more than 0.0001.
    """
    graph = _joined(onnx.load(source), head.eval())
    with atomic_write(target) as partial:
        save_model(graph, metadata, partial)
        difference = _compare(partial, head, tiles)
        if not difference <= MAX_DIFFERENCE:
            raise ExportError(
                f"{target}: the new head's probabilities differ by {difference:.2g} from those fitted, the "
                f"limit is {MAX_DIFFERENCE:.0e}; nothing was written"
            )
    return difference


def _joined(model: onnx.ModelProto, head: FineTunedHead) -> onnx.ModelProto:
    """Return the graph of `model` up to the embedding, followed by that of `head`."""
    outputs = {output.name: output for output in model.graph.output}
    body = Extractor(model).extract_model([INPUT], [_EMBEDDING])
    opset = next(each.version for each in body.opset_import if not each.domain)
    tail = add_prefix(
        _trace(head, opset), _PREFIX, rename_inputs=False, rename_outputs=False, rename_functions=False
    )
    graph = helper.make_graph(
        [*body.graph.node, *tail.graph.node],
        model.graph.name,
        list(body.graph.input),
        [*tail.graph.output[:2], outputs[_EMBEDDING], tail.graph.output[2]],
        [*body.graph.initializer, *tail.graph.initializer],
    )
    return helper.make_model(graph, opset_imports=body.opset_import, ir_version=model.ir_version)


def _trace(head: FineTunedHead, opset: int) -> onnx.ModelProto:
    example = (
        torch.ones((2, BAND_COUNT, TILE_SIZE, TILE_SIZE), dtype=torch.uint16),
        torch.ones((2, head.head.in_features)),
    )
    batch = torch.export.Dim("batch")
    with quiet():
        program = torch.onnx.export(
            head,
            example,
            input_names=[INPUT, _EMBEDDING],
            output_names=[name for name in OUTPUTS if name != _EMBEDDING],
            dynamic_shapes=({0: batch}, {0: batch}),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise ExportError("torch could not trace the new head")
    strip_debug_info(program.model_proto.graph)
    return program.model_proto


def _compare(path: Path, head: FineTunedHead, tiles: DN) -> float:
    """Return the largest difference of a probability between the file and `head` on the file's embeddings."""
    session = ort.InferenceSession(str(path), providers=[CPU_PROVIDER])
    found, _, embedding, _ = session.run(list(OUTPUTS), {INPUT: tiles})
    with torch.no_grad():
        expected = head(torch.from_numpy(tiles), torch.from_numpy(embedding))[0].numpy()
    return float(np.abs(found - expected).max())
