"""What happens around training: averaging of weights, seeds that make a resumed run the same run."""

import csv
import time
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, WeightAveraging
from torch import nn
from torch.optim.swa_utils import AveragedModel

_LONG = 10  # seconds of an epoch from which its line says them whole


class Ema(WeightAveraging):
    """Exponential moving average of the weights, which validation, checkpoints and export use.

    The decay grows with the number of steps, min(decay, (1 + n) / (10 + n)), so that short runs are not held back by
    their first, untrained weights. Steps are counted on the host: Lightning's own update asks the device for their
    number, and so waits for it, once a step.

    Args:
        decay: share of the old average that each step keeps, once warm.
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__(use_buffers=True)
        self._decay, self._count = decay, 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Move the average, which was made before the module was moved, to the module's device."""
        if self._average_model is not None:
            self._average_model.to(pl_module.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Follow the weights after each of the optimiser's steps."""
        if trainer.global_step > self._latest_update_step and self._average_model is not None:
            update_average(self._average_model, pl_module, share_kept(self._decay, self._count))
            self._count += 1
            self._latest_update_step = trainer.global_step

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take up the average, and the number of steps in it."""
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        if self._average_model is not None:
            self._count = int(self._average_model.n_averaged)


class SeedEachStep(Callback):
    """Seeds torch from the run's seed, the epoch, the step and the process, for the network's dropout.

    A run that is resumed at any step then drops the same as one that was never interrupted. Augmentation needs no
    seeding: its draws belong to tiles (`datasets.draws`).
    """

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed before the step."""
        seed = getattr(getattr(trainer, "datamodule", None), "seed", 0)
        place = [seed, trainer.current_epoch, batch_idx, trainer.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))


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

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the time, also where a run is taken up within an epoch."""
        self._started = time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the time."""
        self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the epoch's figures."""
        if not trainer.is_global_zero:
            return
        figures = {k: float(v) for k, v in trainer.progress_bar_metrics.items()}
        text = "  ".join(f"{name} {value:.4f}" for name, value in sorted(figures.items()))
        taken = time.monotonic() - self._started
        seconds = f"{taken:.0f}" if taken >= _LONG else f"{taken:.2f}"
        print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {text}  {seconds} s", flush=True)


def share_kept(decay: float, steps: int) -> float:
    """Return the share (0-1) of the old average that is kept after `steps` steps; the first takes the weights over."""
    return min(decay, (1 + steps) / (10 + steps)) if steps else 0.0


def update_average(average: AveragedModel, model: nn.Module, kept: float) -> None:
    """Move every weight and buffer of `average` towards those of `model`; whole numbers are copied."""
    means = [tensor.detach() for tensor in chain(average.module.parameters(), average.module.buffers())]
    values = [tensor.detach() for tensor in chain(model.parameters(), model.buffers())]
    floating = [place for place, mean in enumerate(means) if mean.is_floating_point()]
    torch._foreach_lerp_([means[n] for n in floating], [values[n] for n in floating], 1.0 - kept)
    for mean, value in zip(means, values, strict=True):
        if not mean.is_floating_point():
            mean.copy_(value)
    average.n_averaged += 1
