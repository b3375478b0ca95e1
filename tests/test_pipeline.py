"""The DVC pipeline, run in a fresh git repository made of the project's own files, on few synthetic tiles."""

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

from tilewise.models.model_file import open_model

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[1]
SMALL = """\
obtain: tilewise data synth --out data/raw/synthetic --tiles 12 --seed 0
folder: data/raw/synthetic
split: --split random --fractions 0.6,0.2,0.2 --seed 0
settings: configs/experiments/small.yaml
"""
TINY_RUN = """\
data: {batch_size: 24}
model:
  backbone:
    class_path: tilewise.models.network.backbones.ResidualCNN
    init_args: {widths: [8, 16], depths: [1, 1], stem: [8]}
trainer: {max_epochs: 2, precision: 32-true}
"""


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "DVC_NO_ANALYTICS": "1",
    }
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository with the project's code and a small pipeline."""
    folder = tmp_path_factory.mktemp("pipeline") / "tilewise"
    folder.mkdir()
    left_out = shutil.ignore_patterns("__pycache__", "cache", "tmp")
    for name in ("datasets", "models", "training", "bento", "configs", ".dvc", "tilewise"):
        shutil.copytree(PROJECT / name, folder / name, symlinks=True, ignore=left_out)
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", "pyproject.toml", "bentofile.yaml"):
        shutil.copy(PROJECT / name, folder / name)
    (folder / "configs/pipeline.yaml").write_text(SMALL)
    (folder / "configs/experiments/small.yaml").write_text(TINY_RUN)
    run(folder, "git", "init", "-q")
    run(folder, "git", "add", "-A")
    run(folder, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "start")
    return folder


IMPORTED = {
    "validate": ["datasets.quality.validate", "datasets.quality.schema"],
    "pack": ["datasets.packs.packing", "datasets.packs.statistics"],
    "card": ["datasets.quality.card", "datasets.quality.validate"],
    "train": ["training.cli", "training.fit.trainer"],
    "evaluate": ["training.cli", "training.fit.trainer"],
    "suspects": ["datasets.quality.suspects"],
    "export": [
        "training.fit.trainer",
        "training.fit.calibrate",
        "training.evaluate.quantisation",
        "models.export.export",
    ],
}
"""What the command of each stage imports to do its work, beside the command line of `tilewise data`."""


@cache
def imported_with(*names: str) -> list[Path]:
    """Return the project's files that importing modules brings, in a process of its own."""
    code = f"""
import importlib, json, sys
for name in {names}: importlib.import_module("tilewise." + name)
named = [(n, m.__file__ or "") for n, m in sys.modules.items() if n.startswith("tilewise.")]
own = [n for n, file in named if not file.endswith("__init__.py")]
print(json.dumps(own))
"""
    done = run(PROJECT, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    return [Path(*name.split(".")[1:]).with_suffix(".py") for name in json.loads(done.stdout)]


@pytest.mark.parametrize("stage", IMPORTED)
def test_a_stage_depends_on_all_the_code_that_it_imports(stage: str) -> None:
    imported = imported_with(*IMPORTED[stage])
    dependencies = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"][stage]["deps"]
    assert [str(path) for path in imported if not any(path.is_relative_to(dep) for dep in dependencies)] == []


def test_stages_depend_on_code_that_is_there_and_caches_of_python_do_not_count(repository: Path) -> None:
    stages = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]
    code = {
        dep for stage in stages.values() for dep in stage.get("deps", ()) if dep.startswith(("d", "m", "t"))
    }
    assert not [dep for dep in code if not dep.startswith("data/") and not (PROJECT / dep).exists()]
    assert (
        run(repository, "dvc", "check-ignore", "datasets/core/__pycache__/tile.cpython-311.pyc").returncode
        == 0
    )


def test_a_fresh_clone_shows_what_it_would_run(repository: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    run(repository, "git", "clone", "-q", str(repository), str(clone))
    planned = run(clone, "dvc", "repro", "--dry", "--force")
    assert planned.returncode == 0, planned.stderr
    shown = [line.split("'")[1] for line in planned.stdout.splitlines() if line.startswith("Running stage")]
    assert shown == list(yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"])
    assert not (clone / "data").exists()


@pytest.mark.timeout(300)
def test_the_pipeline_runs_once_shows_its_figures_and_then_has_nothing_to_do(repository: Path) -> None:
    first = run(repository, "dvc", "repro")
    assert first.returncode == 0, first.stdout + first.stderr
    assert open_model(repository / "artifacts/pipeline/run/model.onnx").metadata.synthetic

    assert "doubtful labels" in (repository / "artifacts/pipeline/suspects/suspects.html").read_text()
    assert (repository / "artifacts/pipeline/validation/validation.json").is_file()
    assert "| validation | passed |" in (repository / "artifacts/pipeline/data-card.md").read_text()

    metrics = run(repository, "dvc", "metrics", "show")
    assert metrics.returncode == 0, metrics.stderr
    assert "groups.all.accuracy" in metrics.stdout

    plots = run(repository, "dvc", "plots", "show", "-o", "plots")
    assert plots.returncode == 0, plots.stderr
    page = (repository / "plots/index.html").read_text()
    assert "val_macro_f1" in page
    assert "AnnualCrop" in page

    second = run(repository, "dvc", "repro")
    assert second.returncode == 0, second.stderr
    assert "Running stage" not in second.stdout
    assert second.stdout.strip().endswith("Data and pipelines are up to date.")


@pytest.mark.timeout(300)
def test_a_data_error_stops_the_pipeline_before_training(repository: Path) -> None:
    run(repository, "dvc", "repro", "obtain")
    victim = repository / "data/raw/synthetic/Forest/Forest_1.tif"
    victim.unlink()
    victim.write_bytes(b"not a tiff")
    stopped = run(repository, "dvc", "repro", "--downstream", "validate")
    assert stopped.returncode != 0
    assert "failed to reproduce 'validate'" in stopped.stderr
    assert "Running stage 'train'" not in stopped.stdout
