"""`tilewise retrain`: one command for CI, cron and people."""

import getpass
import json
import logging
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from tilewise.datasets.core.console import one_line_errors
from tilewise.datasets.quality.reviewed import DEFAULT as REVIEWED
from tilewise.training.fit.callbacks import interrupt_on_sigterm
from tilewise.training.registry.gates import DEFAULT
from tilewise.training.registry.reasons import SHIFT, Triggers
from tilewise.training.registry.registry import NAME
from tilewise.training.registry.retrain import Ending, Outcome, RetrainPlan, retrain
from tilewise.training.tracking import Tracking

STATUS = {Ending.PASSED: 0, Ending.NOTHING: 3, Ending.REFUSED: 4}
"""Exit statuses; 1 says that something failed, 2 that the command line is wrong."""

REPORT = Path("artifacts/retraining/retraining.json")
_PATH = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--because", default="", metavar="WHY", help="Why, for the history; alone, a reason in itself.")
@click.option("--if-drift", "drift", metavar="URL", help="A service; if a band of what it is asked has drifted.")
@click.option("--max-psi", default=SHIFT, show_default=True, help="PSI above which a band has drifted.")
@click.option("--if-alert", "alert", metavar="URL", help="A Prometheus; if an alert with action: retrain fires there.")
@click.option("--if-older", "days", type=click.FloatRange(0), metavar="DAYS", help="If the champion is older.")
@click.option(
    "--if-labelled", "tiles", type=click.IntRange(1), metavar="N", help="If N tiles were, since the champion."
)
@click.option("--reviewed", type=_PATH, default=REVIEWED, show_default=True, help="The tiles that people labelled.")
@click.option("--run", type=_PATH, default=RetrainPlan.run, show_default=True, help="Folder that the pipeline trains in.")
@click.option("--data", type=_PATH, default=RetrainPlan.data, show_default=True, help="Pack that models are measured on.")
@click.option("--gates", type=_PATH, default=DEFAULT, help="Default: configs/gates.yaml.")
@click.option("--report", type=_PATH, default=REPORT, show_default=True, help="How it ended, as JSON.")
@click.option("--flow", is_flag=True, help="Run it as a flow of Prefect.")
@click.option("--cron", metavar="WHEN", help="Serve the flow to Prefect, to be run at these times, until Ctrl-C.")
@click.option("--by", "who", default=getpass.getuser, help="Who does it; default: the user's name.")
@click.option("--tracking-uri", "uri", envvar="MLFLOW_TRACKING_URI", default=Tracking.uri, show_default=True)
@click.option("--name", default=NAME, show_default=True, help="Of the registered model.")
@one_line_errors
def command(report: Path, flow: bool, cron: str | None, **options: Any) -> None:
    """Retrain if there is a reason, and measure what comes of it; it serves nobody before a person promotes it.

    Runs the pipeline (`dvc repro`), puts its model through the gates, and registers it: as the candidate if it passed,
    as refused if not. Of several conditions, one is enough. The same command goes on where it was stopped.

    \b
    Exit status: 0 a candidate passed · 3 nothing to do · 4 the gates refuse it · 1 something failed · 2 usage
    \b
      tilewise retrain --because "the new season"
      tilewise retrain --if-alert http://prometheus:9090 --if-labelled 200     # for cron and CI
      tilewise retrain --if-older 90 --cron "0 3 * * 1"                        # for Prefect
    """
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    plan = _plan(**options)
    with interrupt_on_sigterm():
        if cron:
            from tilewise.training.registry.flow import serve

            serve(plan, cron)
            return
        outcome = _run(plan, flow)
    _write(outcome, report)
    _tell(outcome, plan)
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


def _tell(outcome: Outcome, plan: RetrainPlan) -> None:
    """Print what was found, and what a person does next."""
    if outcome.findings:
        table = Table("gate", "", "figure", "asked", title=f"{plan.name} {outcome.version}")
        for finding in outcome.findings:
            table.add_row(finding.gate, "pass" if finding.passed else "FAIL", f"{finding.figure:.4g}", finding.limit)
        Console(width=None if sys.stdout.isatty() else 140, markup=False).print(table)
    click.echo(outcome.message)
    if outcome.ending is Ending.PASSED:
        words = ["tilewise", "promote", outcome.version, "--data", str(plan.data), "--approve"]
        click.echo(f"it serves nobody yet; promote it with: {shlex.join(words)} NAME")
    if outcome.ending is Ending.REFUSED:
        click.echo("the champion goes on; look at the gates that fail, at the data, and label more")
    if outcome.ending is not Ending.NOTHING:
        click.echo("keep what it learned from: git commit dvc.lock, and dvc push")
