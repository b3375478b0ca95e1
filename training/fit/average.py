"""Average the weights of runs that began with the same network, and take BatchNorm statistics anew.

Runs that fine-tune one network with other seeds or augmentation end in one basin: the mean of their weights
is one network, often more accurate than each, above all on data unlike the training data (Wortsman et al.
2022, arXiv:2203.05482). Statistics of BatchNorm do not average: they are measured anew on training tiles,
augmented as in training (Izmailov et al. 2018, arXiv:1803.05407).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import yaml
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.core.files import atomic_write
from tilewise.datasets.loading.module import TileDataModule
from tilewise.models.network.classifier import Classifier
from tilewise.training.fit.transfer import ANCESTRY, read_checkpoint
from tilewise.training.settings import RunFolder


def average_checkpoints(checkpoints: Sequence[Path]) -> tuple[dict[str, Tensor], str]:
    """Return the mean of the tensors in checkpoints, whole numbers of the first; and the first's ancestry.

    Raises:
        TrainingError: a checkpoint is missing or broken, or they are of different networks.
    """
    saved = [read_checkpoint(path, "RUN") for path in checkpoints]
    states = [each["state_dict"] for each in saved]
    first = states[0]
    for path, state in zip(checkpoints, states, strict=True):
        if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in first.items()}:
            raise TrainingError(f"{path}: of another network than {checkpoints[0]}")
    mean = {
        name: torch.stack([s[name] for s in states]).mean(0) if value.is_floating_point() else value
        for name, value in first.items()
    }
    return mean, str(saved[0].get(ANCESTRY, ""))


@torch.no_grad()
def refresh_statistics(classifier: Classifier, batches: Iterator[Tensor]) -> int:
    """Measure the statistics of every BatchNorm layer anew, on `batches` of DN; return how many tiles."""
    layers = [module for module in classifier.backbone.modules() if isinstance(module, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    classifier.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a mean over all batches
        layer.train()
    counted = 0
    for tiles in batches:
        classifier(tiles)
        counted += len(tiles)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    classifier.eval()
    return counted


def augmented_batches(datamodule: TileDataModule, tiles: int) -> Iterator[Tensor]:
    """Yield DN of shuffled training batches, about `tiles` tiles, augmented as in training."""
    augment = datamodule.augmentation(torch.device("cpu"))
    left = tiles
    for batch in datamodule.train_dataloader():
        if left <= 0:
            return
        left -= len(batch["tiles"])
        yield augment(batch["tiles"], batch["labels"], batch["keys"])[0]


def write_run(folder: RunFolder, state: dict[str, Tensor], ancestry: str, settings: Path) -> None:
    """Write a run that has these weights, with the settings of another, all of whose tiles train."""
    content = yaml.safe_load(settings.read_text(encoding="utf-8"))
    content["data"].pop("hold_out", None)
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder.best) as partial:
        torch.save({"state_dict": state, ANCESTRY: ancestry}, partial)
    with atomic_write(folder.settings) as partial:
        partial.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
