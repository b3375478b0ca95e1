"""Settings from the environment, and which model is used when none is named."""

import os
from pathlib import Path

import pytest

from tilewise.bento.settings import Settings, find_model
from tilewise.datasets.core.errors import ModelFileError, TilewiseError

NAMES = ("TILEWISE_MODEL", "TILEWISE_WORKERS", "TILEWISE_THREADS", "TILEWISE_MAX_TILES", "TILEWISE_MAX_BYTES")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def exported(path: Path, age: float) -> Path:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    os.utime(path, (1_700_000_000 - age, 1_700_000_000 - age))
    return path


def test_without_an_environment_the_defaults_hold() -> None:
    assert Settings.from_environment() == Settings()


def test_every_setting_can_be_set_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(NAMES, ("other/model.onnx", "2", "3", "8", "1000"), strict=True):
        monkeypatch.setenv(name, value)
    assert Settings.from_environment() == Settings(
        model="other/model.onnx", workers=2, threads=3, max_tiles=8, max_bytes=1000
    )


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "")
    assert Settings.from_environment() == Settings()


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [
        ("TILEWISE_THREADS", "many", 0),
        ("TILEWISE_THREADS", "-1", 0),
        ("TILEWISE_MAX_TILES", "0", 1),
        ("TILEWISE_MAX_BYTES", "64MB", 1),
        ("TILEWISE_MAX_BYTES", "1e6", 1),
    ],
)
def test_a_setting_that_is_no_sensible_number_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, minimum: int
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(TilewiseError, match=f"{name} is a whole number of {minimum} or more, not '{value}'"):
        Settings.from_environment()


def test_processes_and_threads_together_never_exceed_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores in (1, 2, 3, 8, 64):
        monkeypatch.setattr("tilewise.bento.settings.usable_cores", lambda cores=cores: cores)
        for settings in (Settings(), Settings(workers=1), Settings(workers=2)):
            if settings.processes <= cores:
                assert settings.processes * settings.network_threads <= cores


def test_a_model_that_was_named_is_used_whatever_else_lies_there(in_folder: Path) -> None:
    exported(in_folder / "artifacts" / "run" / "model.onnx", age=0)
    assert find_model(Path("mine.onnx")) == Path("mine.onnx")


def test_the_newest_exported_model_is_used_when_none_is_named(in_folder: Path) -> None:
    exported(in_folder / "artifacts" / "a" / "model.onnx", age=300)
    newest = exported(in_folder / "artifacts" / "b" / "deep" / "model.onnx", age=100)
    exported(in_folder / "artifacts" / "c" / "model.onnx", age=200)
    exported(in_folder / "artifacts" / "d" / "other.onnx", age=0)
    assert find_model(None).resolve() == newest.resolve()


def test_where_nothing_was_exported_the_weights_that_ship_are_used(in_folder: Path) -> None:
    shipped = find_model(None)
    assert shipped.parts[-3:] == ("models", "pretrained", "model.onnx")
    assert shipped.is_file()


def test_without_any_model_the_error_names_the_ways_to_get_one(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tilewise.bento.settings.PRETRAINED_MODEL", in_folder / "none.onnx"
    )  # an installation without weights
    with pytest.raises(ModelFileError) as caught:
        find_model(None)
    message = str(caught.value)
    assert "\n" not in message
    for way in ("TILEWISE_MODEL", "artifacts", "`tilewise train`", "`make demo`"):
        assert way in message
