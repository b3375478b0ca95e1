"""How many wrong labels do `datasets suspects` find? Some are made wrong, and cross-validated answers are
asked.

python benchmarks/suspects.py data/packed --share 0.05

The answers are a random forest's on each band's mean and standard deviation: the weakest model worth asking.
"""

import argparse
from pathlib import Path

import numpy as np
from baseline_forest import band_statistics
from cleanlab.filter import find_label_issues
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_predict

from tilewise.datasets.packs.pack import Pack

FILTERS = ("prune_by_noise_rate", "prune_by_class", "both", "confident_learning", "predicted_neq_given")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pack", type=Path)
    parser.add_argument("--share", type=float, default=0.05, help="Of labels that are made wrong.")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    pack = Pack(arguments.pack)
    features = band_statistics(pack, np.arange(len(pack)))
    rows = [measure(features, pack.labels, arguments.share, seed) for seed in range(arguments.seeds)]
    print(f"{len(pack)} tiles, {arguments.share:.0%} of the labels made wrong, {arguments.seeds} seeds")
    print("| filter | listed | found of the wrong | wrong among the listed | wrong among the first as many |")
    print("|---|---:|---:|---:|---:|")
    for place, name in enumerate(FILTERS):
        listed, found, hit, first = np.mean([row[place] for row in rows], axis=0)
        print(f"| {name} | {listed:.0f} | {found:.0%} | {hit:.0%} | {first:.0%} |")


def measure(features: np.ndarray, truth: np.ndarray, share: float, seed: int) -> list[tuple[float, ...]]:
    """Return for each filter: tiles listed, recall, precision, and precision among the first as many as are
    wrong."""
    labels, wrong = spoil(truth, share, seed)
    forest = RandomForestClassifier(300, n_jobs=-1, random_state=seed)
    shares = cross_val_predict(forest, features, labels, cv=5, method="predict_proba")
    found: list[tuple[float, ...]] = []
    for name in FILTERS:
        listed = find_label_issues(
            labels, shares, filter_by=name, return_indices_ranked_by="normalized_margin", n_jobs=1
        )
        hits = wrong[listed]
        found.append((len(listed), hits.sum() / wrong.sum(), hits.mean(), hits[: wrong.sum()].mean()))
    return found


def spoil(truth: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels of which a share is another class, and bool (n,): which are."""
    random = np.random.default_rng(seed)
    wrong = np.zeros(len(truth), bool)
    wrong[random.choice(len(truth), round(share * len(truth)), replace=False)] = True
    other = (truth + random.integers(1, truth.max() + 1, len(truth))) % (truth.max() + 1)
    return np.where(wrong, other, truth), wrong


if __name__ == "__main__":
    main()
