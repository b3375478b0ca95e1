"""Commands end in one line and an exit status; options state what files do not; groups import lazily."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from tilewise.datasets.core.console import make_read_options, one_line_errors, read_options
from tilewise.datasets.core.errors import RadiometryUnknownError, TilewiseError, UnknownBandError
from tilewise.datasets.core.radiometry import Level, ReadOptions


def run_and_raise(error: BaseException) -> Result:
    @click.command()
    @one_line_errors
    def command() -> None:
        click.echo("working")
        raise error

    return CliRunner().invoke(command)


def run_read_options(*arguments: str) -> Result:
    @click.command()
    @read_options
    def command(reading: ReadOptions) -> None:
        click.echo(repr(reading))

    return CliRunner().invoke(command, arguments)


class OtherStatusError(TilewiseError):
    exit_status = 7


@pytest.mark.parametrize(
    ("error", "line", "status"),
    [
        (TilewiseError("a.tif: broken"), "error: a.tif: broken", 1),
        (OtherStatusError("no"), "error: no", 7),
        (KeyboardInterrupt(), "stopped", 130),
        (PermissionError(13, "Permission denied", "out"), "error: [Errno 13] Permission denied: 'out'", 1),
    ],
)
def test_an_error_is_one_line_and_a_status(error: BaseException, line: str, status: int) -> None:
    result = run_and_raise(error)
    assert (result.stderr, result.stdout, result.exit_code) == (line + "\n", "working\n", status)


def test_a_bug_is_not_hidden() -> None:
    assert isinstance(run_and_raise(ZeroDivisionError()).exception, ZeroDivisionError)


def test_without_options_nothing_is_stated() -> None:
    assert run_read_options().stdout.strip() == repr(ReadOptions())


def test_options_become_read_options() -> None:
    result = run_read_options(
        "--bands", "red,_,B8A", "--level", "l2a", "--scale", "0.0001", "--offset", "-1000"
    )
    assert result.stdout.strip() == repr(ReadOptions(("B04", "_", "B8A"), Level.L2A, 1e-4, -1000.0))
    assert run_read_options("--bands", "rgb").stdout.strip() == repr(ReadOptions(("B04", "B03", "B02")))


def test_an_offset_of_0_counts() -> None:
    assert make_read_options(None, None, None, 0.0).offset == 0.0
    assert make_read_options("", "", None, None) == ReadOptions()


def test_an_unknown_band_is_one_line() -> None:
    result = run_read_options("--bands", "B99")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: no Sentinel-2 band is called 'B99'; the bands are B01, B02")
    assert result.stderr.count("\n") == 1
    with pytest.raises(UnknownBandError):
        make_read_options("B99", None, None, None)


@pytest.mark.parametrize("scale", ["0", "-0.0001", "nan", "inf"])
def test_a_scale_that_cannot_be_is_one_line(scale: str) -> None:
    result = run_read_options("--scale", scale)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "the scale must be a number above 0, not" in result.stderr


def test_an_offset_that_is_no_number_is_refused() -> None:
    with pytest.raises(RadiometryUnknownError, match="the offset must be a number, not nan"):
        make_read_options(None, None, None, float("nan"))


@pytest.mark.parametrize("arguments", [("--level", "L3"), ("--scale", "much"), ("--nonsense",)])
def test_a_wrong_option_is_a_usage_error(arguments: tuple[str, ...], tmp_path: Path) -> None:
    result = run_read_options(*arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr
