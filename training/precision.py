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


def _cpu_has_bf16() -> bool:
    has_avx = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return bool(has_avx() or has_amx())
