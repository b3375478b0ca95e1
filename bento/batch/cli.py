"""`python -m bento.batch`: every GeoTIFF of a folder, classified window by window, as maps and tables."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bento.engine import Engine
from bento.outputs import MAP_SUFFIX, TABLE_SUFFIX, write_class_map, write_windows
from bento.scene import check_ground_size, classify_scene, place_of
from bento.settings import find_model
from datasets.command import make_statement, one_line_errors, statement_options
from datasets.errors import NoTilesError, SentileError
from datasets.geotiff import open_geotiff, plan_reading
from datasets.progress import Report, shown, silent
from datasets.radiometry import Statement

_SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True, slots=True)
class SceneOutcome:
    """What became of one scene.

    Attributes:
        path: the scene.
        windows: how many were classified.
        skipped: how many had too few valid pixels.
        error: why the scene failed, or None.
    """

    path: Path
    windows: int = 0
    skipped: int = 0
    error: str | None = None


def find_scenes(place: Path) -> list[Path]:
    """Return the GeoTIFFs in a folder and the folders below it, or the one file that `place` is.

    Class maps of an earlier run, which may lie among the scenes, are none.

    Raises:
        NoTilesError: there is none.
    """
    if place.is_file():
        return [place]
    files = sorted(path for path in place.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    scenes = [path for path in files if not path.name.endswith(MAP_SUFFIX)]
    if not scenes:
        raise NoTilesError(f"{place}: no GeoTIFF ({', '.join(_SUFFIXES)}) is there; name a scene or a folder of scenes")
    return scenes


def classify_scenes(
    engine: Engine,
    scenes: Sequence[Path],
    out: Path,
    said: Statement,
    least_valid: float = 0.5,
    progress: Report = silent,
) -> Iterator[SceneOutcome]:
    """Classify scenes one after another into `out`; one that fails is reported and the others go on."""
    names = output_names(scenes)
    for scene in scenes:
        try:
            yield _classify_one(engine, scene, out / names[scene], said, least_valid, progress)
        except SentileError as error:
            yield SceneOutcome(scene, error=f"{scene}: {str(error).removeprefix(f'{scene.name}: ')}")
        except OSError as error:
            yield SceneOutcome(scene, error=f"{scene}: {out} cannot be written to: {error.strerror or error}")


def output_names(scenes: Sequence[Path]) -> dict[Path, str]:
    """Return a name for each scene's results: its stem, behind the folders that tell it from namesakes."""
    names = {scene: scene.stem for scene in scenes}
    deepest = max((len(scene.parts) for scene in scenes), default=0)
    for depth in range(1, deepest):
        homes: dict[str, set[Path]] = {}
        for scene, name in names.items():
            homes.setdefault(name, set()).add(scene.parent)
        for scene in [scene for scene, name in names.items() if len(homes[name]) > 1]:
            folders = [folder for folder in scene.parent.parts if folder != scene.anchor]
            names[scene] = "-".join((*folders[-depth:], scene.stem))
    return _numbered(names)


def _numbered(names: dict[Path, str]) -> dict[Path, str]:
    """Return `names` with a number behind each that is still taken (`scene.tif` beside `scene.tiff`)."""
    taken: set[str] = set()
    for scene, name in names.items():
        number = 1
        while names[scene] in taken:
            number += 1
            names[scene] = f"{name}-{number}"
        taken.add(names[scene])
    return names


def _classify_one(
    engine: Engine, scene: Path, stem: Path, said: Statement, least_valid: float, progress: Report
) -> SceneOutcome:
    with open_geotiff(scene) as dataset:
        place = place_of(dataset, scene.name)
        check_ground_size(dataset, scene.name)
        plan = plan_reading(dataset, scene.name, said)
        answer = classify_scene(engine, dataset, plan, least_valid, progress)
    class_map, table = (stem.with_name(stem.name + suffix) for suffix in (MAP_SUFFIX, TABLE_SUFFIX))
    write_class_map(answer.class_map, place, engine.metadata, class_map)
    write_windows(answer.windows, place, engine.metadata.classes, table)
    skipped = sum(window.probabilities is None for window in answer.windows)
    return SceneOutcome(scene, len(answer.windows) - skipped, skipped)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("scenes", type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of the results.")
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    envvar="SENTILE_MODEL",
    help="Model file; default: the newest exported one.",
)
@click.option(
    "--least-valid",
    default=0.5,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Windows with a smaller share of valid pixels are skipped.",
)
@click.option(
    "--threads",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Threads of the network; 0: one for each core.",
)
@statement_options
@one_line_errors
def main(
    scenes: Path,
    out: Path,
    model: Path | None,
    least_valid: float,
    threads: int,
    bands: str | None,
    level: str | None,
    scale: float | None,
    offset: float | None,
) -> None:
    """Classify every GeoTIFF in SCENES, a folder or a file.

    For each scene NAME.tif two files are written:

    \b
      NAME.classes.tif       the class of every pixel's window, a Cloud-Optimised GeoTIFF on the scene's grid
      NAME.windows.parquet   every window with its outline, class and probabilities, as GeoParquet

    Scenes must have pixels of about 10 m. Exit status 1 says that at least one scene failed.
    """
    said = make_statement(bands, level, scale, offset)
    found = find_scenes(scenes)
    engine = Engine(find_model(model), threads)
    with shown() as progress:
        outcomes = list(classify_scenes(engine, found, out, said, least_valid, progress))
    _print_outcomes(outcomes)
    failed = [outcome for outcome in outcomes if outcome.error]
    for outcome in failed:
        click.echo(f"error: {outcome.error}", err=True)
    click.echo(f"{len(outcomes) - len(failed)} of {len(outcomes)} scenes are in {out}, by {engine.path}")
    sys.exit(1 if failed else 0)


def _print_outcomes(outcomes: Sequence[SceneOutcome]) -> None:
    table = Table("scene", "windows", "skipped", "state")
    for outcome in outcomes:
        state = "failed" if outcome.error else "done"
        table.add_row(escape(outcome.path.name), str(outcome.windows), str(outcome.skipped), state)
    Console().print(table)


if __name__ == "__main__":
    main()
