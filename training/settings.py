"""Where a run keeps its things, and how the best checkpoint is found again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml

from tilewise.datasets.core.errors import TrainingError


@dataclass(frozen=True)
class Quantisation:
    """How the INT8 file is made, and what it may cost.

    Attributes:
        enabled: whether it is made at all.
        tiles: of the train split, about, that activations' ranges are taken from; each shows some set of its bands.
        method: how ranges are chosen: the whole range (minmax), all but `percentile`, or by least loss of information
            (entropy).
        percentile: share (percent) of an activation's values that its range holds, for that method.
        max_lost: the most accuracy (share 0-1) that may be lost against fp32 on the validation split.
    """

    enabled: bool = True
    tiles: int = 512
    method: Literal["minmax", "percentile", "entropy"] = "percentile"
    percentile: float = 99.99
    max_lost: float = 0.003

    def __post_init__(self) -> None:
        if self.tiles < 1:
            raise ValueError("quantisation.tiles is a whole number of 1 or more")
        if not 0 < self.percentile <= 100:
            raise ValueError("quantisation.percentile lies above 0 and is 100 at most")


def differing(settings: Sequence[Mapping[str, object]]) -> list[str]:
    """Return the names of settings, one mapping a run, that do not have the same value in all runs."""
    first, *others = settings
    return [
        name for name in sorted(set().union(*settings)) if any(each.get(name) != first.get(name) for each in others)
    ]


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
        """The exported model file; its INT8 form lies beside it as `tilewise.models.model_file.int8_of` says."""
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
            f"no run with a best checkpoint is in {RUNS}; `tilewise train fit` makes one, --out names another folder"
        )
    return RunFolder(found[-1].parent.parent)
