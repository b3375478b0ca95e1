"""Where a run came from: code, data, environment."""

import platform
import subprocess
from collections.abc import Sequence
from hashlib import sha256
from importlib.metadata import distributions
from pathlib import Path

_PROJECT = Path(__file__).resolve().parent.parent


def code_revision() -> str:
    """Return the git revision of the code, with `-dirty` where tracked files were changed; empty without git."""
    revision = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return f"{revision}-dirty" if revision and changed else revision


def dvc_lock_hash() -> str:
    """Return the SHA-256 of `dvc.lock`, which pins the bytes that the pipeline made; empty where there is none."""
    path = _PROJECT / "dvc.lock"
    return sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def environment() -> str:
    """Return the installed packages with their versions, one a line, and the platform, as a comment."""
    packages = {f"{d.metadata['Name']}=={d.version}" for d in distributions() if d.metadata["Name"]}
    lines: Sequence[str] = sorted(packages, key=str.lower)
    return "\n".join([f"# Python {platform.python_version()}, {platform.platform()}", *lines]) + "\n"


def _git(*arguments: str) -> str:
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=_PROJECT, capture_output=True, text=True, timeout=30, check=False
        )
    except OSError:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
