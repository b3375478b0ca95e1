"""Paths: configs and weights that ship with the package, and the folder that commands write to."""

from pathlib import Path

PACKAGE = Path(__file__).absolute().parents[2]
"""The installed package, `tilewise/`: in a checkout a folder of links, in a wheel real folders."""

CONFIGS = PACKAGE / "configs"
MODEL_NAME = "model.onnx"
PRETRAINED = {name: PACKAGE / "models" / "pretrained" / name / MODEL_NAME for name in ("accurate", "fast")}
"""The weights that ship, by the names that `--model` takes."""

PRETRAINED_MODEL = PRETRAINED["accurate"]
"""Those that are used where no model is named."""

PACKED_MODEL = PACKAGE / "models" / "pretrained" / MODEL_NAME
"""The model that a bento was built with, which exists in a bento only."""

RUNS = Path("artifacts")
"""The folder that training writes to, below the working folder."""


def checkout() -> Path | None:
    """Return the root of the repository that the package runs from; None: installed from a wheel."""
    root = PACKAGE.resolve().parent
    return root if (root / "pyproject.toml").is_file() and (root / "tests").is_dir() else None
