"""Self-training: tiles that nobody labelled get the labels that a model is sure of, and so can train the next one.

Labels here are of Level-1C; most users hold Level-2A. Where such tiles are at hand without labels, the model's own
answers on them, kept where it answers alike however the tile is turned, through whichever bands it looks, and to the
tile's middle at twice the size, teach it what Level-2A looks like (self-training; Yarowsky 1995,
doi:10.3115/981658.981684; with agreement of views as in Sohn et al. 2020, arXiv:2001.07685). Such labels train and
never judge: the folder's card says `split: train`.

The size matters for fields: what a network calls one crop, and another where it sees it larger, it only tells by the
size of the parcels, which differs from country to country (docs/decisions/0022).
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import torch

from datasets.bands import BAND_NAMES, BAND_SETS, positions
from datasets.command import one_line_errors
from datasets.errors import NoTilesError
from datasets.pack import UNLABELLED
from datasets.progress import Report, shown, silent
from datasets.radiometry import Level
from datasets.reviewed import write_tile
from datasets.sources import Card, Format, read_card
from datasets.tile import BAND_COUNT, DN, TILE_SIZE, Tile, only_bands
from models.modelfile import INPUT, ModelFile, open_model
from models.symmetries import SYMMETRIES
from training.disturbances import DISTURBANCES

# Without the near infrared dark water is taken for forest, so RGB has no say: it is what the labels are to teach.
VIEWS = ("l2a", "10m")
_BATCH = 64
_ORIGIN = "labels guessed by a model, checked by nobody"  # by which a folder of ours is known
_HELD_BACK = 4  # every fourth tile never trains


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """Tiles without labels.

    Attributes:
        tiles: uint16 (n, 13, 64, 64), DN, absent bands 0.
        bands: the bands that they have, in canonical order.
    """

    tiles: DN
    bands: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Guess:
    """What a model answers to one tile, looked at in every way.

    Attributes:
        label: the class with the highest mean probability.
        confidence: that probability, 0-1.
        agreed: whether every set of bands gives that class, and the middle of the tile at twice the size does.
    """

    label: str
    confidence: float
    agreed: bool

    def is_sure(self, least: float) -> bool:
        """Return whether its label may train, where labels need a mean probability of `least`; 0 takes any guess."""
        return least <= 0 or (self.agreed and self.confidence >= least)


def read_unlabelled(path: Path) -> Unlabelled:
    """Read an array file: `tiles` uint16 (n, bands, 64, 64) in DN, and `bands`, their names.

    Raises:
        NoTilesError: the file holds no such arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            pixels, names = arrays["tiles"], [str(name) for name in arrays["bands"]]
    except (OSError, ValueError, KeyError) as error:
        raise NoTilesError(
            f"{path}: no arrays `tiles` and `bands` in it; it is an .npz of DN and band names"
        ) from error
    if pixels.dtype != np.uint16 or pixels.shape[1:] != (len(names), TILE_SIZE, TILE_SIZE) or not len(pixels):
        shape = f"(n, {len(names)}, {TILE_SIZE}, {TILE_SIZE})"
        raise NoTilesError(f"{path}: tiles of {pixels.dtype} {pixels.shape}; they are uint16 {shape}")
    tiles = np.zeros((len(pixels), BAND_COUNT, TILE_SIZE, TILE_SIZE), np.uint16)
    tiles[:, positions(names)] = pixels
    return Unlabelled(tiles, tuple(BAND_NAMES[place] for place in sorted(positions(names))))


def guess(model: ModelFile, tiles: DN, progress: Report = silent) -> list[Guess]:
    """Return what `model` answers to uint16 (n, 13, 64, 64): the mean over views and the square's symmetries."""
    classes = model.metadata.classes
    guesses: list[Guess] = []
    for start in range(0, len(tiles), _BATCH):
        batch = tiles[start : start + _BATCH]
        views = _views(model, batch)
        mean = views.mean(0)
        winner = mean.argmax(1)
        larger = _views(model, DISTURBANCES["larger"](batch)).mean(0).argmax(1)
        agreed = (views.argmax(2) == winner).all(0) & (larger == winner)
        guesses += [Guess(classes[w], float(p[w]), bool(a)) for w, p, a in zip(winner, mean, agreed, strict=True)]
        progress("looking", len(guesses), len(tiles))
    return guesses


def _views(model: ModelFile, tiles: DN) -> npt.NDArray[np.float32]:
    """Return (views, n, classes): mean probabilities over the eight symmetries, seen through the bands of each view."""
    return np.stack([_through(model, tiles, view) for view in VIEWS])


def _through(model: ModelFile, tiles: DN, view: str) -> npt.NDArray[np.float32]:
    """Return (n, classes) of one view."""
    kept = torch.from_numpy(only_bands(tiles, BAND_SETS[view]))
    turned = [way(kept).contiguous().numpy() for way in SYMMETRIES]
    answers = [model.session.run(["probabilities"], {INPUT: each})[0] for each in turned]
    return np.asarray(np.mean(answers, axis=0))


def write_sources(
    unlabelled: Unlabelled, guesses: list[Guess], out: Path, least: float, model: ModelFile
) -> tuple[int, int]:
    """Write all tiles as two sources: those to train on, and the others, which are known and yet unlabelled.

    `<out>/<Class>/…` holds tiles whose guess is sure (`Guess.is_sure`); `<out>-unlabelled` holds the rest, and
    every fourth tile whatever its guess: on those the limits are set beyond which a tile counts as strange. What
    earlier guesses left there goes first: a tile would else have two labels, or train and be unlabelled at once.

    Returns:
        How many were written into the one and into the other.

    Raises:
        NoTilesError: one of the folders holds something else.
    """
    sure = [n for n, found in enumerate(guesses) if found.is_sure(least) and n % _HELD_BACK != 0]
    rest = sorted(set(range(len(guesses))) - set(sure))
    _spare_what_is_no_guess(out)
    for folder, chosen, split in zip(_folders(out), (sure, rest), ("train", UNLABELLED), strict=True):
        shutil.rmtree(folder, ignore_errors=True)
        _write_card(folder, split, len(guesses), least, model)
        for number in chosen:
            label = guesses[number].label
            tile = Tile(f"{out.name}-{label}_{number}", unlabelled.tiles[number], unlabelled.bands, Level.L2A)
            write_tile(tile, folder / label / f"{tile.name}.tif")
    return len(sure), len(rest)


def _folders(out: Path) -> tuple[Path, Path]:
    """Return where labelled tiles go, and where the others."""
    return out, out.with_name(f"{out.name}-{UNLABELLED}")


def _spare_what_is_no_guess(out: Path) -> None:
    for folder in _folders(out):
        if folder.is_dir() and any(folder.iterdir()) and read_card(folder).get("origin") != _ORIGIN:
            raise NoTilesError(f"{folder}: exists and holds no guessed labels; name another folder with --out")


def _write_card(folder: Path, split: str, looked_at: int, least: float, model: ModelFile) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Card(
        name=folder.name,
        format=Format.GEOTIFF,
        licence="as the tiles",
        origin=_ORIGIN,
        notes=f"Train: where sets of bands agree and the mean probability is at least {least}; 0: every guess.",
        extra={"split": split, "model_sha256": model.sha256, "looked_at": looked_at, "least": least},
    ).write(folder)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("tiles", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--model", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Whose guesses.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("data/raw/l2a-guessed"))
@click.option(
    "--least",
    type=click.FloatRange(0, 1),
    default=0.8,
    show_default=True,
    help="Lowest mean probability of a label that is kept; 0 keeps every guess, for a training that MODEL teaches as "
    "well (model.distillation) and so tells how unsure it is.",
)
@one_line_errors
def main(tiles: Path, model: Path, out: Path, least: float) -> None:
    """Label TILES (.npz: `tiles` uint16 (n, bands, 64, 64) of DN at Level-2A, `bands`) where MODEL is sure of them.

    Two folders are written, which pack like any others, beside the labelled ones: --out, whose tiles train and never
    judge, and one called after it, -unlabelled, with the tiles that stay without a label.
    """
    _spare_what_is_no_guess(out)  # said before every tile is looked at
    opened, unlabelled = open_model(model), read_unlabelled(tiles)
    with shown() as progress:
        guesses = guess(opened, unlabelled.tiles, progress)
    kept, rest = write_sources(unlabelled, guesses, out, least, opened)
    click.echo(f"{kept} of {len(guesses)} tiles are labelled in {out}, {rest} stay unlabelled beside it")
    click.echo(f"sure, of those guessed: {_per_class(guesses, least)}")


def _per_class(guesses: list[Guess], least: float) -> str:
    """Return how many of each class were sure, of how many guessed."""
    names = sorted({found.label for found in guesses})
    kept = {name: sum(g.label == name and g.is_sure(least) for g in guesses) for name in names}
    return ", ".join(f"{name} {kept[name]}/{sum(g.label == name for g in guesses)}" for name in names)
