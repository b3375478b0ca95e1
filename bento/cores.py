"""How many cores this process may really use."""

import math
import os
from pathlib import Path

_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of control groups v2: "max 100000" or "150000 100000"


def usable_cores() -> int:
    """Return the cores that affinity and container quota leave to this process, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _quota(cores)))


def _quota(cores: int) -> int:
    try:
        quota, period = _CGROUP_QUOTA.read_text(encoding="ascii").split()
        return cores if quota == "max" else math.ceil(int(quota) / int(period))
    except (OSError, ValueError):
        return cores
