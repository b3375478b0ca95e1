"""What can be set from outside, in one place: environment variables that begin with SENTILE_."""

import os
from dataclasses import dataclass
from pathlib import Path

from datasets.errors import ModelFileError, SentileError

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
        """Read the settings from the environment.

        Raises:
            SentileError: one of them is not a number, or too small.
        """
        model = os.environ.get("SENTILE_MODEL")
        return cls(
            model=Path(model) if model else None,
            threads=_whole_number("SENTILE_THREADS", cls.threads, least=0),
            most_tiles=_whole_number("SENTILE_MOST_TILES", cls.most_tiles, least=1),
            most_bytes=_whole_number("SENTILE_MOST_BYTES", cls.most_bytes, least=1),
        )


def _whole_number(name: str, default: int, least: int) -> int:
    text = os.environ.get(name) or str(default)
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise SentileError(f"{name} is a whole number of {least} or more, not {text!r}")
    return number


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
