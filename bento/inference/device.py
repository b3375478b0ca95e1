"""Device: whether networks run on the processor or on an NVIDIA GPU, as far as onnxruntime can."""

import io
import logging
from contextlib import redirect_stdout
from enum import StrEnum
from functools import cache

import onnxruntime as ort

from tilewise.bento.inference.precision import Precision
from tilewise.datasets.core.errors import TilewiseError
from tilewise.models.model_file import CPU_PROVIDER

CUDA_PROVIDER = "CUDAExecutionProvider"
_SILENT, _WARNINGS = 4, 2  # severity; 2 is onnxruntime's own, which prints a page about what it does not find
_IDENTITY = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a"
    "0a08080112040a020801620f0a0179120a0a08080112040a02080142040a001011"
)
"""An ONNX graph of one operator, `Identity`."""
_LOG = logging.getLogger("tilewise")


class Device(StrEnum):
    """Requested device. `auto`: an NVIDIA GPU where onnxruntime can use one, else the processor."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


def choose(requested: Device) -> Device:
    """Return the device for networks, `CPU` or `CUDA`.

    Raises:
        TilewiseError: `CUDA` is requested and cannot be used; the message says what is missing.
    """
    if requested is Device.CPU:
        return requested
    missing = cuda_missing()
    if missing is None:
        return Device.CUDA
    if requested is Device.CUDA:
        raise TilewiseError(f"TILEWISE_DEVICE is cuda, but {missing}")
    if CUDA_PROVIDER in ort.get_available_providers():  # somebody installed it to be used
        _LOG.warning("networks run on the processor: %s", missing)
    return Device.CPU


@cache
def cuda_missing() -> str | None:
    """Return what keeps onnxruntime from an NVIDIA GPU, and the way out; None where it can use one."""
    if CUDA_PROVIDER not in ort.get_available_providers():
        return (
            f"onnxruntime {ort.__version__} is the one without CUDA; pip uninstall onnxruntime, then "
            "pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )
    _preload_cuda()
    ort.set_default_logger_severity(_SILENT)
    session = ort.InferenceSession(_IDENTITY, providers=[CUDA_PROVIDER, CPU_PROVIDER])
    ort.set_default_logger_severity(_WARNINGS)
    if CUDA_PROVIDER in session.get_providers():
        return None
    return (
        "onnxruntime finds no GPU, or not the CUDA and cuDNN that it needs; see nvidia-smi, and "
        "pip install 'onnxruntime-gpu[cuda,cudnn]'"
    )


def _preload_cuda() -> None:
    """Load CUDA and cuDNN from NVIDIA's Python packages, where onnxruntime does not look by itself."""
    with redirect_stdout(io.StringIO()):  # it prints each library that is not there
        ort.preload_dlls()


def providers_of(device: Device) -> list[str]:
    """Return onnxruntime's providers for a chosen device; what CUDA has no kernel for, the processor runs."""
    return [CUDA_PROVIDER, CPU_PROVIDER] if device is Device.CUDA else [CPU_PROVIDER]


def precision_on(device: Device, requested: Precision) -> Precision:
    """Return the precision to pick a file for: fp32 on a GPU, for which the INT8 files are not made, unless
    `requested` names one."""
    return Precision.FP32 if device is Device.CUDA and requested is Precision.AUTO else requested
