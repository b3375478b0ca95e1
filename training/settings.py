"""Folders of training runs, how INT8 files are made, and how YAML settings are read.

Free of ONNX and pydantic at import: a machine that only fits may have neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import yaml

from tilewise.datasets.core.errors import TrainingError

if TYPE_CHECKING:
    from pydantic import BaseModel

Settings = TypeVar("Settings", bound="BaseModel")

RUNS = Path("artifacts/runs")
PRETRAINING = Path("artifacts/pretraining")
"""Runs that learn without labels: they are never tested or exported, so `newest_run` skips them."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one training run."""

    root: Path

    @property
    def checkpoints(self) -> Path:
        """The folder of Lightning's checkpoints."""
        return self.root / "checkpoints"

    @property
    def best(self) -> Path:
        """The checkpoint with the best validation accuracy; of pretraining, with the lowest validation
        loss."""
        return self.checkpoints / "best.ckpt"

    @property
    def last(self) -> Path:
        """The newest checkpoint, to resume from."""
        return self.checkpoints / "last.ckpt"

    @property
    def broken(self) -> Path:
        """The checkpoint from before a step whose loss was not finite."""
        return self.checkpoints / "not-finite.ckpt"

    @property
    def settings(self) -> Path:
        """The configuration of the run."""
        return self.root / "config.yaml"

    def read_settings(self) -> dict[str, Any]:
        """Return the configuration of the run; raises OSError where there is no such file."""
        return yaml.safe_load(self.settings.read_text(encoding="utf-8")) or {}

    @property
    def evaluation(self) -> Path:
        """The folder of metrics, tables and pictures."""
        return self.root / "evaluation"

    @property
    def model(self) -> Path:
        """The exported model file; its INT8 file is beside it, see `tilewise.models.model_file.int8_of`."""
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
            f"no run with a best checkpoint is in {RUNS}; `tilewise train fit` makes one, --out names "
            f"another folder"
        )
    return RunFolder(found[-1].parent.parent)


def differing(settings: Sequence[Mapping[str, object]]) -> list[str]:
    """Return the names of settings, one mapping a run, that do not have the same value in all runs."""
    first, *others = settings
    names = sorted(set().union(*settings))
    return [name for name in names if any(each.get(name) != first.get(name) for each in others)]


@dataclass(frozen=True)
class Quantisation:
    """How the INT8 file is made, and what it may cost.

    Attributes:
        enabled: whether it is made at all.
        tiles: of the train split, about, that activation ranges are calibrated on; each shows some set of its
            bands.
        method: how ranges are chosen: the whole range (minmax), all but `percentile`, or by least loss of
            information (entropy).
        percentile: percent of an activation's values that its range holds, for that method.
        max_lost: the most accuracy (fraction 0-1) that may be lost against fp32 on the validation split.
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
            raise ValueError("quantisation.percentile is above 0 and at most 100")


def read_yaml_settings(
    path: Path, kind: type[Settings], example: Path, *, empty_allowed: bool = False
) -> Settings:
    """Read a YAML file as settings of a pydantic model.

    Args:
        path: the file.
        kind: the model that it is validated by.
        example: a file that shows every setting, for messages.
        empty_allowed: whether a file without content has the defaults.

    Raises:
        TrainingError: it cannot be read, or has unknown or invalid settings.
    """
    from pydantic import ValidationError

    shown = f"configs/{example.name} shows every setting"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return kind.model_validate({} if content is None and empty_allowed else content)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrainingError(f"{path}: cannot be read: {' '.join(str(error).split())}; {shown}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise TrainingError(f"{path}: {where}: {first['msg']}; {shown}") from error
