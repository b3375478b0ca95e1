"""Where a run keeps its things, and how the best checkpoint is found again."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from datasets.errors import TrainingError

RUNS = Path("artifacts/runs")
PRETRAINING = Path("artifacts/pretraining")
"""Runs that learn without labels: nothing is tested or exported of them, so the newest run is none of them."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one training run."""

    root: Path

    @property
    def checkpoints(self) -> Path:
        """Where Lightning's checkpoints lie."""
        return self.root / "checkpoints"

    @property
    def best(self) -> Path:
        """The checkpoint with the best validation accuracy; of pretraining, with the lowest validation loss."""
        return self.checkpoints / "best.ckpt"

    @property
    def last(self) -> Path:
        """The newest checkpoint, to resume from."""
        return self.checkpoints / "last.ckpt"

    @property
    def settings(self) -> Path:
        """What the run was configured with."""
        return self.root / "config.yaml"

    def read_settings(self) -> dict[str, Any]:
        """Return what the run was configured with; raises OSError where there is no such file."""
        return yaml.safe_load(self.settings.read_text(encoding="utf-8")) or {}

    @property
    def broken(self) -> Path:
        """The checkpoint from before a step whose loss was not finite."""
        return self.checkpoints / "not-finite.ckpt"

    @property
    def evaluation(self) -> Path:
        """Where metrics, tables and pictures go."""
        return self.root / "evaluation"

    @property
    def model(self) -> Path:
        """The exported model file; its INT8 form lies beside it as `models.precision.int8_of` says."""
        return self.root / "model.onnx"


def new_run(runs: Path = RUNS) -> RunFolder:
    """Return a folder in `runs` for a new run, named by the time in UTC."""
    return RunFolder(runs / datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S"))


def newest_run() -> RunFolder:
    """Return the newest run that has a best checkpoint.

    Raises:
        TrainingError: there is none.
    """
    found = sorted(RUNS.glob("*/checkpoints/best.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise TrainingError(
            f"no run with a best checkpoint is in {RUNS}; "
            "`python -m training fit` makes one, --out names another folder"
        )
    return RunFolder(found[-1].parent.parent)
