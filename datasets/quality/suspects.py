"""Find tiles whose label a model's answers contradict: candidates for review, never corrected automatically.

The answers must come from a model that did not learn these labels: one that did repeats their mistakes. The
method is confident learning (C. Northcutt, L. Jiang, I. Chuang, 2021, https://doi.org/10.1613/jair.1.12125),
by cleanlab. Answers are read from the tables of probabilities that `tilewise predict` and test runs write.
"""

import csv
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tilewise.datasets.core.errors import PredictionsError, TilewiseError
from tilewise.datasets.core.tile import Tile
from tilewise.datasets.packs.pack import Pack
from tilewise.datasets.quality.contact_sheet import SheetTile, render_sheet, tile_png

TABLE, PAGE = "suspects.csv", "suspects.html"
PROBABILITY = "p_"
_COLUMNS = ("name", "source", "true_class", "answered", "confidence")
_DIGITS = 4
_ADVICE = (
    "The most doubtful first: the class that the tile is labelled with, and the one that a model answered, "
    "with their probabilities. Left in true colour, right vegetation in red. Correct a wrong label with the "
    "command below the picture, with --label _ where no class fits; the next pack has it. A right label "
    "needs nothing."
)

Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Predictions:
    """A model's answers for n tiles.

    Attributes:
        classes: class names, in the order of `probabilities`.
        keys: (source, name) of each tile.
        probabilities: float64 (n, classes), each row sums to 1.
    """

    classes: tuple[str, ...]
    keys: tuple[tuple[str, str], ...]
    probabilities: Probabilities


@dataclass(frozen=True, slots=True)
class Suspect:
    """A tile whose label is doubtful.

    Attributes:
        name, source, split: the tile; the model may have learned it where the split is `train`.
        given: its label.
        suggested: the model's answer.
        p_given, p_suggested: their probabilities (0–1).
        quality: how well the answers support the label, 0–1: (p_given − p_suggested + 1) / 2.
    """

    name: str
    source: str
    split: str
    given: str
    suggested: str
    p_given: float
    p_suggested: float
    quality: float


def write_predictions(
    path: Path,
    keys: Sequence[tuple[str, str]],
    labels: Sequence[str],
    probabilities: npt.NDArray[np.floating],
    classes: Sequence[str],
) -> None:
    """Write a model's answers as CSV.

    Args:
        path: path of the CSV.
        keys: (source, name) of each tile.
        labels: true class of each tile.
        probabilities: (n, classes), 0–1.
        classes: class names, in the order of `probabilities`.
    """
    answers = probabilities.argmax(1)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*_COLUMNS, *(PROBABILITY + name for name in classes)])
        for (source, name), label, answer, row in zip(keys, labels, answers, probabilities, strict=True):
            cells = [f"{probability:.{_DIGITS}f}" for probability in row]
            writer.writerow([name, source, label, classes[answer], cells[answer], *cells])


def read_predictions(paths: Sequence[Path]) -> Predictions:
    """Read tables of answers and join them; a tile in several tables gets the mean of their probabilities.

    Raises:
        PredictionsError: a file is not such a table, or the tables have different classes.
    """
    classes: tuple[str, ...] = ()
    found: dict[tuple[str, str], list[list[float]]] = {}
    for path in paths:
        own, rows = _read(path)
        if classes and own != classes:
            raise PredictionsError(f"{path}: its classes are {', '.join(own)}, not {', '.join(classes)}")
        classes = own
        for key, probabilities in rows:
            found.setdefault(key, []).append(probabilities)
    if not found:
        raise PredictionsError(f"{', '.join(map(str, paths))}: no answers; `tilewise predict` writes some")
    means = np.array([np.mean(probabilities, axis=0) for probabilities in found.values()])
    return Predictions(classes, tuple(found), means / means.sum(axis=1, keepdims=True))


def find_suspects(pack: Pack, predictions: Predictions) -> list[Suspect]:
    """Return the doubtful tiles among those that were answered, the most doubtful first.

    Raises:
        PredictionsError: the answers are for none of the pack's tiles, or lack one of its classes.
        TilewiseError: cleanlab is not installed.
    """
    rows, answered = _match(pack, predictions)
    labels = _class_indices(pack, predictions)[pack.labels[rows]]
    probabilities = predictions.probabilities[answered]
    found = _doubtful(labels, probabilities)
    return [
        _describe(pack, int(rows[i]), int(labels[i]), predictions.classes, probabilities[i].tolist())
        for i in found
    ]


def write_suspects(suspects: Sequence[Suspect], pack: Pack, folder: Path, limit: int) -> None:
    """Write the table of all suspects, and a page with pictures of the first `limit`, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [item.name for item in fields(Suspect)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(suspect) for suspect in suspects)
    row_of = _rows_by_key(pack)
    tiles = [_sheet_tile(suspect, pack, row_of[suspect.source, suspect.name]) for suspect in suspects[:limit]]
    (folder / PAGE).write_text(
        render_sheet(f"{len(suspects):,} doubtful labels", _ADVICE, tiles), encoding="utf-8"
    )


def _read(path: Path) -> tuple[tuple[str, ...], list[tuple[tuple[str, str], list[float]]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [name for name in reader.fieldnames or () if name.startswith(PROBABILITY)]
            if len(columns) < 2 or not {"name", "source"} <= set(reader.fieldnames or ()):
                raise PredictionsError(f"{path}: no table of probabilities; `tilewise predict` writes one")
            rows = [((row["source"], row["name"]), [float(row[name]) for name in columns]) for row in reader]
    except FileNotFoundError:
        raise PredictionsError(f"{path}: there is no such file; `tilewise predict` writes one") from None
    except (ValueError, TypeError, csv.Error) as error:
        raise PredictionsError(
            f"{path}: a cell that is no number ({error}); write the table again"
        ) from error
    if any(not min(values) >= 0 or not 0 < sum(values) < np.inf for _, values in rows):
        raise PredictionsError(
            f"{path}: probabilities below 0, or that sum to nothing; write the table again"
        )
    return tuple(name.removeprefix(PROBABILITY) for name in columns), rows


def _match(pack: Pack, predictions: Predictions) -> tuple[np.ndarray, list[int]]:
    """Return the rows in the pack of the tiles that were answered, and the indices of their answers."""
    row_of = _rows_by_key(pack)
    answered = [index for index, key in enumerate(predictions.keys) if key in row_of]
    if not answered:
        raise PredictionsError(
            f"{pack.root}: none of the answered tiles is in it; name the pack that they belong to"
        )
    return np.array([row_of[predictions.keys[index]] for index in answered]), answered


def _rows_by_key(pack: Pack) -> dict[tuple[str, str], int]:
    names = pack.names(np.arange(len(pack)))
    return {
        (source, name): row
        for row, (source, name) in enumerate(zip(pack.sources.tolist(), names, strict=True))
    }


def _class_indices(pack: Pack, predictions: Predictions) -> np.ndarray:
    """Return the index of each of the pack's classes among the answers' classes."""
    unknown = sorted(set(pack.summary.classes) - set(predictions.classes))
    if unknown:
        raise PredictionsError(
            f"the answers have no {', '.join(unknown)}, which {pack.root} has; ask its own model"
        )
    return np.array([predictions.classes.index(name) for name in pack.summary.classes])


def _doubtful(labels: np.ndarray, probabilities: np.ndarray) -> list[int]:
    try:
        from cleanlab.filter import find_label_issues
    except ImportError as error:
        raise TilewiseError("suspects are found by cleanlab; pip install 'tilewise[train]'") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes of few tiles, in which less is found
        found = find_label_issues(
            labels, probabilities, return_indices_ranked_by="normalized_margin", n_jobs=1
        )
    return [int(index) for index in found]


def _describe(
    pack: Pack, row: int, label: int, classes: Sequence[str], probabilities: Sequence[float]
) -> Suspect:
    best = max(
        (index for index in range(len(classes)) if index != label), key=lambda index: probabilities[index]
    )
    return Suspect(
        name=pack.names([row])[0],
        source=str(pack.sources[row]),
        split=str(pack.splits[row]),
        given=classes[label],
        suggested=classes[best],
        p_given=round(probabilities[label], _DIGITS),
        p_suggested=round(probabilities[best], _DIGITS),
        quality=round((probabilities[label] - probabilities[best] + 1) / 2, _DIGITS),
    )


def _sheet_tile(suspect: Suspect, pack: Pack, row: int) -> SheetTile:
    lines = (
        f"labelled {suspect.given} ({suspect.p_given:.2f})",
        f"answered {suspect.suggested} ({suspect.p_suggested:.2f})",
        f"{suspect.source}, {suspect.split}",
    )
    command = ("tilewise", "data", "correct", suspect.name, "--label", suspect.suggested)
    tile = Tile(suspect.name, pack.fetch([row])[0], pack.bands(row), level=None)
    return SheetTile(suspect.name, tile_png(tile), lines, command)
