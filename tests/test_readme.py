"""The README's examples run, and print output of the form that it shows."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from geotiffs import tile_file
from servers import Server, served
from tiny_onnx import calibrated, write_model

from tilewise.datasets.acquire.synthetic import synthesise_scene, synthesise_tile, write_tile
from tilewise.datasets.core.bands import EUROSAT_MS_ORDER
from tilewise.datasets.readers.eurosat import CLASSES

PROJECT = Path(__file__).parents[1]
README = (PROJECT / "README.md").read_text()
SECTION = README.partition("## Use 1")[2].partition("\n## ")[0]
URL = "http://localhost:3000"


@dataclass(frozen=True)
class Example:
    """A command of the README, and the output shown below it."""

    command: str
    output: str


def blocks(language: str, text: str = SECTION) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def examples() -> list[Example]:
    found = []
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append(Example(command.strip(), output.strip()))
    return found


def form_of(output: str) -> re.Pattern[str]:
    """Return a pattern for outputs of the same form: equal keys, any values; `…` matches anything."""
    pieces = re.split(r'("[^"]*"\s*:|"[^"]*"|-?\d+(?:\.\d+)?|…|\s+)', output)
    return re.compile("".join(map(_piece, pieces)), re.DOTALL)


def _piece(piece: str) -> str:
    if piece == "…":
        return ".*?"
    if piece.strip() == "":
        return r"\s*"
    if piece.endswith(":"):
        return re.escape(piece[:-1].rstrip()) + r"\s*:"
    if piece.startswith('"'):
        return '"[^"]*"'
    return r"-?[\d.]+(?:e-?\d+)?" if re.fullmatch(r"-?\d+(?:\.\d+)?", piece) else re.escape(piece)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    weights = np.zeros((14, len(CLASSES)), np.float32)
    weights[-1, CLASSES.index("Forest")] = 10  # answers Forest with a high probability, as in the README
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    model = write_model(path, calibrated(CLASSES).model_dump_json(), weights=weights)
    with served(model, tmp_path_factory.mktemp("bentoml"), TILEWISE_WORKERS="1") as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of `make demo`, and a tile whose bands have no names, as EuroSAT's."""
    folder = tmp_path_factory.mktemp("readme")
    for label in ("Forest", "River"):
        path = folder / f"demo/raw/synthetic/{label}/{label}_1.tif"
        path.parent.mkdir(parents=True)
        write_tile(synthesise_tile(label, 1, 0), path)
    plain = folder / "EuroSAT_MS/Forest/Forest_1.tif"
    plain.parent.mkdir(parents=True)
    plain.write_bytes(tile_file(synthesise_tile("Forest", 1, 0), EUROSAT_MS_ORDER, named=False))
    (folder / "demo/scenes").mkdir()
    synthesise_scene(folder / "demo/scenes/scene.tif", seed=0, rows=2, columns=3)
    return folder


def run(command: list[str], server: Server, folder: Path) -> str:
    environment = os.environ | {"NO_PROXY": "127.0.0.1", "PYTHONPATH": str(PROJECT)}
    command = [word.replace(URL, server.url) for word in command]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_curl_line_of_the_readme_is_one_that_is_run_here() -> None:
    lines = re.findall(r"^\$ .*\bcurl .*$", README, re.MULTILINE)
    assert len(lines) >= 8
    assert [line.removeprefix("$ ") for line in lines] == [
        e.command for e in examples() if "curl" in e.command
    ]


def test_the_readme_has_at_most_180_lines() -> None:
    assert len(README.splitlines()) <= 180


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("example", examples(), ids=lambda example: example.command)
def test_a_command_prints_what_the_readme_shows_in_form(
    server: Server, folder: Path, example: Example
) -> None:
    printed = run(["bash", "-c", example.command.replace("curl ", "curl -sS ")], server, folder)
    assert form_of(example.output).fullmatch(printed.strip()), printed
    for name in re.findall(r"-o (\S+)", example.command):
        kinds = {"png": b"\x89PNG", "tif": b"II*\0", "geojson": b'{"type":"FeatureCollection"'}
        assert (folder / name).read_bytes().startswith(kinds[name.rpartition(".")[2]])


def test_a_form_matches_other_values_and_no_other_keys() -> None:
    form = form_of('{"name": "a.tif", "score": 0.97, "bands": ["B01", …]}')
    assert form.fullmatch('{"name":"b","score":1.0,"bands":["B02","B03"]}')
    assert not form.fullmatch('{"name":"b","scores":1.0,"bands":["B02"]}')
    assert not form.fullmatch('{"name":"b","score":null,"bands":["B02"]}')


def test_the_python_example_runs(server: Server, folder: Path) -> None:
    (program,) = blocks("python")
    lines = run([sys.executable, "-c", program], server, folder).splitlines()
    assert len(lines) == 3
    for line in lines[:2]:
        assert re.fullmatch(rf"({'|'.join(CLASSES)}) [01]\.\d\d", line)
    assert lines[2] == "6 windows"
    (shown,) = blocks("text")
    assert form_of(re.sub("River", "Forest", shown.strip())).fullmatch("\n".join(lines))


def test_the_python_api_example_runs_without_a_service(folder: Path, server: Server) -> None:
    (program,) = blocks("python", README.partition("## From Python")[2].partition("\n## ")[0])
    assert len(program.splitlines()) <= 12
    lines = run([sys.executable, "-c", program], server, folder).splitlines()
    assert re.fullmatch(rf"({'|'.join(CLASSES)}) [01]\.\d+", lines[0])
    assert lines[-1] == "(128, 192) 6"


def test_the_classify_command_runs(server: Server, folder: Path) -> None:
    (command,) = re.findall(r"`tilewise (classify --server \S+) FILES…`", SECTION)
    tile = "demo/raw/synthetic/Forest/Forest_1.tif"
    for words in (command.split(), ["classify"]):  # by the service; by a model file
        printed = run([sys.executable, "-m", "tilewise", *words, tile], server, folder)
        assert printed.splitlines()[0].startswith("name")


def test_the_paths_that_the_readme_names_are_answered(server: Server) -> None:
    paths = re.findall(r"`(/[a-z]+)`", SECTION)
    assert "/readyz" in paths
    for path in paths:
        assert httpx.get(f"{server.url}{path}", trust_env=False, timeout=30).status_code == 200
