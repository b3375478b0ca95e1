"""The structure that `benchmarks/structure.py` measures, on a project of six modules."""

from pathlib import Path

from structure import circles, imports, public_names, sources


def project(folder: Path) -> Path:
    texts = {
        "bento/__init__.py": "",
        "bento/api/__init__.py": "",
        "bento/api/app.py": "from tilewise.bento.serving.batcher import Batcher\nimport json\n",
        "bento/serving/__init__.py": "",
        "bento/serving/batcher.py": "def f():\n    from tilewise.bento.api import app\n",
        "tilewise/__init__.py": '__all__ = ["load", "Client"]\n',
        "tilewise/cli.py": 'COMMANDS = {"serve": ("x.y:serve", "S"), "data": Entry("x.y:main", "D")}\n',
        "pyproject.toml": '[project]\nname = "x"\n[project.scripts]\ntilewise = "tilewise.cli:main"\n',
    }
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "tilewise/bento").symlink_to("../bento")
    return folder


def test_linked_folders_are_counted_once(tmp_path: Path) -> None:
    found = sources(project(tmp_path))
    folders = ["bento", "bento.api", "bento.api.app", "bento.serving", "bento.serving.batcher"]
    assert sorted(found) == [*folders, "tilewise", "tilewise.cli"]


def test_two_folders_that_import_each_other_are_a_circle_wherever_the_import_stands(tmp_path: Path) -> None:
    files = sources(project(tmp_path))
    graph = {module: imports(module, path, set(files)) for module, path in files.items()}
    assert graph["bento.api.app"] == {"bento.serving.batcher"}
    packages = {"bento", "bento.api", "bento.serving", "tilewise"}
    assert circles(graph, packages) == [("bento.api", "bento.serving")]
    assert circles(graph | {"bento.serving.batcher": set()}, packages) == []


def test_public_names_are_exports_scripts_and_commands(tmp_path: Path) -> None:
    assert public_names(project(tmp_path)) == 2 + 1 + 2
