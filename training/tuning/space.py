"""The search space: `configs/tune.yaml`, validated, and the options that all trials share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import yaml
from pydantic import BaseModel, ConfigDict, Field

from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.core.locations import CONFIGS
from tilewise.training.settings import read_yaml_settings
from tilewise.training.tracking import Tracking

DEFAULT = CONFIGS / "tune.yaml"

Value = bool | int | float | str


class Range(BaseModel):
    """Numbers from `low` to `high`, integers where both bounds are; `log`: on a logarithmic scale."""

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
    """One of several values; lists are written as text, e.g. "[32, 64]"."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    choices: tuple[Value, ...] = Field(min_length=1)

    def suggest(self, trial: optuna.Trial, name: str) -> Value:
        """Return the trial's value."""
        chosen = trial.suggest_categorical(name, self.choices)
        assert chosen is not None  # noqa: S101 - one of the choices
        return chosen


class Pruning(BaseModel):
    """When a trial is pruned: below the median of the others at the same epoch (Optuna's MedianPruner).

    Attributes:
        after_trials: number of trials that must have ended first.
        after_epochs: number of epochs that every trial trains at least.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    after_trials: int = Field(default=5, ge=1)
    after_epochs: int = Field(default=3, ge=0)


class TuneSettings(BaseModel):
    """A file like `configs/tune.yaml`.

    Attributes:
        seed: of the search.
        random_trials: random trials before the sampler learns from them (Optuna's TPE).
        pruning: when a trial is pruned.
        settings: options of every trial that the command line does not set.
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
    """Read a file like `configs/tune.yaml`; raises as `read_yaml_settings` does."""
    return read_yaml_settings(path, TuneSettings, DEFAULT)


def given_options(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Return (name, value) of each `--name=value` or `--name value`."""
    found = []
    for index, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            found.append(
                (name[2:].rstrip("+"), value if equals else "".join(arguments[index + 1 : index + 2]))
            )
    return found


def trial_options(settings: TuneSettings, arguments: Sequence[str]) -> list[str]:
    """Return the options of all trials: `arguments`, and the settings that these do not set.

    Raises:
        TrainingError: an option is both given and searched.
    """
    given = {name for name, _ in given_options(arguments)}
    if twice := sorted(given & set(settings.space)):
        raise TrainingError(f"--{twice[0]} is given and searched; omit it here, or from the search space")
    others = {name: value for name, value in settings.settings.items() if name not in given}
    return [*arguments, *(f"--{name}={as_text(value)}" for name, value in others.items())]


def as_text(value: Value) -> str:
    """Return a value in the form of training's command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def tracking_of(arguments: Sequence[str]) -> Tracking:
    """Return where runs with these `arguments` are tracked.

    Raises:
        TrainingError: a --config that cannot be read, or a key that tracking does not have.
    """
    options = given_options(arguments)
    files = [CONFIGS / "trainer.yaml", *(Path(value) for name, value in options if name == "config")]
    found: dict[str, Any] = {}
    for path in files:
        found |= _section(path, "tracking")
    found |= {n.removeprefix("tracking."): yaml.safe_load(v) for n, v in options if n.startswith("tracking.")}
    try:
        return Tracking(**{**found, "artifacts": Path(found.get("artifacts", Tracking.artifacts))})
    except TypeError as error:
        raise TrainingError(f"tracking: {error}; `tilewise train run --help` lists its options") from error


def _section(path: Path, name: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise TrainingError(f"{path}: not a readable config; name another with --config") from error
    return dict(content.get(name) or {})
