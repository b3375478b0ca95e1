"""Display of a batch run: a progress bar in a terminal, plain lines in a log, JSON lines for programs.

Progress and errors go to standard error, results to standard output; JSON lines all go to standard output.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from tilewise.bento.batch.manifest import SceneOutcome, SceneState
from tilewise.bento.batch.run import RunProgress

_SECONDS_BETWEEN_LINES = 5.0
_MAX_ROWS = 40  # of the table of scenes; the summary has them all


class RunDisplay(Protocol):
    """Displays the progress and the outcomes of a run."""

    def progress(self, progress: RunProgress) -> None:
        """Display how far the run is."""

    def scene(self, outcome: SceneOutcome) -> None:
        """Display the outcome of a scene."""

    def end(self, outcomes: list[SceneOutcome], out: str, model: str) -> None:
        """Display the outcome of the run."""


@contextmanager
def open_display(as_json: bool) -> Iterator[RunDisplay]:
    """Yield the display that fits this process's output."""
    if as_json:
        yield JsonLines()
    elif sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"))
        with Progress(*columns, console=Console(stderr=True)) as bars:
            yield Bars(bars)
    else:
        yield Lines()


class Lines:
    """Plain lines: one for each scene, and one every few seconds."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def progress(self, progress: RunProgress) -> None:
        """See `RunDisplay`."""
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            click.echo(describe(progress), err=True)

    def scene(self, outcome: SceneOutcome) -> None:
        """See `RunDisplay`."""
        if outcome.error:
            click.echo(f"error: {outcome.error}", err=True)
            return
        if outcome.state is SceneState.OUTSIDE:
            click.echo(f"{outcome.name}: outside the area", err=True)
            return
        done = f"{outcome.windows:,} windows, {outcome.seconds:.1f} s"
        click.echo(
            f"{outcome.name}: {'done already' if outcome.state is SceneState.KEPT else done}", err=True
        )
        if outcome.broken:
            click.echo(f"error: {broken(outcome)}", err=True)

    def end(self, outcomes: list[SceneOutcome], out: str, model: str) -> None:
        """See `RunDisplay`."""
        print_outcomes(outcomes, out, model)


class Bars:
    """A bar that moves, in a terminal."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task = bars.add_task("scenes", total=1.0, state="")

    def progress(self, progress: RunProgress) -> None:
        """See `RunDisplay`."""
        self._bars.update(self._task, completed=progress.fraction, state=describe(progress))

    def scene(self, outcome: SceneOutcome) -> None:
        """See `RunDisplay`."""
        if not outcome.is_complete:
            self._bars.console.print(f"[red]error[/red]: {escape(outcome.error or broken(outcome))}")

    def end(self, outcomes: list[SceneOutcome], out: str, model: str) -> None:
        """See `RunDisplay`."""
        self._bars.stop()
        print_outcomes(outcomes, out, model)


class JsonLines:
    """One JSON object a line on standard output: `event` is `progress`, `scene` or `end`."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def progress(self, progress: RunProgress) -> None:
        """See `RunDisplay`."""
        now = time.monotonic()
        if now - self._last < 1:
            return
        self._last = now
        left = progress.seconds_left
        self._print(
            "progress",
            done=progress.done,
            total=progress.total,
            share=round(progress.fraction, 4),
            windows=progress.windows,
            windows_per_second=round(progress.windows_per_second, 1),
            seconds=round(progress.seconds, 1),
            seconds_left=None if left is None else round(left, 1),
        )

    def scene(self, outcome: SceneOutcome) -> None:
        """See `RunDisplay`."""
        self._print("scene", **outcome.to_json())

    def end(self, outcomes: list[SceneOutcome], out: str, model: str) -> None:
        """See `RunDisplay`."""
        unsound = sum(not outcome.is_complete for outcome in outcomes)
        self._print("end", scenes=len(outcomes), unsound=unsound, out=out, model=model)

    def _print(self, event: str, **content: Any) -> None:
        click.echo(json.dumps({"event": event, **content}, ensure_ascii=False))


def describe(progress: RunProgress) -> str:
    """Return how far a run is, in words."""
    left = progress.seconds_left
    soon = f", {_duration(left)} left" if left is not None and progress.fraction < 1 else ""
    return (
        f"{progress.done:,} of {progress.total:,} scenes ({100 * progress.fraction:.0f} %), "
        f"{progress.windows_per_second:,.0f} windows/s{soon}"
    )


def broken(outcome: SceneOutcome) -> str:
    """Return the error line of a scene with blocks that cannot be decoded."""
    return (
        f"{outcome.source}: {outcome.broken:,} of its blocks could not be decoded and are no data; "
        "fetch the scene again and run the same command"
    )


def print_outcomes(outcomes: list[SceneOutcome], out: str, model: str) -> None:
    """Print a table of the scenes and one line for the run to standard output."""
    table = Table("scene", "windows", "skipped", "state")
    for outcome in outcomes[:_MAX_ROWS]:
        table.add_row(escape(outcome.name), f"{outcome.windows:,}", f"{outcome.skipped:,}", _state(outcome))
    Console().print(table)
    if len(outcomes) > _MAX_ROWS:
        click.echo(f"… and {len(outcomes) - _MAX_ROWS:,} more, which summary.csv names")
    good = sum(outcome.state is not SceneState.FAILED for outcome in outcomes)
    click.echo(f"{good} of {len(outcomes)} scenes are in {out}, by {model}")


def _state(outcome: SceneOutcome) -> str:
    if outcome.state is SceneState.FAILED:
        return "failed"
    done = "done before" if outcome.state is SceneState.KEPT else "done"
    return f"{done}, {outcome.broken} blocks broken" if outcome.broken else done


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    )
