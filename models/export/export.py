"""Export a trained classifier as a model file, checked against the classifier before it appears."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch

from tilewise.datasets.core.errors import ExportError
from tilewise.datasets.core.files import atomic_write
from tilewise.datasets.core.tile import BAND_COUNT, DN, TILE_SIZE
from tilewise.models.export.stamp import save_model
from tilewise.models.model_file import CPU_PROVIDER, INPUT, OUTPUTS, ModelMetadata
from tilewise.models.network.classifier import Classifier, Exported

OPSET = 20
MAX_DIFFERENCE = 1e-4  # of any probability, between torch and onnxruntime


def export(
    classifier: Classifier, metadata: ModelMetadata, path: Path, tiles: DN, tolerance: float = MAX_DIFFERENCE
) -> float:
    """Write `classifier` as the model file `path`, and return the largest difference of a probability on
    `tiles`.

    Args:
        tiles: uint16 (n, 13, 64, 64), real tiles to check with; the file only appears if the check passes.

    Raises:
        ExportError: onnxruntime's probabilities differ from torch's by more than `tolerance`.
    """
    with atomic_write(path) as partial:
        write_graph(classifier, metadata, partial)
        difference = compare(classifier, partial, tiles)
        if not difference <= tolerance:
            raise ExportError(
                f"{path}: the exported model's probabilities differ by {difference:.2g} from the "
                f"original's, the limit "
                f"is {tolerance:.0e}; nothing was written"
            )
    return difference


def write_graph(classifier: Classifier, metadata: ModelMetadata, path: Path) -> None:
    """Trace `classifier` and write it with its metadata, without a check."""
    example = torch.ones((2, BAND_COUNT, TILE_SIZE, TILE_SIZE), dtype=torch.uint16)
    with quiet():
        program = torch.onnx.export(
            Exported(classifier).eval().cpu(),
            (example,),
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise ExportError(f"{path}: torch could not trace the network")
    graph = program.model_proto
    strip_debug_info(graph.graph)
    save_model(graph, metadata, path)  # weights inside: an external file would be lost by the first copy


def strip_debug_info(graph: onnx.GraphProto) -> None:
    """Remove what torch stores with each node: stack traces, with paths of the exporting machine."""
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer, graph):
        del part.metadata_props[:]
        part.doc_string = ""


def compare(classifier: Classifier, path: Path, tiles: DN) -> float:
    """Return the largest difference of a probability between `classifier` and the file `path` on `tiles`."""
    session = ort.InferenceSession(str(path), providers=[CPU_PROVIDER])
    largest = 0.0
    for start in range(0, len(tiles), 64):
        batch = tiles[start : start + 64]
        with torch.no_grad():
            expected = Exported(classifier).eval()(torch.from_numpy(batch))[0].numpy()
        found = session.run([OUTPUTS[0]], {INPUT: batch})[0]
        largest = max(largest, float(np.abs(found - expected).max()))
    return largest


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the exporter's progress output and its internal warnings."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.getLogger("torch.onnx").setLevel(level)
