"""Compare runs that differ in their seed: spread of their test metrics, and agreement on unlabelled tiles.

Agreement estimates accuracy without labels: two networks of one recipe and different seeds disagree on a tile
    about as
often as each of them is wrong (Jiang et al. 2022, arXiv:2106.13799), as far as they are calibrated. Away from
the training data they are overconfident and the true accuracy is lower; labelled splits show by how much.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import click
import numpy as np
from jsonargparse import dict_to_namespace

from tilewise.datasets.core.console import Report, one_line_errors, shown, silent
from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.packs.pack import UNLABELLED, Pack, open_pack
from tilewise.models.model_file import ModelFile, open_model
from tilewise.training.evaluate.evaluation import METRICS_FILE, Cell, Table, views_of
from tilewise.training.evaluate.outputs import PackEvaluator, Rows
from tilewise.training.settings import RunFolder, differing

FIGURES = ("accuracy", "macro_f1", "calibration_error")
_MIN_RUNS = 2
_OWN_FOLDERS = {"checkpoint.dirpath", "trainer.default_root_dir"}  # of each run, whatever its settings

Groups = dict[str, dict[str, Any]]
"""The test metrics of one run, by source and set of bands."""


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False))
@one_line_errors
def spread(runs: tuple[Path, ...]) -> None:
    """Print mean, standard deviation and range of the test metrics of RUNS, folders of runs.

    The settings in which the runs differ are printed too: a spread over seeds is one of runs that differ in
        nothing
    else. `tilewise train test` writes the metrics.

    \b
    tilewise train spread artifacts/seed-0 artifacts/seed-1 artifacts/seed-2
    """
    click.echo(spread_table(runs).markdown())


def spread_table(runs: Sequence[Path]) -> Table:
    """Return a row for each source and set of bands that all runs were measured on.

    The deviation is the sample's (n - 1), in points where the figure is a percentage.

    Raises:
        TrainingError: there are fewer than two runs, one was not tested, or they were tested on different
            tiles or with different numbers of symmetries.
    """
    if len(set(runs)) < _MIN_RUNS:
        raise TrainingError("a spread needs two different runs at least")
    measured = _same_symmetries(runs)
    rows = tuple(_row(group, measured) for group in measured[0])
    differing = ", ".join(_differing(runs)) or "none of their settings"
    note = (
        f"{len(runs)} runs, which differ in: {differing}. "
        "Mean ± standard deviation (lowest - highest), percent."
    )
    return Table("spread", "From run to run", note, ("tiles, bands", "tiles", *FIGURES), rows)


def _same_symmetries(runs: Sequence[Path]) -> list[Groups]:
    """Return the test metrics of `runs`; raises TrainingError where their numbers of symmetries differ."""
    read = [read_test_metrics(RunFolder(run)) for run in runs]
    symmetries = sorted({number for number, _ in read})
    if len(symmetries) > 1:
        raise TrainingError(
            f"the runs were tested with different model.symmetries: {symmetries}; test them with the same: "
            f"`tilewise train test --model.symmetries {symmetries[0]} --out RUN`"
        )
    return [groups for _, groups in read]


def read_test_metrics(run: RunFolder) -> tuple[int, Groups]:
    """Return the number of symmetries that a run was tested with, and its test metrics.

    Raises:
        TrainingError: it was not tested.
    """
    path = run.evaluation / METRICS_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found: tuple[int, Groups] = int(content.get("symmetries", 1)), content["groups"]
    except FileNotFoundError as error:
        raise TrainingError(
            f"{path} is not there: `tilewise train test --out {run.root}` measures it"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainingError(f"{path}: not what `tilewise train test` writes ({error!r})") from error
    return found


def _row(group: str, measured: Sequence[Groups]) -> tuple[str | int, ...]:
    tiles = {run[group]["tiles"] if group in run else 0 for run in measured}
    if len(tiles) > 1:
        raise TrainingError(f"{group}: the runs were tested on different numbers of tiles: {sorted(tiles)}")
    return (group, *tiles, *(_summary([run[group][name] for run in measured]) for name in FIGURES))


def _summary(fractions: Sequence[float]) -> str:
    """Return mean, standard deviation and range of fractions (0-1), in percent."""
    values = 100 * np.array(fractions)
    return f"{values.mean():.2f} ± {values.std(ddof=1):.2f} ({values.min():.2f} - {values.max():.2f})"


def _differing(runs: Sequence[Path]) -> list[str]:
    """Return the names of settings that differ between runs, without those that name the run's own folder."""
    settings = [dict(dict_to_namespace(_settings(RunFolder(run))).items()) for run in runs]
    return [name for name in differing(settings) if name not in _OWN_FOLDERS]


def _settings(run: RunFolder) -> dict[str, Any]:
    if not run.settings.is_file():
        raise TrainingError(f"{run.root} is no folder of a run: it has no {run.settings.name}")
    return run.read_settings()


_MIN_MODELS = 2


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Pack of tiles.")
@click.option(
    "--split", "splits", multiple=True, help=f"Repeatable. Default: val, and {UNLABELLED} if the pack has it."
)
@one_line_errors
def agreement(models: tuple[Path, ...], data: Path, splits: tuple[str, ...]) -> None:
    """Print how often MODELS agree on tiles, by source and set of bands: an estimate of accuracy without
    labels.

    MODELS are model files of one recipe and several seeds. On labelled splits their accuracy is shown beside,
    to check the estimate.

    \b
    tilewise train agreement artifacts/seed-0/model.onnx artifacts/seed-1/model.onnx --data PACK
    """
    pack = open_pack(data)
    usual = ("val", UNLABELLED) if UNLABELLED in pack.summary.counts else ("val",)
    with shown() as progress:
        table = agreement_table([open_model(path) for path in models], pack, splits or usual, progress)
    click.echo(table.markdown())


def agreement_table(
    models: Sequence[ModelFile], pack: Pack, splits: Sequence[str], progress: Report = silent
) -> Table:
    """Return a row for each split, source and set of bands that has tiles.

    Raises:
        TrainingError: there are fewer than two models, two have the same weights, their classes differ, or a
            split has no tiles.
    """
    networks = {model.metadata.weights or model.sha256 for model in models}  # fp32 and INT8 are one network
    if len(models) < _MIN_MODELS or len(networks) < len(models):
        raise TrainingError("agreement needs at least two model files, each of other weights")
    if len({model.metadata.classes for model in models}) > 1:
        raise TrainingError("the model files have different classes, or the same in another order")
    of_splits = [[PackEvaluator(model, pack, split, progress) for model in models] for split in splits]
    parts = [(evaluators, source) for evaluators in of_splits for source in evaluators[0].sources]
    rows = tuple(row for evaluators, source in parts for row in _rows(evaluators, source))
    note = (
        f"{len(models)} model files: the fraction of tiles for which two of them predict the same class, "
        f"mean over the "
        "pairs, and where tiles have labels the accuracy, mean over the files."
    )
    return Table(
        "agreement", "Agreement", note, ("split: tiles, bands", "tiles", "agree %", "accuracy %"), rows
    )


def _rows(evaluators: Sequence[PackEvaluator], source: str) -> Iterator[tuple[Cell, ...]]:
    first, rows = evaluators[0], evaluators[0].rows(source)
    for view in views_of(first.pack.bands(int(rows[0]))):
        yield (f"{first.split}: {source}/{view}", len(rows), *_agreement_and_accuracy(evaluators, rows, view))


def _agreement_and_accuracy(
    evaluators: Sequence[PackEvaluator], rows: Rows, view: str
) -> tuple[float, float | None]:
    """Return the fraction that two models agree on, and the accuracy; None where tiles have no labels."""
    step = f"bands {view}"
    predicted = [each.run_view(view, rows, step).probabilities.argmax(1) for each in evaluators]
    agree = float(np.mean([(a == b).mean() for a, b in combinations(predicted, 2)]))
    if evaluators[0].split == UNLABELLED:
        return agree, None
    labels = evaluators[0].labels(rows)
    return agree, float(np.mean([(found == labels).mean() for found in predicted]))
