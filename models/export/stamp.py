"""Write a model file with what proves it whole: the digest of its bytes, and tiles with their answers."""

import base64
import hashlib
import zlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from tilewise.datasets.acquire.synthetic import render
from tilewise.datasets.core.tile import TILE_SIZE
from tilewise.datasets.readers.eurosat import CLASSES
from tilewise.models.model_file import (
    CPU_PROVIDER,
    INPUT,
    METADATA_KEY,
    OUTPUTS,
    SELF_TEST_SIZE,
    ModelMetadata,
    SelfTest,
    session_options,
)

_TILES = 4
_DIGITS = 6
_NO_DIGEST = "0" * 64


def save_model(graph: onnx.ModelProto, metadata: ModelMetadata, path: Path) -> None:
    """Write `graph` to `path` with `metadata`, in place of any that it has, a self-test and its digest."""
    session = ort.InferenceSession(graph.SerializeToString(), session_options(), providers=[CPU_PROVIDER])
    proof = {"self_test": make_self_test(session), "digest": _NO_DIGEST}
    text = metadata.model_copy(update=proof).model_dump_json()
    onnx.helper.set_model_props(graph, {METADATA_KEY: text})
    content = graph.SerializeToString()
    digest = hashlib.sha256(content).hexdigest()
    place = content.index(f'"digest":"{_NO_DIGEST}"'.encode()) + len('"digest":"')
    path.write_bytes(content[:place] + digest.encode() + content[place + len(digest) :])


def make_self_test(session: ort.InferenceSession) -> SelfTest:
    """Return synthetic tiles, subsampled to 8 × 8 pixels, and what `session` answers on them enlarged."""
    step = TILE_SIZE // SELF_TEST_SIZE
    chosen = CLASSES[:: len(CLASSES) // _TILES][:_TILES]
    pixels = np.stack([render(name, 0, seed=0)[:, ::step, ::step] for name in chosen]).astype("<u2")
    test = SelfTest(tiles=base64.b64encode(zlib.compress(pixels.tobytes(), 9)).decode(), probabilities=())
    answers = session.run([OUTPUTS[0]], {INPUT: test.enlarged()})[0]
    rows = tuple(tuple(round(float(value), _DIGITS) for value in row) for row in answers)
    return test.model_copy(update={"probabilities": rows})
