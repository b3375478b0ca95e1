"""What the gates ask: `configs/gates.yaml`, checked."""

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from datasets.errors import TrainingError
from training.disturbances import DISTURBANCES

DEFAULT = Path(__file__).resolve().parents[2] / "configs/gates.yaml"


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Champion(_Settings):
    """What may be lost against the model that serves, with `confidence`, in `resamples` of a paired bootstrap."""

    confidence: float = Field(0.95, gt=0.5, lt=1)
    resamples: int = Field(2000, ge=100, le=100_000)
    accuracy: float = Field(ge=0, le=1)
    macro_f1: float = Field(ge=0, le=1)


class Floor(_Settings):
    """What every model must reach."""

    accuracy: float = Field(ge=0, le=1)
    macro_f1: float = Field(ge=0, le=1)
    class_recall: float = Field(ge=0, le=1)
    class_tiles: int = Field(10, ge=1)


class Coverage(_Settings):
    """How far the prediction sets may fall short of the coverage that is asked."""

    asked: float = Field(gt=0, lt=1)
    most_below: float = Field(ge=0, le=1)


class Robustness(_Settings):
    """The most accuracy that disturbances may cost, by their names in `training.disturbances`."""

    model_config = ConfigDict(frozen=True, extra="allow")

    more_than_champion: float = Field(1.0, ge=0, le=1)

    @property
    def limits(self) -> dict[str, float]:
        """The limit of each disturbance."""
        return {name: float(limit) for name, limit in (self.__pydantic_extra__ or {}).items()}

    def model_post_init(self, context: object, /) -> None:
        """Refuse disturbances that nobody knows."""
        unknown = sorted(set(self.__pydantic_extra__ or {}) - set(DISTURBANCES))
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: the disturbances are {', '.join(DISTURBANCES)}")


class Zones(_Settings):
    """How far accuracy in a zone with `tiles` or more may lie below that of all."""

    tiles: int = Field(30, ge=1)
    most_below: float = Field(ge=0, le=1)


class Latency(_Settings):
    """CPU time, one thread, batches of one."""

    milliseconds: float = Field(gt=0)
    times_champion: float = Field(1.5, gt=0)


class GateSettings(_Settings):
    """The whole file; what is None is not asked.

    `approval`: true asks for a person's name, a list for one of these names (an empty one for any).
    """

    split: str = "test"
    least_tiles: int = Field(100, ge=1)
    seed: int = 0
    champion: Champion | None = None
    floor: Floor | None = None
    calibration: float | None = None
    coverage: Coverage | None = None
    outliers: float | None = None
    robustness: Robustness | None = None
    zones: Zones | None = None
    latency: Latency | None = None
    megabytes: float | None = None
    parity: float | None = None
    int8: float | None = None
    contract: bool = False
    approval: bool | tuple[str, ...] = True

    def objection(self, approver: str) -> str | None:
        """Return why a model that passes every gate may not be promoted yet, or None."""
        named = self.approval if isinstance(self.approval, tuple) else ()
        if self.approval is False or (approver and (not named or approver in named)):
            return None
        wanted = f"one of {', '.join(named)}" if named else "a person"
        return f"{wanted} must approve; say --approve NAME"


def read_settings(path: Path) -> GateSettings:
    """Return what a gates file asks.

    Raises:
        TrainingError: it cannot be read, or asks what nobody knows.
    """
    try:
        return GateSettings.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise TrainingError(f"{path}: cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise TrainingError(f"{path}: {where}: {first['msg']}; configs/gates.yaml shows every setting") from error
