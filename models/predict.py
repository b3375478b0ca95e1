"""`python -m models.predict`: what a model file answers on the tiles of a pack, as a table of probabilities."""

from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from datasets.command import one_line_errors
from datasets.errors import NoTilesError
from datasets.pack import Pack
from datasets.predictions import write_predictions
from datasets.progress import Report, shown, silent
from datasets.splits import SPLITS
from models.modelfile import INPUT, ModelFile, open_model

_BATCH = 64


def probabilities_of(
    model: ModelFile, pack: Pack, rows: npt.NDArray[np.int64], progress: Report = silent
) -> npt.NDArray[np.float32]:
    """Return float32 (len(rows), classes): the calibrated probabilities of the tiles in `rows`."""
    parts = []
    for start in range(0, len(rows), _BATCH):
        tiles = pack.fetch(rows[start : start + _BATCH])
        parts.append(model.session.run(["probabilities"], {INPUT: tiles})[0])
        progress("classifying", min(start + _BATCH, len(rows)), len(rows))
    return np.concatenate(parts)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("pack", type=click.Path(path_type=Path, file_okay=False), default=Path("data/packed"))
@click.option(
    "--split",
    "splits",
    type=click.Choice(SPLITS),
    multiple=True,
    default=("val", "test"),
    show_default=True,
    help="Which tiles; say it again for several.",
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=Path("predictions.csv"))
@one_line_errors
def main(model: Path, pack: Path, splits: tuple[str, ...], out: Path) -> None:
    """Write what MODEL answers on the tiles of PACK: one row a tile, with the probability of every class.

    The train split is left out unless it is asked for: a model knows the tiles that it learned.
    """
    opened, tiles = open_model(model), Pack(pack)
    rows = np.flatnonzero(np.isin(tiles.splits, splits))
    if not len(rows):
        raise NoTilesError(f"{pack}: no tile is in {' or '.join(splits)}; name another --split")
    with shown() as progress:
        probabilities = probabilities_of(opened, tiles, rows, progress)
    names, sources = tiles.names(rows), tiles.sources[rows].tolist()
    labels = [tiles.summary.classes[label] for label in tiles.labels[rows]]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_predictions(out, list(zip(sources, names, strict=True)), labels, probabilities, opened.metadata.classes)
    click.echo(f"{len(rows):,} answers are in {out}")


if __name__ == "__main__":
    main(prog_name="python -m models.predict")
