"""The rules of the house that a machine can check."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tilewise.bento.settings import Settings

PROJECT = Path(__file__).parents[1]
ROOMS = ("datasets", "models", "training", "bento")
SOURCES = sorted(path for room in ROOMS for path in (PROJECT / room).rglob("*.py"))


def test_rooms_import_only_what_the_design_lets_them() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


def test_every_file_of_datasets_that_must_not_know_torch_is_named_in_the_contract() -> None:
    contracts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    named = set(contracts[-1]["source_modules"])
    files = {f"datasets.{path.stem}" for path in (PROJECT / "datasets").glob("*.py") if "__" not in path.stem}
    knows_torch = ("atmosphere", "augment", "draws", "holes", "loading", "module", "mosaic", "resident", "warp")
    assert files - named == {f"datasets.{name}" for name in knows_torch}


def test_serving_needs_no_torch() -> None:
    core = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.match(r"[\w-]+", line).group() for line in core}  # type: ignore[union-attr]
    assert not names & {
        "torch",
        "torchvision",
        "pytorch-lightning",
        "mlflow",
        "dvc",
        "albumentations",
        "onnx",
    }


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_no_function_is_longer_than_sixty_lines(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]
            assert length <= 60, f"{node.name} has {length} lines"


def test_the_make_targets_that_the_readme_names_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`?make ([a-z-]+)`?", (PROJECT / "README.md").read_text()))
    assert {"demo", "test", "help"} <= named <= targets


def test_every_setting_of_the_service_is_documented() -> None:
    pages = "".join((PROJECT / f"docs/{name}.md").read_text() for name in ("serving", "security", "observability"))
    assert [name for name in Settings.model_fields if f"`TILEWISE_{name.upper()}`" not in pages] == []


def test_no_package_registry_and_no_path_of_a_machine_is_in_the_repository() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, timeout=30)
    suffixes = {".py", ".md", ".toml", ".yaml", ".txt", ".ipynb", ""}
    for name in listed.stdout.splitlines():
        path = PROJECT / name
        if path.suffix in suffixes and path.is_file():
            found = re.search(r"index-url\s*=?\s*https?://|/(?:home|Users)/\w+/", path.read_text(errors="ignore"))
            assert found is None, f"{name} holds {found.group()!r}"  # type: ignore[union-attr]


def test_no_data_and_no_link_out_of_the_repository_is_tracked() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, timeout=30)
    names = listed.stdout.splitlines()
    assert [name for name in names if Path(name).suffix.lower() in (".tif", ".tiff", ".jpg", ".jpeg", ".npz")] == []
    assert [name for name in names if (PROJECT / name).is_symlink()] == []
