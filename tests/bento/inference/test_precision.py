"""Which file is served: INT8 if it is faster on the processor, else fp32; never a file of another model."""

import logging
import shutil
from pathlib import Path

import pytest

from tilewise.bento.inference import precision
from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.precision import Precision, pick, settled
from tilewise.bento.serving.releases import FileSource
from tilewise.models.model_file import INT8, int8_instructions, int8_of

CPU_WITH = "processor : 0\nflags\t\t: fpu sse2 avx2 avx512_vnni amx_int8\n"
CPU_WITHOUT = "processor : 0\nflags\t\t: fpu sse2 avx2\n"
ARM = "processor : 0\nFeatures\t: fp asimd asimddp i8mm\n"


@pytest.fixture
def model(skilled_model: Path, tmp_path: Path) -> Path:
    """A model file with its INT8 file beside it, to change at will."""
    for path in (skilled_model, int8_of(skilled_model)):
        shutil.copyfile(path, tmp_path / path.name)
    return tmp_path / skilled_model.name


@pytest.fixture
def gains(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> object:
    """Simulate a processor of unknown instructions, and what the measurement finds."""

    def set_gain(times: float) -> None:
        monkeypatch.setattr(precision, "int8_instructions", frozenset)
        monkeypatch.setattr(precision, "gain", lambda fp32, int8: times)

    return set_gain


@pytest.mark.parametrize(
    ("text", "found"),
    [(CPU_WITH, {"avx512_vnni", "amx_int8"}), (CPU_WITHOUT, set()), (ARM, {"asimddp", "i8mm"}), ("", set())],
)
def test_instructions_are_read_from_what_linux_says(text: str, found: set[str], tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert int8_instructions(tmp_path / "cpuinfo") == found


def test_a_system_that_does_not_tell_has_none_that_are_known(tmp_path: Path) -> None:
    assert int8_instructions(tmp_path / "cpuinfo") == set()


def test_int8_is_served_on_processors_made_for_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "int8_instructions", lambda: frozenset({"avx512_vnni"}))
    assert pick(model) == int8_of(model)
    assert Engine(pick(model), threads=1).metadata.precision == INT8


def test_elsewhere_a_measurement_decides(model: Path, gains) -> None:
    gains(1.6)
    assert pick(model) == int8_of(model)


def test_a_gain_of_less_than_a_tenth_is_none(model: Path, gains) -> None:
    gains(1.08)
    assert pick(model) == model


def test_fp32_is_served_where_nothing_is_gained_and_the_log_says_so(
    model: Path, gains, caplog: pytest.LogCaptureFixture
) -> None:
    gains(0.9)
    with caplog.at_level(logging.WARNING, "tilewise"):
        assert pick(model) == model
    assert (
        "INT8 is no faster on this processor (0.90 times as fast); TILEWISE_PRECISION=int8 serves it"
        in caplog.text
    )


def test_either_can_be_asked_for(model: Path, gains) -> None:
    gains(0.9)
    assert pick(model, Precision.INT8) == int8_of(model)
    gains(9.0)
    assert pick(model, Precision.FP32) == model


def test_a_model_without_an_int8_file_is_served_as_it_is(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    int8_of(model).unlink()
    with caplog.at_level(logging.WARNING, "tilewise"):
        assert pick(model) == model
        assert not caplog.text
        assert pick(model, Precision.INT8) == model
    assert "has no INT8 file beside it" in caplog.text


def test_an_int8_file_that_is_named_is_served_itself(model: Path) -> None:
    assert pick(int8_of(model)) == int8_of(model)


def test_an_int8_file_of_another_model_is_not_served(
    model: Path, model_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copyfile(model_file, model)
    with caplog.at_level(logging.WARNING, "tilewise"):
        assert pick(model, Precision.INT8) == model
    assert "was made from another file; export it again" in caplog.text


def test_a_broken_int8_file_is_done_without(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    int8_of(model).write_bytes(b"no graph")
    with caplog.at_level(logging.WARNING, "tilewise"):
        assert pick(model, Precision.INT8) == model
    assert "not a readable ONNX file" in caplog.text


def test_a_service_takes_up_an_int8_file_that_appears(model: Path) -> None:
    kept = int8_of(model).read_bytes()
    int8_of(model).unlink()
    source = FileSource(model, Precision.INT8)
    before = source.find()
    int8_of(model).write_bytes(kept)
    after = source.find()
    assert (before.path, after.path) == (model, int8_of(model))
    assert before.identity != after.identity


def test_further_processes_are_told_what_was_measured(model: Path, gains) -> None:
    gains(0.9)
    assert settled(pick(model), Precision.AUTO) is Precision.FP32
    gains(2.0)
    assert settled(int8_of(model), Precision.AUTO) is Precision.INT8
    int8_of(model).unlink()
    assert settled(model, Precision.AUTO) is Precision.AUTO
    assert settled(model, Precision.INT8) is Precision.INT8
