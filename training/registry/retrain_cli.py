"""`tilewise retrain`: one command for CI, cron and people."""

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from tilewise.datasets.core.console import (
    CONTEXT,
    FILE,
    FOLDER,
    one_line_errors,
    out_option,
    print_table,
    silence_mlflow,
    with_options,
)
from tilewise.datasets.quality.reviewed import DEFAULT as REVIEWED
from tilewise.training.fit.callbacks import interrupt_on_sigterm
from tilewise.training.registry.cli import REGISTRY_OPTIONS, who_option
from tilewise.training.registry.gates import DEFAULT
from tilewise.training.registry.reasons import SHIFT, Triggers
from tilewise.training.registry.retrain import Ending, Outcome, RetrainPlan, retrain

STATUS = {Ending.PASSED: 0, Ending.NOTHING: 3, Ending.REFUSED: 4}
"""Exit statuses; 1: something failed, 2: usage error."""

REPORT = Path("artifacts/retraining/retraining.json")


@click.command(context_settings=CONTEXT)
@click.option(
    "--because", "because", default="", metavar="REASON", help="Retrain for this reason; for the history."
)
@click.option(
    "--if-drift", "drift", metavar="URL", help="Retrain if a band of the requests to this service drifted."
)
@click.option(
    "--max-psi", "max_psi", default=SHIFT, show_default=True, help="PSI above which a band has drifted."
)
@click.option(
    "--if-alert",
    "alert",
    metavar="URL",
    help="Retrain if an alert with action: retrain fires in this Prometheus.",
)
@click.option(
    "--if-older", "days", type=click.FloatRange(0), metavar="DAYS", help="Retrain if the champion is older."
)
@click.option(
    "--if-labelled",
    "tiles",
    type=click.IntRange(1),
    metavar="N",
    help="Retrain if N tiles were labelled since the champion.",
)
@click.option(
    "--reviewed",
    "reviewed",
    type=FOLDER,
    default=REVIEWED,
    show_default=True,
    help="Tiles that people labelled.",
)
@click.option(
    "--run",
    "run",
    type=FOLDER,
    default=RetrainPlan.run,
    show_default=True,
    help="Folder of the pipeline's run.",
)
@click.option(
    "--data",
    "data",
    type=FOLDER,
    default=RetrainPlan.data,
    show_default=True,
    help="Pack that models are measured on.",
)
@click.option("--gates", "gates", type=FILE, default=DEFAULT, help="The gates. Default: configs/gates.yaml.")
@out_option(FILE, "JSON file of the outcome.", REPORT)
@click.option("--flow", "flow", is_flag=True, help="Run as a Prefect flow.")
@click.option(
    "--cron", "cron", metavar="WHEN", help="Serve the flow to Prefect at these times, until Ctrl-C."
)
@who_option
@lambda command: with_options(command, REGISTRY_OPTIONS)
@one_line_errors
def command(out: Path, flow: bool, cron: str | None, **options: Any) -> None:
    """Retrain if there is a reason, and measure the new model; a person promotes it.

    Runs the pipeline (`dvc repro`), measures its model by the gates, and registers it: as the candidate if it
    passes, as refused if not. One of several conditions is enough. After a stop, the same command continues.

    \b
    Exit status: 0 a candidate passed · 3 nothing to do · 4 the gates refuse it · 1 something failed · 2 usage
    \b
      tilewise retrain --because "the new season"
      tilewise retrain --if-alert http://prometheus:9090 --if-labelled 200     # for cron and CI
      tilewise retrain --if-older 90 --cron "0 3 * * 1"                        # for Prefect
    """
    silence_mlflow()
    plan = _plan(**options)
    with interrupt_on_sigterm():
        if cron:
            from tilewise.training.registry.flow import serve

            serve(plan, cron)
            return
        outcome = _run(plan, flow)
    _write(outcome, out)
    _print_outcome(outcome, plan)
    sys.exit(STATUS[outcome.ending])


def _plan(
    because: str,
    drift: str | None,
    max_psi: float,
    alert: str | None,
    days: float | None,
    tiles: int | None,
    reviewed: Path,
    **rest: Any,
) -> RetrainPlan:
    return RetrainPlan(Triggers(because, drift, max_psi, alert, days, tiles, reviewed), **rest)


def _run(plan: RetrainPlan, as_flow: bool) -> Outcome:
    if not as_flow:
        return retrain(plan)
    from tilewise.training.registry.flow import retraining

    return retraining(plan)


def _write(outcome: Outcome, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {**asdict(outcome), "status": STATUS[outcome.ending]}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _print_outcome(outcome: Outcome, plan: RetrainPlan) -> None:
    """Print the findings, and what to do next."""
    if outcome.findings:
        table = Table("gate", "", "figure", "required", title=f"{plan.name} {outcome.version}")
        for finding in outcome.findings:
            table.add_row(
                finding.gate, "pass" if finding.passed else "FAIL", f"{finding.figure:.4g}", finding.limit
            )
        print_table(table)
    click.echo(outcome.message)
    if outcome.ending is Ending.PASSED:
        words = ["tilewise", "promote", outcome.version, "--data", str(plan.data), "--approve"]
        click.echo(f"it is not served yet; promote it with: {shlex.join(words)} NAME")
    if outcome.ending is Ending.REFUSED:
        click.echo("the champion stays; look at the gates that fail, at the data, and label more")
    if outcome.ending is not Ending.NOTHING:
        click.echo("keep the data that it was trained on: git commit dvc.lock, and dvc push")
