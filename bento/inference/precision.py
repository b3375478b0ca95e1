"""Which of a model's two files is served: fp32, or the INT8 file beside it where this processor gains by it."""

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
    """What an operator may ask for.

    `auto`: INT8 where the processor has instructions for it, or a measurement says that it gains; `fp32`: the file that
    was named and no other; `int8`: INT8 wherever a model has it.
    """

    AUTO = "auto"
    FP32 = "fp32"
    INT8 = "int8"


def pick(path: Path, precision: Precision = Precision.AUTO) -> Path:
    """Return the file to serve for the model file `path`: itself, or its INT8 file.

    An INT8 file that cannot be opened, or was made from another fp32 file, is done without, and the log says so.

    Raises:
        ModelFileError: `path` has an INT8 file and is itself no model file.
    """
    sibling = int8_of(path)
    if precision is Precision.FP32 or is_int8(path):
        return path
    if not sibling.is_file():
        if precision is Precision.INT8:
            _LOG.warning("%s has no INT8 file beside it; it is served as it is", path)
        return path
    return _pick(path, sibling, precision, state(path), state(sibling))


def settled(found: Path, precision: Precision) -> Precision:
    """Return what further processes are to be told, so that none measures again and comes to another view.

    Args:
        found: what `pick` returned for `precision` in this process.
    """
    if precision is not Precision.AUTO or int8_instructions():
        return precision
    if int8_of(found).is_file():  # a measurement was against it
        return Precision.FP32
    return Precision.INT8 if is_int8(found) else precision


def state(path: Path) -> str:
    """Return what changes when a file is replaced; empty where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"


@lru_cache(maxsize=16)
def _pick(path: Path, sibling: Path, precision: Precision, *_: str) -> Path:
    """Decide once for each pair of files: sources are looked at every few seconds."""
    fp32 = _open(path)
    try:
        int8 = _open(sibling)
    except ModelFileError as error:
        _LOG.warning("%s is served in fp32: %s", path, error)
        return path
    if int8.metadata.quantised_from != fp32.sha256:
        _LOG.warning("%s is served in fp32: %s was made from another file; export again", path, sibling)
        return path
    return sibling if precision is Precision.INT8 or _gains(fp32, int8) else path


def _gains(fp32: ModelFile, int8: ModelFile) -> bool:
    """Whether INT8 is worth it on this processor: by what Linux says of it, else by a measurement."""
    if int8_instructions():
        return True
    faster = gain(fp32.session, int8.session)
    if faster < MIN_GAIN:
        _LOG.warning(
            "%s is served in fp32: this processor gains nothing by INT8 (%.2f times as fast); "
            "TILEWISE_PRECISION=int8 asks for it all the same",
            fp32.path,
            faster,
        )
    return faster >= MIN_GAIN


def _open(path: Path) -> ModelFile:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return open_model(path, options)
