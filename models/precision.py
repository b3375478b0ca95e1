"""Whether INT8 is worth it on this machine, and where a model's INT8 file lies. Free of torch.

`model.onnx` computes in 32-bit floats, `model.int8.onnx` beside it in 8-bit integers: a third of the time where the
processor has instructions for that, and nothing gained, or worse, where it has not.
"""

from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import onnxruntime as ort

from datasets.tile import BAND_COUNT, TILE_SIZE
from models.modelfile import INPUT, OUTPUTS

FP32, INT8 = "fp32", "int8"
LEAST_GAIN = 1.1  # times fp32's speed; less is not worth other answers, however little other they are
_SUFFIX = ".int8.onnx"
_BATCH = 16
_ROUNDS = 7


def int8_of(path: Path) -> Path:
    """Return where the INT8 file of the model file `path` lies, whether it is there or not."""
    return path.with_name(path.name.removesuffix(".onnx") + _SUFFIX)


def is_int8(path: Path) -> bool:
    """Whether `path` is named as INT8 files are."""
    return path.name.endswith(_SUFFIX)


def gain(fp32: ort.InferenceSession, int8: ort.InferenceSession) -> float:
    """Return how many times as fast `int8` is as `fp32` on batches of 16 tiles: medians of seven, taken in turn."""
    tiles = np.random.default_rng(0).integers(1, 4000, (_BATCH, BAND_COUNT, TILE_SIZE, TILE_SIZE), np.uint16)
    seconds: tuple[list[float], list[float]] = ([], [])
    for count in range(_ROUNDS + 1):
        for session, taken in zip((fp32, int8), seconds, strict=True):
            begun = perf_counter()
            session.run(list(OUTPUTS), {INPUT: tiles})
            if count:  # the first run allocates
                taken.append(perf_counter() - begun)
    return median(seconds[0]) / median(seconds[1])
