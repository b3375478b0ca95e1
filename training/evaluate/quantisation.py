"""The INT8 file of a run: made from its fp32 file, measured against it, and kept only if it is as good.

Temperature and thresholds are fp32's, so what they promise is measured too: were it another promise, the file would go.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch

from tilewise.datasets.core.bands import BAND_SETS
from tilewise.datasets.core.errors import ExportError
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
from tilewise.training.evaluate.outputs import Answers, answers_of
from tilewise.training.settings import Quantisation

Pair = tuple[Answers, Answers]
"""Of fp32 and of INT8, in this order."""

_SPLIT = "val"
_MAX_TEMPERED = 0.1  # share that the best temperature may move by: probabilities then mean what they meant
_MAX_SHIFTED = 0.01  # share that the thresholds' promises may move by: what they are asked to keep to
_MAX_SHIFTED_TILES = 2  # the same, where few tiles are measured
_MIN_PROBABILITY = 1e-12


@dataclass(frozen=True, slots=True)
class Comparison:
    """The answers of fp32 and of INT8 to the same tiles.

    Attributes:
        metadata: of both, whose thresholds were fitted on answers of fp32.
        as_they_are: to the tiles of the validation split.
        by_group: to those of each source, seen through each set of bands, by name, e.g. `eurosat-ms/rgb`.
    """

    metadata: ModelMetadata
    as_they_are: Pair
    by_group: dict[str, Pair]

    @property
    def lost(self) -> float:
        """Accuracy (share) that INT8 loses, on the tiles as they are or over all sets of bands, whichever is more."""
        return max(fp32.accuracy - int8.accuracy for fp32, int8 in (self.as_they_are, _joined(self.by_group.values())))

    @property
    def temperature(self) -> float:
        """What would make INT8's probabilities as sure as they should be, in units of what would fp32's."""
        fp32, int8 = (_best_temperature(answers) for answers in self.as_they_are)
        return int8 / fp32

    @property
    def shifted(self) -> float:
        """The most that a promised share moves: of tiles whose prediction set holds the truth, or that are flagged."""
        fp32, int8 = (_promised(answers, self.metadata) for answers in self.as_they_are)
        return max((abs(a - b) for a, b in zip(fp32, int8, strict=True)), default=0.0)

    def objection(self, how: Quantisation) -> str | None:
        """Return why the INT8 file must not be used, or None."""
        if self.lost > how.max_lost:
            return f"INT8 loses {100 * self.lost:.2f} points of accuracy, {100 * how.max_lost:g} is the most"
        if abs(self.temperature - 1) > _MAX_TEMPERED:
            return f"INT8's probabilities would need {self.temperature:.2f} times fp32's temperature"
        if self.shifted > max(_MAX_SHIFTED, _MAX_SHIFTED_TILES / len(self.as_they_are[0].labels)):
            return f"INT8 moves what prediction sets and flags promise by {100 * self.shifted:.2f} points"
        return None

    def metrics(self) -> dict[str, float]:
        """Return the figures, named for a tracker and for the model file."""
        fp32, int8 = self.as_they_are
        found = {
            "int8/val/accuracy": int8.accuracy,
            "int8/val/lost": fp32.accuracy - int8.accuracy,
            "int8/val/agreement": float((fp32.answered == int8.answered).mean()),
            "int8/val/shifted": self.shifted,
            "int8/val/calibration_error": _calibration_error(int8),
        }
        for group, (before, after) in self.by_group.items():
            found |= {f"int8/{group}/accuracy": after.accuracy, f"int8/{group}/lost": before.accuracy - after.accuracy}
        return found


def export_int8(model: Path, pack: Pack, how: Quantisation) -> tuple[list[Path], dict[str, float]]:
    """Write the INT8 file beside the model file `model` if it is good enough, and say what became of it.

    An INT8 file that is there already goes first: it is another model's.

    Returns:
        The files written, one or none; and figures for a tracker.
    """
    target = int8_of(model)
    target.unlink(missing_ok=True)
    if not how.enabled:
        return [], {}
    partial = target.with_suffix(".partial")
    click.echo(f"quantising {model}, and comparing INT8 with fp32 on the validation split")
    try:
        quantise(model, partial, calibration_tiles(pack, how.tiles), how.method, how.percentile)
        fp32, int8 = open_model(model), open_model(partial)
        found = compare(fp32, int8, pack)
        if objection := found.objection(how):
            click.echo(f"no INT8 file was written, the model serves in fp32: {objection}")
            return [], found.metrics()
        metrics = int8.metadata.metrics | found.metrics()
        rewrite_metadata(partial, int8.metadata.model_copy(update={"metrics": metrics}))
        os.replace(partial, target)  # noqa: PTH105 - the one call that is atomic on every system
    except ExportError as error:  # the network has nothing that INT8 would change; the fp32 file is good all the same
        click.echo(f"no INT8 file was written, the model serves in fp32: {error}")
        return [], {}
    finally:
        partial.unlink(missing_ok=True)
    faster = gain(fp32.session, int8.session)
    _tell(target, found, faster)
    return [target], found.metrics() | {"int8/times_as_fast": faster}


def calibration_tiles(pack: Pack, count: int) -> DN:
    """Return about `count` tiles of the train split, as many of each source, in turn through all sets of bands.

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
        for place, view in enumerate(views):
            tiles[place :: len(views)] = _through(view, tiles[place :: len(views)])
        parts.append(tiles)
    return np.concatenate(parts)


def compare(fp32: ModelFile, int8: ModelFile, pack: Pack) -> Comparison:
    """Let both answer the validation split, each source through every set of bands that its tiles have."""
    by_group: dict[str, Pair] = {}
    for source in pack.summary.sources:
        rows = pack.rows(_SPLIT, source)
        for view in views_of(pack.bands(int(rows[0]))) if len(rows) else ():
            change = partial(_through, view)
            by_group[f"{source}/{view}"] = (
                answers_of(fp32, pack, rows, change),
                answers_of(int8, pack, rows, change),
            )
    whole = [pair for group, pair in by_group.items() if group.endswith(f"/{ALL}")]
    return Comparison(fp32.metadata, _joined(whole), by_group)


def _through(view: str, tiles: DN) -> DN:
    """Return `tiles` with the bands outside `view` made no data."""
    return tiles if view == ALL else only_bands(tiles, BAND_SETS[view])


def _joined(pairs: Iterable[Pair]) -> Pair:
    """Return the answers of several groups as one."""
    fp32, int8 = zip(*pairs, strict=True)
    return _concatenated(fp32), _concatenated(int8)


def _concatenated(parts: Sequence[Answers]) -> Answers:
    fields = ("probabilities", "outlier_scores", "labels", "zones")
    return Answers(parts[0].classes, *(np.concatenate([getattr(part, name) for part in parts]) for name in fields))


def _promised(answers: Answers, metadata: ModelMetadata) -> list[float]:
    """Return the shares (0-1) that the thresholds in `metadata` stand for: covered at each coverage, and flagged."""
    truth = answers.probabilities[np.arange(len(answers.labels)), answers.labels]
    sets, flags = metadata.prediction_sets, metadata.outliers
    covered = [float((truth >= threshold).mean()) for threshold in sets.thresholds.values()] if sets else []
    return covered + ([float((answers.outlier_scores > flags.threshold).mean())] if flags else [])


def _best_temperature(answers: Answers) -> float:
    """Return the temperature that the answers still need; about 1 where they are calibrated."""
    logs = np.log(np.maximum(answers.probabilities, _MIN_PROBABILITY))
    return fit_temperature(torch.from_numpy(logs), torch.from_numpy(answers.labels))


def _calibration_error(answers: Answers) -> float:
    probabilities, labels = torch.from_numpy(answers.probabilities), torch.from_numpy(answers.labels)
    return evaluate(ALL, probabilities, labels, answers.classes).calibration_error


def _tell(target: Path, found: Comparison, faster: float) -> None:
    """Say what INT8 costs and what it gains here."""
    click.echo(
        f"exported {target} ({target.stat().st_size / 1e6:.1f} MB): INT8 loses {100 * found.lost:.2f} points of "
        f"accuracy on the validation split and is {faster:.1f} times as fast as fp32 here"
    )
    if faster < MIN_GAIN:
        known = ", ".join(sorted(int8_instructions())) or "no instructions for products of bytes that we know"
        click.echo(f"this processor ({known}) gains nothing by INT8; services on ones like it use fp32")
