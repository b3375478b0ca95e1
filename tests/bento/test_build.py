"""A bento is code and model in one: it serves from its own files, in an environment without torch."""

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from servers import ROOT, served_by
from tiny_onnx import metadata, write_model

from tilewise.bento.build import default_version, pinned
from tilewise.bento.inference.engine import Engine
from tilewise.datasets.acquire.synthetic import synthesise_tile, write_tile
from tilewise.datasets.core.errors import TilewiseError
from tilewise.datasets.readers.eurosat import CLASSES
from tilewise.models.model_file import int8_of

pytestmark = pytest.mark.slow

WITHOUT = ("torch", "torchvision", "pytorch_lightning", "mlflow", "sklearn", "matplotlib")


@pytest.fixture(scope="module")
def home(linear_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BentoML's home folder, with one bento, version 1.2.3, built around the linear model by the command."""
    home = tmp_path_factory.mktemp("bentos")
    done = run_build(linear_model, home, "--version", "1.2.3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "tilewise:1.2.3"
    return home


def run_build(model: Path, home: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    command = [sys.executable, "-m", "tilewise", "build", "--model", str(model), *options]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False
    )


def test_the_bentofile_lists_the_core_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bentofile = yaml.safe_load((ROOT / "bentofile.yaml").read_text())
    assert bentofile["python"]["packages"] == project["dependencies"]


def test_pins_follow_requirements_and_extras_and_leave_out_other_platforms() -> None:
    names = {
        pin.partition("==")[0] for pin in pinned(["httpx>=0.27", "nothing-such; sys_platform == 'plan9'"])
    }
    assert {"httpx", "httpcore", "certifi", "h11", "idna", "anyio"} <= names
    assert "nothing-such" not in names


def test_a_requirement_that_is_not_installed_is_named() -> None:
    with pytest.raises(TilewiseError, match="nothing-such is not installed"):
        pinned(["nothing-such"])


def test_versions_that_do_not_go_together_are_never_packed() -> None:
    with pytest.raises(TilewiseError, match=r"numpy .* is installed, but numpy<1 is needed"):
        pinned(["numpy<1"])


def test_the_bento_holds_the_code_the_model_and_pins_but_neither_torch_nor_training(
    home: Path, linear_model: Path
) -> None:
    bento = home / "bentos/tilewise/1.2.3"
    source = bento / "src"
    assert (source / "tilewise/models/pretrained/model.onnx").read_bytes() == linear_model.read_bytes()
    assert (source / "tilewise/bento/service.py").is_file()
    assert not (source / "tilewise/training").exists()
    assert not (source / "tilewise/models/network/backbones.py").exists()
    pins = (bento / "env/python/requirements.txt").read_text().splitlines()
    names = {line.partition("==")[0] for line in pins if line}
    assert {"onnxruntime", "rasterio", "bentoml", "starlette"} <= names
    assert all("==" in line for line in pins if line), (
        "every version is pinned, and no package index is named"
    )
    assert names.isdisjoint(WITHOUT)
    labels = yaml.safe_load((bento / "bento.yaml").read_text())["labels"]
    assert labels["model-sha256"] == Engine(linear_model, threads=1).sha256


def test_the_dockerfile_installs_the_pins_and_runs_as_another_user_than_root(home: Path) -> None:
    dockerfile = (home / "bentos/tilewise/1.2.3/env/docker/Dockerfile").read_text()
    assert "env/python/requirements.txt" in dockerfile
    assert "USER bentoml" in dockerfile


def test_the_bento_serves_its_own_model_where_torch_cannot_be_imported(
    home: Path, linear_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {WITHOUT}:\n"
        "            raise ModuleNotFoundError(name)\n"
        # An editable installation would lend the bento what it lacks.
        "lent = [each for each in sys.meta_path if getattr(each, '__module__', "
        "'').startswith('__editable')]\n"
        "sys.meta_path[:] = [each for each in sys.meta_path if each not in lent]\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    assert importlib.util.find_spec("torch"), "else this test shows nothing"
    tile = tmp_path / "tile.tif"
    write_tile(synthesise_tile("Forest", 1, 5), tile)
    # `tmp_path` is where it is started: none of the checkout's files is near.
    with served_by(
        "tilewise:1.2.3", home, cwd=tmp_path, PYTHONPATH=str(tmp_path), TILEWISE_WORKERS="1"
    ) as server:
        answer = httpx.post(
            f"{server.url}/classify", files={"tiles": tile.read_bytes()}, trust_env=False, timeout=30
        ).json()
        card = httpx.get(f"{server.url}/model", trust_env=False, timeout=30).json()
    assert answer["results"][0]["class"] in CLASSES
    assert card["sha256"] == answer["model"]["sha256"] == Engine(linear_model, threads=1).sha256


def test_the_same_version_again_is_the_same_bento_or_refused(
    home: Path, linear_model: Path, tmp_path: Path
) -> None:
    again = run_build(linear_model, home, "--version", "1.2.3", "--keep")
    assert again.stdout.strip() == "tilewise:1.2.3", again.stderr
    other = write_model(
        tmp_path / "model.onnx", metadata(CLASSES).model_dump_json(), weights=np.ones((14, 10), "f4")
    )
    int8_of(linear_model).write_bytes(
        linear_model.read_bytes()
    )  # a second form, which that bento does not hold
    assert run_build(linear_model, home, "--version", "1.2.3", "--keep").returncode == 1
    int8_of(linear_model).unlink()
    refused = run_build(other, home, "--version", "1.2.3", "--keep")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: tilewise:1.2.3 is built around another model; ")


def test_a_broken_model_is_never_packed(tmp_path: Path) -> None:
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"not a network")
    done = run_build(broken, tmp_path)
    assert done.returncode != 0
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "bentos/tilewise").exists()


def test_a_version_that_exists_is_not_overwritten(home: Path, linear_model: Path) -> None:
    done = run_build(linear_model, home, "--version", "1.2.3")
    assert done.returncode == 1
    assert "exists" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_default_version_names_the_model(engine: Engine) -> None:
    assert default_version(engine) == f"0-{engine.sha256[:8]}"
