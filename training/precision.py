"""Which numbers to train in, chosen by what the machine does fast."""

import torch

AUTO = "auto"


def best_precision() -> str:
    """Return Lightning's name of the fastest sound precision of this machine.

    bf16 on GPUs that have it and on CPUs with bfloat16 instructions (AVX-512 BF16 or AMX), fp16 with loss scaling on
    older GPUs, 32 bit elsewhere.
    """
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    return "bf16-mixed" if _cpu_has_bf16() else "32-true"


def allow_tf32(allowed: bool) -> None:
    """Let NVIDIA GPUs since Ampere multiply 32-bit numbers with 10-bit mantissas (TF32), or forbid it.

    Training takes it: what of it runs in 32 bit is then several times faster, and no less exact than the rest in bf16.
    Testing and export do not: what is measured and shipped is measured and shipped in 32 bit. Without this call, torch
    would use it in convolutions and not in products of matrices.
    """
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def _cpu_has_bf16() -> bool:
    has_avx = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return bool(has_avx() or has_amx())
