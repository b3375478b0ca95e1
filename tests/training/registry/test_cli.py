"""The registry's commands as a person types them, against a real store; and what they leave behind."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from mlflow.tracking import MlflowClient

from tilewise.cli import main
from tilewise.models.model_file import open_model
from tilewise.training.registry import cli
from tilewise.training.registry.cli import examine_with_progress
from tilewise.training.registry.gates import GateContext, GateResult
from tilewise.training.registry.registry import Registry

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
MakeModel = Callable[..., Path]
EASY = """
floor: {accuracy: 0.6, macro_f1: 0.5, class_recall: 0.0}
champion: {accuracy: 0.02, macro_f1: 0.05, resamples: 200}
approval: true
"""


@pytest.fixture
def uri(store: Path) -> str:
    """An empty store."""
    return f"sqlite:///{store}"


def command(uri: str, folder: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": uri,
        "PYTHONPATH": str(ROOT),
        "BENTOML_HOME": str(folder / "bentos"),
        "COLUMNS": "160",
    }
    words = [sys.executable, "-m", "tilewise", *map(str, arguments)]
    return subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=250, check=False
    )


def inside(uri: str, *arguments: object) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, [*map(str, arguments), "--tracking-uri", uri])


def test_a_model_goes_from_candidate_to_champion_and_a_worse_one_does_not(
    uri: str, judged: Path, make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    gates = tmp_path / "gates.yaml"
    gates.write_text(EASY)
    promote = ("promote", "--data", judged, "--gates", gates)

    done = command(uri, tmp_path, "register", "--model", make_model(), "--by", "Ada", "--why", "first")
    assert done.returncode == 0, done.stderr
    assert "is tilewise 1.0.0 (version 1), the candidate" in done.stdout

    unapproved = inside(uri, *promote, "--no-bento")
    assert unapproved.exit_code == 1
    assert "add --approve NAME" in unapproved.stderr
    assert Registry(uri).by_alias("champion") is None

    approved = command(uri, tmp_path, *promote, "--approve", "Grace", "--why", "first of all")
    assert approved.returncode == 0, approved.stderr
    assert "tilewise 1.0.0 is the champion now" in approved.stdout
    assert (tmp_path / "bentos/bentos/tilewise/1.0.0/src/tilewise/models/pretrained/model.onnx").is_file()

    assert inside(uri, "register", "--model", make_model(noise=1.5)).exit_code == 0
    refused = inside(uri, *promote, "--approve", "Grace", "--no-bento")
    assert refused.exit_code == 1
    assert "champion/accuracy" in refused.stderr
    assert "FAIL" in refused.stdout
    registry = Registry(uri)
    assert registry.by_alias("champion").tags["semver"] == "1.0.0"
    assert registry.find("1.0.1").tags["stage"] == "refused"
    assert registry.find("1.0.1").tags["gate.champion/accuracy"].startswith("FAIL -")

    told = inside(uri, "history", "--json")
    events = [json.loads(line) for line in told.stdout.splitlines()]
    assert [(event["semver"], event["what"]) for event in events] == [
        ("1.0.0", "registered"),
        ("1.0.0", "promoted"),
        ("1.0.1", "registered"),
        ("1.0.1", "refused"),
    ]
    assert events[1]["who"] == "Grace"
    assert events[1]["why"] == "first of all"


def test_a_dry_run_prints_and_moves_nothing(
    uri: str, judged: Path, make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    gates = tmp_path / "gates.yaml"
    gates.write_text(EASY)
    inside(uri, "register", "--model", make_model())
    done = inside(uri, "promote", "--data", judged, "--gates", gates, "--dry-run")
    assert done.exit_code == 0, done.output
    assert "floor/accuracy" in done.output
    version = Registry(uri).find(None)
    assert not any(key.startswith("gate.") for key in version.tags)
    assert Registry(uri).by_alias("champion") is None


def test_a_champion_of_other_classes_is_no_measure_and_the_champion_is_not_promoted_twice(
    uri: str, judged: Path, make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gates.yaml").write_text(EASY.replace("approval: true", "approval: false"))
    promote = ("promote", "--data", judged, "--gates", tmp_path / "gates.yaml", "--no-bento")
    older = make_model()
    renamed = tuple(f"old {name}" for name in open_model(older).metadata.classes)
    registry = Registry(uri)
    registry.promote(registry.register(open_model(make_model(classes=renamed)), "Ada", ""), "Ada", "")
    inside(uri, "register", "--model", older)
    done = inside(uri, *promote)
    assert done.exit_code == 0, done.output
    assert "the candidate is not compared with it" in done.output
    champion = registry.by_alias("champion")
    assert champion.tags["semver"] == "2.0.0"
    assert champion.tags["measured.champion"] == "none"
    assert "2.0.0 is the champion already" in inside(uri, *promote, "champion").stderr


def test_a_candidate_is_not_promoted_over_a_champion_that_it_was_not_measured_against(
    uri: str, judged: Path, make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another promotes a version of theirs while the gates of the candidate are measured."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gates.yaml").write_text(
        "floor: {accuracy: 0, macro_f1: 0, class_recall: 0}\napproval: false"
    )
    registry, model = Registry(uri), open_model(make_model())
    registry.promote(registry.register(model, "Ada", ""), "Ada", "")
    theirs = registry.register(model, "Grace", "", candidate=False)
    registry.register(model, "Ada", "")

    def examine(context: GateContext) -> list[GateResult]:
        found = examine_with_progress(context)
        Registry(uri).promote(theirs, "Grace", "")
        return found

    monkeypatch.setattr(cli, "examine_with_progress", examine)
    refused = inside(uri, "promote", "--data", judged, "--gates", "gates.yaml", "--no-bento", "--by", "Ada")
    assert refused.exit_code == 1
    assert "the champion of tilewise changed from 1.0.0 to 1.0.1 while gates were measured" in refused.stderr
    assert "nothing was promoted; promote again" in refused.stderr
    aliases = {name: registry.find(name).tags["semver"] for name in ("champion", "previous", "candidate")}
    assert aliases == {"champion": "1.0.1", "previous": "1.0.0", "candidate": "1.0.2"}
    assert [event.what for event in registry.history() if event.semver == "1.0.2"] == ["registered"]


def test_nothing_registered_is_one_line_that_says_the_way(uri: str, judged: Path) -> None:
    done = inside(uri, "promote", "--data", judged)
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")
    assert "`tilewise register`" in done.stderr
    assert done.stderr.count("\n") == 1


def test_runs_are_compared_by_figures_and_by_the_settings_that_differ(uri: str) -> None:
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("compared")
    for name, rate, accuracy in (("slow", 0.001, 0.81), ("fast", 0.01, 0.84)):
        run = client.create_run(experiment, run_name=name, tags={"data_hash": "abcdef0123456789"})
        client.log_param(run.info.run_id, "model/lr", rate)
        client.log_param(run.info.run_id, "model/network", "cnn")
        client.log_metric(run.info.run_id, "test/all/accuracy", accuracy)
    rows = [json.loads(line) for line in inside(uri, "runs", "--json").stdout.splitlines()]
    assert {(row["run"], row["all/accuracy"], row["model/lr"]) for row in rows} == {
        ("slow", 0.81, "0.001"),
        ("fast", 0.84, "0.01"),
    }
    assert all("model/network" not in row for row in rows), "what is the same in all runs is left out"
    assert "no experiment 'other'" in inside(uri, "runs", "--experiment", "other").stderr
