"""How model files are measured: `configs/assess.yaml`, checked."""

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from datasets.errors import TrainingError

DEFAULT = Path(__file__).resolve().parents[2] / "configs/assess.yaml"


class Targets(BaseModel):
    """What is asked of a model file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    calibration_error: float = Field(0.015, ge=0, le=1)
    coverage_within: float = Field(0.01, ge=0, le=1)
    flagged: float = Field(0.95, ge=0, le=1)
    auroc: float = Field(0.95, ge=0, le=1)


class AssessSettings(BaseModel):
    """The whole file; see there for what each number means."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(0, ge=0)
    halves: int = Field(20, ge=1, le=1000)
    coverages: tuple[float, ...] = Field((0.9, 0.95, 0.99), min_length=1)
    raps_penalty: float = Field(0.01, ge=0)
    false_alarms: float = Field(0.05, gt=0, lt=1)
    neighbours: int = Field(10, ge=1)
    fitted: int = Field(4000, ge=2)
    zone_degrees: float = Field(5, gt=0)
    zone_tiles: int = Field(20, ge=1)
    cloudy: float = Field(0.5, gt=0, le=1)
    cloud_percent: float = Field(50, ge=0, le=100)
    cloud_step: int = Field(16, ge=1)
    targets: Targets = Field(default_factory=lambda: Targets.model_validate({}))


def read_settings(path: Path) -> AssessSettings:
    """Return the settings in a file.

    Raises:
        TrainingError: it cannot be read, or says what nobody knows.
    """
    try:
        return AssessSettings.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (OSError, yaml.YAMLError) as error:
        raise TrainingError(f"{path}: cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise TrainingError(f"{path}: {where}: {first['msg']}; configs/assess.yaml shows every setting") from error
