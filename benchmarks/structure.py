"""Measure the structure of the code: files, lines, modules with one importer, import circles, public names.

    python benchmarks/structure.py                # this checkout
    python benchmarks/structure.py OTHER_CHECKOUT

Product code is the Python below `datasets`, `models`, `training`, `bento` and `deploy`, and the package's
own files. Tests, benchmarks and notebooks are not counted. An import circle is a pair of sibling folders that
import each other. It reads source text alone, so it also measures revisions from before the package
(`git worktree add FOLDER REVISION`).
"""

from __future__ import annotations

import argparse
import ast
import re
import tomllib
from collections import Counter
from itertools import combinations
from pathlib import Path, PurePosixPath

PROJECT = Path(__file__).parents[1]
PACKAGE = "tilewise"
FOLDERS = ("datasets", "models", "training", "bento", "deploy", PACKAGE)


def sources(project: Path) -> dict[str, Path]:
    """Return {module: file} of the product's own files; `tilewise.datasets.x` is called `datasets.x`."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((project / folder).rglob("*.py")):
            inside = path.relative_to(project)
            linked = any((project / parent).is_symlink() for parent in inside.parents)
            if not linked and "__pycache__" not in inside.parts:
                found[".".join(inside.with_suffix("").parts).removesuffix(".__init__")] = path
    return found


def imports(module: str, path: Path, modules: set[str]) -> set[str]:
    """Return the modules of the product that a module imports, wherever the import stands in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {found for name in names if (found := _module_of(name, modules))} - {module}


def _module_of(name: str, modules: set[str]) -> str | None:
    name = name.removeprefix(f"{PACKAGE}.")
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or None


def circles(graph: dict[str, set[str]], packages: set[str]) -> list[tuple[str, str]]:
    """Return the pairs of sibling folders that import each other."""

    def folder(module: str) -> str:
        return module if module in packages else module.rpartition(".")[0]

    edges = {(folder(module), folder(target)) for module, targets in graph.items() for target in targets}
    siblings = combinations(sorted({name for edge in edges for name in edge}), 2)
    return [(a, b) for a, b in siblings if _parent(a) == _parent(b) and (a, b) in edges and (b, a) in edges]


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def public_names(project: Path) -> int:
    """Count the names in the package's `__all__`, the console scripts, and the commands of `tilewise`."""
    scripts = tomllib.loads((project / "pyproject.toml").read_text())["project"].get("scripts", {})
    package = project / PACKAGE
    return len(scripts) + _exported(package / "__init__.py") + _commands(package / "cli.py")


def _exported(path: Path) -> int:
    if not path.is_file():
        return 0
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return len(ast.literal_eval(node.value))
    return 0


def _commands(path: Path) -> int:
    """Count the entries `"name": Entry("module:function", …` of the group's table."""
    return len(re.findall(r'"[\w-]+": \w*\(\s*"[\w.]+:\w+"', path.read_text())) if path.is_file() else 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("project", nargs="?", type=Path, default=PROJECT)
    project = parser.parse_args().project
    files = sources(project)
    graph = {module: imports(module, path, set(files)) for module, path in files.items()}
    packages = {module for module, path in files.items() if path.name == "__init__.py"}
    importers = Counter(target for targets in graph.values() for target in targets)
    single = [module for module, count in importers.items() if count == 1 and module not in packages]
    per_folder = Counter(PurePosixPath(module.replace(".", "/")).parts[0] for module in files)
    print(
        "product files", len(files), "·", ", ".join(f"{name} {count}" for name, count in per_folder.items())
    )
    print("lines", f"{sum(len(path.read_text().splitlines()) for path in files.values()):,}")
    print("modules with one importer", len(single))
    print("import circles between folders", len(pairs := circles(graph, packages)))
    for a, b in pairs:
        print(f"  {a} ↔ {b}")
    print("public names", public_names(project))


if __name__ == "__main__":
    main()
