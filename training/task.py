"""The Lightning task: how a classifier is trained and measured."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassF1Score

from datasets.errors import TrainingError
from datasets.module import Batch
from models.classifier import Classifier
from models.network import ResidualCNN
from training.evaluation import BAND_VIEWS, CALIBRATION_BINS, see_through


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


class Answers:
    """The logits of all tiles, per set of bands, beside the tiles' rows and labels."""

    def __init__(self) -> None:
        self._logits: dict[str, list[Tensor]] = defaultdict(list)
        self._rows: list[Tensor] = []
        self._labels: list[Tensor] = []

    def add(self, view: str, logits: Tensor) -> None:
        """Add the logits of a batch seen through `view`."""
        self._logits[view].append(logits.float().cpu())

    def add_truth(self, rows: Tensor, labels: Tensor) -> None:
        """Add the rows (in the pack) and labels of the batch that was added last."""
        self._rows.append(rows.cpu())
        self._labels.append(labels.cpu())

    @property
    def rows(self) -> Tensor:
        """int64 (n,): rows in the pack, in the order of the answers."""
        return torch.cat(self._rows)

    @property
    def labels(self) -> Tensor:
        """int64 (n,)."""
        return torch.cat(self._labels)

    def logits(self, view: str) -> Tensor:
        """float32 (n, classes): of all tiles seen through `view`."""
        return torch.cat(self._logits[view])


class ClassificationTask(pl.LightningModule):
    """Trains a classifier of tiles.

    Attributes:
        answers: what testing left, for `training.evaluation`.

    Args:
        classes, band_mean, band_std, class_counts: taken from the data module.
        backbone: the network; `models.network.ResidualCNN`, or `models.torchvision_backbone.TorchvisionBackbone`.
        optimisation: how its weights move.
        compile: let torch compile the training step, which takes a minute at first and is then faster
            (1.6 times on 2 CPU cores for the network of configs/experiments/eurosat.yaml); needs a C++ compiler.
    """

    answers: Answers
    class_weights: Tensor

    def __init__(
        self,
        classes: list[str],
        band_mean: list[float],
        band_std: list[float],
        class_counts: list[int],
        backbone: nn.Module | None = None,
        optimisation: Optimisation = Optimisation(),
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.classes, self.optimisation = classes, optimisation
        self.classifier = Classifier(backbone or ResidualCNN(), len(classes), band_mean, band_std)
        self.classifier.to(memory_format=torch.channels_last)
        self._compile = compile
        self.register_buffer("class_weights", _class_weights(class_counts, optimisation.balance_classes))
        self.val_metrics = MetricCollection(_metrics(len(classes)), prefix="val/")

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and embedding of DN tiles."""
        logits, embedding = self.classifier(tiles)
        return logits, embedding

    def on_fit_start(self) -> None:
        """Compile the training step if asked to: only there has every batch one shape."""
        # In a list, since a second name for the classifier must not become a second set of weights.
        self._train_forward = [torch.compile(self.classifier) if self._compile else self.classifier]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of an augmented batch."""
        logits, _ = self._train_forward[0](batch["tiles"])
        loss = self._loss(logits, batch["targets"], self.optimisation.label_smoothing)
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(logits))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the validation metrics."""
        logits, _ = self(batch["tiles"])
        logits = logits.float()
        loss = self._loss(logits, batch["labels"], 0.0)
        self.val_metrics.update(logits.softmax(1), batch["labels"])
        self.log("val/loss", loss, batch_size=len(logits), sync_dist=True)
        self.log_dict(self.val_metrics, prog_bar=True, batch_size=len(logits))

    def on_test_epoch_start(self) -> None:
        """Start collecting answers."""
        self.answers = Answers()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the answers to a batch, seen through every set of bands; `training.evaluation` measures them."""
        for view in BAND_VIEWS:
            logits, _ = self(see_through(batch["tiles"].float(), view))
            self.answers.add(view, logits)
        self.answers.add_truth(batch["rows"], batch["labels"])

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

    def _loss(self, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        weights = self.class_weights if self.optimisation.balance_classes else None
        loss: Tensor = functional.cross_entropy(
            logits.float(),
            targets,
            weight=weights,
            label_smoothing=smoothing,
        )
        return loss


def warmup_cosine(steps: int, options: Optimisation, step: int) -> float:
    """Return the factor (0-1) of the learning rate at `step` of `steps`."""
    warm = max(1, round(steps * options.warmup))
    if step < warm:
        return (step + 1) / warm
    way = min(1.0, (step - warm) / max(1, steps - warm))
    return options.final_rate + (1 - options.final_rate) * 0.5 * (1 + math.cos(math.pi * way))


def _metrics(classes: int) -> dict[str, Any]:
    return {
        "accuracy": MulticlassAccuracy(classes, average="micro"),
        "macro_f1": MulticlassF1Score(classes, average="macro"),
        "calibration_error": MulticlassCalibrationError(classes, n_bins=CALIBRATION_BINS),
    }


def _class_weights(counts: Sequence[int], balance: bool) -> Tensor:
    """Return weights with mean 1 over the tiles, inverse to the classes' frequencies (all 1 unless `balance`)."""
    frequency = torch.tensor(counts, dtype=torch.float32).clamp(min=1)
    return frequency.sum() / (len(counts) * frequency) if balance else torch.ones(len(counts))
