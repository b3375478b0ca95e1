"""Progress of long work: library code reports numbers, a command line shows them.

A terminal gets a bar with a rate and the time left; a log file gets one plain line every few seconds.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

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
