"""Write the INT8 file of a run: quantise the fp32 file, compare both on the validation split, keep it if it
is as good.

The INT8 file keeps fp32's temperature and thresholds. Coverage and false alarms are therefore compared too,
and the file is refused where they move.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch

from tilewise.datasets.core.bands import BAND_SETS
from tilewise.datasets.core.errors import ExportError
from tilewise.datasets.core.files import atomic_write
from tilewise.datasets.core.tile import DN, only_bands
from tilewise.datasets.packs.pack import Pack, spread
from tilewise.models.export.quantise import quantise, rewrite_metadata
from tilewise.models.model_file import (
    MIN_GAIN,
    ModelFile,
    ModelMetadata,
    gain,
    int8_instructions,
    int8_of,
    open_model,
)
from tilewise.models.network.calibration import fit_temperature
from tilewise.training.evaluate.evaluation import ALL, evaluate, views_of
from tilewise.training.evaluate.outputs import Predictions, predict_rows
from tilewise.training.settings import Quantisation

Pair = tuple[Predictions, Predictions]
"""Predictions of fp32 and of INT8, in this order."""

_SPLIT = "val"
_MAX_TEMPERATURE_SHIFT = 0.1  # relative, of the best temperature: probabilities stay calibrated
_MAX_SHIFTED = 0.01  # by which coverage and the flagged fraction may move
_MAX_SHIFTED_TILES = 2  # the same as a number of tiles, where few are measured
_MIN_PROBABILITY = 1e-12


@dataclass(frozen=True, slots=True)
class Comparison:
    """The predictions of fp32 and of INT8 for the same tiles.

    Attributes:
        metadata: of both files, with thresholds that were fitted on predictions of fp32.
        as_they_are: for the tiles of the validation split, with all their bands.
        by_group: for those of each source with each set of bands, by name, e.g. `eurosat-ms/rgb`.
    """

    metadata: ModelMetadata
    as_they_are: Pair
    by_group: dict[str, Pair]

    @property
    def lost(self) -> float:
        """Accuracy (0-1) that INT8 loses, with all bands or over all sets of bands, whichever is more."""
        return max(
            fp32.accuracy - int8.accuracy
            for fp32, int8 in (self.as_they_are, _joined(self.by_group.values()))
        )

    @property
    def temperature(self) -> float:
        """The temperature that INT8's probabilities still need, relative to fp32's."""
        fp32, int8 = (_best_temperature(predictions) for predictions in self.as_they_are)
        return int8 / fp32

    @property
    def shifted(self) -> float:
        """The largest change of a coverage, or of the flagged fraction."""
        fp32, int8 = (_rates(predictions, self.metadata) for predictions in self.as_they_are)
        return max((abs(a - b) for a, b in zip(fp32, int8, strict=True)), default=0.0)

    def objection(self, how: Quantisation) -> str | None:
        """Return why the INT8 file is refused, or None."""
        if self.lost > how.max_lost:
            return f"INT8 loses {100 * self.lost:.2f} points of accuracy, the limit is {100 * how.max_lost:g}"
        if abs(self.temperature - 1) > _MAX_TEMPERATURE_SHIFT:
            return f"INT8's probabilities would need {self.temperature:.2f} times fp32's temperature"
        if self.shifted > max(_MAX_SHIFTED, _MAX_SHIFTED_TILES / len(self.as_they_are[0].labels)):
            return f"INT8 changes coverage or the flagged fraction by {100 * self.shifted:.2f} points"
        return None

    def metrics(self) -> dict[str, float]:
        """Return the figures, named for a tracker and for the model file's metadata."""
        fp32, int8 = self.as_they_are
        found = {
            "int8/val/accuracy": int8.accuracy,
            "int8/val/lost": fp32.accuracy - int8.accuracy,
            "int8/val/agreement": float((fp32.predicted == int8.predicted).mean()),
            "int8/val/shifted": self.shifted,
            "int8/val/calibration_error": _calibration_error(int8),
        }
        for group, (before, after) in self.by_group.items():
            found |= {
                f"int8/{group}/accuracy": after.accuracy,
                f"int8/{group}/lost": before.accuracy - after.accuracy,
            }
        return found


def export_int8(model: Path, pack: Pack, how: Quantisation) -> tuple[list[Path], dict[str, float]]:
    """Write the INT8 file beside the model file `model` if it is good enough, and print the outcome.

    An existing INT8 file is removed first: it belongs to another model.

    Returns:
        The paths written, one or none; and figures for a tracker.
    """
    target = int8_of(model)
    target.unlink(missing_ok=True)
    if not how.enabled:
        return [], {}
    click.echo(f"quantising {model}, and comparing INT8 with fp32 on the validation split")
    try:
        with atomic_write(target) as unfinished:
            quantise(model, unfinished, calibration_tiles(pack, how.tiles), how.method, how.percentile)
            fp32, int8 = open_model(model), open_model(unfinished)
            found = compare(fp32, int8, pack)
            if objection := found.objection(how):
                raise _RefusedError(objection)
            metrics = int8.metadata.metrics | found.metrics()
            rewrite_metadata(unfinished, int8.metadata.model_copy(update={"metrics": metrics}))
    except ExportError as error:  # refused, or nothing to quantise; the fp32 file is good all the same
        click.echo(f"no INT8 file was written, the model serves in fp32: {error}")
        return [], found.metrics() if isinstance(error, _RefusedError) else {}
    speedup = gain(fp32.session, int8.session)
    _print_outcome(target, found, speedup)
    return [target], found.metrics() | {"int8/times_as_fast": speedup}


class _RefusedError(ExportError):
    """The INT8 file is not as good as the fp32 file."""


def calibration_tiles(pack: Pack, count: int) -> DN:
    """Return about `count` tiles of the train split, as many of each source, with each set of bands in turn.

    Returns:
        uint16 (n, 13, 64, 64), absent bands 0.
    """
    sources = pack.summary.sources
    each = -(-count // len(sources))
    parts = []
    for source in sources:
        rows = pack.rows("train", source)
        if not len(rows):
            continue
        tiles = pack.fetch(spread(rows, each))
        views = views_of(pack.bands(int(rows[0])))
        for number, view in enumerate(views):
            tiles[number :: len(views)] = _only_view(view, tiles[number :: len(views)])
        parts.append(tiles)
    return np.concatenate(parts)


def compare(fp32: ModelFile, int8: ModelFile, pack: Pack) -> Comparison:
    """Run both files on the validation split, each source with every set of bands that its tiles have."""
    by_group: dict[str, Pair] = {}
    for source in pack.summary.sources:
        rows = pack.rows(_SPLIT, source)
        for view in views_of(pack.bands(int(rows[0]))) if len(rows) else ():
            transform = partial(_only_view, view)
            by_group[f"{source}/{view}"] = (
                predict_rows(fp32, pack, rows, transform),
                predict_rows(int8, pack, rows, transform),
            )
    whole = [pair for group, pair in by_group.items() if group.endswith(f"/{ALL}")]
    return Comparison(fp32.metadata, _joined(whole), by_group)


def _only_view(view: str, tiles: DN) -> DN:
    """Return `tiles` with the bands outside `view` set to no data."""
    return tiles if view == ALL else only_bands(tiles, BAND_SETS[view])


def _joined(pairs: Iterable[Pair]) -> Pair:
    """Return the predictions of several groups as one."""
    fp32, int8 = zip(*pairs, strict=True)
    return _concatenated(fp32), _concatenated(int8)


def _concatenated(parts: Sequence[Predictions]) -> Predictions:
    fields = ("probabilities", "outlier_scores", "labels", "zones")
    return Predictions(
        parts[0].classes, *(np.concatenate([getattr(part, name) for part in parts]) for name in fields)
    )


def _rates(predictions: Predictions, metadata: ModelMetadata) -> list[float]:
    """Return the coverage (0-1) at each threshold in `metadata`, and the flagged fraction."""
    sets, outliers = metadata.prediction_sets, metadata.outliers
    thresholds = sets.thresholds.values() if sets else ()
    covered = [float((predictions.of_label >= threshold).mean()) for threshold in thresholds]
    return covered + ([float((predictions.outlier_scores > outliers.threshold).mean())] if outliers else [])


def _best_temperature(predictions: Predictions) -> float:
    """Return the temperature that the predictions still need; about 1 where they are calibrated."""
    logs = np.log(np.maximum(predictions.probabilities, _MIN_PROBABILITY))
    return fit_temperature(torch.from_numpy(logs), torch.from_numpy(predictions.labels))


def _calibration_error(predictions: Predictions) -> float:
    probabilities, labels = torch.from_numpy(predictions.probabilities), torch.from_numpy(predictions.labels)
    return evaluate(ALL, probabilities, labels, predictions.classes).calibration_error


def _print_outcome(target: Path, found: Comparison, speedup: float) -> None:
    """Print the accuracy that INT8 loses, and its speedup on this processor."""
    click.echo(
        f"exported {target} ({target.stat().st_size / 1e6:.1f} MB): INT8 loses {100 * found.lost:.2f} "
        f"points of "
        f"accuracy on the validation split and is {speedup:.1f} times as fast as fp32 here"
    )
    if speedup < MIN_GAIN:
        known = ", ".join(sorted(int8_instructions())) or "without known INT8 instructions"
        click.echo(f"this processor ({known}) gains nothing from INT8; services on such processors use fp32")
