"""The floor that any network must clear: a random forest on each band's mean and standard deviation.

python benchmarks/baseline_forest.py data/packed --source eurosat-ms --test val
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.ensemble import RandomForestClassifier

from tilewise.datasets.packs.pack import Pack

BATCH = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pack", type=Path)
    parser.add_argument("--source", help="Only this source's tiles, e.g. eurosat-ms.")
    parser.add_argument("--test", default="test", help="The split to measure.")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    pack = Pack(arguments.pack)
    train, test = pack.rows("train", arguments.source), pack.rows(arguments.test, arguments.source)
    features = {split: band_statistics(pack, rows) for split, rows in (("train", train), ("test", test))}
    scores = [
        fit_and_score(features, pack.labels[train], pack.labels[test], seed)
        for seed in range(arguments.seeds)
    ]
    print(f"{len(train)} tiles train, {len(test)} tiles of {arguments.test} test, {arguments.seeds} seeds")
    print(f"accuracy: median {np.median(scores):.2%}, {min(scores):.2%} to {max(scores):.2%}")


def band_statistics(pack: Pack, rows: np.ndarray) -> np.ndarray:
    """Return (tiles, 26): mean and standard deviation of each band, in DN."""
    parts = []
    for start in range(0, len(rows), BATCH):
        tiles = pack.fetch(rows[start : start + BATCH])
        parts.append(np.concatenate([tiles.mean((2, 3)), tiles.std((2, 3))], axis=1))
    return np.concatenate(parts)


def fit_and_score(features: dict[str, np.ndarray], train: np.ndarray, test: np.ndarray, seed: int) -> float:
    """Return the accuracy (0-1) of a forest of 500 trees."""
    forest = RandomForestClassifier(500, n_jobs=-1, random_state=seed).fit(features["train"], train)
    return float(forest.score(features["test"], test))


if __name__ == "__main__":
    main()
