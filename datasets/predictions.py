"""The table of a model's answers: one row a tile, with the probability of every class.

    name,source,true_class,answered,confidence,p_AnnualCrop,p_Forest,…
    Forest_12,geotiff,Forest,River,0.8312,0.0101,0.1304,…

`python -m training test` writes it for the test split, `python -m models.predict` for any model file and split.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datasets.errors import PredictionsError

PROBABILITY = "p_"
_HEAD = ("name", "source", "true_class", "answered", "confidence")
_DIGITS = 4

Shares = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Predictions:
    """Answers to n tiles.

    Attributes:
        classes: class names, in the order of `probabilities`.
        keys: (source, name) of each tile.
        probabilities: float64 (n, classes), each row sums to 1.
    """

    classes: tuple[str, ...]
    keys: tuple[tuple[str, str], ...]
    probabilities: Shares


def write_predictions(
    path: Path,
    keys: Sequence[tuple[str, str]],
    labels: Sequence[str],
    probabilities: npt.NDArray[np.floating],
    classes: Sequence[str],
) -> None:
    """Write answers.

    Args:
        path: of the CSV.
        keys: (source, name) of each tile.
        labels: its true class.
        probabilities: (n, classes), 0-1.
        classes: class names, in that order.
    """
    answers = probabilities.argmax(1)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*_HEAD, *(PROBABILITY + name for name in classes)])
        for (source, name), label, answer, row in zip(keys, labels, answers, probabilities, strict=True):
            told = [f"{share:.{_DIGITS}f}" for share in row]
            writer.writerow([name, source, label, classes[answer], told[answer], *told])


def read_predictions(paths: Sequence[Path]) -> Predictions:
    """Read tables and join them; a tile in several of them has the mean of their probabilities.

    Raises:
        PredictionsError: a file that is no such table, or tables of other classes.
    """
    classes: tuple[str, ...] = ()
    found: dict[tuple[str, str], list[list[float]]] = {}
    for path in paths:
        its, rows = _read(path)
        if classes and its != classes:
            raise PredictionsError(f"{path}: its classes are {', '.join(its)}, not {', '.join(classes)}")
        classes = its
        for key, shares in rows:
            found.setdefault(key, []).append(shares)
    if not found:
        raise PredictionsError(f"{', '.join(map(str, paths))}: no answers; `python -m models.predict` writes some")
    means = np.array([np.mean(shares, axis=0) for shares in found.values()])
    return Predictions(classes, tuple(found), means / means.sum(axis=1, keepdims=True))


def _read(path: Path) -> tuple[tuple[str, ...], list[tuple[tuple[str, str], list[float]]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [name for name in reader.fieldnames or () if name.startswith(PROBABILITY)]
            if len(columns) < 2 or not {"name", "source"} <= set(reader.fieldnames or ()):
                raise PredictionsError(f"{path}: no table of probabilities; `python -m models.predict` writes one")
            rows = [((row["source"], row["name"]), [float(row[name]) for name in columns]) for row in reader]
    except FileNotFoundError:
        raise PredictionsError(f"{path}: there is no such file; `python -m models.predict` writes one") from None
    except (ValueError, TypeError, csv.Error) as error:
        raise PredictionsError(f"{path}: a cell that is no number ({error}); write the table again") from error
    if any(not min(shares) >= 0 or not 0 < sum(shares) < np.inf for _, shares in rows):
        raise PredictionsError(f"{path}: probabilities below 0, or that sum to nothing; write the table again")
    return tuple(name.removeprefix(PROBABILITY) for name in columns), rows
