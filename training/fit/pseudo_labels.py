"""Self-training: tiles that nobody labelled get labels that most opinions agree on, and so can train the next
model.

Labels here are of Level-1C; most users hold Level-2A. Where such tiles are at hand without labels, four
opinions are asked of each: the model's of the tile as it is, however it is turned and through whichever
bands; the model's of parts of it at twice and at four times the size; and that of its colours alone
(`tilewise.training.fit.pseudo_labels`). A label that three give, or the first two where it is of one thing in
a tile, such as a road, teaches the next model what Level-2A looks like (self-training; Yarowsky 1995,
doi:10.3115/981658.981684; with agreement of views as in Sohn et al. 2020, arXiv:2001.07685). Such labels
train and never judge: the folder's card says `split: train`.

The size matters for fields: what a network calls one crop, and another where it sees it larger, it only tells
    by the
size of the parcels, which differs from country to country (docs/decisions/0022 and 0023).
"""

import shutil
import warnings
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import torch
from sklearn.ensemble import RandomForestClassifier

from tilewise.datasets.core.bands import BAND_NAMES, BAND_SETS, positions
from tilewise.datasets.core.console import Report, one_line_errors, shown, silent
from tilewise.datasets.core.errors import NoTilesError
from tilewise.datasets.core.radiometry import DN_MAX, Level
from tilewise.datasets.core.tile import BAND_COUNT, DN, TILE_SIZE, Tile, only_bands
from tilewise.datasets.loading.atmosphere import Atmosphere, AtmosphereOptions
from tilewise.datasets.loading.draws import Draws
from tilewise.datasets.packs.pack import UNLABELLED, Pack
from tilewise.datasets.quality.reviewed import write_tile
from tilewise.datasets.readers.sources import DatasetCard, Format, read_card
from tilewise.models.model_file import INPUT, ModelFile, open_model
from tilewise.models.network.classifier import SYMMETRIES
from tilewise.training.evaluate.disturbances import enlarged

# Of normalised differences: vegetation, its water, its red edge (NDVI, NDMI, NDRE).
_INDICES = (("B08", "B04"), ("B08", "B11"), ("B07", "B05"))
_BANDS = ("B04", "B08", "B11")
_PERCENTILES = (5, 25, 50, 75, 95)
_AIRS = 4  # how often each labelled tile is seen, each time through another atmosphere
_TREES, _LEAF = 500, 4
_TILES_AT_ONCE = 256


class Colours:
    """Classes of Level-2A tiles by their colours, learned from the labelled Level-1C tiles of a pack.

    Args:
        pack: whose train split is learned, as Level-2A would show it
            (`tilewise.datasets.loading.atmosphere`); tiles without all bands of Level-1C are passed over.
        seed: of the atmospheres and of the forest.

    Raises:
        NoTilesError: no tile of the train split has all bands.
    """

    def __init__(self, pack: Pack, seed: int = 0) -> None:
        rows = np.array(
            [row for row in pack.rows("train") if len(pack.band_indices[row]) == BAND_COUNT], np.int64
        )
        if not len(rows):
            raise NoTilesError(
                f"{pack.root}: no tile of its train split has all 13 bands, whose colours are learned"
            )
        seen = np.tile(rows, _AIRS)
        features = [
            colour_features(_without_air(pack.fetch(seen[start : start + _TILES_AT_ONCE]), start, seed))
            for start in range(0, len(seen), _TILES_AT_ONCE)
        ]
        self._classes = np.array(pack.summary.classes)
        self._forest = RandomForestClassifier(_TREES, min_samples_leaf=_LEAF, random_state=seed)
        self._forest.fit(np.concatenate(features), pack.labels[seen])

    def guess(self, tiles: DN) -> list[str]:
        """Return the class of each Level-2A tile, uint16 (n, 13, 64, 64) in DN."""
        return list(self._classes[self._forest.predict(colour_features(tiles))])


def colour_features(tiles: DN) -> npt.NDArray[np.float64]:
    """Return float64 (n, 36): of each index and each band's logarithm five percentiles and the standard
    deviation.

    Pixels without data are passed over; what a tile has no pixel of is 0.

    Args:
        tiles: uint16 (n, 13, height, width), DN.
    """
    pixels = np.where(tiles > 0, tiles, np.nan).reshape(*tiles.shape[:2], -1)
    band = {name: pixels[:, positions([name])[0]] for name in {*_BANDS, *np.ravel(_INDICES)}}
    layers = [(band[one] - band[other]) / (band[one] + band[other]) for one, other in _INDICES]
    layers += [np.log(band[name]) for name in _BANDS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of tiles that lack a band
        spread = [
            np.vstack([np.nanpercentile(layer, _PERCENTILES, axis=1), np.nanstd(layer, axis=1)])
            for layer in layers
        ]
    return np.nan_to_num(np.concatenate(spread)).T


def _without_air(tiles: DN, first: int, seed: int) -> DN:
    """Return uint16 tiles of Level-1C as their Level-2A would be; tile `first` is the first of all that are
    seen."""
    atmosphere = Atmosphere(AtmosphereOptions(fraction=1.0))
    draws = Draws(torch.arange(first, first + len(tiles)), seed)
    changed = atmosphere(torch.from_numpy(tiles.astype(np.float32)), draws)
    return changed.round().clamp(max=DN_MAX).numpy().astype(np.uint16)


# Without the near infrared dark water is taken for forest, so RGB has no say: it is what the labels are to
# teach.
VIEWS = ("l2a", "10m")
SIZES = (1, 2, 4)  # times; where a tile is a few parcels, a part of it at four times the size is within one
_PLACES = (
    (0.5, 0.5),
    (0.0, 0.0),
    (0.0, 1.0),
    (1.0, 0.0),
    (1.0, 1.0),
)  # of the parts: the middle and the corners
_OPINIONS = len(SIZES) + 1
# Classes of EuroSAT that cover land all over.
PARCELS = ("AnnualCrop", "PermanentCrop", "Pasture", "HerbaceousVegetation", "Forest")
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
    """What most opinions say of one tile.

    Attributes:
        label: the class that most give; of as many for each, that of the tile as it is.
        agreeing: how many give it, 1 to 4, of those that can.
    """

    label: str
    agreeing: int


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


def guess(
    model: ModelFile,
    colours: Colours,
    tiles: DN,
    parcels: Collection[str] = PARCELS,
    progress: Report = silent,
) -> list[Guess]:
    """Return what the four opinions make of uint16 tiles (n, 13, 64, 64) in DN; see `vote`."""
    guesses: list[Guess] = []
    for start in range(0, len(tiles), _BATCH):
        batch = tiles[start : start + _BATCH]
        opinions = [_seen(model, batch, times) for times in SIZES] + [colours.guess(batch)]
        guesses += [vote(answers, parcels) for answers in zip(*opinions, strict=True)]
        progress("looking", len(guesses), len(tiles))
    return guesses


def vote(answers: Sequence[str], parcels: Collection[str]) -> Guess:
    """Return what most of the answers about one tile say.

    Args:
        answers: about the tile as it is, its parts at twice and at four times the size, and its colours.
        parcels: the classes of which a small part shows as much as the whole. Of others it does not, nor do
            colours tell them: where the first two answers give one of those, all count as agreeing.
    """
    own, larger = answers[:2]
    if own == larger and own not in parcels:
        return Guess(own, _OPINIONS)
    label, agreeing = Counter(answers).most_common(1)[0]  # of equals the first that was given
    return Guess(label, agreeing)


def _seen(model: ModelFile, tiles: DN, times: int) -> list[str]:
    """Return the class of each tile at so many times the size, by the mean over views and turns, or over
    parts."""
    shown = _turned(tiles) if times == 1 else [enlarged(tiles, times, *place) for place in _PLACES]
    answers = [_answers(model, each, view) for view in VIEWS for each in shown]
    return [model.metadata.classes[winner] for winner in np.mean(answers, axis=0).argmax(1)]


def _turned(tiles: DN) -> list[DN]:
    """Return the tiles in each of the eight symmetries of the square."""
    return [way(torch.from_numpy(tiles)).contiguous().numpy() for way in SYMMETRIES]


def _answers(model: ModelFile, tiles: DN, view: str) -> npt.NDArray[np.float32]:
    """Return float32 (n, classes): probabilities of tiles seen through the bands of one view."""
    answers = model.session.run(["probabilities"], {INPUT: only_bands(tiles, BAND_SETS[view])})[0]
    return np.asarray(answers)


def write_sources(
    unlabelled: Unlabelled, guesses: list[Guess], out: Path, agreeing: int, model: ModelFile
) -> tuple[int, int]:
    """Write all tiles as two sources: those to train on, and the others, which are known and yet unlabelled.

    `<out>/<Class>/…` holds tiles on which so many opinions agree; `<out>-unlabelled` holds the rest, and
    every fourth tile whatever its guess: on those the limits are set beyond which a tile counts as strange.
    What earlier guesses left there goes first: a tile would else have two labels, or train and be unlabelled
    at once.

    Returns:
        How many were written into the one and into the other.

    Raises:
        NoTilesError: one of the folders holds something else.
    """
    sure = [n for n, found in enumerate(guesses) if found.agreeing >= agreeing and n % _HELD_BACK != 0]
    rest = sorted(set(range(len(guesses))) - set(sure))
    _spare_what_is_no_guess(out)
    for folder, chosen, split in zip(_folders(out), (sure, rest), ("train", UNLABELLED), strict=True):
        shutil.rmtree(folder, ignore_errors=True)
        _write_card(folder, split, len(guesses), agreeing, model)
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
            raise NoTilesError(
                f"{folder}: exists and holds no guessed labels; name another folder with --out"
            )


def _write_card(folder: Path, split: str, looked_at: int, agreeing: int, model: ModelFile) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    DatasetCard(
        name=folder.name,
        format=Format.GEOTIFF,
        licence="as the tiles",
        origin=_ORIGIN,
        notes=f"Train: where at least {agreeing} of the {_OPINIONS} opinions agree (tilewise train "
        f"pseudo-label).",
        extra={"split": split, "model_sha256": model.sha256, "looked_at": looked_at, "agreeing": agreeing},
    ).write(folder)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("tiles", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--model", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Whose guesses."
)
@click.option(
    "--labelled",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="A pack of labelled tiles of all 13 bands, in the same classes: what colours these have is an "
    "opinion too.",
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("data/raw/l2a-guessed"))
@click.option(
    "--agreeing",
    type=click.IntRange(1, _OPINIONS),
    default=_OPINIONS - 1,
    show_default=True,
    help="How many of the four opinions a label needs: the model's of the tile, of its parts at twice and at "
    "four "
    "times the size, and that of its colours. 1 keeps every guess, for a training whose labels do not count "
    "(model.distillation).",
)
@click.option(
    "--parcels",
    default=",".join(PARCELS),
    show_default=True,
    help="The classes that cover land all over, in parcels of any size. For others, such as a road, the "
    "model's "
    "opinions of the tile and of its parts at twice the size are enough: a quarter of its side does not show "
    "them.",
)
@one_line_errors
def main(tiles: Path, model: Path, labelled: Path, out: Path, agreeing: int, parcels: str) -> None:
    """Label TILES (.npz: `tiles` uint16 (n, bands, 64, 64) of DN at Level-2A, `bands`) where opinions agree.

    Two folders are written, which pack like any others, beside the labelled ones: --out, whose tiles train
        and never
    judge, and one called after it, -unlabelled, with the tiles that stay without a label.
    """
    _spare_what_is_no_guess(out)  # said before every tile is looked at
    opened, unlabelled, pack = open_model(model), read_unlabelled(tiles), Pack(labelled)
    if set(pack.summary.classes) != set(opened.metadata.classes):
        raise NoTilesError(f"{labelled}: its classes are not those of {model}; labels would be of two kinds")
    covering = _parcels(parcels, opened.metadata.classes)
    with shown() as progress:
        progress("learning colours", 0, 1)
        colours = Colours(pack)
        progress("learning colours", 1, 1)
        guesses = guess(opened, colours, unlabelled.tiles, covering, progress)
    kept, rest = write_sources(unlabelled, guesses, out, agreeing, opened)
    click.echo(f"{kept} of {len(guesses)} tiles are labelled in {out}, {rest} stay unlabelled beside it")
    click.echo(f"agreed on, of those guessed: {_per_class(guesses, agreeing)}")


def _parcels(names: str, classes: Sequence[str]) -> tuple[str, ...]:
    """Return the classes in `names`; EuroSAT's, which are the default, need not be among `classes`."""
    named = tuple(name.strip() for name in names.split(","))
    unknown = sorted(set(named) - set(classes))
    if unknown and named != PARCELS:
        raise NoTilesError(
            f"--parcels: no class is called {', '.join(unknown)}; they are {', '.join(classes)}"
        )
    return named


def _per_class(guesses: list[Guess], agreeing: int) -> str:
    """Return how many of each class were agreed on, of how many guessed."""
    names = sorted({found.label for found in guesses})
    kept = {name: sum(g.label == name and g.agreeing >= agreeing for g in guesses) for name in names}
    return ", ".join(f"{name} {kept[name]}/{sum(g.label == name for g in guesses)}" for name in names)
