"""`tilewise train --recipe finetune`: from folders of one's own tiles to a model file that can be served."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from tilewise.datasets.core.console import (
    CONTEXT,
    FOLDER,
    Report,
    one_line_errors,
    read_options,
    shown,
    silence_mlflow,
)
from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.core.locations import PRETRAINED_MODEL
from tilewise.datasets.core.radiometry import ReadOptions
from tilewise.datasets.packs.pack import Pack, open_pack
from tilewise.datasets.readers.sources import Format, find_sources
from tilewise.models.model_file import find_model, int8_of, open_model
from tilewise.training.finetune.features import is_pack, pack_tiles
from tilewise.training.finetune.report import Figures
from tilewise.training.finetune.run import finetune as run_finetuning
from tilewise.training.settings import RunFolder, new_run
from tilewise.training.tracking import Tracking, how_to_look, make_logger, tracking_uri_option

RECIPE = "finetune"


@click.command(context_settings=CONTEXT)
@click.option(
    "--data",
    "data",
    type=click.Path(path_type=Path, exists=True),
    required=True,
    help="Folder with a folder of tiles for each class, FOLDER/<Class>/<name>.tif; or a pack.",
)
@click.option(
    "--test",
    "test",
    type=FOLDER,
    help="Folder of tiles of the same classes that never train, to measure the model on. A pack has its own.",
)
@click.option(
    "--model",
    "model",
    type=click.Path(path_type=Path),
    default=PRETRAINED_MODEL,
    show_default="accurate",
    metavar="accurate|fast|FILE",
    help="Model file to start from, or weights that ship.",
)
@click.option("--out", "out", type=FOLDER, help="Folder of the run. Default: a new one in artifacts/runs.")
@click.option("--overwrite", "overwrite", is_flag=True, help="Replace the model of a run in --out.")
@click.option(
    "--folds",
    "folds",
    type=click.IntRange(2, 20),
    default=5,
    show_default=True,
    help="Parts of the tiles, each held out once, that the figures come from.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice([f.value for f in Format]),
    help="Format of the files. Default: as the folder's dataset.json or its name states.",
)
@read_options
@click.option("--tracking/--no-tracking", "tracked", default=True, help="Whether MLflow records the run.")
@tracking_uri_option
@one_line_errors
def finetune(
    data: Path,
    test: Path | None,
    model: Path,
    out: Path | None,
    overwrite: bool,
    folds: int,
    form: str | None,
    reading: ReadOptions,
    tracked: bool,
    uri: str,
) -> None:
    """Teach a model file your own classes, from a folder of tiles for each.

    The network stays as it is; a new head is fitted to its embeddings, which takes seconds for a hundred
    tiles. Figures come from cross-validation, with 95 % intervals. Better 25 tiles a class or more; 5 are
    needed.

    \b
      tilewise train --recipe finetune --data tiles --out artifacts/runs/mine
      tilewise train --recipe finetune --data tiles --test more --bands l2a --level L2A --offset -1000
      tilewise serve --model artifacts/runs/mine/model.onnx
    """
    folder = RunFolder(out) if out else new_run()
    if folder.model.exists() and not overwrite:
        raise TrainingError(f"{folder.root} holds a model already; name another --out, or give --overwrite")
    with shown() as progress:
        pack = _open(data, test, form, reading, folder, progress)
        command = shlex.join(["tilewise", *sys.argv[1:]])
        figures = run_finetuning(find_model(model), pack, folder, folds, command, progress)
    _print(figures, folder)
    if tracked:
        _track(Tracking(uri=uri), figures, pack, folder)


def _open(
    data: Path, test: Path | None, form: str | None, reading: ReadOptions, folder: RunFolder, progress: Report
) -> Pack:
    """Return the pack `data`, or that of the folders `data` and `test`, which is written into the run."""
    if is_pack(data):
        if test or form or reading != ReadOptions():
            raise TrainingError(
                f"{data}: a pack has its own test split and bands; leave out --test, --format, --bands, "
                f"--level, --scale and --offset"
            )
        return open_pack(data)
    chosen = Format(form) if form else None
    sources = find_sources((data,), chosen, reading)
    tested = find_sources((test,), chosen, reading) if test else []
    return pack_tiles(sources, tested, folder.root / "pack", progress)


def _print(figures: Figures, folder: RunFolder) -> None:
    for text in figures.warnings():
        click.echo(f"warning: {text}", err=True)
    for table in figures.tables():
        click.echo(f"\n{table.markdown()}")
    click.echo("")
    for text in figures.sentences():
        click.echo(text)
    files = [path.name for path in (folder.model, int8_of(folder.model)) if path.is_file()]
    click.echo(f"\nthe run is in {folder.root}: {', '.join(files)}, evaluation/report.md")
    click.echo(f"serve the model with: tilewise serve --model {folder.model}")


def _track(tracking: Tracking, figures: Figures, pack: Pack, folder: RunFolder) -> None:
    """Log figures, data, report and model file as a run in MLflow."""
    from tilewise.training.logged_model import dataset_inputs, log_model

    silence_mlflow()
    logger = make_logger(tracking, folder, fresh=True)
    assert logger is not None  # noqa: S101 - tracking is enabled
    run_id, client = str(logger.run_id), logger.experiment
    client.set_tag(run_id, "data_hash", pack.summary.data_hash)
    logger.log_metrics(figures.metrics())
    client.log_inputs(run_id, dataset_inputs(pack, {"train": "training", "test": "test"}))
    client.log_artifacts(run_id, str(folder.evaluation), "evaluation")
    log_model(client, run_id, open_model(folder.model))
    logger.finalize("success")
    click.echo(how_to_look(tracking))
