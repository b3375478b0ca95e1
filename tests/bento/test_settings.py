"""Settings from the environment."""

import pytest

from tilewise.bento.settings import Settings, allowed_values
from tilewise.datasets.core.errors import TilewiseError

NAMES = ("TILEWISE_MODEL", "TILEWISE_WORKERS", "TILEWISE_THREADS", "TILEWISE_MAX_TILES", "TILEWISE_MAX_BYTES")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_without_an_environment_the_defaults_hold() -> None:
    settings = Settings.from_environment()
    assert settings.model_dump() == {name: field.default for name, field in Settings.model_fields.items()}


def test_every_setting_says_what_it_is_and_what_it_allows() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert allowed_values(field), name
    assert allowed_values(Settings.model_fields["log"]) == "json, text or off"
    assert allowed_values(Settings.model_fields["drift_window"]) == "a whole number of 0 or more"


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


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("TILEWISE_PRECISION", "int4", "auto, fp32 or int8"),
        ("TILEWISE_CANDIDATE_MODE", "Shadow", "off, shadow or canary"),
        ("TILEWISE_CANDIDATE_FRACTION", "1.5", "a number from 0 to 1"),
        ("TILEWISE_PREDICTIONS_FRACTION", "nan", "a number from 0 to 1"),
        ("TILEWISE_PREDICTIONS_FRACTION", "half", "a number from 0 to 1"),
        ("TILEWISE_OPEN_METRICS", "perhaps", "1 or 0"),
    ],
)
def test_a_value_that_is_not_allowed_is_one_line_with_those_that_are(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, allowed: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(TilewiseError) as caught:
        Settings.from_environment()
    assert str(caught.value) == f"{name} is {allowed}, not '{value}'"


def test_no_key_is_shown_with_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWISE_API_KEYS", "alice:0123456789abcdef")
    settings = Settings.from_environment()
    assert settings.api_keys == "alice:0123456789abcdef"
    assert "0123456789abcdef" not in f"{settings} {settings!r}"


def test_settings_are_read_once_and_not_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().max_tiles = 3  # type: ignore[misc]
