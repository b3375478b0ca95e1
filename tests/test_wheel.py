"""The wheel without the checkout: beside Hugging Face's `datasets`, and uninstalled without a trace."""

import os
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from servers import free_port

from tilewise.datasets.acquire.synthetic import synthesise_scene, synthesise_tile, write_tile

ROOT = Path(__file__).parents[1]
BUILT_FROM = (
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "bentofile.yaml",
    "tilewise",
    "datasets",
    "models",
    "training",
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the wheel is built from, so that the build leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp("source")
    for name in (*BUILT_FROM, "bento", "configs"):
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


def build_wheel(source: Path, out: Path) -> Path:
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(out)]
    done = pip("wheel", str(source), *options)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("tilewise-*.whl")
    return path


def pip(*words: str, python: Path = Path(sys.executable)) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", *words]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that has the wheel, `datasets` of Hugging Face, and this environment's libraries.

    Its `.pth` file shows the libraries, but not the checkout: `.pth` files of editable installations have no
    effect there.
    """
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False, symlinks=True)
    packages = site_packages(folder)
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin" / "python"
    install_other_datasets(packages, python)
    done = pip("install", "--no-deps", "--no-index", "--ignore-installed", str(wheel), python=python)
    assert done.returncode == 0, done.stderr
    return folder


def site_packages(environment: Path) -> Path:
    (packages,) = environment.glob("lib/python*/site-packages")
    return packages


def install_other_datasets(packages: Path, python: Path) -> None:
    """Install Hugging Face's `datasets`, or where no package index can be reached, a package of that name."""
    if (
        pip("install", "--quiet", "--retries", "0", "--timeout", "20", "datasets", python=python).returncode
        == 0
    ):
        return
    (packages / "datasets").mkdir(exist_ok=True)
    (packages / "datasets" / "__init__.py").write_text("class Dataset: ...\n")


def run(environment: Path, *words: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        words_of(environment, *words),
        cwd=cwd,
        env=clean(cwd),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def words_of(environment: Path, *words: str) -> list[str]:
    return [str(environment / "bin" / words[0]), *words[1:]]


def clean(folder: Path) -> dict[str, str]:
    """This process's variables, without what would show the checkout or settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "TILEWISE"))}
    return kept | {
        "BENTOML_HOME": str(folder / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "NO_PROXY": "127.0.0.1",
    }


# What is in it.


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"tilewise"}
    assert not [name for name in names if "test" in name.lower() and name.endswith(".py")]
    needed = (
        "tilewise/bentofile.yaml",
        "tilewise/bento/page/index.html",
        "tilewise/configs/data.yaml",
        "tilewise/configs/experiments/demo.yaml",
        "tilewise/models/pretrained/accurate/model.onnx",
        "tilewise/models/pretrained/accurate/model.int8.onnx",
        "tilewise/models/pretrained/fast/model.onnx",
        "tilewise/models/pretrained/fast/model.int8.onnx",
    )
    assert set(needed) <= set(names)
    modules = {
        path.relative_to(ROOT).as_posix()
        for room in ("datasets", "models", "training", "bento")
        for path in (ROOT / room).rglob("*.py")
    }
    assert modules <= {name.removeprefix("tilewise/") for name in names}


def test_a_wheel_from_the_source_distribution_is_the_same(source: Path, wheel: Path, tmp_path: Path) -> None:
    program = "import setuptools.build_meta as b, sys; print(b.build_sdist(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    again = build_wheel(archive, tmp_path / "again")
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


# What it does, away from the checkout.


def test_the_commands_work_from_any_folder(environment: Path, tmp_path: Path) -> None:
    shown = run(environment, "python", "-c", "import tilewise; print(tilewise.__file__)", cwd=tmp_path)
    assert Path(shown.stdout.strip()).is_relative_to(site_packages(environment)), shown.stderr
    assert "Use a model:" in run(environment, "tilewise", "--help", cwd=tmp_path).stdout
    write_tile(synthesise_tile("Forest", 1, 5), tmp_path / "forest.tif")
    done = run(environment, "tilewise", "classify", "forest.tif", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("forest.tif  ")
    synthesise_scene(tmp_path / "scenes" / "scene.tif", 1, 2, 2)
    done = run(environment, "tilewise", "batch", "scenes", "--out", "maps", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "maps" / "scene.classes.tif").is_file()
    assert (tmp_path / "maps" / "report.html").is_file()


def test_training_has_the_defaults_of_the_checkout(environment: Path, tmp_path: Path) -> None:
    ours = run(environment, "tilewise", "train", "--print_config", cwd=tmp_path)
    assert ours.returncode == 0, ours.stderr
    command = [sys.executable, "-m", "tilewise", "train", "--print_config"]
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    theirs = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=200)
    assert ours.stdout == theirs.stdout
    assert "batch_size" in ours.stdout


@pytest.fixture
def url(environment: Path, tmp_path: Path) -> Iterator[str]:
    """A service that the installed command runs."""
    port = free_port()
    words = words_of(environment, "tilewise", "serve", "--port", str(port), "--workers", "1")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            words, cwd=tmp_path, env=clean(tmp_path), stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            try:
                if httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == 200:
                    break
            except httpx.RequestError:
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=60)


def test_the_service_and_its_page_work_from_any_folder(url: str, environment: Path, tmp_path: Path) -> None:
    assert "<html" in httpx.get(url, trust_env=False, headers={"Accept": "text/html"}).text
    write_tile(synthesise_tile("Forest", 1, 5), tmp_path / "forest.tif")
    done = run(environment, "tilewise", "classify", "forest.tif", "--server", url, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("forest.tif  ")


def test_a_bento_can_be_built_from_the_wheel(environment: Path, tmp_path: Path) -> None:
    done = run(environment, "tilewise", "build", "--version", "1.0.0", cwd=tmp_path)
    assert done.stdout.strip() == "tilewise:1.0.0", done.stderr
    assert (tmp_path / "bentoml/bentos/tilewise/1.0.0/src/tilewise/bento/service.py").is_file()


def test_other_packages_are_left_alone_and_uninstalling_leaves_nothing(
    environment: Path, tmp_path: Path
) -> None:
    """The last test of this file: it uninstalls the wheel."""
    packages = site_packages(environment)
    program = "import datasets; print(datasets.__file__, datasets.Dataset)"
    both = run(environment, "python", "-c", f"import tilewise.datasets.core.tile; {program}", cwd=tmp_path)
    assert str(packages / "datasets") in both.stdout, both.stderr
    done = pip("uninstall", "--yes", "tilewise", python=environment / "bin" / "python")
    assert done.returncode == 0, done.stderr
    assert not (packages / "tilewise").exists()
    assert not (environment / "bin" / "tilewise").exists()
    alone = run(environment, "python", "-c", program, cwd=tmp_path)
    assert str(packages / "datasets") in alone.stdout, alone.stderr
