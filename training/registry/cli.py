"""`tilewise register|promote|rollback|history|compare`: the registry's side of the command line."""

import getpass
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tilewise.datasets.core.console import one_line_errors
from tilewise.datasets.core.errors import TilewiseError, TrainingError
from tilewise.datasets.core.locations import checkout
from tilewise.datasets.packs.pack import Pack
from tilewise.models.model_file import open_model
from tilewise.training.registry.gates import DEFAULT, GateContext, GateResult, read_gate_settings, run_gates
from tilewise.training.registry.registry import CHAMPION, NAME, Registry
from tilewise.training.settings import RunFolder, differing, newest_run
from tilewise.training.tracking import Tracking, run_id_of

_FIGURES = ("accuracy", "macro_f1", "calibration_error")


def compare_runs(uri: str, experiment: str | None = None, limit: int = 20, model: str = NAME) -> list[dict[str, Any]]:
    """Return one row a run, newest first: what it is, its test figures, and the settings in which the runs differ.

    What it is: name, when, state, data (name and hash), code, and which version of `model` it became, if any.

    Raises:
        TrainingError: there is no such experiment.
    """
    client = MlflowClient(tracking_uri=uri)
    found = [e for e in client.search_experiments() if experiment in (None, e.name)]
    if not found:
        raise TrainingError(f"{uri}: there is no experiment {experiment!r}")
    runs = client.search_runs([e.experiment_id for e in found], order_by=["start_time DESC"], max_results=limit)
    trained = [run for run in runs if run.data.params]
    differing = _differing([dict(run.data.params) for run in trained])
    versions = {version.run_id: version.tags.get("semver", "") for version in Registry(uri, model).versions()}
    return [_row(run, versions.get(run.info.run_id, ""), differing) for run in trained]


def _row(run: Run, version: str, settings: list[str]) -> dict[str, Any]:
    started = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
    row: dict[str, Any] = {
        "run": run.info.run_name,
        "when": started.isoformat(timespec="minutes").removesuffix("+00:00"),
        "state": run.info.status.lower(),
        "version": version,
        "data": _data(run),
        "code": run.data.tags.get("mlflow.source.git.commit", "")[:12],
    }
    for name in _FIGURES:
        for key, value in sorted(run.data.metrics.items()):
            if key.startswith("test/") and key.endswith(f"/{name}"):
                row[key.removeprefix("test/")] = round(value, 4)
    return row | {name: run.data.params.get(name, "") for name in settings}


def _data(run: Run) -> str:
    """Return the name of the pack that a run was trained on, and the beginning of its hash."""
    hashed = run.data.tags.get("data_hash", "")[:12]
    inputs = run.inputs.dataset_inputs if run.inputs else []
    names = [each.dataset.name for each in inputs if each.dataset.name.endswith("/train")]
    return f"{names[0].removesuffix('/train')} {hashed}" if names else hashed


def _differing(settings: list[dict[str, str]]) -> list[str]:
    """Return the names of settings that are not the same in all runs, without those that name folders."""
    return [name for name in differing(settings) if not name.endswith(("pack", "/out"))] if settings else []


_BUILD_SECONDS = 300


class GatesRefusedError(TilewiseError):
    """A candidate did not pass the gates."""


def _tracking_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --tracking-uri and --name: which registry, and which model in it."""
    uri = click.option(
        "--tracking-uri",
        "uri",
        envvar="MLFLOW_TRACKING_URI",
        default=Tracking.uri,
        show_default=True,
        help="MLflow's server or SQLite file.",
    )
    name = click.option("--name", default=NAME, show_default=True, help="Of the registered model.")
    return uri(name(command))


def _who_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --by and --why: what the history tells later."""
    by = click.option("--by", "who", default=getpass.getuser, help="Who does it; default: the user's name.")
    why = click.option("--why", default="", help="Why, for the history.")
    return by(why(command))


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Registry of models: register a candidate, promote it through the gates, roll back, look at the history."""
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


@main.command()
@click.option("--run", "folder", type=click.Path(path_type=Path), help="Folder of the run; default: the newest.")
@click.option("--model", type=click.Path(path_type=Path), help="A model file instead of a run's.")
@click.option("--version", "semver", help="Semantic version; default: the next one.")
@_who_options
@_tracking_options
@one_line_errors
def register(
    folder: Path | None, model: Path | None, semver: str | None, who: str, why: str, name: str, uri: str
) -> None:
    """Put a run's model file into the registry, as the candidate."""
    run = RunFolder(folder) if folder else (None if model else newest_run())
    path = model or (run.model if run else Path())
    run_id = run_id_of(run, uri) if run else None
    version = Registry(uri, name).register(open_model(path), who, why, semver, run_id)
    click.echo(f"{path} is {name} {version.tags['semver']} (version {version.version}), the candidate")


@main.command()
@click.argument("version", required=False)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Pack that both models are measured on.")
@click.option("--gates", type=click.Path(path_type=Path), default=DEFAULT, help="Default: configs/gates.yaml.")
@click.option("--approve", metavar="NAME", help="The person who approves, where the gates ask for one.")
@click.option("--dry-run", is_flag=True, help="Measure and print only.")
@click.option("--bento/--no-bento", default=True, show_default=True, help="Build a bento of the same version.")
@_who_options
@_tracking_options
@one_line_errors
def promote(
    version: str | None,
    data: Path,
    gates: Path,
    approve: str | None,
    dry_run: bool,
    bento: bool,
    who: str,
    why: str,
    name: str,
    uri: str,
) -> None:
    """Measure VERSION (number, semantic version or alias; default: the candidate) and make it the champion.

    Every gate of the gates file must pass. Exit status 1 says that the model was not promoted; nothing has moved then.
    """
    registry, settings = Registry(uri, name), read_gate_settings(gates)
    approver = (approve or "").strip()
    if approver and (objection := settings.objection(approver)):
        raise GatesRefusedError(objection)  # said before minutes go into measuring
    found, champion = registry.find(version), registry.by_alias(CHAMPION)
    registry.refuse_the_champion(found)
    with tempfile.TemporaryDirectory(prefix="tilewise-promote-") as folder:
        candidate = registry.fetch(found, Path(folder, "candidate")).path
        context = registry.gate_context(candidate, champion, Path(folder), Pack(data), settings)
        findings = examine_aloud(context)
        print_findings(found, champion if context.champion else None, findings)
        if not dry_run:
            registry.write_results(found, findings, **context.tags(champion))
        _refuse_failures(registry, found, findings, who, dry_run)
        if dry_run:
            return
        if objection := settings.objection(approver):
            raise GatesRefusedError(f"every gate passes, but {objection}")
        if bento:
            tag = build_bento(context.candidate.path, found.tags["semver"])
            registry.tag(found, bento=tag)
            click.echo(f"the bento {tag} holds it")
    registry.require_champion(champion)
    registry.promote(found, approver or who, why or "it passed the gates")
    registry.tag(found, approved_by=approver or "nobody", promoted_by=who)
    click.echo(f"{name} {found.tags.get('semver', found.version)} is the champion now")


def examine_aloud(context: GateContext) -> list[GateResult]:
    """Return what the gates find, naming on a terminal which one is being measured: they take minutes."""
    findings: list[GateResult] = []
    console = Console(stderr=True)
    with console.status("measuring the first gate") as status:
        for finding in run_gates(context):
            findings.append(finding)
            status.update(f"{len(findings)} figures so far, the last of {finding.gate}")
    return findings


def _refuse_failures(
    registry: Registry, version: ModelVersion, findings: list[GateResult], who: str, dry_run: bool
) -> None:
    failed = [finding.gate for finding in findings if not finding.passed]
    if failed and not dry_run:
        registry.refuse(version, who, f"gates: {', '.join(failed)}")
    if failed:
        raise GatesRefusedError(f"{len(failed)} of {len(findings)} gates fail: {', '.join(failed)}")


@main.command()
@click.option("--to", help="Version to go back to; default: the champion before this one.")
@_who_options
@_tracking_options
@one_line_errors
def rollback(to: str | None, who: str, why: str, name: str, uri: str) -> None:
    """Make the previous champion the champion again; services that follow the alias take it up by themselves."""
    gone, comes = Registry(uri, name).rollback(who, why, to)
    click.echo(f"{name}: {gone.tags.get('semver')} goes, {comes.tags.get('semver')} is the champion again")
    if bento := comes.tags.get("bento"):
        click.echo(f"the bento {bento} holds it")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@_tracking_options
@one_line_errors
def history(as_json: bool, name: str, uri: str) -> None:
    """Tell what happened to each version: when, what, who, why."""
    events = Registry(uri, name).history()
    if as_json:
        for event in events:
            click.echo(json.dumps(asdict(event)))
        return
    table = Table("when (UTC)", "version", "what", "who", "why")
    for event in events:
        table.add_row(event.when[:19], event.semver, event.what, escape(event.who), escape(event.why))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


@main.command()
@click.option("--experiment", help="Only this experiment; default: all.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1), help="Rows at most, newest first.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@_tracking_options
@one_line_errors
def compare(experiment: str | None, limit: int, as_json: bool, name: str, uri: str) -> None:
    """Print a table of training runs: figures, what they were trained on, and how they differ in settings."""
    rows = compare_runs(uri, experiment, limit, name)
    if not rows:
        raise TrainingError(f"{uri}: no run is there; `tilewise train` makes one")
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*columns)
    for row in rows:
        table.add_row(*(escape(str(row.get(column, ""))) for column in columns))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def print_findings(version: ModelVersion, champion: ModelVersion | None, findings: list[GateResult]) -> None:
    """Print a table of what the gates found."""
    against = f"against {champion.tags.get('semver', champion.version)}" if champion else "against no champion"
    table = Table("gate", "", "figure", "asked", title=f"{version.tags.get('semver', version.version)}, {against}")
    for finding in findings:
        state = "pass" if finding.passed else "FAIL"
        table.add_row(escape(finding.gate), state, f"{finding.figure:.4g}", escape(finding.limit))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def build_bento(model: Path, version: str) -> str:
    """Return the tag of a bento of a model file, built unless it is there.

    It is built in a process of its own, as training must not import serving.

    Raises:
        TrainingError: it cannot be built.
    """
    # A bento of a promotion that came to nothing, or of a version that was rolled back, is taken as it is.
    command = [sys.executable, "-m", "tilewise", "build", "--model", str(model), "--version", version, "--keep"]
    done = subprocess.run(command, cwd=checkout(), capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False)
    if done.returncode != 0:
        raise TrainingError(f"the bento cannot be built, so nothing was promoted: {done.stderr.strip()}")
    return done.stdout.strip()
