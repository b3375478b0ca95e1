"""The command line of batch inference."""

import json
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import click

from tilewise.bento.batch.console import Show, shown
from tilewise.bento.batch.manifest import SceneOutcome
from tilewise.bento.batch.run import Backend, Run, RunOptions, find, watch_scenes
from tilewise.bento.inference.precision import Precision
from tilewise.bento.inference.windows import MIN_STRIDE, GridOptions
from tilewise.bento.results.tables import VectorFormat
from tilewise.bento.results.writer import USUAL, Output, OutputOptions
from tilewise.datasets.core.console import one_line_errors, with_options
from tilewise.datasets.core.errors import TilewiseError
from tilewise.datasets.core.tile import TILE_SIZE
from tilewise.datasets.scenes import SceneSource
from tilewise.datasets.scenes.options import make_scene_options, scene_options

_OUTPUTS = ",".join(USUAL)


def _listed(kind: type[StrEnum], context: click.Context, option: click.Parameter, text: str) -> tuple[Any, ...]:
    """Turn `a,b` into members of an enumeration; a misspelt one is named."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    try:
        return tuple(kind(name) for name in dict.fromkeys(names))
    except ValueError as error:
        choices = ", ".join(kind)
        raise click.BadParameter(f"{error}; choose from {choices}", context, option) from error


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what is kept of each scene."""
    options = (
        click.option(
            "--outputs",
            default=_OUTPUTS,
            show_default=True,
            callback=partial(_listed, Output),
            help="What is kept, separated by commas; probabilities is one more.",
        ),
        click.option(
            "--formats",
            default="parquet",
            show_default=True,
            callback=partial(_listed, VectorFormat),
            help="Forms of the tables of windows and polygons: parquet, geojson, fgb.",
        ),
        click.option(
            "--coverage",
            default=0.9,
            show_default=True,
            type=click.FloatRange(0.5, 1, max_open=True),
            help="Coverage that the windows' prediction sets promise, where the model is calibrated for it.",
        ),
    )
    return with_options(command, options)


def grid_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how windows are laid."""
    options = (
        click.option(
            "--stride",
            default=TILE_SIZE,
            show_default=True,
            type=click.IntRange(MIN_STRIDE, TILE_SIZE),
            help="Pixels from one window to the next; below the tile size windows overlap and are blended.",
        ),
        click.option(
            "--cell",
            default=1,
            show_default=True,
            type=click.IntRange(1, TILE_SIZE),
            help="Pixels a side of one value of the maps; it divides the stride.",
        ),
        click.option(
            "--min-valid",
            "min_valid_fraction",
            default=0.5,
            show_default=True,
            type=click.FloatRange(0, 1),
            help="Windows with a smaller share of valid pixels are skipped.",
        ),
    )
    return with_options(command, options)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which model works."""
    options = (
        click.option("--model", envvar="TILEWISE_MODEL", help="Model file; default: the newest exported one."),
        click.option(
            "--precision",
            envvar="TILEWISE_PRECISION",
            default=Precision.AUTO.value,
            show_default=True,
            type=click.Choice([precision.value for precision in Precision]),
            help="int8 takes the INT8 file beside the model's, auto does where the processor gains by it.",
        ),
    )
    return with_options(command, options)


def crew_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say who works."""
    options = (
        click.option(
            "--jobs",
            default=1,
            show_default=True,
            type=click.IntRange(1),
            help="Scenes at a time, each in a process of its own with a model of its own.",
        ),
        click.option(
            "--threads",
            default=0,
            show_default=True,
            type=click.IntRange(0),
            help="Threads of each job; 0: the cores shared out among the jobs.",
        ),
        click.option(
            "--engine",
            "crew",
            default=Backend.LOCAL.value,
            show_default=True,
            type=click.Choice([crew.value for crew in Backend]),
            help="Who works: this machine, or a Ray cluster.",
        ),
        click.option("--address", help="Of the Ray cluster, e.g. ray://head:10001; default: the one that runs here."),
    )
    return with_options(command, options)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("scenes", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of the results.")
@output_options
@scene_options
@grid_options
@model_options
@crew_options
@click.option("--dry-run", is_flag=True, help="Say what would be done with each scene, and do nothing.")
@click.option(
    "--watch",
    metavar="SECONDS",
    type=click.FloatRange(0, min_open=True),
    help="Go on looking for new scenes this often, until Ctrl-C; one that is still being written is left alone.",
)
@click.option(
    "--idle",
    metavar="SECONDS",
    type=click.FloatRange(0),
    help="With --watch: end when nothing was new for so long.",
)
@click.option("--json", "as_json", is_flag=True, help="Tell everything as JSON, one object a line, on standard output.")
@one_line_errors
def main(
    scenes: tuple[str, ...],
    out: Path,
    dry_run: bool,
    watch: float | None,
    idle: float | None,
    as_json: bool,
    model: str | None,
    **overrides: Any,
) -> None:
    """Classify SCENES: folders, files, globs, or lists of them.

    \b
    For each scene NAME these files are written into the folder of results:
      NAME.classes.tif       class of every pixel, on the scene's grid      (classes)
      NAME.probability.tif   probability of that class                      (probability)
      NAME.outlier.tif       how unlike the training data                   (outlier)
      NAME.probabilities.tif probability of every class                     (probabilities)
      NAME.windows.parquet   every window with outline and probabilities    (windows)
      NAME.polygons.parquet  areas of one class                             (polygons)
      NAME.quicklook.png     picture with legend                            (quicklook)
      NAME.stac.json         STAC item                                      (stac)
    and for the run summary.json, summary.csv and report.html.

    \b
    Try it, run it, run it again:
      tilewise batch SCENES --out MAPS --dry-run
      tilewise batch SCENES --out MAPS --jobs 2
      tilewise batch SCENES --out MAPS          # does only what is not done yet

    A run that was stopped, killed or ran out of disk goes on where it was with the same command: MAPS/manifest.sqlite
    remembers which input, options and model each result was made from.

    Exit status: 0 all is done; 1 a scene failed or holds blocks that could not be decoded; 2 the command is wrong;
    130 stopped by Ctrl-C.
    """
    options = _run_options(**overrides)
    look = partial(find, scenes, options.reading)
    if dry_run:
        sys.exit(_preview(Run(out, model, options), look(), as_json))
    found = [] if watch else look()
    with shown(as_json) as show:
        run = Run(out, model, options, show.standing)
        batches = watch_scenes(look, watch, idle) if watch else iter([found])
        sys.exit(_work(run, batches, show, out))


def _run_options(
    *,
    outputs: tuple[Output, ...],
    formats: tuple[VectorFormat, ...],
    coverage: float,
    stride: int,
    cell: int,
    min_valid_fraction: float,
    crew: str,
    precision: str,
    jobs: int,
    threads: int,
    address: str | None,
    **reading: Any,
) -> RunOptions:
    return RunOptions(
        reading=make_scene_options(**reading),
        grid=GridOptions(stride, min_valid_fraction, cell),
        outputs=OutputOptions(outputs, formats, coverage),
        backend=Backend(crew),
        precision=Precision(precision),
        jobs=jobs,
        threads=threads,
        address=address,
    )


def _work(run: Run, batches: Any, show: Show, out: Path) -> int:
    """Work on batches of scenes; return the exit status."""
    with run.begin():
        try:
            for sources in batches:
                for outcome in run.take(sources):
                    show.scene(outcome)
                run.report()
        except OSError as error:
            raise TilewiseError(f"{out} cannot be written to: {error.strerror or error}") from error
    outcomes = run.outcomes
    show.end(outcomes, str(out), str(run.model.path))
    return status_of(outcomes)


def status_of(outcomes: Sequence[SceneOutcome]) -> int:
    """Return the exit status of a run."""
    return 0 if all(outcome.is_complete for outcome in outcomes) else 1


def _preview(run: Run, sources: Sequence[SceneSource], as_json: bool) -> int:
    """Print what would be done; return the exit status."""
    failures = 0
    for task, overrides in run.preview(sources):
        failures += overrides.startswith("would fail")
        click.echo(_json_line(task.location, overrides) if as_json else f"{task.location}: {overrides}")
    return 1 if failures else 0


def _json_line(place: str, overrides: str) -> str:
    return json.dumps({"event": "would", "source": place, "would": overrides}, ensure_ascii=False)
