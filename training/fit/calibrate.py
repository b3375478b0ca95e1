"""Calibrate a trained classifier on validation tiles, and collect the metadata of its model file."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tilewise.datasets.core.bands import BAND_SETS, positions
from tilewise.datasets.core.radiometry import BASELINE_OFFSET, QUANTIFICATION
from tilewise.datasets.core.tile import BAND_COUNT, DN
from tilewise.datasets.loading.module import TileDataModule
from tilewise.datasets.packs.groups import GROUPS, group_tiles
from tilewise.datasets.packs.pack import UNLABELLED, Pack, spread
from tilewise.datasets.packs.statistics import EDGES
from tilewise.models.model_file import ModelMetadata, Outliers, PredictionSets, ReferenceHistogram
from tilewise.models.network import calibration, outliers
from tilewise.models.network.calibration import fit_temperature
from tilewise.models.network.classifier import Classifier
from tilewise.models.network.preprocess import LINES
from tilewise.models.network.pretrained import PretrainedBackbone
from tilewise.training.evaluate.disturbances import as_dn, band_groups, eurosat_order, red_for_blue
from tilewise.training.evaluate.evaluation import HELD_BACK, evaluate, held_back
from tilewise.training.fit.task import ClassificationTask
from tilewise.training.tracking import code_revision

_OFFSETS = (-BASELINE_OFFSET, -BASELINE_OFFSET, -BASELINE_OFFSET, -0.6 * BASELINE_OFFSET, BASELINE_OFFSET)
_SCALES = (1 / QUANTIFICATION, 0.01, 0.1, 0.2, 5.0, 10.0)
_NOISE = (60, 300)  # DN; valid bands have at most about 20
_EACH_KIND = 8000  # tiles that are drawn from each kind
_MAX_TURNS = 16
_VAPOUR, _CIRRUS, _SHORT_WAVE = positions(["B09", "B10", "B11"])


def exposures(kinds: Sequence[DN], seed: int = 0) -> Iterator[tuple[DN, DN]]:
    """Yield valid tiles and as many faulty ones, drawn from tiles of several `kinds` in equal numbers.

    A third of the draws have all bands of the tiles; all but the first are mixtures of two tiles.
    """
    random = np.random.default_rng(seed)
    for tiles in kinds:
        for turn in range(max(2, min(_MAX_TURNS, -(-_EACH_KIND // len(tiles))))):
            drawn = draw_brightness(mix_lines(tiles, random), random) if turn else tiles
            drawn = draw_bands(drawn, random) if turn % 3 else drawn
            yield drawn, draw_faults(drawn, random)


def draw_faults(tiles: DN, random: np.random.Generator) -> DN:
    """Return `tiles` with a random fault each: offset, band order, scale, a bright veil like a cloud, or
    noise."""
    kinds = random.permutation(np.arange(len(tiles)) % len(_DRAWN))
    found = np.zeros_like(tiles)
    for kind, make in enumerate(_DRAWN):
        found[kinds == kind] = make(tiles[kinds == kind], random)
    return found


def mix_lines(tiles: DN, random: np.random.Generator, share: float = 0.6) -> DN:
    """Return `tiles` with the first lines of a `share` (0-1) of them replaced by those of another tile, as at
    a border of two land covers."""
    count, lines = len(tiles), tiles.shape[2]
    until = np.where(random.random(count) < share, random.integers(0, lines, count), 0)
    others = tiles[random.permutation(count)]
    return np.where((np.arange(lines) < until[:, None])[:, None, :, None], others, tiles)


def draw_brightness(
    tiles: DN, random: np.random.Generator, gain: float = 0.07, band_gain: float = 0.03
) -> DN:
    """Return `tiles` with the small differences of brightness (standard deviations) that valid input has
    too."""
    count = len(tiles)
    logs = random.normal(0, gain, (count, 1, 1, 1)) + random.normal(0, band_gain, (count, BAND_COUNT, 1, 1))
    return as_dn(tiles, tiles * np.exp(logs))


def draw_bands(tiles: DN, random: np.random.Generator) -> DN:
    """Return `tiles` with a random set of bands each: a common one (`l2a`, `10m`, `rgb`) or any."""
    present = np.asarray((tiles > 0).any((2, 3)))
    common = [
        np.isin(np.arange(BAND_COUNT), positions(BAND_SETS[name])) for name in ("l1c", "l2a", "10m", "rgb")
    ]
    chosen = random.integers(0, len(common) + 1, len(tiles))
    any_set = random.random((len(tiles), BAND_COUNT)) < random.uniform(0.3, 0.95, (len(tiles), 1))
    keep = np.stack([*np.broadcast_to(np.stack(common)[:, None], (4, *any_set.shape)), any_set])
    kept = np.asarray(keep[chosen, np.arange(len(tiles))] & present)
    none = ~np.any(kept, axis=1)
    kept[none] = present[none]
    return np.asarray(tiles * kept[:, :, None, None].astype(np.uint16))


def _draw_offset(tiles: DN, random: np.random.Generator) -> DN:
    return as_dn(tiles, tiles + random.choice(_OFFSETS, (len(tiles), 1, 1, 1)))


def _draw_scale(tiles: DN, random: np.random.Generator) -> DN:
    return as_dn(tiles, tiles * random.choice(_SCALES, (len(tiles), 1, 1, 1)))


def _draw_order(tiles: DN, random: np.random.Generator) -> DN:
    """Permute the bands of each tile: B8A last, all reversed, red and blue swapped, or any order."""
    orders = (eurosat_order, eurosat_order, _reversed, red_for_blue, lambda some: _shuffled(some, random))
    kinds = random.integers(0, len(orders), len(tiles))
    found = tiles.copy()
    for kind, make in enumerate(orders):
        found[kinds == kind] = make(tiles[kinds == kind])
    same = (found == tiles).all((1, 2, 3))  # an order that changes nothing is no fault
    found[same] = _reversed(tiles[same])
    return found


def _draw_veil(tiles: DN, random: np.random.Generator) -> DN:
    """Blend tiles with a bright cloud of random thickness: about equal in all bands, darker where water
    absorbs."""
    count = len(tiles)
    thickness = random.uniform(0.4, 1.0, (count, 1, 1, 1))
    cloud = random.uniform(3000, 8000, (count, 1, 1, 1)) * np.exp(
        random.normal(0, 0.1, (count, BAND_COUNT, 1, 1))
    )
    cloud[:, _VAPOUR] *= 0.4
    cloud[:, _CIRRUS] = random.uniform(10, 800, (count, 1, 1))
    cloud[:, _SHORT_WAVE:] *= random.uniform(0.3, 1.0, (count, 1, 1, 1))
    return as_dn(tiles, tiles * (1 - thickness) + thickness * cloud)


def _draw_noise(tiles: DN, random: np.random.Generator) -> DN:
    """Add noise to each pixel and band, strong enough to hide the features of the network."""
    deviation = random.uniform(*_NOISE, (len(tiles), 1, 1, 1))
    return as_dn(tiles, tiles + random.normal(0, 1, tiles.shape) * deviation)


# Band orders are many and the hardest to detect.
_DRAWN = (_draw_offset, _draw_order, _draw_order, _draw_order, _draw_scale, _draw_veil, _draw_noise)


def _reversed(tiles: DN) -> DN:
    found = np.zeros_like(tiles)
    for taken, into in band_groups(tiles):
        found[np.ix_(taken, into)] = tiles[np.ix_(taken, into[::-1])]
    return found


def _shuffled(tiles: DN, random: np.random.Generator) -> DN:
    found = np.zeros_like(tiles)
    for taken, into in band_groups(tiles):
        for row in taken:
            found[row, into] = tiles[row, random.permutation(into)]
    return found


_MAX_FITTED = 8192  # tiles that the outlier score is fitted on: enough for the covariance of any embedding
_MAX_EXPOSED = 2500  # tiles of each source that the input check is fitted on
_BATCH = 256  # tiles, or symmetries of tiles, in memory at once

# A folder that is called otherwise may hold another run tomorrow, and services tell models apart by their
# versions.
_SEMANTIC = re.compile(r"\d+\.\d+\.\d+")

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Calibration:
    """The results of calibration on the validation split.

    Attributes:
        prediction_sets, outliers: for the model file's metadata.
        metrics: figures of the calibrated probabilities, named for a tracker.
    """

    prediction_sets: PredictionSets
    outliers: Outliers
    metrics: dict[str, float]


def calibrate(classifier: Classifier, datamodule: TileDataModule, classes: list[str]) -> Calibration:
    """Fit temperature, prediction sets and outlier score of `classifier` (32 bit, on the CPU), changing it in
    place."""
    pack = datamodule.pack
    _fit_outliers(classifier, pack)
    rows = pack.rows("val")
    outputs = _run(classifier, pack, rows)
    # Each group counts as much as any other: what is common in this split may be rare elsewhere.
    weights = calibration.group_weights(group_tiles(pack, rows, GROUPS))
    temperature = fit_temperature(outputs.logits, outputs.labels, torch.from_numpy(weights))
    classifier.temperature.fill_(temperature)
    probabilities = torch.softmax(outputs.logits / classifier.temperature, 1)
    return Calibration(
        prediction_sets=PredictionSets(
            method=calibration.METHOD,
            thresholds=calibration.fit_thresholds(
                probabilities.numpy(), outputs.labels.numpy(), weights=weights
            ),
            calibrated_on=f"{len(rows)} tiles of the validation split, groups of like tiles weighted equally",
        ),
        outliers=Outliers(
            method=outliers.METHOD,
            threshold=_fit_limits(classifier, pack),
            false_alarms=outliers.FALSE_ALARMS,
        ),
        metrics=evaluate("val", probabilities, outputs.labels, classes).metrics("calibrated"),
    )


def describe(
    model: ClassificationTask, datamodule: TileDataModule, run: str, calibration: Calibration
) -> ModelMetadata:
    """Return the model file's metadata; `run` is the name of the run's folder."""
    statistics = datamodule.pack.statistics()
    summary, weights = datamodule.pack.summary, _digest(model.classifier)
    return ModelMetadata(
        name="tilewise",
        version=run if _SEMANTIC.fullmatch(run) else f"{run}-{weights[:8]}",
        classes=tuple(model.classes),
        trained_bands=tuple(band["band"] for band in statistics if band["tiles"]),
        temperature=float(model.classifier.temperature),
        prediction_sets=calibration.prediction_sets,
        outliers=calibration.outliers,
        network=_network(model.classifier),
        ancestry=model.ancestry,
        histogram_edges=EDGES,
        histograms=tuple(
            ReferenceHistogram(
                band=band["band"], mean=band["mean"], std=band["std"], counts=tuple(band["histogram"])
            )
            for band in statistics
        ),
        metrics=calibration.metrics,
        data_hash=summary.data_hash,
        weights=weights,
        synthetic=summary.synthetic,
        code_revision=code_revision(),
        licence="CC0-1.0" if summary.synthetic else "MIT",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _network(classifier: Classifier) -> str:
    """Return the name of the architecture."""
    seen = f", mean of {classifier.symmetries} symmetries" if classifier.symmetries > 1 else ""
    backbone = classifier.backbone
    name = backbone.name if isinstance(backbone, PretrainedBackbone) else type(backbone).__name__
    return f"{name}{seen}"


def _digest(classifier: Classifier) -> str:
    """Return SHA-256 of the state in a checkpoint: weights and normalisation statistics, without
    calibration."""
    digest = sha256()
    for name, tensor in sorted(classifier.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class _Outputs:
    """Logits (n, classes), embeddings (n, features) and labels (n,), and the raw parts of the outlier
    score."""

    logits: Tensor
    embeddings: Tensor
    parts: Tensor
    missing: Tensor
    labels: Tensor


def _fit_outliers(classifier: Classifier, pack: Pack) -> None:
    """Fit the outlier score's parts on training tiles, and on unlabelled ones by their predicted classes."""
    train, unlabelled = spread(pack.rows("train"), _MAX_FITTED), _fitted_part(pack.rows(UNLABELLED))
    labelled = _run(classifier, pack, train)
    embeddings, labels = [labelled.embeddings], [labelled.labels]
    if len(unlabelled):
        found = _run(classifier, pack, unlabelled)
        embeddings.append(found.embeddings)
        labels.append(found.logits.argmax(1))
    classifier.outliers.fit_distance(torch.cat(embeddings), torch.cat(labels))
    kinds = [pack.rows("train", source) for source in pack.summary.sources] + [unlabelled]
    lines = [_lines(pack, spread(rows, _MAX_EXPOSED)) for rows in kinds if len(rows)]
    classifier.outliers.check.fit(exposures(lines))


def _fit_limits(classifier: Classifier, pack: Pack) -> float:
    """Scale the outlier score's parts and return the threshold, both on tiles that they were not fitted
    on."""
    kinds = {source: pack.rows("val", source) for source in pack.summary.sources}
    kinds[UNLABELLED] = held_back(pack)
    known = {kind: _run(classifier, pack, rows) for kind, rows in kinds.items() if len(rows)}
    classifier.outliers.fit_limits([outputs.parts for outputs in known.values()])
    scores = {kind: classifier.outliers.combine(a.parts, a.missing).numpy() for kind, a in known.items()}
    names = np.concatenate([np.full(len(found), kind) for kind, found in scores.items()])
    return outliers.fit_threshold(np.concatenate(list(scores.values())), kinds=names)


def _run(classifier: Classifier, pack: Pack, rows: Rows) -> _Outputs:
    answered, batch = [], _BATCH // classifier.symmetries
    with torch.no_grad():
        for start in range(0, len(rows), batch):
            tiles = torch.from_numpy(pack.fetch(rows[start : start + batch]))
            logits, embedding = classifier(tiles)
            answered.append((logits, embedding, *classifier.outliers.parts(tiles, embedding, logits)))
    logits, embeddings, scores, gone = (torch.cat(parts) for parts in zip(*answered, strict=True))
    return _Outputs(logits, embeddings, scores, gone, torch.from_numpy(pack.labels[rows]))


def _lines(pack: Pack, rows: Rows) -> DN:
    """Return the lines of the tiles in `rows` that the input check uses, uint16."""
    return np.ascontiguousarray(pack.fetch(rows)[:, :, LINES])


def _fitted_part(rows: Rows) -> Rows:
    """Return the rows without those that `held_back` reserves for thresholds."""
    return rows[np.arange(len(rows)) % HELD_BACK != 0]
