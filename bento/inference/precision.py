"""Precision: whether to serve a model from its fp32 file, or from the INT8 file beside it."""

import logging
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

import onnxruntime as ort

from tilewise.datasets.core.errors import ModelFileError
from tilewise.models.model_file import (
    MIN_GAIN,
    ModelFile,
    gain,
    int8_instructions,
    int8_of,
    is_int8,
    open_model,
)

_LOG = logging.getLogger("tilewise")


class Precision(StrEnum):
    """Requested precision.

    `auto`: INT8 if the processor has instructions for it, or if INT8 is measured to be faster; `fp32`: only
    the file that was named; `int8`: the INT8 file of every model that has one.
    """

    AUTO = "auto"
    FP32 = "fp32"
    INT8 = "int8"


def pick(path: Path, precision: Precision = Precision.AUTO) -> Path:
    """Return the file to serve for the model file `path`: the file itself, or its INT8 file.

    An INT8 file that cannot be opened, or was made from another fp32 file, is ignored with a warning in the
    log.

    Raises:
        ModelFileError: `path` has an INT8 file and is itself not a valid model file.
    """
    sibling = int8_of(path)
    if precision is Precision.FP32 or is_int8(path):
        return path
    if not sibling.is_file():
        if precision is Precision.INT8:
            _LOG.warning("%s has no INT8 file beside it; serving fp32", path)
        return path
    return _pick(path, sibling, precision, state(path), state(sibling))


def settled(found: Path, precision: Precision) -> Precision:
    """Return the precision to pass to child processes, so that none measures again with another outcome.

    Args:
        found: the file that `pick` returned in this process.
        precision: that it was picked for.
    """
    if precision is not Precision.AUTO or int8_instructions():
        return precision
    if int8_of(found).is_file():  # a measurement was against it
        return Precision.FP32
    return Precision.INT8 if is_int8(found) else precision


def state(path: Path) -> str:
    """Return a text that changes when the file at `path` is replaced; empty if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"


@lru_cache(maxsize=16)
def _pick(path: Path, sibling: Path, precision: Precision, *_: str) -> Path:
    """Decide once for each pair of files: model sources are polled every few seconds."""
    fp32 = _open(path)
    try:
        int8 = _open(sibling)
    except ModelFileError as error:
        _LOG.warning("%s is served in fp32: %s", path, error)
        return path
    if int8.metadata.quantised_from != fp32.sha256:
        _LOG.warning("%s is served in fp32: %s was made from another file; export it again", path, sibling)
        return path
    return sibling if precision is Precision.INT8 or _gains(fp32, int8) else path


def _gains(fp32: ModelFile, int8: ModelFile) -> bool:
    """Return whether INT8 is faster on this processor: by its instructions, else by a measurement."""
    if int8_instructions():
        return True
    faster = gain(fp32.session, int8.session)
    if faster < MIN_GAIN:
        _LOG.warning(
            "%s is served in fp32: INT8 is no faster on this processor (%.2f times as fast); "
            "TILEWISE_PRECISION=int8 serves it nevertheless",
            fp32.path,
            faster,
        )
    return faster >= MIN_GAIN


def _open(path: Path) -> ModelFile:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return open_model(path, options)
