"""Settings from the environment."""

import pytest

from tilewise.bento.settings import Settings
from tilewise.datasets.core.errors import TilewiseError

NAMES = ("TILEWISE_MODEL", "TILEWISE_WORKERS", "TILEWISE_THREADS", "TILEWISE_MAX_TILES", "TILEWISE_MAX_BYTES")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


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
    ("name", "value", "minimum"),
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
