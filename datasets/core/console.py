"""What all command lines of the project share: one-line errors, exit statuses, and options said one way."""

import errno
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tilewise.datasets.core.bands import LEAVE_OUT, parse_bands
from tilewise.datasets.core.errors import RadiometryUnknownError, TilewiseError
from tilewise.datasets.core.radiometry import Level, ReadOptions

Report = Callable[[str, int, int | None], None]
"""Called with what is being done, how much of it is done, and how much there is (None: unknown)."""

_SECONDS_BETWEEN_LINES = 5.0


def silent(step: str, done: int, total: int | None) -> None:
    """Report nothing: the default of library functions."""


@contextmanager
def shown() -> Iterator[Report]:
    """Show progress on standard error for the length of the block."""
    if sys.stderr.isatty():
        with _bars() as report:
            yield report
    else:
        yield _lines()


@contextmanager
def _bars() -> Iterator[Report]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def report(step: str, done: int, total: int | None) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total or 0)
            bars.update(tasks[step], completed=done, total=total or done)

        yield report


def _lines() -> Report:
    last: dict[str, float] = {}

    def report(step: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if done != total and now - last.setdefault(step, now) < _SECONDS_BETWEEN_LINES:
            return
        last[step] = now
        print(f"{step}: {done:,}{f' of {total:,}' if total else ''}", file=sys.stderr, flush=True)

    return report


def one_line_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn a TilewiseError or OSError into one line on standard error and an exit status; Ctrl-C into 130."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except TilewiseError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(error.exit_status)
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of our output is gone; click ends quietly
                raise
            click.echo(f"error: {error}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            click.echo("stopped", err=True)
            sys.exit(130)

    return run


def with_options(command: Callable[..., Any], options: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    """Add options (click's decorators) to a command, which lists them in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def read_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --bands, --level, --scale and --offset: what files do not say themselves."""
    options = (
        click.option(
            "--bands",
            help="Bands in the file's order, e.g. B02,B03,B04,B08, or l1c, l2a, 10m, rgb, eurosat; "
            f"{LEAVE_OUT} leaves one out. For files whose bands have no names.",
        ),
        click.option(
            "--level",
            type=click.Choice([level.value for level in Level], case_sensitive=False),
            help="Processing level, for files that do not say.",
        ),
        click.option("--scale", type=float, help="Reflectance per unit: 0.0001 for DN, 1 for reflectance 0-1."),
        click.option(
            "--offset",
            type=float,
            help="Added to the numbers before scaling: 0 for processing baselines "
            "before 04.00 and harmonised data, -1000 since.",
        ),
    )
    return with_options(command, options)


def make_read_options(bands: str | None, level: str | None, scale: float | None, offset: float | None) -> ReadOptions:
    """Return what was said by the options of `read_options`, or by the fields of a request.

    Raises:
        UnknownBandError: a band name that Sentinel-2 does not have.
        RadiometryUnknownError: a scale or offset that cannot be.
    """
    if scale is not None and not 0 < scale < math.inf:
        raise RadiometryUnknownError(f"the scale must be a number above 0, not {scale:g}")
    if offset is not None and not math.isfinite(offset):
        raise RadiometryUnknownError(f"the offset must be a number, not {offset:g}")
    return ReadOptions(
        bands=parse_bands(bands) if bands else None,
        level=Level(level.upper()) if level else None,
        scale=scale,
        offset=offset,
    )
