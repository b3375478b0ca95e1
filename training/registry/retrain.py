"""The steps of a retraining: triggers, pipeline, gates, registry. Each can be repeated; none promotes a
model.

The gates measure the model before it is registered, since services may try a candidate on live requests as
soon as the registry has one (`TILEWISE_CANDIDATE_MODE=canary`): a refused model never becomes the candidate.
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
from tilewise.training.registry.gates import DEFAULT, GateResult, read_gate_settings, run_gates
from tilewise.training.registry.reasons import TriggerCheck, Triggers, check_triggers, reason_of
from tilewise.training.registry.registry import CHAMPION, NAME, Registry
from tilewise.training.settings import RunFolder
from tilewise.training.tracking import Tracking, run_id_of

_PIPELINE = "dvc.yaml"
_TO_END_S = 60
_GATE_TAG = "gate."  # prefix of the tags with the results of gates

Step = Callable[..., Any]


class Ending(StrEnum):
    """The outcome of a retraining, if no step fails."""

    NOTHING = "nothing to do"
    PASSED = "passed"
    REFUSED = "refused"


@dataclass(frozen=True)
class RetrainPlan:
    """The settings of a retraining.

    Attributes:
        triggers: reasons to retrain.
        run: the folder that the pipeline trains in.
        data: the pack that candidate and champion are measured on.
        gates: the gates file.
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
    """The results of the gates, and what they were measured on and against, for the version's tags."""

    results: list[GateResult]
    measured: dict[str, str]

    @property
    def failed(self) -> list[str]:
        """The gates that failed."""
        return [result.gate for result in self.results if not result.passed]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a retraining.

    Attributes:
        ending: one of three.
        message: the outcome in one line.
        checks: the triggers that were checked.
        version: the semantic version that was registered; empty: none.
        findings: the results of the gates.
    """

    ending: Ending
    message: str
    checks: list[TriggerCheck]
    version: str = ""
    findings: list[GateResult] = field(default_factory=list)


def retrain(plan: RetrainPlan, step: Callable[[Step], Step] = lambda function: function) -> Outcome:
    """Retrain if there is a reason, measure the new model by the gates, and register it.

    Args:
        step: wraps each step before it is called, e.g. as a task of Prefect.

    Raises:
        TrainingError: a source of triggers does not respond, or a step fails.
    """
    checks = step(find_reasons)(plan)
    if not any(item.holds for item in checks):
        return Outcome(Ending.NOTHING, "no reason to retrain", checks)
    step(run_pipeline)()
    known = step(find_registered)(plan)
    if known:
        return Outcome(
            Ending.NOTHING, f"the pipeline's model is {known} already; give it new data or settings", checks
        )
    judgement = step(judge)(plan)
    version = step(register)(plan, judgement, reason_of(checks, plan.triggers.because))
    if judgement.failed:
        gates = (
            f"{len(judgement.failed)} of {len(judgement.results)} gates fail: {', '.join(judgement.failed)}"
        )
        refused = f"{plan.name} {version} is refused; {gates}"
        return Outcome(Ending.REFUSED, refused, checks, version, judgement.results)
    passed = f"{plan.name} {version} passed all {len(judgement.results)} gates and is the candidate"
    return Outcome(Ending.PASSED, passed, checks, version, judgement.results)


def find_reasons(plan: RetrainPlan) -> list[TriggerCheck]:
    """Check the triggers of the plan, and print the result of each."""
    checks = check_triggers(plan.triggers, Registry(plan.uri, plan.name))
    for item in checks:
        click.echo(f"{'reason' if item.holds else 'no reason'}: {item.message}")
    return checks


def run_pipeline() -> None:
    """Run the stages of the pipeline in this folder that changed, from the data to the model file.

    Raises:
        TrainingError: there is none, or a stage fails.
    """
    if not Path(_PIPELINE).is_file():
        raise TrainingError(f"{Path.cwd()}: there is no {_PIPELINE}; retrain in the project's folder")
    here = Path(
        sys.executable
    ).parent  # stages call `tilewise`: it must be this environment's, also under cron
    environment = os.environ | {"PATH": f"{here}{os.pathsep}{os.environ.get('PATH', '')}"}
    status = _call([sys.executable, "-m", "dvc", "repro"], environment)
    if status != 0:
        raise TrainingError(
            f"the pipeline ended with {status}, see above; fix it, and the same command resumes"
        )


def find_registered(plan: RetrainPlan) -> str:
    """Return the version that the pipeline's model is registered as, with results of the gates; empty if it
    is new."""
    version = _registered(plan)
    if version is None or not any(key.startswith(_GATE_TAG) for key in version.tags):
        return ""  # registered before an interruption: it is resumed
    return f"{plan.name} {version.tags.get('semver', version.version)} ({version.tags.get('stage', '')})"


def judge(plan: RetrainPlan) -> Judgement:
    """Measure the pipeline's model by the gates, against the champion if there is one with the same
    classes."""
    registry, settings, pack = Registry(plan.uri, plan.name), read_gate_settings(plan.gates), Pack(plan.data)
    champion = registry.by_alias(CHAMPION)
    with tempfile.TemporaryDirectory(prefix="tilewise-retrain-") as folder:
        context = registry.gate_context(RunFolder(plan.run).model, champion, Path(folder), pack, settings)
        results = list(run_gates(context))
    return Judgement(results, context.tags(champion))


def register(plan: RetrainPlan, judgement: Judgement, why: str) -> str:
    """Register the model with the results of the gates, as the candidate only if it passed; return its
    version."""
    registry, folder = Registry(plan.uri, plan.name), RunFolder(plan.run)
    version = _registered(plan)
    if version is None:
        model, run_id = open_model(folder.model), run_id_of(folder, plan.uri)
        passed = not judgement.failed
        version = registry.register(model, plan.who, f"retrained: {why}", run_id=run_id, candidate=passed)
    elif not judgement.failed:  # an interruption may have come between the version and its alias
        registry.make_candidate(version, plan.who)
    registry.write_results(version, judgement.results, **judgement.measured)
    if judgement.failed:
        registry.refuse(version, plan.who, f"gates: {', '.join(judgement.failed)}")
    else:
        registry.note(version, "passed", plan.who, "every gate; waits for approval")
    return str(version.tags["semver"])


def _registered(plan: RetrainPlan) -> ModelVersion | None:
    """Return the version that has the pipeline's model file, if there is one."""
    sha256 = open_model(RunFolder(plan.run).model).sha256
    versions = Registry(plan.uri, plan.name).versions()
    return next((version for version in reversed(versions) if version.tags.get("sha256") == sha256), None)


def _call(command: list[str], environment: dict[str, str]) -> int:
    """Run a command in a process group of its own, which ends with this process; return its exit status."""
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
