"""The steps of fine-tuning: embed tiles, cross-validate heads, calibrate out of fold, write model files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
import numpy as np
import torch
from scipy.special import softmax

from tilewise.datasets.core.console import Report
from tilewise.datasets.core.errors import ModelFileError, TrainingError
from tilewise.datasets.packs.pack import Pack, spread
from tilewise.datasets.packs.statistics import EDGES
from tilewise.datasets.quality.suspects import write_predictions
from tilewise.models.export.head import read_input_check, replace_head
from tilewise.models.model_file import (
    INT8,
    ModelFile,
    ModelMetadata,
    Outliers,
    PredictionSets,
    ReferenceHistogram,
    int8_of,
    open_model,
)
from tilewise.models.model_item import write_model_item
from tilewise.models.network import calibration, finetuned
from tilewise.models.network.finetuned import FineTunedHead
from tilewise.models.network.outliers import FALSE_ALARMS, InputCheck
from tilewise.training.evaluate.evaluation import Evaluation, evaluate, write_evaluations
from tilewise.training.evaluate.outputs import NO_ZONE, Predictions, labels_of, run_rows
from tilewise.training.finetune import heads, report
from tilewise.training.finetune.features import TEST, Embeddings, Ids, embed, learned_rows, places
from tilewise.training.finetune.heads import CrossValidation, Head
from tilewise.training.finetune.report import Figures
from tilewise.training.settings import Quantisation, RunFolder
from tilewise.training.tracking import code_revision

FEWEST = 5  # tiles of a class: folds, and folds inside these, need some of each
_CHECKED_TILES = 64  # compared between torch and onnxruntime before a model file gets its name
_BATCH = 256


@dataclass(frozen=True, slots=True)
class Learned:
    """The tiles that are learned from.

    Attributes:
        pack: that holds them.
        rows: their rows in it, int64 (n,).
        labels: int64 (n,), indices into `classes`.
        classes: the classes that have such tiles.
    """

    pack: Pack
    rows: Ids
    labels: Ids
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fitted:
    """What was fitted to the embeddings of a model file.

    Attributes:
        base: the model file.
        head: fitted to all tiles.
        known: heads that have not seen a tile.
        shared: in words, what the tiles of one fold share.
        check: the input check of the base.
    """

    base: ModelFile
    head: Head
    known: CrossValidation
    shared: str
    check: InputCheck


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A head that is calibrated for the embeddings of one file, fp32 or INT8.

    Attributes:
        head: with its temperature and the limits of its outlier score.
        threshold: of the outlier score; None: too few tiles for one.
        answers: of the heads that have not seen a tile, for the tiles that are learned from.
    """

    head: FineTunedHead
    threshold: float | None
    answers: Predictions

    def evaluation(self) -> Evaluation:
        """Return the figures of the answers."""
        probabilities = torch.from_numpy(self.answers.probabilities)
        return evaluate("kfold", probabilities, torch.from_numpy(self.answers.labels), self.answers.classes)


def learned_tiles(pack: Pack) -> Learned:
    """Return the tiles of a pack to learn from: those of the splits train and val.

    Raises:
        TrainingError: there are fewer than two classes of them, or fewer than five tiles of one.
    """
    rows = learned_rows(pack)
    kinds, labels, counts = np.unique(pack.labels[rows], return_inverse=True, return_counts=True)
    classes = tuple(pack.summary.classes[kind] for kind in kinds)
    if len(classes) < 2:
        raise TrainingError(
            f"{pack.root}: {len(classes)} class to learn from; fine-tuning needs two or more, a folder each"
        )
    few = [f"{count} of {name}" for name, count in zip(classes, counts, strict=True) if count < FEWEST]
    if few:
        raise TrainingError(
            f"{pack.root}: fine-tuning needs {FEWEST} tiles of each class, better {report.ENOUGH}; there are "
            f"{', '.join(few)}: add some, or leave the class out"
        )
    return Learned(pack, rows, labels.astype(np.int64), classes)


def finetune(
    base: Path, pack: Pack, folder: RunFolder, folds: int, command: str, progress: Report
) -> Figures:
    """Teach the model file `base` the classes of a pack, write the run `folder`, and return the figures.

    Args:
        folds: of the cross-validation, 2 or more.
        command: the command line, for the report.

    Raises:
        ModelFileError: `base` is not an fp32 model file.
        TrainingError: the tiles are too few.
    """
    model, learned = open_model(base), learned_tiles(pack)
    if model.metadata.precision == INT8:
        raise ModelFileError(
            f"{base}: an INT8 file, whose embeddings are rounded; name the fp32 file beside it"
        )
    count, cache = len(learned.rows), folder.root / "features.npz"
    embeddings = embed(
        model, pack, learned.rows, cache, lambda done: progress("embedding tiles", done, count)
    )
    fitted = _fit(model, learned, embeddings, folds, progress)
    calibrated = _calibrate(fitted, learned, embeddings[0])
    _write_models(fitted, calibrated, learned, folder)
    write_model_item(folder.model)
    figures = _measure(fitted, calibrated, learned, embeddings[0], open_model(folder.model))
    _write_report(figures, learned, calibrated.answers, folder, command)
    return figures


def _fit(model: ModelFile, learned: Learned, embeddings: Embeddings, folds: int, progress: Report) -> Fitted:
    groups, shared = places(learned.pack, learned.rows, folds)
    known = heads.cross_validate(
        embeddings, learned.labels, groups, folds, lambda done: progress("cross-validating", done, folds)
    )
    check = read_input_check(model.path)
    if check is None:
        click.echo(f"{model.path} has no input check, so the new file does not flag faults of the input")
    head = heads.fit_head(embeddings, learned.labels, groups)
    return Fitted(model, head, known, shared, check or InputCheck())


def _calibrate(fitted: Fitted, learned: Learned, embeddings: Embeddings) -> Calibrated:
    """Calibrate the head by the answers of those that have not seen a tile, for embeddings (n, features)."""
    logits, labels = fitted.known.logits(embeddings), learned.labels
    temperature = heads.fit_temperature(logits, labels)
    head = FineTunedHead(
        torch.from_numpy(fitted.head.weight),
        torch.from_numpy(fitted.head.bias),
        temperature,
        torch.from_numpy(fitted.known.bank),
        fitted.check,
    ).eval()
    distances, faults = torch.from_numpy(fitted.known.distances(embeddings)), _input_scores(head, learned)
    head.fit_limits(distances, faults, FALSE_ALARMS)
    scores = head.combine(distances, faults).numpy()
    probabilities = softmax(logits / temperature, axis=1).astype(np.float32)
    zones = np.full(len(labels), NO_ZONE)
    answers = Predictions(learned.classes, probabilities, scores, labels, zones)
    return Calibrated(head, heads.upper_quantile(scores, FALSE_ALARMS), answers)


def _input_scores(head: FineTunedHead, learned: Learned) -> torch.Tensor:
    with torch.no_grad():
        parts = [
            head.input_scores(torch.from_numpy(learned.pack.fetch(learned.rows[start : start + _BATCH])))
            for start in range(0, len(learned.rows), _BATCH)
        ]
    return torch.cat(parts)


def _describe(fitted: Fitted, calibrated: Calibrated, learned: Learned, run: str) -> ModelMetadata:
    base, answers = fitted.base, calibrated.answers
    weights = hashlib.sha256(base.sha256.encode())
    for array in (fitted.head.weight, fitted.head.bias):
        weights.update(array.tobytes())
    how = f"{len(learned.rows)} tiles, each out of one of {len(fitted.known.folds)} folds"
    return base.metadata.model_copy(
        update={
            "version": f"{run}-{weights.hexdigest()[:8]}",
            "classes": learned.classes,
            "temperature": float(calibrated.head.temperature),
            "prediction_sets": PredictionSets(
                method=calibration.METHOD,
                thresholds=heads.set_thresholds(answers.probabilities, answers.labels),
                calibrated_on=how,
            ),
            "outliers": None
            if calibrated.threshold is None
            else Outliers(method=finetuned.METHOD, threshold=calibrated.threshold, false_alarms=FALSE_ALARMS),
            "network": f"{base.metadata.network.removesuffix(_FINE_TUNED)}{_FINE_TUNED}",
            "histogram_edges": EDGES,
            "histograms": _histograms(learned.pack),
            "metrics": report.metrics(calibrated.evaluation()),
            "data_hash": learned.pack.summary.data_hash,
            "weights": weights.hexdigest(),
            "synthetic": base.metadata.synthetic or learned.pack.summary.synthetic,
            "code_revision": code_revision(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )


_FINE_TUNED = ", fine-tuned head"


def _histograms(pack: Pack) -> tuple[ReferenceHistogram, ...]:
    return tuple(
        ReferenceHistogram(
            band=band["band"], mean=band["mean"], std=band["std"], counts=tuple(band["histogram"])
        )
        for band in pack.statistics()
    )


def _write_models(fitted: Fitted, calibrated: Calibrated, learned: Learned, folder: RunFolder) -> None:
    """Write the fp32 file, and from the INT8 file beside the base an INT8 file, if it is as accurate."""
    base, tiles = fitted.base.path, learned.pack.fetch(spread(learned.rows, _CHECKED_TILES))
    source, target = int8_of(base), int8_of(folder.model)
    target.unlink(missing_ok=True)  # it belongs to the former model
    metadata = _describe(fitted, calibrated, learned, folder.root.name)
    replace_head(base, calibrated.head, metadata, folder.model, tiles)
    if not source.is_file():
        click.echo(f"no INT8 file: there is none beside {base}")
        return
    embeddings = run_rows(open_model(source), learned.pack, learned.rows).embedding
    rounded = _calibrate(fitted, learned, embeddings)
    lost = calibrated.answers.accuracy - rounded.answers.accuracy
    # Of few tiles one more error says nothing; two are too many.
    if lost > max(Quantisation.max_lost, 1.5 / len(learned.rows)):
        click.echo(f"no INT8 file: INT8 loses {100 * lost:.1f} points of accuracy")
        return
    metadata = _describe(fitted, rounded, learned, folder.root.name).model_copy(
        update={"precision": INT8, "quantised_from": open_model(folder.model).sha256}
    )
    replace_head(source, rounded.head, metadata, target, tiles)


def _measure(
    fitted: Fitted, calibrated: Calibrated, learned: Learned, embeddings: Embeddings, model: ModelFile
) -> Figures:
    sets = model.metadata.prediction_sets
    test, flagged = _measure_test(model, learned.pack)
    return Figures(
        folds=(len(fitted.known.folds), fitted.shared),
        out_of_fold=calibrated.evaluation(),
        test=test,
        temperature=model.metadata.temperature,
        sure_errors=report.sure_errors(calibrated.answers.probabilities, learned.labels),
        coverages=tuple(sets.thresholds) if sets else (),
        false_alarms=None if calibrated.threshold is None else FALSE_ALARMS,
        unknown=fitted.known.leave_out(embeddings, learned.classes),
        test_flagged=flagged,
    )


def _measure_test(model: ModelFile, pack: Pack) -> tuple[Evaluation | None, float | None]:
    """Return the figures of the test split, of the classes that the model knows, and the flagged fraction."""
    rows = pack.rows(TEST)
    labels = labels_of(model, pack, rows)
    rows, labels = rows[labels >= 0], labels[labels >= 0]
    if not len(rows):
        return None, None
    outputs, limits = run_rows(model, pack, rows), model.metadata.outliers
    found = evaluate(
        TEST, torch.from_numpy(outputs.probabilities), torch.from_numpy(labels), model.metadata.classes
    )
    return found, None if limits is None else float((outputs.outlier_score > limits.threshold).mean())


def _write_report(
    figures: Figures, learned: Learned, answers: Predictions, folder: RunFolder, command: str
) -> None:
    """Write the report, confusion matrices, and the out-of-fold answers, for `tilewise data suspects`."""
    evaluations = [each for each in (figures.out_of_fold, figures.test) if each is not None]
    write_evaluations(evaluations, folder.evaluation, str(folder.model))
    figures.write(folder.evaluation, command)
    sources = learned.pack.sources[learned.rows].tolist()
    keys = list(zip(sources, learned.pack.names(learned.rows), strict=True))
    labels = [learned.classes[label] for label in learned.labels]
    write_predictions(
        folder.evaluation / "predictions.csv", keys, labels, answers.probabilities, learned.classes
    )
