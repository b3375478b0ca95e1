"""`tilewise register`, `promote`, `rollback`, `history` and `runs`: the model registry."""

import getpass
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient
from rich.console import Console
from rich.table import Table

from tilewise.datasets.core.console import (
    CONTEXT,
    FILE,
    FOLDER,
    one_line_errors,
    option_group,
    print_table,
    silence_mlflow,
)
from tilewise.datasets.core.errors import TilewiseError, TrainingError
from tilewise.datasets.core.locations import checkout
from tilewise.datasets.packs.pack import Pack
from tilewise.models.model_file import open_model
from tilewise.training.registry.gates import DEFAULT, GateContext, GateResult, read_gate_settings, run_gates
from tilewise.training.registry.registry import CHAMPION, NAME, Registry
from tilewise.training.settings import RunFolder, differing, newest_run
from tilewise.training.tracking import run_id_of, tracking_uri_option

_FIGURES = ("accuracy", "macro_f1", "calibration_error")


def compare_runs(
    uri: str, experiment: str | None = None, limit: int = 20, model: str = NAME
) -> list[dict[str, Any]]:
    """Return one row for each run, newest first.

    A row has the run's name, start, state, data (name and hash), code revision, the version of `model` that
    it became (or an empty text), its test metrics, and the settings in which the runs differ.

    Raises:
        TrainingError: there is no such experiment.
    """
    client = MlflowClient(tracking_uri=uri)
    found = [e for e in client.search_experiments() if experiment in (None, e.name)]
    if not found:
        raise TrainingError(f"{uri}: there is no experiment {experiment!r}")
    runs = client.search_runs(
        [e.experiment_id for e in found], order_by=["start_time DESC"], max_results=limit
    )
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
    """Return the names of settings that differ between runs, without those that name folders."""
    return [name for name in differing(settings) if not name.endswith(("pack", "/out"))] if settings else []


_BUILD_SECONDS = 300


class GatesRefusedError(TilewiseError):
    """A candidate did not pass the gates."""


def make_registry(uri: str, name: str) -> Registry:
    """Return the registry that command-line options name; MLflow's own messages are turned off."""
    silence_mlflow()
    return Registry(uri, name)


REGISTRY_OPTIONS = (
    tracking_uri_option,
    click.option("--name", "name", default=NAME, show_default=True, help="Name of the registered model."),
)
registry_options = option_group("registry", make_registry, REGISTRY_OPTIONS)
"""Add --tracking-uri and --name, as one argument `registry`."""

who_option = click.option(
    "--by", "who", default=getpass.getuser, show_default="your user name", help="Name for the history."
)
why_option = click.option("--why", "why", default="", help="Reason, for the history.")


@click.command(context_settings=CONTEXT)
@click.option("--run", "folder", type=FOLDER, help="Folder of the run. Default: the newest run.")
@click.option("--model", "model", type=FILE, help="A model file instead of a run's.")
@click.option("--version", "semver", help="Semantic version. Default: the next one.")
@who_option
@why_option
@registry_options
@one_line_errors
def register(
    folder: Path | None, model: Path | None, semver: str | None, who: str, why: str, registry: Registry
) -> None:
    """Put a run's model file into the registry, as the candidate.

    \b
      tilewise register                                      # the newest run
      tilewise register --run artifacts/runs/first --why "more tiles of rivers"
    """
    run = RunFolder(folder) if folder else (None if model else newest_run())
    path = model or (run.model if run else Path())
    run_id = run_id_of(run, registry.uri) if run else None
    version = registry.register(open_model(path), who, why, semver, run_id)
    click.echo(
        f"{path} is {registry.name} {version.tags['semver']} (version {version.version}), the candidate"
    )


@click.command(context_settings=CONTEXT)
@click.argument("version", required=False)
@click.option("--data", "data", type=FOLDER, required=True, help="Pack that both models are measured on.")
@click.option("--gates", "gates", type=FILE, default=DEFAULT, help="The gates. Default: configs/gates.yaml.")
@click.option(
    "--approve", "approve", metavar="NAME", help="The person who approves, where the gates require one."
)
@click.option("--dry-run", "dry_run", is_flag=True, help="Measure and print only.")
@click.option(
    "--bento/--no-bento", "bento", default=True, show_default=True, help="Build a bento of the same version."
)
@who_option
@why_option
@registry_options
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
    registry: Registry,
) -> None:
    """Measure VERSION (number, semantic version or alias; default: the candidate) and make it the champion.

    Every gate of the gates file must pass. Exit status 1: the model was not promoted, and no alias has moved.

    \b
      tilewise promote --data data/packed --dry-run
      tilewise promote --data data/packed --approve Ada --why "rivers are better"
    """
    settings = read_gate_settings(gates)
    approver = (approve or "").strip()
    if approver and (objection := settings.objection(approver)):
        raise GatesRefusedError(objection)  # before the measurements, which take minutes
    found, champion = registry.find(version), registry.by_alias(CHAMPION)
    registry.refuse_the_champion(found)
    with tempfile.TemporaryDirectory(prefix="tilewise-promote-") as folder:
        candidate = registry.fetch(found, Path(folder, "candidate")).path
        context = registry.gate_context(candidate, champion, Path(folder), Pack(data), settings)
        findings = examine_with_progress(context)
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
    registry.promote_over(champion, found, approver or who, why or "it passed the gates")
    registry.tag(found, approved_by=approver or "nobody", promoted_by=who)
    click.echo(f"{registry.name} {found.tags.get('semver', found.version)} is the champion now")


def examine_with_progress(context: GateContext) -> list[GateResult]:
    """Return the gates' findings; show progress in a terminal, since they take minutes."""
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


@click.command(context_settings=CONTEXT)
@click.option("--to", "to", help="Version to go back to. Default: the champion before this one.")
@who_option
@why_option
@registry_options
@one_line_errors
def rollback(to: str | None, who: str, why: str, registry: Registry) -> None:
    """Make the previous champion the champion again; services that follow the alias load it by themselves.

    \b
      tilewise rollback --why "clouds are taken for lakes"
    """
    before, after = registry.rollback(who, why, to)
    versions = f"{before.tags.get('semver')} goes, {after.tags.get('semver')} is the champion again"
    click.echo(f"{registry.name}: {versions}")
    if bento := after.tags.get("bento"):
        click.echo(f"the bento {bento} holds it")


@click.command(context_settings=CONTEXT)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@registry_options
@one_line_errors
def history(as_json: bool, registry: Registry) -> None:
    """List what happened to each version: when, what, who, why.

    \b
      tilewise history --json
    """
    events = registry.history()
    if as_json:
        for event in events:
            click.echo(json.dumps(asdict(event)))
        return
    table = Table("when (UTC)", "version", "what", "who", "why")
    for event in events:
        table.add_row(event.when[:19], event.semver, event.what, event.who, event.why)
    print_table(table)


@click.command(context_settings=CONTEXT)
@click.option("--experiment", "experiment", help="Only this experiment. Default: all.")
@click.option(
    "--limit",
    "limit",
    default=20,
    show_default=True,
    type=click.IntRange(1),
    help="Rows at most, newest first.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@registry_options
@one_line_errors
def runs(experiment: str | None, limit: int, as_json: bool, registry: Registry) -> None:
    """Print a table of training runs: metrics, training data, and the settings in which they differ.

    \b
      tilewise runs --experiment demo --limit 5
    """
    uri = registry.uri
    rows = compare_runs(uri, experiment, limit, registry.name)
    if not rows:
        raise TrainingError(f"{uri}: there is no run; `tilewise train` makes one")
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*columns)
    for row in rows:
        table.add_row(*(str(row.get(column, "")) for column in columns))
    print_table(table)


def print_findings(version: ModelVersion, champion: ModelVersion | None, findings: list[GateResult]) -> None:
    """Print a table of the gates' findings."""
    against = (
        f"against {champion.tags.get('semver', champion.version)}" if champion else "against no champion"
    )
    table = Table(
        "gate", "", "figure", "required", title=f"{version.tags.get('semver', version.version)}, {against}"
    )
    for finding in findings:
        state = "pass" if finding.passed else "FAIL"
        table.add_row(finding.gate, state, f"{finding.figure:.4g}", finding.limit)
    print_table(table)


def build_bento(model: Path, version: str) -> str:
    """Return the tag of a bento of a model file, built unless it is there.

    It is built in a process of its own, as training must not import serving.

    Raises:
        TrainingError: it cannot be built.
    """
    # --keep: the bento of an earlier promotion of this version is used as it is.
    command = [
        sys.executable,
        "-m",
        "tilewise",
        "build",
        "--model",
        str(model),
        "--version",
        version,
        "--keep",
    ]
    done = subprocess.run(
        command, cwd=checkout(), capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False
    )
    if done.returncode != 0:
        raise TrainingError(f"the bento cannot be built, so nothing was promoted: {done.stderr.strip()}")
    return done.stdout.strip()
