"""What a recipe gives from seed to seed: mean and spread of the figures of several runs of it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from jsonargparse import dict_to_namespace

from datasets.command import one_line_errors
from datasets.errors import TrainingError
from training.assess.tables import Table
from training.evaluation import METRICS_FILE
from training.paths import RunFolder
from training.settings import differing

FIGURES = ("accuracy", "macro_f1", "calibration_error")
_LEAST_RUNS = 2
_OWN_FOLDERS = {"checkpoint.dirpath", "trainer.default_root_dir"}  # of each run, whatever it is told

Groups = dict[str, dict[str, Any]]
"""What one run's test measured, by source and set of bands."""


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False))
@one_line_errors
def spread(runs: tuple[Path, ...]) -> None:
    """Print mean, deviation and range of what `python -m training test` measured on each of RUNS, folders of runs.

    The settings in which they differ are said: a spread over seeds is one of runs that differ in nothing else.

    \b
    python -m training spread artifacts/seed-0 artifacts/seed-1 artifacts/seed-2
    """
    click.echo(as_table(runs).markdown())


def as_table(runs: Sequence[Path]) -> Table:
    """Return a row for each source and set of bands that all runs were measured on.

    The deviation is the sample's (n - 1), in points where the figure is a percentage.

    Raises:
        TrainingError: there are fewer than two runs, one was not tested, or they were tested on other tiles or over
            other numbers of ways.
    """
    if len(set(runs)) < _LEAST_RUNS:
        raise TrainingError("a spread needs two different runs at least")
    measured = _alike(runs)
    rows = tuple(_row(group, measured) for group in measured[0])
    differing = ", ".join(_differing(runs)) or "nothing that their settings say"
    note = f"{len(runs)} runs, which differ in: {differing}. Mean ± standard deviation (lowest - highest), percent."
    return Table("spread", "From run to run", note, ("tiles, bands", "tiles", *FIGURES), rows)


def _alike(runs: Sequence[Path]) -> list[Groups]:
    """Return what the tests of `runs` measured; raises TrainingError where tiles were looked at in other ways."""
    read = [read_measured(RunFolder(run)) for run in runs]
    ways = sorted({number for number, _ in read})
    if len(ways) > 1:
        raise TrainingError(
            f"the runs were tested with different model.symmetries: {ways}; test them alike: "
            f"`python -m training test --model.symmetries {ways[0]} --out RUN`"
        )
    return [groups for _, groups in read]


def read_measured(run: RunFolder) -> tuple[int, Groups]:
    """Return in how many ways a run's test looked at each tile, and what it measured.

    Raises:
        TrainingError: it was not tested.
    """
    path = run.evaluation / METRICS_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found: tuple[int, Groups] = int(content.get("symmetries", 1)), content["groups"]
    except FileNotFoundError as error:
        raise TrainingError(f"{path} is not there: `python -m training test --out {run.root}` measures it") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainingError(f"{path}: not what `python -m training test` writes ({error!r})") from error
    return found


def _row(group: str, measured: Sequence[Groups]) -> tuple[str | int, ...]:
    tiles = {run[group]["tiles"] if group in run else 0 for run in measured}
    if len(tiles) > 1:
        raise TrainingError(f"{group}: the runs were tested on different numbers of tiles: {sorted(tiles)}")
    return (group, *tiles, *(_said([run[group][name] for run in measured]) for name in FIGURES))


def _said(shares: Sequence[float]) -> str:
    """Return mean, deviation and range of shares (0-1), in percent."""
    values = 100 * np.array(shares)
    return f"{values.mean():.2f} ± {values.std(ddof=1):.2f} ({values.min():.2f} - {values.max():.2f})"


def _differing(runs: Sequence[Path]) -> list[str]:
    """Return the names of settings that are not the same in all runs, without those that name the run's own folder."""
    settings = [dict(dict_to_namespace(_settings(RunFolder(run))).items()) for run in runs]
    return [name for name in differing(settings) if name not in _OWN_FOLDERS]


def _settings(run: RunFolder) -> dict[str, Any]:
    if not run.settings.is_file():
        raise TrainingError(f"{run.root} is no folder of a run: it has no {run.settings.name}")
    return run.read_settings()
