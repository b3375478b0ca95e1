"""What does fine-tuning on few tiles promise, and what does it keep on tiles that it never saw?

python benchmarks/finetune.py EuroSAT_RGB --classes 4 --tiles 30 --draws 5

Each draw takes some classes of a folder of class folders and some tiles of each, fine-tunes on them by the
command, and classifies all other tiles: those of the same classes, and those of the other classes, which are
unknown to the model. The last table compares scores for unknown tiles, fitted to the same tiles.
"""

import argparse
import json
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from tilewise.datasets.core.console import shown
from tilewise.datasets.core.locations import PRETRAINED_MODEL
from tilewise.datasets.packs.pack import Pack
from tilewise.datasets.readers.sources import find_source
from tilewise.models.model_file import int8_of, open_model
from tilewise.models.network.outliers import MahalanobisScore
from tilewise.training.__main__ import train
from tilewise.training.evaluate.evaluation import evaluate
from tilewise.training.evaluate.outputs import ModelOutputs, run_rows
from tilewise.training.finetune.features import pack_tiles

FIGURES = {
    "CPU s": "{:.1f}",
    "k-fold %": "{:.1%}",
    "interval": "{}",
    "other tiles %": "{:.1%}",
    "INT8 %": "{}",
    "temperature": "{:.2f}",
    "ECE": "{:.1%}",
    "errors ≥ 0.99": "{:.0%}",
    "errors ≥ 0.999": "{:.0%}",
    "90 % sets cover": "{:.1%}",
    "known flagged": "{:.1%}",
    "unknown promised": "{:.0%}",
    "unknown flagged": "{:.0%}",
    "unknown ≥ 0.99 and not flagged": "{:.1%}",
    "AUROC": "{:.3f}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="Folder of class folders.")
    parser.add_argument("--model", type=Path, default=PRETRAINED_MODEL)
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--tiles", type=int, default=30, help="Of each class.")
    parser.add_argument("--draws", type=int, default=5)
    arguments = parser.parse_args()
    print(f"| draw | classes | {' | '.join(FIGURES)} |\n|---|---|{'---:|' * len(FIGURES)}", flush=True)
    found = []
    with tempfile.TemporaryDirectory(prefix="tilewise-finetune-") as work, shown() as progress:
        pack = pack_tiles([find_source(arguments.folder)], [], Path(work, "all"), progress)
        for draw in range(arguments.draws):
            classes, figures, scores = measure(pack, arguments, draw, Path(work, str(draw)))
            cells = (text.format(figures[name]) for name, text in FIGURES.items())
            print(f"| {draw} | {', '.join(classes)} | {' | '.join(cells)} |", flush=True)
            found.append(scores)
    print("\n| score | AUROC of unknown tiles, mean | worst draw |\n|---|---:|---:|")
    for name in found[0]:
        values = [scores[name] for scores in found]
        print(f"| {name} | {np.mean(values):.3f} | {min(values):.3f} |")


def measure(
    pack: Pack, arguments: argparse.Namespace, draw: int, work: Path
) -> tuple[list[str], dict[str, object], dict[str, float]]:
    """Return the classes of a draw, its figures, and the AUROC of each score."""
    random = np.random.default_rng(draw)
    classes = sorted(random.choice(pack.summary.classes, arguments.classes, replace=False).tolist())
    numbers = [pack.summary.classes.index(name) for name in classes]
    rows = [random.permutation(np.flatnonzero(pack.labels == each))[: arguments.tiles] for each in numbers]
    learned = np.concatenate(rows)
    seconds = run(arguments, pack, classes, learned, work)
    others = np.setdiff1d(np.arange(len(pack)), learned)
    known = np.isin(pack.labels[others], numbers)
    model = open_model(work / "run/model.onnx")
    outputs, answered = run_rows(model, pack, learned), run_rows(model, pack, others)
    truth = np.searchsorted(numbers, pack.labels[others][known])
    report = json.loads((work / "run/evaluation/report.json").read_text("utf-8"))["metrics"]
    figures = kept(work, pack, others[known], truth, answered, known) | {
        "CPU s": seconds,
        "k-fold %": report["kfold/accuracy"],
        "interval": f"{report['kfold/accuracy_low']:.1%}–{report['kfold/accuracy_high']:.1%}",
        "unknown promised": report.get("unknown/flagged", float("nan")),
    }
    labels = np.searchsorted(numbers, pack.labels[learned])
    return classes, figures, aurocs(outputs, labels, answered, ~known)


def run(
    arguments: argparse.Namespace, pack: Pack, classes: list[str], learned: np.ndarray, work: Path
) -> float:
    """Link the learned tiles into a folder of their own, fine-tune on it, and return its CPU seconds."""
    folder = work / arguments.folder.name
    names = dict(zip(pack.names(learned), learned, strict=True))
    for file in find_source(arguments.folder).files():
        if file.name in names and file.label in classes:
            (folder / file.label).mkdir(parents=True, exist_ok=True)
            (folder / file.label / file.path.name).symlink_to(file.path.resolve())
    options = ["--data", folder, "--model", arguments.model, "--out", work / "run", "--no-tracking"]
    started = time.process_time()
    with redirect_stdout(sys.stderr):
        train(["--recipe", "finetune", *map(str, options)], standalone_mode=False)
    return time.process_time() - started


def kept(
    work: Path, pack: Pack, rows: np.ndarray, truth: np.ndarray, answered: ModelOutputs, known: np.ndarray
) -> dict[str, object]:
    """Return what the model file does on tiles of its classes (rows, truth), and on unknown ones."""
    model = open_model(work / "run/model.onnx")
    metadata, own, other = model.metadata, answered.take(known), answered.take(~known)
    sets, outliers = metadata.prediction_sets, metadata.outliers
    if sets is None or outliers is None:
        raise SystemExit(f"{model.path}: it has no prediction sets, or no limit of outliers: too few tiles")
    limit = outliers.threshold
    found = evaluate("other", torch.from_numpy(own.probabilities), torch.from_numpy(truth), metadata.classes)
    sure = own.probabilities.max(1)[own.probabilities.argmax(1) != truth]
    int8 = int8_of(model.path)
    right = run_rows(open_model(int8), pack, rows).logits.argmax(1) == truth if int8.is_file() else None
    flagged = other.outlier_score > limit
    return {
        "other tiles %": found.accuracy,
        "INT8 %": "none" if right is None else f"{right.mean():.1%}",
        "temperature": metadata.temperature,
        "ECE": found.calibration_error,
        "errors ≥ 0.99": (sure >= 0.99).mean() if len(sure) else 0.0,
        "errors ≥ 0.999": (sure >= 0.999).mean() if len(sure) else 0.0,
        "90 % sets cover": (own.probabilities[np.arange(len(truth)), truth] >= sets.threshold(0.9)).mean(),
        "known flagged": (own.outlier_score > limit).mean(),
        "unknown flagged": flagged.mean(),
        "unknown ≥ 0.99 and not flagged": ((other.probabilities.max(1) >= 0.99) & ~flagged).mean(),
        "AUROC": roc_auc_score(~known, answered.outlier_score),
    }


def aurocs(
    learned: ModelOutputs, labels: np.ndarray, answered: ModelOutputs, unknown: np.ndarray
) -> dict[str, float]:
    """Return how well each score ranks unknown tiles above those of the learned classes."""
    embeddings, features = torch.from_numpy(learned.embedding), learned.embedding.shape[1]
    near, every = MahalanobisScore(int(labels.max()) + 1, features), MahalanobisScore(1, features)
    near.fit(embeddings, torch.from_numpy(labels))
    every.fit(embeddings, torch.zeros(len(labels), dtype=torch.int64))
    asked = torch.from_numpy(answered.embedding)
    scores = {
        "the file's: five nearest training tiles, input check, missing pixels": answered.outlier_score,
        "Mahalanobis distance": near(asked).numpy(),
        "relative Mahalanobis distance": (near(asked) - every(asked)).numpy(),
        "largest logit": -answered.logits.max(1),
        "largest probability": -answered.probabilities.max(1),
    }
    return {name: float(roc_auc_score(unknown, score)) for name, score in scores.items()}


if __name__ == "__main__":
    main()
