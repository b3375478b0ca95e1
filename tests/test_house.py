"""Rules of the repository that a machine can check."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tilewise.bento.settings import Settings

PROJECT = Path(__file__).parents[1]
FOLDERS = ("datasets", "models", "training", "bento")
SOURCES = sorted(
    [
        *(path for folder in FOLDERS for path in (PROJECT / folder).rglob("*.py")),
        *PROJECT.glob("tilewise/*.py"),
    ]
)
LINKED = {f"tilewise/{name}": name for name in (*FOLDERS, "configs", "bentofile.yaml")}
ENVIRONMENT = os.environ | {"PYTHONPATH": str(PROJECT)}
SETTINGS_PAGES = ("serving", "security", "observability")


def test_imports_follow_the_contracts() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout


def test_every_folder_of_datasets_but_loading_is_kept_free_of_torch_by_a_contract() -> None:
    contracts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    kept_free = {
        module
        for contract in contracts
        if "torch" in contract.get("forbidden_modules", ())
        for module in contract["source_modules"]
    }
    folders = {path.parent.name for path in (PROJECT / "datasets").glob("*/__init__.py")} - {"loading"}
    assert {"tilewise.bento", *(f"tilewise.datasets.{name}" for name in folders)} <= kept_free


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
    pages = "".join((PROJECT / f"docs/{name}.md").read_text() for name in SETTINGS_PAGES)
    variables = [f"TILEWISE_{name.upper()}" for name in Settings.model_fields]
    assert len(variables) > 30
    assert [name for name in variables if f"`{name}`" not in pages] == []


def test_no_package_registry_and_no_path_of_a_machine_is_in_the_repository() -> None:
    suffixes = {".py", ".md", ".toml", ".yaml", ".txt", ".ipynb", ""}
    for name in tracked():
        path = PROJECT / name
        if path.suffix in suffixes and path.is_file():
            found = re.search(
                r"index-url\s*=?\s*https?://|/(?:home|Users)/\w+/", path.read_text(errors="ignore")
            )
            assert found is None, f"{name} holds {found.group()!r}"  # type: ignore[union-attr]


def test_no_data_is_tracked() -> None:
    suffixes = (".tif", ".tiff", ".jpg", ".jpeg", ".npz")
    found = [name for name in tracked() if Path(name).suffix.lower() in suffixes]
    assert found == ["bento/page/sample-patchwork.tif", "bento/page/sample-tile.tif"], (
        "samples (EuroSAT, MIT)"
    )
    assert sum((PROJECT / name).stat().st_size for name in found) <= 200_000


def test_the_package_is_made_of_links_into_the_repository_and_there_are_no_others() -> None:
    links = {name: (PROJECT / name).resolve() for name in tracked() if (PROJECT / name).is_symlink()}
    assert links == {name: PROJECT / target for name, target in LINKED.items()}
    for name in links:
        assert not (PROJECT / name).readlink().is_absolute()


def tracked() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, timeout=30, check=True
    )
    return listed.stdout.splitlines()
