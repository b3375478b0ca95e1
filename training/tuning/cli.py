"""`tilewise tune`: a search for hyperparameters."""

import shlex
import sys
from pathlib import Path

import click
from optuna.trial import TrialState
from rich.table import Table

from tilewise.datasets.core.console import CONTEXT, FILE, one_line_errors, print_table, silence_mlflow
from tilewise.datasets.core.errors import StoppedError
from tilewise.training.settings import RUNS
from tilewise.training.tuning.space import DEFAULT, as_text, read_tune_settings
from tilewise.training.tuning.study import METRIC, Search, StudyPlan, words

TUNING = RUNS.parent / "tuning"


@click.command(context_settings={**CONTEXT, "ignore_unknown_options": True, "allow_interspersed_args": True})
@click.option(
    "--trials",
    "trials",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="Trials of the whole study.",
)
@click.option(
    "--study",
    "study",
    default="tune",
    show_default=True,
    help="Name of the study; one that exists is continued.",
)
@click.option(
    "--storage",
    "storage",
    help=f"Optuna's database, as an SQLAlchemy URL. Default: sqlite:///{TUNING}/study.db.",
)
@click.option(
    "--space",
    "space",
    type=FILE,
    default=DEFAULT,
    show_default="configs/tune.yaml",
    help="The search space and the search's settings.",
)
@click.option(
    "--show",
    "show",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Trials in the table at the end.",
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@one_line_errors
def tune(
    trials: int, study: str, storage: str | None, space: Path, show: int, options: tuple[str, ...]
) -> None:
    """Search for hyperparameters: each trial trains and is measured on the validation split; slow ones are
    pruned.

    OPTIONS are options of `tilewise train fit`, the same for all trials: --config, --data.pack, … After a
    stop or a crash the same command continues, within the trial that ran; a larger --trials adds to the
    study. Several processes
    may share a study: start the command in several terminals.

    \b
    tilewise tune --data.pack data/packed --trials 30
    tilewise tune --config configs/experiments/eurosat.yaml --trainer.max_epochs=5 --study short
    """
    silence_mlflow()
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
        click.echo("stopped; the same command continues", err=True)
        raise
    finally:
        _print_table(search, show)
    click.echo("train with the best settings:")
    click.echo(command_of(plan.arguments, search))


def command_of(arguments: tuple[str, ...], search: Search) -> str:
    """Return the command line that trains with the best settings, for as many epochs as without a search."""
    best = [f"--{name}={as_text(value)}" for name, value in search.best_settings().items()]
    return shlex.join(["tilewise", "train", *arguments, *best])


def _print_table(search: Search, limit: int) -> None:
    ended = search.ended()
    if not ended:
        return
    table = Table(
        "trial", METRIC, "epochs", "", "settings", title=f"{search.plan.study}: {len(ended)} trials ended"
    )
    for trial in ended[:limit]:
        state = "" if trial.state is TrialState.COMPLETE else "pruned"
        row = [str(trial.number), f"{trial.value:.4f}", str(len(trial.intermediate_values)), state]
        table.add_row(*row, words(trial.params))
    print_table(table)
