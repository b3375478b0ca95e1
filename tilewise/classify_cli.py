"""`tilewise classify`: classify single tiles, by a model file on this machine or by a service."""

import csv
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tilewise.datasets.core.console import CONTEXT, READ_OPTIONS, model_option, one_line_errors, with_options

if TYPE_CHECKING:
    from tilewise.bento.client import Result

_KEY = "TILEWISE_API_KEY"
_COLUMNS = ("name", "class", "probability", "prediction_set", "outlier", "valid_fraction", "error")


@click.command(context_settings=CONTEXT)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@model_option
@click.option(
    "--server", "server", metavar="URL", help="Classify by the service at URL instead of a model file."
)
@lambda command: with_options(command, READ_OPTIONS)
@click.option(
    "--coverage",
    "coverage",
    type=click.FloatRange(0.5, 1, max_open=True),
    help="Probability that a prediction set contains the true class. Default: 0.9.",
)
@click.option(
    "--format",
    "format",
    type=click.Choice(["table", "csv", "json"]),
    default="table",
    show_default=True,
    help="Format of the results on standard output.",
)
@click.option(
    "--retries",
    "retries",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    help="With --server: of a request while the service is overloaded or cannot be reached.",
)
@one_line_errors
def classify(
    files: tuple[Path, ...], model: str | None, server: str | None, format: str, retries: int, **options: Any
) -> None:
    """Classify FILES, GeoTIFFs of 64 × 64 pixels; exit with 1 where one cannot be classified.

    Larger files are scenes: `tilewise batch` classifies them.

    \b
      tilewise classify a.tif b.tif
      tilewise classify a.tif --bands 10m --level L2A --offset -1000 --format json
      tilewise classify a.tif --server http://localhost:3000

    A service's API key is read from the environment variable TILEWISE_API_KEY, which other users of the
    machine cannot see.
    """
    given = {name: value for name, value in options.items() if value is not None}
    results = _by_service(server, files, retries, given) if server else _by_model(model, files, given)
    if format == "json":
        click.echo(json.dumps([asdict(result) for result in results], indent=2))
    elif format == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows([_COLUMNS, *(_row(result) for result in results)])
    else:
        _print_columns(results)
    sys.exit(any(result.error for result in results))


def _by_service(url: str, files: tuple[Path, ...], retries: int, options: dict[str, Any]) -> "list[Result]":
    from tilewise.bento.client import Client

    with Client(url, os.environ.get(_KEY), retries=retries) as client:
        return client.classify(files, **options)


def _by_model(model: str | None, files: tuple[Path, ...], options: dict[str, Any]) -> "list[Result]":
    from tilewise.api import load

    return load(model).classify(files, **options)


def _row(result: "Result") -> tuple[str, ...]:
    """Return the cells of a result, in the order of the columns."""
    if result.error:
        hint = f"; {result.error.hint}" if result.error.hint else ""
        return (result.name, "", "", "", "", "", result.error.message + hint)
    prediction_set, outlier = result.prediction_set, result.outlier
    return (
        result.name,
        result.class_name or "",
        f"{result.probability:.4f}",
        " ".join(prediction_set.classes) if prediction_set else "",
        ("yes" if outlier.flag else "no") if outlier else "",
        f"{result.valid_fraction:.4f}",
        "",
    )


def _print_columns(results: "Iterable[Result]") -> None:
    """Print the columns that have a value, aligned."""
    rows = [_COLUMNS, *(_row(result) for result in results)]
    used = [column for column in range(len(_COLUMNS)) if any(row[column] for row in rows[1:])]
    widths = {column: max(len(row[column]) for row in rows) for column in used}
    for row in rows:
        click.echo("  ".join(row[column].ljust(widths[column]) for column in used).rstrip())
