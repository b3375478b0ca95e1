"""The Lightning task: training, validation and test steps of a classifier."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.loading.loaders import Batch
from tilewise.datasets.packs.pack import UNLABELLED, Pack
from tilewise.models.network.classifier import Classifier
from tilewise.models.network.pretrained import PretrainedBackbone, PretrainedOptions
from tilewise.training.evaluate.evaluation import ALL, BAND_VIEWS, LogitCollector, evaluate, see_through
from tilewise.training.fit.optimisation import (
    Forward,
    Optimisation,
    OptimisedModule,
    allow_tf32,
    compiled,
    faster_forward,
    wanted,
)
from tilewise.training.fit.transfer import (
    ANCESTRY,
    Distillation,
    Teachers,
    make_backbone,
    start_from,
)


class ClassificationTask(OptimisedModule):
    """Train a classifier of tiles.

    Attributes:
        collected: logits of validation or testing, for `tilewise.training.evaluate.evaluation`.
        ancestry: the published weights that the network comes from; empty: drawn weights.

    Args:
        classes, band_mean, band_std, class_counts: taken from the data module.
        backbone: the network: `timm/NAME`, `torchgeo/NAME`, or a class of
            `tilewise.models.network.backbones`, `ResidualCNN` where none is given.
        optimisation: how its weights move.
        compile: let torch compile the network for training, which takes a minute at first and is then faster
            (1.6 times on 2 CPU cores for the network of configs/experiments/eurosat.yaml); needs a C++
            compiler. null: on a GPU, where a measurement at the first step says that it is faster.
        start_from: what training starts with: the weights of the same network in a checkpoint, of a run of
            any classes or of `tilewise train pretrain`, or in a model file (fp32, e.g. the one that ships);
            null: drawn ones.
        distillation: finished runs whose answers are learned beside the labels; null: labels alone.
        symmetries: how many of a tile's eight turns and mirrors the trained network looks at, taking the
            mean: 1, 2, 4 or 8. It is right a little more often, and as many times slower. Training itself is
            not changed, so `test` and `export` can be told this of a finished run; the model file holds it.
        pretrained: the published weights of a `timm/` or `torchgeo/` backbone.
    """

    collected: LogitCollector
    class_weights: Tensor

    def __init__(
        self,
        classes: list[str],
        band_mean: list[float],
        band_std: list[float],
        class_counts: list[int],
        backbone: nn.Module | str | None = None,
        optimisation: Optimisation = Optimisation(),  # noqa: B008 - frozen
        compile: bool | None = None,
        start_from: Path | None = None,
        distillation: Distillation | None = None,
        symmetries: Literal[1, 2, 4, 8] = 1,
        pretrained: PretrainedOptions = PretrainedOptions(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(optimisation)
        self.classes = classes
        network = make_backbone(backbone, pretrained)
        self.classifier = Classifier(network, len(classes), band_mean, band_std, symmetries)
        self.classifier.to(memory_format=torch.channels_last)
        self._compile, self._start_from, self._distillation = compile, start_from, distillation
        self._teachers: Teachers | None = None
        self.ancestry = ""
        self._train_forward: list[Forward] = []
        self.register_buffer("class_weights", _class_weights(class_counts, optimisation.balance_classes))

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and embedding of DN tiles."""
        logits, embedding = self.classifier(tiles)
        return logits, embedding

    def setup(self, stage: str) -> None:
        """Load the weights that training starts from, unless a checkpoint is resumed.

        Raises:
            TrainingError: there are no such weights, or tiles without labels are to train.
        """
        if stage != "fit":
            return
        data = getattr(self.trainer, "datamodule", None)
        if UNLABELLED in getattr(data, "train_splits", ()):
            raise TrainingError(
                f"data.train_splits: {UNLABELLED} tiles have no labels; use `tilewise train pretrain`"
            )
        if self.trainer.ckpt_path is None:
            self._load_initial_weights(getattr(data, "pack", None))
        self.freeze_backbone(self.classifier.backbone)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the ancestry of the weights beside them."""
        checkpoint[ANCESTRY] = self.ancestry

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it up again."""
        self.ancestry = str(checkpoint.get(ANCESTRY, ""))

    def on_train_epoch_start(self) -> None:
        """Keep a frozen backbone's statistics and dropout as they are in use."""
        if self.optimisation.frozen_backbone:
            self.classifier.backbone.eval()

    def on_fit_start(self) -> None:
        """Start watching the loss, load the teachers, and drop a network that was compiled for another
        run."""
        super().on_fit_start()
        self._train_forward = []
        if self._distillation is not None:
            compile = wanted(self._compile, self.device)
            self._teachers = Teachers(self._distillation, len(self.classes), self.device, compile)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of an augmented batch."""
        if not self._train_forward:
            # In a list, so that the classifier is not registered as a second submodule.
            self._train_forward = [self._choose_forward(batch["tiles"])]
        logits, _ = self._train_forward[0](batch["tiles"])
        targets = batch["targets"]
        if self._teachers is not None:
            targets = self._teachers.blend(batch["whole"], targets)
        loss = self._loss(logits, targets, self.optimisation.label_smoothing)
        return self.watched(loss, len(logits))

    def on_validation_epoch_start(self) -> None:
        """Start collecting logits."""
        self.collected = LogitCollector()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the logits of a batch."""
        logits, _ = self(batch["tiles"])
        self.collected.add(ALL, logits)
        self.collected.add_truth(batch["rows"], batch["labels"])

    def on_validation_epoch_end(self) -> None:
        """Evaluate the logits of all processes together, so that each tile counts once."""
        self.collected.collect(self._from_all)
        logits, labels = self.collected.logits(ALL), self.collected.labels
        found = evaluate(ALL, logits.softmax(1), labels, self.classes)
        weights = self.class_weights.cpu() if self.optimisation.balance_classes else None
        loss = float(functional.cross_entropy(logits, labels, weight=weights))
        for name in ("accuracy", "macro_f1", "calibration_error"):
            self.log(f"val/{name}", getattr(found, name), prog_bar=True, sync_dist=True)
        self.log("val/loss", loss, sync_dist=True)

    def on_test_epoch_start(self) -> None:
        """Start collecting logits, in 32 bit whatever the precision of training."""
        allow_tf32(False)
        self.collected = LogitCollector()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the answers to a batch, seen through every set of bands;
        `tilewise.training.evaluate.evaluation` measures them."""
        for view in BAND_VIEWS:
            with torch.autocast(self.device.type, enabled=False):
                logits, _ = self(see_through(batch["tiles"].float(), view))
            self.collected.add(view, logits)
        self.collected.add_truth(batch["rows"], batch["labels"])

    def on_test_epoch_end(self) -> None:
        """Gather the logits of all processes."""
        self.collected.collect(self._from_all)

    def _load_initial_weights(self, pack: Pack | None) -> None:
        backbone, preprocess = self.classifier.backbone, self.classifier.preprocess
        if self._start_from is not None:
            self.ancestry = start_from(
                self.classifier, self._start_from, self.classes, pack, "model.start_from"
            )
        elif isinstance(backbone, PretrainedBackbone):
            self.ancestry = backbone.load(preprocess.scale, preprocess.shift)

    def _choose_forward(self, tiles: Tensor) -> Forward:
        """Return the network plain or compiled, for batches like `tiles`: only training batches have one
        shape."""
        if self._compile is None and tiles.device.type == "cuda":
            forward, line = faster_forward(self.classifier, tiles)
            if self.trainer.is_global_zero:
                print(line, flush=True)
            return forward
        return compiled(self.classifier) if self._compile else self.classifier

    def _from_all(self, tensor: Tensor) -> Tensor:
        """Return the tensors (n, …) of all processes as one."""
        if self.trainer.world_size == 1:
            return tensor
        gathered = self.all_gather(tensor)
        assert isinstance(gathered, Tensor)  # noqa: S101 - it returns what it was given
        return gathered.flatten(0, 1)

    def _loss(self, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        weights = self.class_weights if self.optimisation.balance_classes else None
        loss: Tensor = functional.cross_entropy(
            logits.float(),
            targets,
            weight=weights,
            label_smoothing=smoothing,
        )
        return loss


def _class_weights(counts: Sequence[int], balance: bool) -> Tensor:
    """Return weights with mean 1 over the tiles, inverse to the class frequencies (all 1 unless
    `balance`)."""
    frequency = torch.tensor(counts, dtype=torch.float32).clamp(min=1)
    return frequency.sum() / (len(counts) * frequency) if balance else torch.ones(len(counts))
