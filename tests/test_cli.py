"""The command `tilewise`: one group that lists everything, loads little and teaches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tilewise.cli import SECTIONS, main
from tilewise.datasets.acquire.synthetic import synthesise_tile, write_tile
from tilewise.datasets.core.console import LazyGroup, model_option
from tilewise.datasets.readers.eurosat import CLASSES

ROOT = Path(__file__).parents[1]
COMMANDS = [name for commands in SECTIONS.values() for name in commands]


def run(*words: str, cwd: Path = ROOT, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    command = [sys.executable, "-m", *words]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200, check=False
    )


def complete(text: str) -> list[str]:
    """Return the completions that a shell would show after `text`."""
    words = text.split(" ")
    variables = {"COMP_WORDS": text, "COMP_CWORD": str(len(words) - 1), "_TILEWISE_COMPLETE": "bash_complete"}
    done = run("tilewise", **variables)
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


# The group.


def test_help_lists_every_command_in_its_section() -> None:
    shown = CliRunner().invoke(main, ["--help"]).stdout
    for title, commands in SECTIONS.items():
        section = shown[shown.index(f"{title}:") :]
        assert all(f"\n  {name} " in section for name in commands)
    assert "_TILEWISE_COMPLETE=bash_source" in shown
    expected = (
        "demo train assess tune export register promote rollback history runs retrain serve batch compare "
        "stream"
    )
    assert {*expected.split(), "classify", "data", "explain", "card", "build", "predict"} == set(COMMANDS)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("train", "export", "assess")])
def test_the_help_of_every_command_has_an_example_and_says_what_each_option_does(name: str) -> None:
    shown = CliRunner().invoke(main, [name, "--help"]).stdout
    assert f"tilewise {name} " in shown.partition("Options:")[0].partition("\n")[2], "an example"
    command = main.get_command(click.Context(main), name)
    assert command is not None
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{parameter.name} has no help"


def test_help_and_completion_load_nothing_heavy() -> None:
    program = (
        "import sys; from click.testing import CliRunner; from tilewise.cli import main;"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0;"
        "print([name for name in ('torch', 'mlflow', 'bentoml', 'onnxruntime', 'rasterio') if name in "
        "sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_shells_complete_commands_and_options() -> None:
    assert complete("tilewise re") == ["register", "retrain"]
    assert complete("tilewise data re") == ["review", "reviewed"]
    assert complete("tilewise train p") == ["pretrain", "pseudo-label"]
    assert "--model" in complete("tilewise batch --m")
    assert "complete -o nosort -F" in run("tilewise", _TILEWISE_COMPLETE="bash_source").stdout


def test_an_unknown_command_is_a_usage_error() -> None:
    done = CliRunner().invoke(main, ["sell"])
    assert done.exit_code == 2
    assert "No such command 'sell'" in done.stderr


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(target: str) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("tilewise.datasets.core.console.resolve_name", absent)
    done = CliRunner().invoke(main, ["train", "fit"])
    assert (done.exit_code, done.stderr) == (
        1,
        "error: torch is not installed; pip install 'tilewise[train]'\n",
    )


def test_one_option_has_one_spelling_in_all_commands() -> None:
    """What commands write is --out, its format --format, a model file --model, JSON output --json."""
    assert isinstance(main, LazyGroup)
    banned = {"--report", "--form", "--formats", "--as-json", "--output", "--pack", "--file"}
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        inner = [command] if not isinstance(command, LazyGroup) else []
        if name == "data":
            assert isinstance(command, LazyGroup)
            inner = [command.get_command(click.Context(command), each) for each in command.entries]  # type: ignore[misc]
        for each in inner:
            options = {option for parameter in each.params for option in parameter.opts}
            assert not options & banned, name


def test_the_shared_model_option_reads_the_environment() -> None:
    @click.command()
    @model_option
    def command(model: str | None) -> None:
        click.echo(model)

    assert CliRunner().invoke(command, [], env={"TILEWISE_MODEL": "a.onnx"}).stdout == "a.onnx\n"


# Training.


@pytest.mark.slow
def test_help_of_train_lists_all_commands_before_lightnings_own() -> None:
    shown = run("tilewise", "train", "--help")
    assert shown.returncode == 0, shown.stderr
    ours, _, lightnings = shown.stdout.partition("Options of tilewise train, by Lightning:")
    names = "run fit validate test export pretrain pseudo-label leave-out spread agreement"
    for name in names.split():
        (line,) = [line for line in ours.splitlines() if line.startswith(f"  {name} ")]
        assert len(line.split()) > 2, "a line that says what it does"
    assert "usage: tilewise train" in lightnings


@pytest.mark.slow
def test_python_m_training_is_tilewise_train() -> None:
    ours, modules = run("tilewise", "train", "--print_config"), run("training", "--print_config")
    assert ours.returncode == modules.returncode == 0, modules.stderr
    assert ours.stdout == modules.stdout
    assert "trainer:" in ours.stdout
    assert "Usage: python -m bento.batch" in run("bento.batch", "--help").stdout


# Using a model.


@pytest.fixture(scope="module")
def tile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiles") / "forest.tif"
    write_tile(synthesise_tile("Forest", 1, 5), path)
    return path


def test_tiles_are_classified_without_a_service(tile: Path, model_file: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.tif"
    bad.write_bytes(b"no tile")
    done = CliRunner().invoke(main, ["classify", str(tile), str(bad), "--model", str(model_file)])
    assert done.exit_code == 1
    head, first, last = done.stdout.splitlines()
    assert head.split()[:3] == ["name", "class", "probability"]
    assert first.split()[0] == str(tile)
    assert first.split()[1] in CLASSES
    assert "not a GeoTIFF" in last
    done = CliRunner().invoke(main, ["classify", str(tile), "--model", str(model_file), "--format", "json"])
    assert done.exit_code == 0, done.stderr
    (result,) = json.loads(done.stdout)
    assert result["class_name"] in CLASSES
    assert result["model"]["name"] == "test"


def test_serves_help_names_every_setting_with_its_default() -> None:
    shown = " ".join(CliRunner().invoke(main, ["serve", "--help"]).stdout.split())
    for text in ("--host", "--workers", "TILEWISE_MODEL ", "TILEWISE_CANDIDATE_FRACTION ", "[default: 256]"):
        assert text in shown
    assert "TILEWISE_API_KEYS " in shown


def test_a_wrong_setting_is_one_line_before_the_service_starts() -> None:
    done = run("tilewise", "serve", TILEWISE_MAX_TILES="many")
    assert done.returncode == 1
    assert done.stderr.startswith("error: TILEWISE_MAX_TILES")
    assert done.stderr.count("\n") == 1


# The demo.


@pytest.mark.slow
def test_the_demo_makes_maps_away_from_the_checkout_and_spares_an_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mine.txt").write_text("kept")
    small = ("tilewise", "demo", "--tiles", "10", "--epochs", "1")
    done = run(*small, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for path in (
        "maps/scene.classes.tif",
        "maps/report.html",
        "maps-shipped/scene.classes.tif",
        "run/model.onnx",
    ):
        assert (tmp_path / "demo" / path).is_file(), path
    assert "The demo took" in done.stdout
    assert "tilewise serve --model demo/run/model.onnx" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["demo"], "nothing is written elsewhere"
    again = run(*small, cwd=tmp_path)
    assert again.returncode == 1
    assert "--overwrite" in again.stderr
    assert (tmp_path / "demo" / "mine.txt").is_file()
