"""What is searched, and how: `configs/tune.yaml`, and the options that all trials share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.core.locations import CONFIGS
from tilewise.training.tracking import Tracking

DEFAULT = CONFIGS / "tune.yaml"

Value = bool | int | float | str


class Range(BaseModel):
    """Numbers from `low` to `high`; whole ones where both ends are; `log`: as likely in each decade."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: int | float
    high: int | float
    log: bool = False

    def suggest(self, trial: optuna.Trial, name: str) -> Value:
        """Return the trial's value."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)


class Choices(BaseModel):
    """One of a few values; lists are written as text, e.g. "[32, 64]"."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    choices: tuple[Value, ...] = Field(min_length=1)

    def suggest(self, trial: optuna.Trial, name: str) -> Value:
        """Return the trial's value."""
        chosen = trial.suggest_categorical(name, self.choices)
        assert chosen is not None  # noqa: S101 - it is one of the choices
        return chosen


class Pruning(BaseModel):
    """When a trial is given up: below the median of the others at the same epoch (Optuna's MedianPruner).

    Attributes:
        after_trials: as many must have ended first.
        after_epochs: as many are left to every trial.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    after_trials: int = Field(default=5, ge=1)
    after_epochs: int = Field(default=3, ge=0)


class TuneSettings(BaseModel):
    """A file like `configs/tune.yaml`.

    Attributes:
        seed: of the search.
        random_trials: trials at random before the search learns from them (Optuna's TPE).
        pruning: when a trial is given up.
        settings: options of every trial that the command line does not say.
        space: options that are searched.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 0
    random_trials: int = Field(default=8, ge=1)
    pruning: Pruning = Pruning()
    settings: dict[str, Value] = {}
    space: dict[str, Range | Choices] = Field(min_length=1)

    def suggest(self, trial: optuna.Trial) -> dict[str, Value]:
        """Return the trial's value of each option that is searched."""
        return {name: how.suggest(trial, name) for name, how in self.space.items()}


def read_tune_settings(path: Path) -> TuneSettings:
    """Read a file like `configs/tune.yaml`.

    Raises:
        TrainingError: there is none, or it says what it should not.
    """
    try:
        return TuneSettings.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise TrainingError(f"{path}: there is no such file; configs/tune.yaml is an example") from error
    except (yaml.YAMLError, ValidationError) as error:
        why = error.errors()[0] if isinstance(error, ValidationError) else None
        told = f"{'.'.join(map(str, why['loc']))}: {why['msg']}" if why else " ".join(str(error).split())
        raise TrainingError(f"{path}: {told}; configs/tune.yaml is an example") from error


def said_options(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Return (name, value) of each `--name=value` or `--name value`."""
    found = []
    for place, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            found.append(
                (name[2:].rstrip("+"), value if equals else "".join(arguments[place + 1 : place + 2]))
            )
    return found


def trial_options(settings: TuneSettings, arguments: Sequence[str]) -> list[str]:
    """Return what all trials are told: `arguments`, and the settings that these do not say.

    Raises:
        TrainingError: an option is both said and searched.
    """
    overrides = {name for name, _ in said_options(arguments)}
    if twice := sorted(overrides & set(settings.space)):
        raise TrainingError(
            f"--{twice[0]} is said and searched; leave it out here, or out of the search space"
        )
    return [
        *arguments,
        *(f"--{name}={as_text(value)}" for name, value in settings.settings.items() if name not in overrides),
    ]


def as_text(value: Value) -> str:
    """Return a value as training's command line reads it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def tracking_of(arguments: Sequence[str]) -> Tracking:
    """Return where runs with these `arguments` are tracked.

    Raises:
        TrainingError: a --config that cannot be read, or a key that tracking does not have.
    """
    options = said_options(arguments)
    files = [CONFIGS / "trainer.yaml", *(Path(value) for name, value in options if name == "config")]
    overrides: dict[str, Any] = {}
    for path in files:
        overrides |= _section(path, "tracking")
    overrides |= {
        n.removeprefix("tracking."): yaml.safe_load(v) for n, v in options if n.startswith("tracking.")
    }
    try:
        return Tracking(**{**overrides, "artifacts": Path(overrides.get("artifacts", Tracking.artifacts))})
    except TypeError as error:
        raise TrainingError(f"tracking: {error}; `tilewise train run --help` lists its options") from error


def _section(path: Path, name: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise TrainingError(f"{path}: not a readable config; name another with --config") from error
    return dict(content.get(name) or {})
