"""The settings of `tilewise assess` and `tilewise train leave-out`: `configs/assess.yaml`, validated."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from tilewise.datasets.core.locations import CONFIGS
from tilewise.training.settings import read_yaml_settings

DEFAULT = CONFIGS / "assess.yaml"


class Targets(BaseModel):
    """The figures that a model file should reach; fractions (0-1)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    calibration_error: float = Field(0.015, ge=0, le=1)
    coverage_within: float = Field(0.01, ge=0, le=1)
    flagged: float = Field(0.95, ge=0, le=1)
    auroc: float = Field(0.95, ge=0, le=1)


class AssessSettings(BaseModel):
    """The whole file; `configs/assess.yaml` says what each number means."""

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


def read_assess_settings(path: Path) -> AssessSettings:
    """Read a file like `configs/assess.yaml`; an empty one has the defaults; raises as `read_yaml_settings`
    does."""
    return read_yaml_settings(path, AssessSettings, DEFAULT, empty_allowed=True)
