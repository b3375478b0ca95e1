"""How weights move: AdamW, a rate that rises and falls, gradients that are clipped; the same for every task."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from datasets.errors import TrainingError


@dataclass(frozen=True)
class Optimisation:
    """How weights move.

    Attributes:
        rate: highest learning rate.
        weight_decay: of AdamW, on matrices and kernels only.
        warmup: share (0-1) of all steps in which the rate rises from 0; then it falls as a cosine to `final_rate`.
        final_rate: share of `rate` at the last step.
        label_smoothing: 0 to 1.
        balance_classes: weigh classes by the inverse of their frequency.
    """

    rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    final_rate: float = 0.0
    label_smoothing: float = 0.1
    balance_classes: bool = False


class OptimisedModule(pl.LightningModule):
    """A task whose weights move as `Optimisation` says, and whose losses are watched.

    Attributes:
        broken: bool (), whether any training loss was not finite (`training.health`).
    """

    broken: Tensor

    def __init__(self, optimisation: Optimisation) -> None:
        super().__init__()
        self.optimisation = optimisation

    def on_fit_start(self) -> None:
        """Start watching the loss."""
        self.broken = torch.zeros((), dtype=torch.bool, device=self.device)

    def watched(self, loss: Tensor, tiles: int) -> Tensor:
        """Return the `loss` () of a training batch of so many tiles, logged, and remember whether it is finite."""
        self.broken = self.broken | ~loss.detach().isfinite()
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=tiles, sync_dist=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW with a rate that warms up and then falls as a cosine, step by step."""
        kernels = [p for p in self.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in self.parameters() if p.requires_grad and p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": kernels, "weight_decay": self.optimisation.weight_decay},
            {"params": others},
        ]
        # A fused step undoes loss scaling by itself, which leaves no moment to clip in.
        fused = self.trainer.precision != "16-mixed"
        optimiser = torch.optim.AdamW(groups, lr=self.optimisation.rate, weight_decay=0.0, fused=fused)
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise TrainingError("the learning rate needs to know its end; set trainer.max_epochs or trainer.max_steps")
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, partial(warmup_cosine, int(steps), self.optimisation))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip; Lightning refuses to with a fused optimiser, though without loss scaling nothing speaks against it."""
        if not gradient_clip_val or self.trainer.precision == "16-mixed":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val)
        else:
            nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)


def warmup_cosine(steps: int, options: Optimisation, step: int) -> float:
    """Return the factor (0-1) of the learning rate at `step` of `steps`."""
    warm = max(1, round(steps * options.warmup))
    if step < warm:
        return (step + 1) / warm
    way = min(1.0, (step - warm) / max(1, steps - warm))
    return options.final_rate + (1 - options.final_rate) * 0.5 * (1 + math.cos(math.pi * way))
