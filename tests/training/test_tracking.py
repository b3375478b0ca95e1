import re
from pathlib import Path

from tilewise.training.tracking import Tracking, code_revision, environment, experiment_id, how_to_look


def test_the_revision_is_a_git_hash_and_tells_whether_files_were_changed() -> None:
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|", code_revision())


def test_the_environment_lists_the_packages_that_matter_with_versions() -> None:
    text = environment()
    assert text.startswith("# Python 3.")
    for name in ("torch", "onnxruntime", "pytorch-lightning"):
        assert re.search(rf"^{name}==\d", text, re.MULTILINE | re.IGNORECASE)


def test_the_hint_opens_the_runs_of_the_experiment(tmp_path: Path) -> None:
    """The front page of `mlflow ui` asks what the user works on; the experiment's page lists the runs."""
    tracking = Tracking(
        uri=f"sqlite:///{tmp_path}/mlflow.db", artifacts=tmp_path / "mlruns", experiment="demo"
    )
    number = experiment_id(tracking)
    assert how_to_look(tracking).endswith(f"and open http://127.0.0.1:5000/#/experiments/{number}/runs")
