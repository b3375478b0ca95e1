"""What can be set from outside, in one place: environment variables that begin with SENTILE_."""

import os
from dataclasses import dataclass
from pathlib import Path

from datasets.errors import ModelFileError

RUNS = Path("artifacts")
MODEL_NAME = "model.onnx"


@dataclass(frozen=True)
class Settings:
    """The service's settings.

    Attributes:
        model: SENTILE_MODEL, path of the model file; None: the newest exported one.
        threads: SENTILE_THREADS, threads of onnxruntime in each process; 0: as many as there are cores.
        most_tiles: SENTILE_MOST_TILES, tiles in one request.
        most_bytes: SENTILE_MOST_BYTES, bytes in one request's body.
    """

    model: Path | None = None
    threads: int = 0
    most_tiles: int = 256
    most_bytes: int = 64 * 2**20

    @classmethod
    def from_environment(cls) -> "Settings":
        """Read the settings from the environment."""
        model = os.environ.get("SENTILE_MODEL")
        return cls(
            model=Path(model) if model else None,
            threads=int(os.environ.get("SENTILE_THREADS", cls.threads)),
            most_tiles=int(os.environ.get("SENTILE_MOST_TILES", cls.most_tiles)),
            most_bytes=int(os.environ.get("SENTILE_MOST_BYTES", cls.most_bytes)),
        )


def find_model(said: Path | None) -> Path:
    """Return the model to use: the one that was said, else the newest exported one.

    Raises:
        ModelFileError: none was said and none was ever exported.
    """
    if said is not None:
        return said
    exported = sorted(RUNS.rglob(MODEL_NAME), key=lambda path: path.stat().st_mtime)
    if not exported:
        raise ModelFileError(
            f"no model: SENTILE_MODEL is not set and {RUNS} holds no {MODEL_NAME}; "
            "`python -m training` makes one, `make demo` a small one in a minute"
        )
    return exported[-1]
