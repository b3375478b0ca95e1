"""The steps of a retraining: pipeline, gates, registry. Each can be done again; none gives a model to callers.

The gates measure the model before it is registered, since services may try candidates on live requests as soon as the
registry names one (`TILEWISE_CANDIDATE_MODE=canary`): what is refused never becomes the candidate.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import click
from mlflow.entities.model_registry import ModelVersion

from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.packs.pack import Pack
from tilewise.models.model_file import open_model
from tilewise.training.registry.cases import case_of, circumstances
from tilewise.training.registry.gates import DEFAULT, Finding, examine, read_settings
from tilewise.training.registry.reasons import Check, Triggers, check, reason_of
from tilewise.training.registry.registry import CHAMPION, NAME, Registry
from tilewise.training.settings import RunFolder
from tilewise.training.tracking import Tracking, run_id_of

_PIPELINE = "dvc.yaml"
_TO_END_S = 60
_MEASURED = "gate."  # how tags begin that tell what the gates found

Step = Callable[..., Any]


class Ending(StrEnum):
    """How a retraining ends, where nothing fails."""

    NOTHING = "nothing to do"
    PASSED = "passed"
    REFUSED = "refused"


@dataclass(frozen=True)
class Plan:
    """Why, with what, and into which registry.

    Attributes:
        triggers: what is a reason.
        run: the folder that the pipeline trains in.
        data: the pack that candidate and champion are measured on.
        gates: what a model must show.
        uri, name: the registry's address and the registered model.
        who: for the history.
    """

    triggers: Triggers
    run: Path = Path("artifacts/pipeline/run")
    data: Path = Path("data/packed")
    gates: Path = DEFAULT
    uri: str = Tracking.uri
    name: str = NAME
    who: str = "retrain"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the gates found, and on and against what: for the version's tags."""

    findings: list[Finding]
    circumstances: dict[str, str]

    @property
    def failed(self) -> list[str]:
        """The gates that were not passed."""
        return [finding.gate for finding in self.findings if not finding.passed]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended, and why.

    Attributes:
        ending: one of three.
        said: in a line.
        checks: what was asked before.
        version: the semantic version that it made; empty where it made none.
        findings: of the gates.
    """

    ending: Ending
    overrides: str
    checks: list[Check]
    version: str = ""
    findings: list[Finding] = field(default_factory=list)


def retrain(plan: Plan, step: Callable[[Step], Step] = lambda function: function) -> Outcome:
    """Retrain if there is a reason, measure what comes of it, and register it.

    Args:
        step: wraps each step before it is called, e.g. as a task of Prefect.

    Raises:
        TrainingError: whoever is asked for a reason does not answer, or a step fails.
    """
    checks = step(find_reasons)(plan)
    if not any(item.holds for item in checks):
        return Outcome(Ending.NOTHING, "no reason to retrain", checks)
    step(run_pipeline)()
    known = step(find_known)(plan)
    if known:
        return Outcome(Ending.NOTHING, f"the pipeline's model is {known} already; give it new data or settings", checks)
    judgement = step(judge)(plan)
    version = step(enter)(plan, judgement, reason_of(checks, plan.triggers.because))
    if judgement.failed:
        gates = f"{len(judgement.failed)} of {len(judgement.findings)} gates fail: {', '.join(judgement.failed)}"
        return Outcome(
            Ending.REFUSED, f"{plan.name} {version} is refused; {gates}", checks, version, judgement.findings
        )
    passed = f"{plan.name} {version} passed all {len(judgement.findings)} gates and is the candidate"
    return Outcome(Ending.PASSED, passed, checks, version, judgement.findings)


def find_reasons(plan: Plan) -> list[Check]:
    """Ask whatever the plan names for a reason, and say what it answers."""
    checks = check(plan.triggers, Registry(plan.uri, plan.name))
    for item in checks:
        click.echo(f"{'reason' if item.holds else 'no reason'}: {item.overrides}")
    return checks


def run_pipeline() -> None:
    """Run what has changed of the pipeline in this folder, from the data to the model file.

    Raises:
        TrainingError: there is none, or a stage fails.
    """
    if not Path(_PIPELINE).is_file():
        raise TrainingError(f"{Path.cwd()}: no {_PIPELINE} is here; retrain in the project's folder")
    here = Path(sys.executable).parent  # stages call `python`: it must be this one, also for cron
    environment = os.environ | {"PATH": f"{here}{os.pathsep}{os.environ.get('PATH', '')}"}
    status = _call([sys.executable, "-m", "dvc", "repro"], environment)
    if status != 0:
        raise TrainingError(f"the pipeline ended with {status}, as said above; mend it, and the same command goes on")


def find_known(plan: Plan) -> str:
    """Return which version the pipeline's model is already, with figures of the gates; empty if it is a new one."""
    version = _registered(plan)
    if version is None or not any(key.startswith(_MEASURED) for key in version.tags):
        return ""  # one that was registered when something stopped is gone on with
    return f"{plan.name} {version.tags.get('semver', version.version)} ({version.tags.get('stage', '')})"


def judge(plan: Plan) -> Judgement:
    """Measure the pipeline's model by the gates, against the champion if there is one that knows the same classes."""
    registry, settings, pack = Registry(plan.uri, plan.name), read_settings(plan.gates), Pack(plan.data)
    champion = registry.by_alias(CHAMPION)
    with tempfile.TemporaryDirectory(prefix="tilewise-retrain-") as folder:
        case = case_of(RunFolder(plan.run).model, registry, champion, Path(folder), pack, settings)
        findings = list(examine(case))
    return Judgement(findings, circumstances(case, champion))


def enter(plan: Plan, judgement: Judgement, why: str) -> str:
    """Register the model with what the gates found, as the candidate only if it passed; return its version."""
    registry, folder = Registry(plan.uri, plan.name), RunFolder(plan.run)
    version = _registered(plan)
    if version is None:
        model, run_id = open_model(folder.model), run_id_of(folder, plan.uri)
        passed = not judgement.failed
        version = registry.register(model, plan.who, f"retrained: {why}", run_id=run_id, candidate=passed)
    registry.write_findings(version, judgement.findings, **judgement.circumstances)
    if judgement.failed:
        registry.refuse(version, plan.who, f"gates: {', '.join(judgement.failed)}")
    else:
        registry.note(version, "passed", plan.who, "every gate; waits for a person")
    return str(version.tags["semver"])


def _registered(plan: Plan) -> ModelVersion | None:
    """Return the version that holds the pipeline's model file, if any does."""
    sha256 = open_model(RunFolder(plan.run).model).sha256
    versions = Registry(plan.uri, plan.name).versions()
    return next((version for version in reversed(versions) if version.tags.get("sha256") == sha256), None)


def _call(command: list[str], environment: dict[str, str]) -> int:
    """Run a command in a process group of its own, which is ended with this process; return its exit status."""
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        return process.wait()
    except BaseException:
        _end(process)
        raise


def _end(process: "subprocess.Popen[bytes]") -> None:
    for kind in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, kind)
        try:
            process.wait(_TO_END_S)
        except subprocess.TimeoutExpired:
            continue
        return
