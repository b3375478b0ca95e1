"""The search for hyperparameters, run as a user would, killed, and taken up again."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from click.testing import CliRunner, Result
from mlflow.tracking import MlflowClient
from plain_network import PLAIN
from processes import environment

from tilewise.training.tuning.cli import tune
from tilewise.training.tuning.study import history

pytestmark = pytest.mark.slow

NETWORK = [option for option in PLAIN if not option.startswith(("--tracking", "--data.batch_size"))]
UNTRACKED = [*NETWORK, "--tracking.enabled=false"]
SPACE = """
random_trials: 2
pruning: {after_trials: 1, after_epochs: 1}
settings: {trainer.max_epochs: 2, trainer.devices: 1, data.augment.enabled: false}
space:
  model.optimisation.rate: {low: 1.0e-3, high: 1.0e-1, log: true}
  data.batch_size: {choices: [12, 24]}
"""


def search(*arguments: str) -> Result:
    return CliRunner().invoke(tune, arguments)


def write_space(folder: Path, text: str = SPACE) -> str:
    (folder / "space.yaml").write_text(text)
    return f"--space={folder / 'space.yaml'}"


def study_in(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="tune", storage=f"sqlite:///{folder}/artifacts/tuning/study.db")


@pytest.fixture(scope="module")
def searched(pack_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A search of three trials in two commands, tracked: its folder, and what the second one printed."""
    folder = tmp_path_factory.mktemp("tuning")
    arguments = [write_space(folder), f"--data.pack={pack_folder}", *NETWORK]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for trials in ("2", "3"):
            done = search("--trials", trials, *arguments)
            assert done.exit_code == 0, done.output
        assert search("--trials", "3", *arguments).output.count("epoch") == 1, (
            "nothing is left to do: only the table"
        )
    return folder, done.output


def test_a_larger_number_of_trials_goes_on_with_the_study(searched: tuple[Path, str]) -> None:
    folder, output = searched
    trials = study_in(folder).trials
    assert [trial.state.is_finished() for trial in trials] == [True] * 3
    assert len({trial.params["model.optimisation.rate"] for trial in trials}) == 3, "none is drawn twice"
    assert "trial 2  epoch 1/2  val/accuracy" in output
    assert "trial 0  epoch" not in output


def test_the_table_and_the_command_tell_the_best_trial(searched: tuple[Path, str]) -> None:
    folder, output = searched
    best = study_in(folder).best_trial
    assert "tune: 3 trials ended" in output
    assert f"{best.value:.4f}" in output
    command = output.splitlines()[-1]
    assert command.startswith("tilewise train --")
    assert f"--model.optimisation.rate={best.params['model.optimisation.rate']}" in command
    assert "max_epochs" not in command, "trials are shorter than a run"


def test_the_tracker_holds_one_run_of_the_study_and_one_child_a_trial(searched: tuple[Path, str]) -> None:
    folder, _ = searched
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("tilewise").experiment_id])  # type: ignore[union-attr]
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert (len(parents), len(children)) == (1, 3)
    assert {run.info.status for run in found} == {"FINISHED"}
    assert {run.data.tags["trial"] for run in children} == {"0", "1", "2"}
    assert all("val/accuracy" in run.data.metrics for run in children)
    best = study_in(folder).best_trial
    assert parents[0].data.metrics["best/val/accuracy"] == pytest.approx(best.value)
    assert parents[0].data.tags["best/data.batch_size"] == str(best.params["data.batch_size"])


def test_a_study_does_not_mix_trials_of_other_settings(
    searched: tuple[Path, str], pack_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = searched
    monkeypatch.chdir(folder)
    done = search(write_space(folder), f"--data.pack={pack_folder}", *NETWORK, "--trainer.max_epochs=3")
    assert done.exit_code == 1
    assert "begun with another search space or other options" in done.output


def test_a_killed_search_goes_on_with_the_trial_that_ran(
    pack_folder: Path, in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = write_space(
        in_folder,
        SPACE.replace("max_epochs: 2", "max_epochs: 4").replace("after_epochs: 1", "after_epochs: 9"),
    )
    arguments = ["--trials=2", space, f"--data.pack={pack_folder}", *UNTRACKED]
    _run_and_kill(arguments, after="trial 1  epoch 2/")
    killed = study_in(in_folder).trials[1]
    assert killed.state is optuna.trial.TrialState.RUNNING
    done = search(*arguments)
    assert done.exit_code == 0, done.output
    assert "trial 1  was killed, and is taken up again" in done.output
    assert "trial 2  epoch 1/4" not in done.output, "it goes on within the trial"
    trials = study_in(in_folder).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert trials[2].params == killed.params
    assert sorted(trials[2].intermediate_values) == [1, 2, 3, 4]
    folder = in_folder / "artifacts/tuning/tune"
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["trial-0000", "trial-0001"]


def test_searches_side_by_side_share_the_trials_that_were_asked_for(
    pack_folder: Path, in_folder: Path
) -> None:
    arguments = ["--trials=4", write_space(in_folder), f"--data.pack={pack_folder}", *UNTRACKED]
    command = [sys.executable, "-m", "tilewise", "tune", *arguments]
    searches = [subprocess.Popen(command, env=environment()) for _ in range(2)]
    try:
        assert [process.wait(timeout=240) for process in searches] == [0, 0]
    finally:
        for process in searches:
            process.kill()
    trials = study_in(in_folder).trials
    assert len(trials) == 4
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}, (
        "none was taken for one that was killed"
    )


def _run_and_kill(arguments: list[str], after: str) -> None:
    command = [sys.executable, "-u", "-m", "tilewise", "tune", *arguments]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert any(after in line for line in process.stdout)
        finally:
            os.kill(process.pid, signal.SIGKILL)


def test_a_trial_that_lags_behind_is_given_up(pack_folder: Path, in_folder: Path) -> None:
    (in_folder / "artifacts/tuning").mkdir(parents=True)
    storage = f"sqlite:///{in_folder}/artifacts/tuning/study.db"
    study = optuna.create_study(storage=storage, study_name="tune", direction="maximize")
    study.add_trial(optuna.create_trial(value=1.0, intermediate_values={1: 1.0, 2: 1.0}))
    done = search("--trials=2", write_space(in_folder), f"--data.pack={pack_folder}", *UNTRACKED)
    assert done.exit_code == 0, done.output
    assert "trial 1  given up, val/accuracy" in done.output
    assert "epoch 2/2" not in done.output
    assert study_in(in_folder).trials[1].state is optuna.trial.TrialState.PRUNED


def test_sigterm_between_trials_stops_the_search_and_loses_nothing(
    pack_folder: Path, in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = optuna.Study.ask

    def told(study: optuna.Study) -> optuna.Trial:
        if study.trials:
            os.kill(os.getpid(), signal.SIGTERM)
        return ask(study)

    monkeypatch.setattr(optuna.Study, "ask", told)
    done = search("--trials=3", write_space(in_folder), f"--data.pack={pack_folder}", *UNTRACKED)
    assert done.exit_code == 143
    assert "the same command continues" in done.output
    assert [trial.state.name for trial in study_in(in_folder).trials] == ["COMPLETE"]


def test_mistakes_are_told_at_once(
    pack_folder: Path, in_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pack = f"--data.pack={pack_folder}"
    misspelt = SPACE.replace("optimisation.rate", "optimisation.raet")
    for text, arguments, told in (
        (SPACE, ["--data.batch_size=8"], "--data.batch_size is given and searched"),
        ("space: {}", [], "space.yaml: space: "),
        ("space: {a: {low: 1}}", [], "space.yaml: space.a"),
        (misspelt, ["--study=misspelt"], "training does not know an option"),
        (SPACE, ["--storage=nothing://"], "no storage of Optuna"),
    ):
        done = search(write_space(in_folder, text), pack, *UNTRACKED, *arguments)
        assert done.exit_code == 1, done.output
        assert re.search(rf"error: .*{re.escape(told)}.*; ", done.output), done.output
    assert "Traceback" not in capfd.readouterr().err


def test_history_of_a_run_that_has_none_is_empty(tmp_path: Path) -> None:
    from tilewise.training.settings import RunFolder

    assert history(RunFolder(tmp_path)) == {}
