"""`tilewise classify --server URL FILES…`: classifies files by a service, from a shell."""

import csv
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from tilewise.bento.client.client import Client, Result
from tilewise.datasets.core.console import one_line_errors, read_options

_KEY = "TILEWISE_API_KEY"
_COLUMNS = ("name", "class", "probability", "prediction_set", "outlier", "valid_fraction", "error")


@click.command()
@click.argument("url")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@read_options
@click.option("--coverage", type=float, help="Share of tiles whose prediction set shall hold the true class.")
@click.option("--form", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
@click.option("--retries", type=int, default=5, show_default=True, help="Where the service is busy or out of reach.")
@one_line_errors
def main(url: str, files: tuple[Path, ...], form: str, retries: int, **overrides: Any) -> None:
    """Classify GeoTIFF tiles, FILES, by the service at URL; exit with 1 where one has no answer.

    An API key is taken from the environment variable TILEWISE_API_KEY, which other users of the machine cannot see.
    """
    with Client(url, os.environ.get(_KEY), retries=retries) as client:
        results = client.classify(files, **overrides)
    if form == "json":
        click.echo(json.dumps([asdict(result) for result in results], indent=2))
    elif form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows([_COLUMNS, *(_row(result) for result in results)])
    else:
        _print_table(results)
    sys.exit(any(result.error for result in results))


def _row(result: Result) -> tuple[str, ...]:
    """Return the texts of a result, in the order of the columns."""
    if result.error:
        hint = f"; {result.error.hint}" if result.error.hint else ""
        return (result.name, "", "", "", "", "", result.error.message + hint)
    chosen, outlier = result.prediction_set, result.outlier
    return (
        result.name,
        result.class_name or "",
        f"{result.probability:.4f}",
        " ".join(chosen.classes) if chosen else "",
        ("yes" if outlier.flag else "no") if outlier else "",
        f"{result.valid_fraction:.4f}",
        "",
    )


def _print_table(results: Iterable[Result]) -> None:
    rows = [_COLUMNS, *(_row(result) for result in results)]
    used = [column for column in range(len(_COLUMNS)) if any(row[column] for row in rows[1:])]
    widths = {column: max(len(row[column]) for row in rows) for column in used}
    for row in rows:
        click.echo("  ".join(row[column].ljust(widths[column]) for column in used).rstrip())
