"""Shared parts of the command lines: lazy command groups, shared options, one-line errors, progress,
tables."""

import errno
import functools
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from click.shell_completion import CompletionItem

from tilewise.datasets.core.bands import BAND_SETS, LEAVE_OUT, parse_bands
from tilewise.datasets.core.errors import RadiometryUnknownError, TilewiseError
from tilewise.datasets.core.radiometry import PRESETS, Level, ReadOptions

if TYPE_CHECKING:
    from rich.progress import TaskID
    from rich.table import Table

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
"""Settings of every command: `-h`, and help as wide as the terminal, up to 110 columns."""

Report = Callable[[str, int, int | None], None]
"""Progress callback: the step's name, the units done, and the units in all (None: unknown)."""

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_SECONDS_BETWEEN_LINES = 5.0
_TABLE_WIDTH = 200  # columns, where standard output is no terminal


class Entry(NamedTuple):
    """A command of a `LazyGroup`.

    Attributes:
        target: `module:attribute` of the click command, as of an entry point.
        text: its line in the group's help.
        extra: the optional dependencies (`pip install 'tilewise[extra]'`) that it needs.
    """

    target: str
    text: str
    extra: str = ""


class LazyGroup(click.Group):
    """A group of commands, listed in sections, each imported only when it runs.

    Args:
        sections: the commands by section title and name, in the order of the help.
    """

    def __init__(self, *args: Any, sections: Mapping[str, Mapping[str, Entry]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections
        self.entries = {name: entry for section in sections.values() for name, entry in section.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names, in the order of the sections."""
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command; end with one line where its optional dependencies are missing."""
        entry = self.entries.get(cmd_name)
        if entry is None:
            return None
        try:
            command: click.Command = resolve_name(entry.target)
        except ModuleNotFoundError as error:
            if not entry.extra or (error.name or "").startswith("tilewise"):
                raise
            click.echo(
                f"error: {error.name} is not installed; pip install 'tilewise[{entry.extra}]'", err=True
            )
            sys.exit(1)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands by section, without importing them."""
        for title, commands in self.sections.items():
            with formatter.section(title):
                formatter.write_dl([(name, entry.text) for name, entry in commands.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the commands and options that begin with `incomplete`, without importing the commands."""
        items = [(name, entry.text) for name, entry in self.entries.items() if name.startswith(incomplete)]
        completions = [CompletionItem(name, help=text) for name, text in items]
        return completions + click.Command.shell_complete(self, ctx, incomplete)


def silent(step: str, done: int, total: int | None) -> None:
    """Report no progress: the default of library functions."""


@contextmanager
def shown() -> Iterator[Report]:
    """Show progress on standard error while the block runs: bars in a terminal, lines elsewhere."""
    if sys.stderr.isatty():
        with _bars() as report:
            yield report
    else:
        yield _lines()


@contextmanager
def _bars() -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

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


def print_table(table: "Table") -> None:
    """Print a table to standard output: as wide as the terminal, or else as wide as its cells need."""
    from rich.console import Console

    fixed = sys.stdout.isatty() or "COLUMNS" in os.environ
    Console(width=None if fixed else _TABLE_WIDTH, markup=False).print(table)


def silence_mlflow() -> None:
    """Turn off the messages and progress bars of MLflow and of its database migrations."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def with_options(command: Callable[..., Any], options: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    """Add options (click's decorators) to a command, which lists them in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def option_group(name: str, make: Callable[..., Any], options: Sequence[Callable[..., Any]]) -> Decorator:
    """Return a decorator that adds `options` to a command, which gets them as one argument `name`.

    Args:
        name: of the command's argument.
        make: returns the argument; it is called with the options' values, by their parameter names. A
            TilewiseError ends the command as in `one_line_errors`.
        options: click's decorators, in the order of the help.
    """
    probe = with_options(lambda: None, options)
    names = [parameter.name for parameter in probe.__click_params__]  # type: ignore[attr-defined]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @one_line_errors
        @functools.wraps(command)
        def run(*args: Any, **kwargs: Any) -> Any:
            values = {each: kwargs.pop(each) for each in names}
            return command(*args, **kwargs, **{name: make(**values)})

        return with_options(run, options)

    return decorate


def out_option(kind: click.Path, help: str, default: Path | None = None) -> Decorator:
    """Return the option --out: the file or folder that the command writes, its argument `out`.

    Args:
        default: None: the option is required.
    """
    given: dict[str, Any] = {"default": default, "show_default": True} if default else {"required": True}
    return click.option("--out", "out", type=kind, help=help, **given)


model_option = click.option(
    "--model",
    "model",
    envvar="TILEWISE_MODEL",
    show_envvar=True,
    metavar="accurate|fast|FILE",
    help="Model file, or weights that ship. Default: the newest file that training exported here, or else "
    "`accurate`.",
)

READ_OPTIONS = (
    click.option(
        "--bands",
        "bands",
        help=f"Bands in the file's order, e.g. B02,B03,B04,B08, or {', '.join(BAND_SETS)}; {LEAVE_OUT} "
        "leaves one out. For files that do not name their bands.",
    ),
    click.option(
        "--level",
        "level",
        type=click.Choice([level.value for level in Level], case_sensitive=False),
        help="Processing level, for files that do not state it.",
    ),
    click.option(
        "--scale", "scale", type=float, help="Reflectance per unit: 0.0001 for DN, 1 for reflectance 0-1."
    ),
    click.option(
        "--offset",
        "offset",
        type=float,
        help="Added to the numbers before scaling: 0 for processing baselines before 04.00 and harmonised "
        "data, "
        "-1000 since.",
    ),
)


def make_read_options(
    bands: str | None, level: str | None, scale: float | None, offset: float | None
) -> ReadOptions:
    """Return the read options that command-line options, or the fields of a request, state.

    Raises:
        UnknownBandError: a band name that Sentinel-2 does not have.
        RadiometryUnknownError: a scale of 0 or less, or a scale or offset that is not finite.
    """
    if scale is not None and not 0 < scale < math.inf:
        raise RadiometryUnknownError(f"the scale must be a number above 0, not {scale:g}")
    if offset is not None and not math.isfinite(offset):
        raise RadiometryUnknownError(f"the offset must be a number, not {offset:g}")
    preset = PRESETS.get((bands or "").strip().lower(), ReadOptions())
    return ReadOptions(
        bands=parse_bands(bands) if bands else None,
        level=Level(level.upper()) if level else preset.level,
        scale=preset.scale if scale is None else scale,
        offset=preset.offset if offset is None else offset,
    )


read_options = option_group("reading", make_read_options, READ_OPTIONS)
"""Add --bands, --level, --scale and --offset, as one argument `reading` of type ReadOptions."""
