"""From a reason to a candidate: a real DVC pipeline, the real gates, a real registry; nothing reaches
production."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import pytest
from click.testing import CliRunner, Result
from mlflow.tracking import MlflowClient
from monitoring import missing_programs, monitoring
from servers import served
from tiny_onnx import write_model
from watched import tiles, until, watched_metadata

from tilewise.datasets.acquire.synthetic import synthesise_tile
from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.quality.reviewed import AnswerOrigin, Decision, take_up
from tilewise.datasets.readers.eurosat import CLASSES
from tilewise.models.model_file import open_model
from tilewise.training.registry.flow import FLOW
from tilewise.training.registry.gates import GateResult
from tilewise.training.registry.reasons import Triggers, check_triggers
from tilewise.training.registry.registry import Registry
from tilewise.training.registry.retrain import Judgement, RetrainPlan, register
from tilewise.training.registry.retrain_cli import command

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
MakeModel = Callable[..., Path]
GATES = """
floor: {accuracy: 0.6, macro_f1: 0.5, class_recall: 0.0}
champion: {accuracy: 0.02, macro_f1: 0.05, resamples: 200}
"""
PIPELINE = """
stages:
  train:
    cmd: python -c "import shutil; shutil.copy('trained.onnx', 'artifacts/pipeline/run/model.onnx')"
    deps: [trained.onnx]
    outs: [artifacts/pipeline/run/model.onnx]
"""
DVC_CONFIG = "[core]\n    no_scm = true\n    analytics = false\n"


@pytest.fixture
def project(in_folder: Path) -> Path:
    """A folder with a pipeline that trains in a moment: the network comes ready made."""
    (in_folder / ".dvc").mkdir()
    (in_folder / "artifacts/pipeline/run").mkdir(parents=True)
    (in_folder / ".dvc/config").write_text(DVC_CONFIG)
    (in_folder / "dvc.yaml").write_text(PIPELINE)
    (in_folder / "gates.yaml").write_text(GATES)
    return in_folder


@pytest.fixture
def registry(store: Path) -> Registry:
    return Registry(f"sqlite:///{store}")


@pytest.fixture
def retrain(registry: Registry, judged: Path) -> Callable[..., Result]:
    def run(*words: object, status: int = 0) -> Result:
        fixed = ("--data", judged, "--gates", "gates.yaml", "--tracking-uri", registry.uri, "--by", "cron")
        done = CliRunner().invoke(command, [str(word) for word in (*words, *fixed)])
        assert done.exit_code == status, done.output
        return done

    return run


def told(registry: Registry) -> list[tuple[str, str]]:
    """What the history tells, as (semantic version, what)."""
    return [(event.semver, event.what) for event in registry.history()]


def test_a_retraining_ends_in_the_gates_and_only_a_person_goes_on(
    project: Path, registry: Registry, retrain: Callable[..., Result], make_model: MakeModel
) -> None:
    shutil.copy(make_model(), project / "trained.onnx")
    passed = retrain("--because", "the first of all")
    assert "tilewise 1.0.0 passed all 12 gates and is the candidate" in passed.output
    assert "tilewise promote 1.0.0 --data" in passed.output
    assert registry.by_alias("champion") is None
    candidate = registry.by_alias("candidate")
    assert candidate is not None
    assert candidate.tags["gate.floor/accuracy"].startswith("pass 0.")
    report = json.loads((project / "artifacts/retraining/retraining.json").read_text())
    assert (report["ending"], report["status"], report["version"]) == ("passed", 0, "1.0.0")

    again = retrain("--because", "schedule", status=3)
    assert "the pipeline's model is tilewise 1.0.0 (candidate) already" in again.output

    registry.promote(candidate, "Grace", "it is the first")
    shutil.copy(make_model(noise=1.5), project / "trained.onnx")
    refused = retrain("--because", "drift", status=4)
    assert "tilewise 1.0.1 is refused" in refused.output
    assert "champion/accuracy" in refused.output
    assert registry.by_alias("candidate") is None  # a service that tries candidates never sees it
    assert registry.find("champion").tags["semver"] == "1.0.0"
    assert registry.find("1.0.1").tags["stage"] == "refused"
    assert registry.find("1.0.1").tags["measured.champion"] == "1.0.0"
    assert told(registry) == [
        ("1.0.0", "registered"),
        ("1.0.0", "passed"),
        ("1.0.0", "promoted"),
        ("1.0.1", "registered"),
        ("1.0.1", "refused"),
    ]
    assert registry.history()[3].why == "retrained: drift"


@pytest.mark.parametrize("failed", [False, True])
def test_a_retraining_killed_between_a_version_and_its_alias_is_resumed_to_the_same_end(
    failed: bool, project: Path, registry: Registry, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = RetrainPlan(Triggers(), run=project / "artifacts/pipeline/run", uri=registry.uri, who="cron")
    shutil.copy(make_model(), plan.run / "model.onnx")
    gate = GateResult("floor/accuracy", not failed, 0.9, "at least 0.6")
    judgement = Judgement([gate], {})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(MlflowClient, "set_registered_model_alias", killed)
        with pytest.raises(KeyboardInterrupt):
            register(plan, Judgement([], {}), "schedule")
    assert registry.by_alias("candidate") is None
    assert [version.tags["semver"] for version in registry.versions()] == ["1.0.0"]
    assert register(plan, judgement, "schedule") == "1.0.0"
    candidate = registry.by_alias("candidate")
    assert (candidate and candidate.tags["semver"]) == (None if failed else "1.0.0")
    register(plan, judgement, "schedule")
    assert len(registry.versions()) == 1


def test_a_refused_model_leaves_the_candidate_that_waits(
    project: Path, registry: Registry, make_model: MakeModel
) -> None:
    waiting = registry.register(open_model(make_model()), "Ada", "good")
    registry.register(open_model(make_model(noise=1.5)), "cron", "bad", candidate=False)
    found = registry.by_alias("candidate")
    assert found is not None
    assert found.version == waiting.version
    assert found.tags["stage"] == "candidate"


def test_without_a_reason_nothing_runs(
    project: Path, registry: Registry, retrain: Callable[..., Result], make_model: MakeModel
) -> None:
    registry.promote(registry.register(open_model(make_model()), "Ada", ""), "Ada", "")
    done = retrain("--if-older", "30", "--if-labelled", "5", status=3)
    assert "no reason: the champion is 0.0 days old, the limit is 30" in done.output
    assert "no reason: 0 tiles were labelled since the champion, the minimum is 5" in done.output
    assert not (project / "dvc.lock").exists()


def test_a_stage_that_fails_is_a_failure_and_not_a_verdict(
    project: Path, retrain: Callable[..., Result]
) -> None:
    assert "the pipeline ended with" in retrain("--because", "drift", status=1).stderr
    (project / "dvc.yaml").unlink()
    assert (
        "there is no dvc.yaml; retrain in the project's folder"
        in retrain("--because", "drift", status=1).stderr
    )
    assert "no reason to retrain is given; add --because WHY" in retrain(status=1).stderr


def test_sigterm_ends_the_pipeline_too(project: Path, registry: Registry, judged: Path) -> None:
    stage = "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(100)"
    (project / "dvc.yaml").write_text(f'stages:\n  train:\n    cmd: python -c "{stage}"\n')
    words = ["retrain", "--because", "drift", "--data", str(judged), "--tracking-uri", registry.uri]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "tilewise", *words],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(
            lambda: (project / "pid").is_file() and (project / "pid").read_text() != "", "the stage runs", 100
        )
        stage_pid = int((project / "pid").read_text())
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143
    assert "stopped by SIGTERM; the same command goes on" in errors
    until(lambda: not _is_alive(stage_pid), "the stage is gone", 30)


def _is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


# Reasons.


def test_tiles_labelled_since_the_champion_are_a_reason(
    project: Path, registry: Registry, make_model: MakeModel
) -> None:
    triggers = Triggers(tiles=2, days=1)
    assert [item.holds for item in check_triggers(triggers, registry)] == [
        True,
        False,
    ]  # no champion at all is one, too
    _label(project, "before")
    time.sleep(1.1)  # decisions are told to the second
    registry.promote(registry.register(open_model(make_model()), "Ada", ""), "Ada", "")
    time.sleep(1.1)
    _label(project, "after")
    assert [item.message for item in check_triggers(triggers, registry)][1].startswith(
        "1 tiles were labelled since the champion"
    )
    assert [item.holds for item in check_triggers(replace(triggers, tiles=1), registry)] == [False, True]
    assert [item.holds for item in check_triggers(replace(triggers, days=0), registry)] == [True, False]


def _label(project: Path, name: str) -> None:
    tile = synthesise_tile("River", 3, 1)
    origin = AnswerOrigin(
        datetime.now(UTC).isoformat(), "r-1", "River", "0.4", "", "tilewise", "1.0.0", "0" * 64, "0" * 64
    )
    take_up(project / "data/reviewed", [(Decision(name, "River", "Ada", ""), origin, tile)])
    take_up(project / "data/reviewed", [(Decision(f"{name}-not", "_", "Ada", ""), origin, tile)])


def test_whoever_does_not_answer_is_no_sign_that_all_is_well(
    retrain: Callable[..., Result], project: Path
) -> None:
    done = retrain("--if-drift", "http://127.0.0.1:1", status=1)
    assert "http://127.0.0.1:1: /metrics cannot be read" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "cannot be read" in retrain("--if-alert", "no url", status=1).stderr


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real service with a model of 2020 that tells drift from 20 tiles on; returns its URL."""
    home = tmp_path_factory.mktemp("service")
    card = watched_metadata(tiles(40, seed=1)).model_copy(update={"created": "2020-01-01T00:00:00+00:00"})
    weights = np.zeros((len(BAND_NAMES) + 1, len(CLASSES)), np.float32)
    path = write_model(home / "model.onnx", card.model_dump_json(), weights=weights)
    settings = {"TILEWISE_WORKERS": "1", "TILEWISE_DRIFT_WINDOW": "64", "TILEWISE_DRIFT_LEAST": "20"}
    with served(path, home, **settings) as server:
        yield server.url


def test_drift_of_a_real_service_is_a_reason(service: str, registry: Registry) -> None:
    (before,) = check_triggers(Triggers(drift=service), registry)
    assert not before.holds
    assert "reports no drift" in before.message
    until(
        lambda: _asked(service) and check_triggers(Triggers(drift=service), registry)[0].holds,
        "drift is a reason",
    )
    assert not check_triggers(Triggers(drift=service, max_psi=1000), registry)[0].holds


def _asked(service: str) -> bool:
    """Send tiles with the offset left in; drift is told with the batches, every two seconds at most."""
    body = io.BytesIO()
    np.save(body, tiles(40, seed=2) + np.uint16(1000))
    headers = {"Content-Type": "application/octet-stream"}
    return httpx.post(f"{service}/classify", content=body.getvalue(), headers=headers, timeout=60).is_success


@pytest.mark.skipif(bool(missing_programs()), reason=f"apt-get install {' '.join(missing_programs())}")
def test_an_alert_of_a_real_prometheus_that_asks_for_it_is_a_reason(
    service: str, registry: Registry, tmp_path: Path
) -> None:
    with monitoring(tmp_path / "watch", [service.removeprefix("http://")], hold="1s") as watch:
        triggers = Triggers(alert=watch.prometheus)
        # Another alert may be first: the same service has been asked with drifting tiles.
        until(
            lambda: "TilewiseModelOld" in check_triggers(triggers, registry)[0].message,
            "the old model's alert fires",
        )
        assert check_triggers(triggers, registry)[0].holds


# Prefect.


def test_the_same_steps_run_as_a_flow_of_prefect(
    project: Path, registry: Registry, judged: Path, make_model: MakeModel
) -> None:
    pytest.importorskip("prefect", reason="pip install 'tilewise[ops]'")
    shutil.copy(make_model(), project / "trained.onnx")
    script = Path(__file__).with_name("prefect_flow.py")
    own = {"PREFECT_HOME": str(project / "prefect"), "PREFECT_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(
        [sys.executable, str(script), str(project), str(judged), registry.uri],
        env=os.environ | own | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["outcome"] == ["passed", "1.0.0"]
    assert said["flow"] == [FLOW, "Completed"]
    steps = ("find_reasons", "run_pipeline", "find_registered", "judge", "register")
    assert said["tasks"] == dict.fromkeys(steps, "Completed")
    assert registry.by_alias("champion") is None
