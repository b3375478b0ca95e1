"""What happens around training: averaging of weights, seeds that make a resumed run the same run."""

import csv
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, WeightAveraging
from torch import Tensor


class Ema(WeightAveraging):
    """Exponential moving average of the weights, which validation, checkpoints and export use.

    The decay grows with the number of steps, min(decay, (1 + n) / (10 + n)), so that short runs are not held back by
    their first, untrained weights.

    Args:
        decay: share of the old average that each step keeps, once warm.
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__(use_buffers=True, avg_fn=partial(_blend, decay))


class SeedEachEpoch(Callback):
    """Seeds every generator from the run's seed and the epoch.

    A run resumed at an epoch's beginning then draws the same augmentation as one that was never interrupted.
    """

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed before the epoch's first batch."""
        seed: Any = getattr(trainer, "datamodule", None)
        pl.seed_everything((getattr(seed, "seed", 0) * 10_007 + trainer.current_epoch) % 2**32, verbose=False)


class History(Callback):
    """Keeps `history.csv` in the run's folder: one row an epoch, for plots; a resumed run adds to it."""

    COLUMNS = ("train/loss", "val/loss", "val/accuracy", "val/macro_f1", "val/calibration_error")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epoch's figures."""
        if not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / "history.csv"
        first = trainer.current_epoch == 0
        with path.open("w" if first else "a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if first:
                writer.writerow(["epoch", *(name.replace("/", "_") for name in self.COLUMNS)])
            metrics = trainer.callback_metrics
            figures = [f"{float(metrics[c]):.5f}" if c in metrics else "" for c in self.COLUMNS]
            writer.writerow([trainer.current_epoch + 1, *figures])


class EpochLines(Callback):
    """One line an epoch, for logs: what a progress bar is for a terminal."""

    def __init__(self) -> None:
        self._started = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the time."""
        self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the epoch's figures."""
        figures = {k: float(v) for k, v in trainer.progress_bar_metrics.items()}
        text = "  ".join(f"{name} {value:.4f}" for name, value in sorted(figures.items()))
        seconds = time.monotonic() - self._started
        print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {text}  {seconds:.0f} s", flush=True)


def _blend(decay: float, average: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
    if not average.is_floating_point():
        return current
    count = float(steps)
    return torch.lerp(average, current.to(average.dtype), 1 - min(decay, (1 + count) / (10 + count)))
