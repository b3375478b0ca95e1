"""Which device networks run on, and what a user is told where onnxruntime cannot use it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from tilewise.bento.inference.device import (
    CUDA_PROVIDER,
    Device,
    choose,
    cuda_missing,
    precision_on,
    providers_of,
)
from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.precision import Precision
from tilewise.datasets.core.errors import TilewiseError

without_gpu = pytest.mark.skipif(cuda_missing() is None, reason="onnxruntime has a GPU here")
with_gpu = pytest.mark.skipif(cuda_missing() is not None, reason=f"no GPU: {cuda_missing()}")


def test_the_processor_is_taken_where_it_is_asked_for() -> None:
    assert choose(Device.CPU) is Device.CPU


@without_gpu
def test_auto_is_the_processor_where_there_is_no_gpu() -> None:
    assert choose(Device.AUTO) is Device.CPU


@without_gpu
@pytest.mark.skipif(CUDA_PROVIDER in ort.get_available_providers(), reason="another sentence is due here")
def test_a_gpu_that_onnxruntime_cannot_use_is_refused_with_the_way_out() -> None:
    with pytest.raises(TilewiseError) as refusal:
        choose(Device.CUDA)
    assert str(refusal.value) == (
        f"TILEWISE_DEVICE is cuda, but onnxruntime {ort.__version__} is the one without CUDA; "
        "pip uninstall onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]'"
    )


@pytest.mark.parametrize(
    ("device", "requested", "precision"),
    [
        (Device.CUDA, Precision.AUTO, Precision.FP32),
        (Device.CUDA, Precision.INT8, Precision.INT8),
        (Device.CPU, Precision.AUTO, Precision.AUTO),
    ],
)
def test_a_gpu_runs_the_fp32_file_where_nobody_says_otherwise(
    device: Device, requested: Precision, precision: Precision
) -> None:
    assert precision_on(device, requested) is precision


def test_a_gpu_s_providers_end_with_the_processor() -> None:
    assert providers_of(Device.CUDA) == [CUDA_PROVIDER, "CPUExecutionProvider"]
    assert providers_of(Device.CPU) == ["CPUExecutionProvider"]


def test_looking_for_a_gpu_prints_nothing() -> None:
    """onnxruntime itself prints pages; the service says in one line what is missing."""
    code = "from tilewise.bento.inference.device import cuda_missing; cuda_missing()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("", "")


@with_gpu
def test_a_gpu_answers_as_the_processor_does(model_file: Path) -> None:
    tiles = np.random.default_rng(0).integers(1, 4000, (300, 13, 64, 64), dtype=np.uint16)
    on_gpu, on_cpu = (Engine(model_file, 1, device).classify(tiles) for device in (Device.CUDA, Device.CPU))
    np.testing.assert_allclose(on_gpu.probabilities, on_cpu.probabilities, atol=2e-3)
