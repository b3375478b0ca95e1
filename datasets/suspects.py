"""Tiles whose label a model's answers speak against: candidates for a person to review, never corrected by themselves.

The answers must come from a model that did not learn these labels: one that did repeats their mistakes.
Confident learning (C. Northcutt, L. Jiang, I. Chuang, 2021, https://doi.org/10.1613/jair.1.12125), by cleanlab.
"""

import csv
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from datasets.contact_sheet import Card, draw_sheet, picture_of
from datasets.errors import PredictionsError, SentileError
from datasets.pack import Pack
from datasets.predictions import Predictions
from datasets.tile import Tile

TABLE, PAGE = "suspects.csv", "suspects.html"
_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Suspect:
    """A tile whose label is doubtful.

    Attributes:
        name, source, split: which tile; `train` where the model may have learned it.
        given: its label.
        suggested: what the model answered.
        p_given, p_suggested: their probabilities, 0-1.
        quality: 0-1, how far the answers speak for the label: (p_given − p_suggested + 1) / 2.
    """

    name: str
    source: str
    split: str
    given: str
    suggested: str
    p_given: float
    p_suggested: float
    quality: float


def find_suspects(pack: Pack, predictions: Predictions) -> list[Suspect]:
    """Return the doubtful tiles among those that were answered, the most doubtful first.

    Raises:
        PredictionsError: answers to none of the pack's tiles, or a class that they do not know.
        SentileError: cleanlab is not installed.
    """
    rows, answered = _match(pack, predictions)
    places = _places(pack, predictions)
    labels = places[pack.labels[rows]]
    probabilities = predictions.probabilities[answered]
    found = _doubtful(labels, probabilities)
    return [
        _describe(pack, int(rows[i]), int(labels[i]), predictions.classes, probabilities[i].tolist()) for i in found
    ]


def write_suspects(suspects: Sequence[Suspect], pack: Pack, folder: Path, most: int) -> None:
    """Write the table of all suspects, and a page with pictures of the first `most`, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [item.name for item in fields(Suspect)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(suspect) for suspect in suspects)
    row_of = _rows_by_key(pack)
    cards = [_card(suspect, pack, row_of[suspect.source, suspect.name]) for suspect in suspects[:most]]
    (folder / PAGE).write_text(draw_sheet(f"{len(suspects):,} doubtful labels", _advice(), cards), encoding="utf-8")


def _match(pack: Pack, predictions: Predictions) -> tuple[np.ndarray, list[int]]:
    """Return the rows in the pack of the tiles that were answered, and where their answers are."""
    row_of = _rows_by_key(pack)
    answered = [place for place, key in enumerate(predictions.keys) if key in row_of]
    if not answered:
        raise PredictionsError(f"{pack.root}: none of the answered tiles is in it; name the pack that they belong to")
    return np.array([row_of[predictions.keys[place]] for place in answered]), answered


def _rows_by_key(pack: Pack) -> dict[tuple[str, str], int]:
    names = pack.names(np.arange(len(pack)))
    return {(source, name): row for row, (source, name) in enumerate(zip(pack.sources.tolist(), names, strict=True))}


def _places(pack: Pack, predictions: Predictions) -> np.ndarray:
    """Return where each of the pack's classes is among the answers' classes."""
    unknown = sorted(set(pack.summary.classes) - set(predictions.classes))
    if unknown:
        raise PredictionsError(f"the answers have no {', '.join(unknown)}, which {pack.root} has; ask its own model")
    return np.array([predictions.classes.index(name) for name in pack.summary.classes])


def _doubtful(labels: np.ndarray, probabilities: np.ndarray) -> list[int]:
    try:
        from cleanlab.filter import find_label_issues
    except ImportError as error:
        raise SentileError("suspects are found by cleanlab; pip install 'sentile[train]'") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on classes of few tiles: less is found there, which is as it should be
        found = find_label_issues(labels, probabilities, return_indices_ranked_by="normalized_margin", n_jobs=1)
    return [int(place) for place in found]


def _describe(pack: Pack, row: int, label: int, classes: Sequence[str], shares: Sequence[float]) -> Suspect:
    best = max((place for place in range(len(classes)) if place != label), key=lambda place: shares[place])
    return Suspect(
        name=pack.names([row])[0],
        source=str(pack.sources[row]),
        split=str(pack.splits[row]),
        given=classes[label],
        suggested=classes[best],
        p_given=round(shares[label], _DIGITS),
        p_suggested=round(shares[best], _DIGITS),
        quality=round((shares[label] - shares[best] + 1) / 2, _DIGITS),
    )


def _card(suspect: Suspect, pack: Pack, row: int) -> Card:
    words = (
        f"labelled {suspect.given} ({suspect.p_given:.2f})",
        f"answered {suspect.suggested} ({suspect.p_suggested:.2f})",
        f"{suspect.source}, {suspect.split}",
    )
    command = ("python", "-m", "datasets", "correct", suspect.name, "--label", suspect.suggested)
    tile = Tile(suspect.name, pack.fetch([row])[0], pack.bands(row), level=None)
    return Card(suspect.name, picture_of(tile), words, command)


def _advice() -> str:
    return (
        "The most doubtful first: the class that the tile is labelled with, and the one that a model answered, with "
        "their probabilities. Left as the eye sees it, right vegetation in red. What a person finds wrong is written "
        "down with the command below the picture, with --label _ where no class fits, and the next pack has it. "
        "What is right needs nothing."
    )
