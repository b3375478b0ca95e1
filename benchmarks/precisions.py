"""Whether runs in bfloat16 end where runs in 32 bit do: the figures of docs/training.md.

    python benchmarks/precisions.py --pack demo/packed --config configs/experiments/demo.yaml --seeds 2

Trains the same recipe with the same seeds in both precisions, tests each run's best checkpoint in 32 bit on
the test split, and prints the accuracies and the difference of their means in points.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tilewise.training.evaluate.evaluation import ALL
from tilewise.training.evaluate.spread import read_test_metrics
from tilewise.training.settings import RunFolder

PRECISIONS = ("bf16-mixed", "32-true")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("options", nargs="*", help="further options of tilewise train")
    arguments = parser.parse_args()
    means = {}
    print("| precision | tiles | accuracy, by seed | mean |\n|---|---:|---:|---:|")
    for precision in PRECISIONS:
        runs = [train(arguments, precision, seed) for seed in range(arguments.seeds)]
        found = [accuracy for accuracy, _ in runs]
        means[precision] = sum(found) / len(found)
        by_seed = ", ".join(f"{accuracy:.2%}" for accuracy in found)
        print(f"| {precision} | {runs[0][1]} | {by_seed} | {means[precision]:.2%} |", flush=True)
    difference = 100 * (means[PRECISIONS[0]] - means[PRECISIONS[1]])
    print(f"\n{PRECISIONS[0]} ends {difference:+.2f} points from {PRECISIONS[1]}.")


def train(arguments: argparse.Namespace, precision: str, seed: int) -> tuple[float, int]:
    """Return the test accuracy (0-1) of one run, and on how many tiles."""
    with tempfile.TemporaryDirectory() as folder:
        settings = ["--config", str(arguments.config), "--data.pack", str(arguments.pack), "--out", folder]
        settings += [
            "--tracking.enabled=false",
            f"--seed_everything={seed}",
            f"--trainer.precision={precision}",
        ]
        for command in (
            ["fit", *settings, *arguments.options],
            ["test", "--out", folder, "--trainer.precision=32-true"],
        ):
            subprocess.run(
                [sys.executable, "-m", "tilewise", "train", *command], check=True, stdout=subprocess.DEVNULL
            )
        _, groups = read_test_metrics(RunFolder(Path(folder)))
        group = groups[ALL]
        return group["accuracy"], group["tiles"]


if __name__ == "__main__":
    main()
