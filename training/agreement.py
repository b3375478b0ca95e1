"""How right models are on tiles that nobody labelled: about as often as two of them agree.

Two networks of one recipe that differ in their seeds alone disagree on a tile about as often as each of them is wrong
(Jiang et al. 2022, arXiv:2106.13799), as far as they are as sure as they are right. Elsewhere than they were trained
they are surer than that, so the true share is lower; the labelled tiles beside show by how much.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import click
import numpy as np

from datasets.arrays import open_pack
from datasets.command import one_line_errors
from datasets.errors import TrainingError
from datasets.pack import UNLABELLED, Pack
from datasets.progress import Report, shown, silent
from models.modelfile import ModelFile, open_model
from training.assess.outputs import Case, Rows
from training.assess.tables import Cell, Table
from training.evaluation import views_of

_LEAST_MODELS = 2


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Pack of tiles.")
@click.option("--split", "splits", multiple=True, help=f"Can be said again. Default: val, and {UNLABELLED} if there.")
@one_line_errors
def agreement(models: tuple[Path, ...], data: Path, splits: tuple[str, ...]) -> None:
    """Print how often MODELS agree on tiles, by source and set of bands: an estimate, without labels, of how often
    they are right.

    MODELS are model files of one recipe and several seeds. On labelled splits their accuracy stands beside, which
    says how far the estimate holds.

    \b
    python -m training agreement artifacts/seed-0/model.onnx artifacts/seed-1/model.onnx --data PACK
    """
    pack = open_pack(data)
    usual = ("val", UNLABELLED) if UNLABELLED in pack.summary.counts else ("val",)
    with shown() as progress:
        table = as_table([open_model(path) for path in models], pack, splits or usual, progress)
    click.echo(table.markdown())


def as_table(models: Sequence[ModelFile], pack: Pack, splits: Sequence[str], progress: Report = silent) -> Table:
    """Return a row for each split, source and set of bands that has tiles.

    Raises:
        TrainingError: there are fewer than two models, two have the same weights, they know other classes, or a split
            has no tiles (`Case.sources`).
    """
    networks = {model.metadata.weights or model.sha256 for model in models}  # fp32 and INT8 are one network
    if len(models) < _LEAST_MODELS or len(networks) < len(models):
        raise TrainingError("to agree takes two model files at least, each of other weights")
    if len({model.metadata.classes for model in models}) > 1:
        raise TrainingError("the model files know different classes, or the same in another order")
    of_splits = [[Case(model, pack, split, progress) for model in models] for split in splits]
    parts = [(cases, source) for cases in of_splits for source in cases[0].sources]
    rows = tuple(row for cases, source in parts for row in _rows(cases, source))
    note = (
        f"{len(models)} model files: the share of tiles to which two of them give the same class, mean over the pairs, "
        "and where labels are known the share that one of them has right, mean over the files."
    )
    return Table("agreement", "Agreement", note, ("split: tiles, bands", "tiles", "agree %", "right %"), rows)


def _rows(cases: Sequence[Case], source: str) -> Iterator[tuple[Cell, ...]]:
    first, rows = cases[0], cases[0].rows(source)
    for view in views_of(first.pack.bands(int(rows[0]))):
        yield (f"{first.split}: {source}/{view}", len(rows), *_measured(cases, rows, view))


def _measured(cases: Sequence[Case], rows: Rows, view: str) -> tuple[float, float | None]:
    """Return the share that two agree on, and the share that is right; None where there are no labels."""
    answers = [case.ask_through(view, rows, f"bands {view}").probabilities.argmax(1) for case in cases]
    agree = float(np.mean([(a == b).mean() for a, b in combinations(answers, 2)]))
    if cases[0].split == UNLABELLED:
        return agree, None
    return agree, float(np.mean([(found == cases[0].labels(rows)).mean() for found in answers]))
