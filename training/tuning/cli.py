"""`tilewise tune`."""

import logging
import shlex
import sys
from pathlib import Path

import click
from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table

from tilewise.datasets.core.console import one_line_errors
from tilewise.datasets.core.errors import StoppedError
from tilewise.training.settings import RUNS
from tilewise.training.tuning.space import DEFAULT, as_text, read_tune_settings
from tilewise.training.tuning.study import METRIC, Search, StudyPlan, words

TUNING = RUNS.parent / "tuning"


@click.command(
    context_settings={
        "help_option_names": ["-h", "--help"],
        "ignore_unknown_options": True,
        "allow_interspersed_args": True,
        "max_content_width": 110,
    }
)
@click.option("--trials", type=click.IntRange(1), default=20, show_default=True, help="Trials in the study, in all.")
@click.option("--study", default="tune", show_default=True, help="Name of the study; one that exists is gone on with.")
@click.option(
    "--storage",
    help=f"Where Optuna keeps the study; default: sqlite:///{TUNING}/study.db. Any URL that SQLAlchemy takes.",
)
@click.option(
    "--space",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEFAULT,
    show_default="configs/tune.yaml",
    help="What is searched, and how.",
)
@click.option("--show", type=click.IntRange(1), default=5, show_default=True, help="Trials in the table at the end.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@one_line_errors
def tune(trials: int, study: str, storage: str | None, space: Path, show: int, options: tuple[str, ...]) -> None:
    """Search for hyperparameters: each trial trains, is measured on the validation split, and given up where it lags.

    OPTIONS are options of `tilewise train fit` and are the same for all trials: --config, --data.pack, … The same
    command again goes on where it was stopped or killed, within the trial that ran; a larger --trials adds to the
    study. Several processes may share a study: start the command in several terminals.

    \b
    tilewise tune --data.pack data/packed --trials 30
    tilewise tune --config configs/experiments/eurosat.yaml --trainer.max_epochs=5 --study short
    """
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    output = sys.stdout
    plan = StudyPlan(
        study=study,
        storage=storage or f"sqlite:///{TUNING}/study.db",
        folder=TUNING / study,
        trials=trials,
        settings=read_tune_settings(space),
        arguments=options,
    )
    search = Search(plan, lambda line: print(line, file=output, flush=True))
    try:
        search.run()
    except (KeyboardInterrupt, StoppedError):
        click.echo("the same command goes on where this one was stopped", err=True)
        raise
    finally:
        _print_table(search, show)
    click.echo("train with the best settings:")
    click.echo(command_of(plan.arguments, search))


def command_of(arguments: tuple[str, ...], search: Search) -> str:
    """Return the command line that trains with the best settings, for as long as training lasts without a search."""
    best = [f"--{name}={as_text(value)}" for name, value in search.best_settings().items()]
    return shlex.join(["tilewise", "train", *arguments, *best])


def _print_table(search: Search, limit: int) -> None:
    ended = search.ended()
    if not ended:
        return
    table = Table("trial", METRIC, "epochs", "", "settings", title=f"{search.plan.study}: {len(ended)} trials ended")
    for trial in ended[:limit]:
        state = "" if trial.state is TrialState.COMPLETE else "given up"
        row = [str(trial.number), f"{trial.value:.4f}", str(len(trial.intermediate_values)), state]
        table.add_row(*row, words(trial.params))
    Console(markup=False).print(table)
