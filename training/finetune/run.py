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
from tilewise.models.network import calibration, finetuned
from tilewise.models.network.finetuned import FineTunedHead
from tilewise.models.network.outliers import FALSE_ALARMS
from tilewise.training.evaluate.evaluation import ALL, Evaluation, evaluate, write_evaluations
from tilewise.training.evaluate.outputs import NO_ZONE, Predictions, labels_of, run_rows
from tilewise.training.evaluate.quantisation import Comparison
from tilewise.training.finetune import heads, report
from tilewise.training.finetune.features import TEST, Embeddings, Ids, embed, learned_rows, places
from tilewise.training.finetune.heads import CrossValidation
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
class Calibrated:
    """A head, and what cross-validation knows of it.

    Attributes:
        head: with its temperature and the limits of its outlier score.
        threshold: of the outlier score; None: too few tiles for one.
        out_of_fold: the heads that have not seen a tile.
        shared: in words, what tiles of one fold share.
        input_scores: float32 (n, 2), of the tiles that are learned from.
    """

    head: FineTunedHead
    threshold: float | None
    out_of_fold: CrossValidation
    shared: str
    input_scores: torch.Tensor

    def answers(self, learned: Learned, embeddings: Embeddings) -> Predictions:
        """Return the answers for the tiles, with these embeddings (n, features), of heads that have not seen
        them."""
        temperature = float(self.head.temperature)
        probabilities = softmax(self.out_of_fold.logits(embeddings) / temperature, axis=1).astype(np.float32)
        distances = torch.from_numpy(self.out_of_fold.distances(embeddings))
        scores = self.head.combine(distances, self.input_scores).numpy()
        zones = np.full(len(learned.rows), NO_ZONE)
        return Predictions(learned.classes, probabilities, scores, learned.labels, zones)


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
    embeddings = _embed(model, learned, folder, progress)
    calibrated = _fit(base, learned, embeddings, folds, progress)
    answers = calibrated.answers(learned, embeddings[0])
    metadata = _describe(model, learned, calibrated, answers, folder.root.name)
    _write_models(model, calibrated, metadata, learned, answers, folder)
    figures = _measure(learned, calibrated, answers, embeddings, open_model(folder.model))
    _write_report(figures, learned, answers, folder, command)
    return figures


def _embed(model: ModelFile, learned: Learned, folder: RunFolder, progress: Report) -> Embeddings:
    count = len(learned.rows)
    return embed(
        model,
        learned.pack,
        learned.rows,
        folder.root / "features.npz",
        lambda done: progress("embedding tiles", done, count),
    )


def _fit(base: Path, learned: Learned, embeddings: Embeddings, folds: int, progress: Report) -> Calibrated:
    """Cross-validate heads, fit one to all tiles, and calibrate it by those that have not seen a tile."""
    labels = learned.labels
    groups, shared = places(learned.pack, learned.rows, folds)
    known = heads.cross_validate(
        embeddings, labels, groups, folds, lambda done: progress("cross-validating", done, folds)
    )
    fitted = heads.fit_head(embeddings, labels, groups)
    temperature = heads.fit_temperature(known.logits(embeddings[0]), labels)
    head = FineTunedHead(
        torch.from_numpy(fitted.weight),
        torch.from_numpy(fitted.bias),
        temperature,
        torch.from_numpy(known.bank),
        read_input_check(base),
    )
    input_scores = _input_scores(head, learned)
    distances = torch.from_numpy(known.distances(embeddings[0]))
    head.fit_limits(distances, input_scores, FALSE_ALARMS)
    threshold = heads.upper_quantile(head.combine(distances, input_scores).numpy(), FALSE_ALARMS)
    return Calibrated(head.eval(), threshold, known, shared, input_scores)


def _input_scores(head: FineTunedHead, learned: Learned) -> torch.Tensor:
    with torch.no_grad():
        parts = [
            head.input_scores(torch.from_numpy(learned.pack.fetch(learned.rows[start : start + _BATCH])))
            for start in range(0, len(learned.rows), _BATCH)
        ]
    return torch.cat(parts)


def _describe(
    base: ModelFile, learned: Learned, calibrated: Calibrated, answers: Predictions, run: str
) -> ModelMetadata:
    weights, head = hashlib.sha256(base.sha256.encode()), calibrated.head
    for tensor in (head.head.weight, head.head.bias):
        weights.update(tensor.detach().numpy().tobytes())
    how = f"{len(learned.rows)} tiles, each out of one of {len(calibrated.out_of_fold.folds)} folds"
    return base.metadata.model_copy(
        update={
            "version": f"{run}-{weights.hexdigest()[:8]}",
            "classes": learned.classes,
            "temperature": float(head.temperature),
            "prediction_sets": PredictionSets(
                method=calibration.METHOD,
                thresholds=heads.set_thresholds(answers.probabilities, learned.labels),
                calibrated_on=how,
            ),
            "outliers": None
            if calibrated.threshold is None
            else Outliers(method=finetuned.METHOD, threshold=calibrated.threshold, false_alarms=FALSE_ALARMS),
            "network": f"{base.metadata.network.removesuffix(_FINE_TUNED)}{_FINE_TUNED}",
            "histogram_edges": EDGES,
            "histograms": _histograms(learned.pack),
            "metrics": report.metrics(_evaluation(answers)),
            "data_hash": learned.pack.summary.data_hash,
            "weights": weights.hexdigest(),
            "synthetic": learned.pack.summary.synthetic,
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


def _write_models(
    base: ModelFile,
    calibrated: Calibrated,
    metadata: ModelMetadata,
    learned: Learned,
    answers: Predictions,
    folder: RunFolder,
) -> None:
    """Write the fp32 file, and from the INT8 file beside `base` an INT8 file, if it answers alike."""
    tiles = learned.pack.fetch(spread(learned.rows, _CHECKED_TILES))
    target, source = int8_of(folder.model), int8_of(base.path)
    target.unlink(missing_ok=True)  # it belongs to the former model
    replace_head(base.path, calibrated.head, metadata, folder.model, tiles)
    if not source.is_file():
        click.echo(f"no INT8 file: there is none beside {base.path}")
        return
    rounded = metadata.model_copy(
        update={"precision": INT8, "quantised_from": open_model(folder.model).sha256}
    )
    replace_head(source, calibrated.head, rounded, target, tiles)
    outputs = run_rows(open_model(target), learned.pack, learned.rows)
    pair = answers, calibrated.answers(learned, outputs.embedding)
    how = Quantisation(max_lost=max(Quantisation.max_lost, 1 / len(learned.rows)))  # one tile is no loss
    if objection := Comparison(metadata, pair, {ALL: pair}).objection(how):
        target.unlink()
        click.echo(f"no INT8 file: {objection}")


def _evaluation(answers: Predictions) -> Evaluation:
    probabilities, labels = torch.from_numpy(answers.probabilities), torch.from_numpy(answers.labels)
    return evaluate("kfold", probabilities, labels, answers.classes)


def _measure(
    learned: Learned, calibrated: Calibrated, answers: Predictions, embeddings: Embeddings, model: ModelFile
) -> Figures:
    sets = model.metadata.prediction_sets
    test, flagged = _measure_test(model, learned.pack)
    return Figures(
        folds=(len(calibrated.out_of_fold.folds), calibrated.shared),
        out_of_fold=_evaluation(answers),
        test=test,
        temperature=model.metadata.temperature,
        sure_errors=report.sure_errors(answers.probabilities, learned.labels),
        coverages=tuple(sets.thresholds) if sets else (),
        false_alarms=None if calibrated.threshold is None else FALSE_ALARMS,
        unknown=calibrated.out_of_fold.leave_out(embeddings[0], learned.classes),
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
