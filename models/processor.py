"""What this machine's processor does fast, as far as Linux tells. Free of torch and onnxruntime."""

from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
# Dot products of bytes, as Linux calls them: x86 (VNNI, AMX) and Arm (DotProd, I8MM).
_INSTRUCTIONS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})


def int8_instructions(cpu_info: Path = _CPU_INFO) -> frozenset[str]:
    """Return which instructions for dot products of bytes this processor has; none where Linux does not tell."""
    try:
        lines = cpu_info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return _INSTRUCTIONS & frozenset(flags.partition(":")[2].split())
