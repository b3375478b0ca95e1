"""`tilewise batch`, and the options for windows and results that `tilewise stream` shares."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import click

from tilewise.bento.batch.console import RunDisplay, open_display
from tilewise.bento.batch.manifest import SceneOutcome
from tilewise.bento.batch.run import Backend, Run, RunOptions, Source, find, join, watch_scenes
from tilewise.bento.inference.precision import Precision
from tilewise.bento.inference.windows import MIN_STRIDE, Detail, GridOptions
from tilewise.bento.results.tables import VectorFormat
from tilewise.bento.results.writer import USUAL, Output, OutputOptions
from tilewise.datasets.core.console import (
    CONTEXT,
    FOLDER,
    model_option,
    one_line_errors,
    option_group,
    out_option,
)
from tilewise.datasets.core.errors import TilewiseError
from tilewise.datasets.core.tile import TILE_SIZE
from tilewise.datasets.scenes import MosaicKind, SceneOptions
from tilewise.datasets.scenes.area import Area, area_of_bounds, read_area
from tilewise.datasets.scenes.options import scene_options
from tilewise.datasets.scenes.stac_api import DEFAULT_COLLECTION, StacSearch


def _split(
    kind: type[StrEnum], context: click.Context, option: click.Parameter, text: str
) -> tuple[Any, ...]:
    """Turn `a,b` into members of an enumeration; raise BadParameter for an unknown name."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    try:
        return tuple(kind(name) for name in dict.fromkeys(names))
    except ValueError as error:
        choices = ", ".join(kind)
        raise click.BadParameter(f"{error}; choose from {choices}", context, option) from error


precision_option = click.option(
    "--precision",
    "precision",
    envvar="TILEWISE_PRECISION",
    default=Precision.AUTO.value,
    show_default=True,
    type=click.Choice([precision.value for precision in Precision]),
    help="fp32: the model file itself; int8: the INT8 file beside it; auto: INT8 where it is faster here.",
)

_OUTPUT_OPTIONS = (
    click.option(
        "--outputs",
        "outputs",
        default=",".join(USUAL),
        show_default=True,
        callback=partial(_split, Output),
        help="Results to keep, separated by commas; probabilities is one more.",
    ),
    click.option(
        "--format",
        "format",
        default=VectorFormat.PARQUET.value,
        show_default=True,
        callback=partial(_split, VectorFormat),
        help="Formats of the tables of windows and polygons: parquet, geojson, fgb, gpkg.",
    ),
    click.option(
        "--coverage",
        "coverage",
        default=0.9,
        show_default=True,
        type=click.FloatRange(0.5, 1, max_open=True),
        help="Probability that a window's prediction set contains its true class, for models calibrated for "
        "it.",
    ),
    click.option(
        "--smooth",
        "smooth",
        default=0.0,
        metavar="METRES",
        type=click.FloatRange(0, 2000),
        help="Each pixel of the class map takes the class with the most votes in the square of this side "
        "around it, weighted by probability.",
    ),
    click.option(
        "--min-area",
        "min_area",
        default=0.0,
        metavar="HECTARES",
        type=click.FloatRange(0),
        help="Smaller patches of the class map, and so polygons, get the class of their largest neighbour.",
    ),
)


def _make_outputs(
    outputs: tuple[Output, ...],
    format: tuple[VectorFormat, ...],
    coverage: float,
    smooth: float,
    min_area: float,
) -> OutputOptions:
    return OutputOptions(outputs, format, coverage, min_area, smooth)


output_options = option_group("outputs", _make_outputs, _OUTPUT_OPTIONS)
"""Add --outputs, --format, --coverage, --smooth and --min-area, as one argument `outputs`."""

_FINE_STRIDE = 8
_GRID_OPTIONS = (
    click.option(
        "--detail",
        "detail",
        default=Detail.COARSE.value,
        show_default=True,
        type=click.Choice([detail.value for detail in Detail]),
        help="coarse: windows of 640 m. fine: windows of 320 m as well, pooled with them, for land in small "
        "pieces; twice the work.",
    ),
    click.option(
        "--stride",
        "stride",
        show_default=f"{TILE_SIZE}; {_FINE_STRIDE} with --detail fine",
        type=click.IntRange(MIN_STRIDE, TILE_SIZE),
        help="Pixels from one window to the next; below the tile size windows overlap and are blended.",
    ),
    click.option(
        "--cell",
        "cell",
        default=1,
        show_default=True,
        type=click.IntRange(1, TILE_SIZE),
        help="Pixels a side of one value of the maps; a divisor of the stride.",
    ),
    click.option(
        "--min-valid",
        "min_valid_fraction",
        default=0.5,
        show_default=True,
        type=click.FloatRange(0, 1),
        help="Windows with a smaller fraction of valid pixels are skipped.",
    ),
)


def _make_grid(detail: str, stride: int | None, cell: int, min_valid_fraction: float) -> GridOptions:
    usual = _FINE_STRIDE if detail == Detail.FINE else TILE_SIZE
    return GridOptions(stride or usual, min_valid_fraction, cell, detail=Detail(detail))


grid_options = option_group("grid", _make_grid, _GRID_OPTIONS)
"""Add --detail, --stride, --cell and --min-valid, as one argument `grid`."""

_WORKER_OPTIONS = (
    click.option(
        "--jobs",
        "jobs",
        default=1,
        show_default=True,
        type=click.IntRange(1),
        help="Scenes at a time, each in a process of its own with a model of its own.",
    ),
    click.option(
        "--threads",
        "threads",
        default=0,
        show_default=True,
        type=click.IntRange(0),
        help="Threads of each job; 0: the cores divided by the jobs.",
    ),
    click.option(
        "--engine",
        "backend",
        default=Backend.LOCAL.value,
        show_default=True,
        type=click.Choice([backend.value for backend in Backend]),
        help="Where scenes are classified: on this machine, or on a Ray cluster.",
    ),
    click.option(
        "--address",
        "address",
        help="Of the Ray cluster, e.g. ray://head:10001. Default: the cluster on this machine.",
    ),
)


def _make_workers(jobs: int, threads: int, backend: str, address: str | None) -> dict[str, Any]:
    return {"jobs": jobs, "threads": threads, "backend": Backend(backend), "address": address}


worker_options = option_group("workers", _make_workers, _WORKER_OPTIONS)
"""Add --jobs, --threads, --engine and --address, as one argument `workers`."""


def _bounds(
    context: click.Context, option: click.Parameter, text: str | None
) -> tuple[float, float, float, float] | None:
    """Turn `W,S,E,N` into numbers; raise BadParameter where they are not four."""
    if text is None:
        return None
    try:
        west, south, east, north = map(float, text.split(","))
    except ValueError as error:
        raise click.BadParameter(
            f"{text}: four numbers W,S,E,N in degrees are needed", context, option
        ) from error
    return west, south, east, north


_AREA_OPTIONS = (
    click.option(
        "--aoi",
        "aoi",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Read and classify only what the polygons in this file touch: a GeoJSON, or a GeoPackage with "
        "one layer.",
    ),
    click.option(
        "--bbox",
        "bbox",
        metavar="W,S,E,N",
        callback=_bounds,
        help="The same for a rectangle in degrees of longitude and latitude.",
    ),
)


def _make_area(aoi: Path | None, bbox: tuple[float, float, float, float] | None) -> Area | None:
    if aoi and bbox:
        raise click.UsageError("--aoi and --bbox both name an area; give one of them")
    return read_area(aoi) if aoi else area_of_bounds(*bbox) if bbox else None


area_options = option_group("area", _make_area, _AREA_OPTIONS)
"""Add --aoi and --bbox, as one argument `area`."""


_SEARCH_OPTIONS = (
    click.option(
        "--stac",
        "stac",
        metavar="URL",
        help="Search this STAC API, within --bbox or --aoi and --dates, and classify the items found.",
    ),
    click.option("--dates", "dates", metavar="A/B", help="With --stac: e.g. 2024-06-01/2024-08-31."),
    click.option(
        "--max-cloud",
        "max_cloud",
        metavar="PERCENT",
        type=click.FloatRange(0, 100),
        help="With --stac: leave out items with a larger cloud cover.",
    ),
    click.option(
        "--collection",
        "collections",
        multiple=True,
        default=(DEFAULT_COLLECTION,),
        show_default=True,
        help="With --stac: the collection to search; may be repeated.",
    ),
    click.option(
        "--limit",
        "limit",
        type=click.IntRange(1),
        help="With --stac: take only so many items, the first that the API names.",
    ),
)


def _make_search(
    stac: str | None,
    dates: str | None,
    max_cloud: float | None,
    collections: tuple[str, ...],
    limit: int | None,
) -> StacSearch | None:
    if stac is None:
        if dates or limit or max_cloud is not None or collections != (DEFAULT_COLLECTION,):
            raise click.UsageError("--dates, --max-cloud, --collection and --limit go with --stac URL")
        return None
    if dates is None:
        raise click.UsageError("--stac needs --dates A/B, e.g. 2024-06-01/2024-08-31")
    return StacSearch(stac, dates, max_cloud, collections, limit)


search_options = option_group("search", _make_search, _SEARCH_OPTIONS)
"""Add --stac, --dates, --max-cloud, --collection and --limit, as one argument `search`."""


@click.command(context_settings=CONTEXT)
@click.argument("scenes", nargs=-1)
@out_option(FOLDER, "Folder of the results.")
@output_options
@area_options
@search_options
@scene_options
@grid_options
@model_option
@precision_option
@worker_options
@click.option(
    "--mosaic",
    "mosaic",
    type=click.Choice([kind.value for kind in MosaicKind]),
    help="One map of all scenes, named mosaic: of the most recent clear pixels, or of mean probabilities.",
)
@click.option(
    "--dry-run", "dry_run", is_flag=True, help="Print what would be done with each scene, and do nothing."
)
@click.option(
    "--watch",
    "watch",
    metavar="SECONDS",
    type=click.FloatRange(0, min_open=True),
    help="Look for new scenes this often, until Ctrl-C; a file still being written is left for later.",
)
@click.option(
    "--idle",
    "idle",
    metavar="SECONDS",
    type=click.FloatRange(0),
    help="With --watch: end when there was no new scene for so long.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line on standard output.")
@one_line_errors
def main(
    scenes: tuple[str, ...],
    out: Path,
    outputs: OutputOptions,
    area: Area | None,
    search: StacSearch | None,
    reading: SceneOptions,
    grid: GridOptions,
    workers: dict[str, Any],
    precision: str,
    model: str | None,
    mosaic: str | None,
    dry_run: bool,
    watch: float | None,
    idle: float | None,
    as_json: bool,
) -> None:
    """Classify SCENES: GeoTIFFs, products (SAFE, EOPF Zarr), STAC items, folders, globs and text files that
    list these, or what a STAC API finds.

    \b
    For each scene NAME these files are written into the folder of results:
      NAME.classes.tif       class of every pixel, on the scene's grid      (classes)
      NAME.classes.qml       its style, which QGIS loads with it
      NAME.probability.tif   probability of that class                      (probability)
      NAME.outlier.tif       how unlike the training data                   (outlier)
      NAME.probabilities.tif probability of every class                     (probabilities)
      NAME.windows.parquet   every window with outline and probabilities    (windows)
      NAME.polygons.parquet  areas of one class                             (polygons)
      NAME.quicklook.png     picture with legend                            (quicklook)
      NAME.truecolour.jpg    picture of the scene, if it has red, green and blue (quicklook)
      NAME.stac.json         STAC item                                      (stac)
    and for the run summary.json, summary.csv and report.html.

    \b
    Try it, run it, run it again:
      tilewise batch SCENES --out MAPS --dry-run
      tilewise batch SCENES --out MAPS --jobs 2
      tilewise batch SCENES --out MAPS          # only what is not done yet
      tilewise batch --stac URL --bbox W,S,E,N --dates A/B --out MAPS

    After a stop, a crash or a full disk the same command continues: MAPS/manifest.sqlite records the input,
    options and model of each result.

    Exit status: 0 every scene is done; 1 a scene failed or has blocks that cannot be decoded; 2 usage error;
    130 stopped by Ctrl-C.
    """
    reading = replace(reading, area=area)
    options = RunOptions(
        reading=reading, grid=grid, outputs=outputs, precision=Precision(precision), **workers
    )
    _check_usage(bool(scenes), bool(search), bool(area), bool(mosaic and watch))

    def look() -> list[Source]:
        return join(find(scenes, reading, search), MosaicKind(mosaic) if mosaic else None)

    if dry_run:
        sys.exit(_preview(Run(out, model, options), look(), as_json))
    found = [] if watch else look()
    with open_display(as_json) as display:
        run = Run(out, model, options, display.progress)
        batches = watch_scenes(look, watch, idle) if watch else iter([found])
        sys.exit(_classify(run, batches, display, out))


def _check_usage(scenes: bool, search: bool, area: bool, watched_mosaic: bool) -> None:
    """Raise UsageError where options do not go together."""
    if not scenes and not search:
        raise click.UsageError("name SCENES, or a STAC API to search (--stac URL)")
    if search and not area:
        raise click.UsageError("--stac needs an area to search in: --bbox W,S,E,N or --aoi FILE")
    if watched_mosaic:
        raise click.UsageError("--mosaic needs all scenes at once; leave --watch out")


def _classify(run: Run, batches: Any, display: RunDisplay, out: Path) -> int:
    """Classify batches of scenes; return the exit status."""
    with run.begin():
        try:
            for sources in batches:
                for outcome in run.take(sources):
                    display.scene(outcome)
                run.report()
        except OSError as error:
            raise TilewiseError(f"{out} cannot be written to: {error.strerror or error}") from error
    outcomes = run.outcomes
    if not outcomes and run.outside:
        raise TilewiseError(f"no scene has a pixel inside the area; {run.outside} were looked at")
    display.end(outcomes, str(out), str(run.model.path))
    return exit_status(outcomes)


def exit_status(outcomes: Sequence[SceneOutcome]) -> int:
    """Return the exit status of a run."""
    return 0 if all(outcome.is_complete for outcome in outcomes) else 1


def _preview(run: Run, sources: Sequence[Source], as_json: bool) -> int:
    """Print what would be done; return the exit status."""
    failures = 0
    for task, plan in run.preview(sources):
        failures += plan.startswith("would fail")
        click.echo(_json_line(task.location, plan) if as_json else f"{task.location}: {plan}")
    return 1 if failures else 0


def _json_line(source: str, plan: str) -> str:
    return json.dumps({"event": "would", "source": source, "would": plan}, ensure_ascii=False)
