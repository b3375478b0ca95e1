"""What a network learns from others: their answers to the very tiles that it sees, beside the labels.

Knowledge distillation (Hinton et al. 2015, arXiv:1503.02531), with one augmented view for teachers and student as in
Beyer et al. 2022 (arXiv:2106.05237): a tile that is cut, mixed, hazy or short of bands gets what the teachers make of
it, where its label would claim more than can be seen.

In each step one teacher answers, drawn by chance, and sees the tiles turned or mirrored in one of the eight ways, drawn
by chance. The loss is linear in its target, so that the student learns the mean over all teachers and all ways, which
is more often right than any of them (docs/decisions/0016), at the price of a single answer.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor, nn

from datasets.errors import TrainingError
from datasets.tile import BAND_COUNT
from models.classifier import Classifier
from models.network import ResidualCNN
from models.symmetries import SYMMETRIES
from training.compilation import Forward, compiled
from training.paths import RunFolder
from training.weights import load_weights


@dataclass(frozen=True)
class Distillation:
    """Who teaches, and how much they say.

    Attributes:
        teachers: folders of finished runs, of any network, with the classes of this one in the same order.
        share: of the target (0-1) that is the teacher's probabilities; the rest is the label.
    """

    teachers: list[Path]
    share: float = 0.7

    def __post_init__(self) -> None:
        if not self.teachers:
            raise TrainingError("model.distillation.teachers: name at least one folder of a run")
        if not 0 <= self.share <= 1:
            raise TrainingError(f"model.distillation.share: {self.share} is no share from 0 to 1")


class Teachers:
    """Networks that answer and learn nothing.

    Args:
        options: where they are.
        classes: how many they must know.
        device: where they answer.
        compile: whether they are compiled, as the student is.

    Raises:
        TrainingError: a folder holds no finished run, or one of other classes.
    """

    def __init__(self, options: Distillation, classes: int, device: torch.device, compile: bool) -> None:
        self._share = options.share
        self._forwards = [_teacher(RunFolder(folder), classes, device, compile) for folder in options.teachers]

    @torch.no_grad()
    def blend(self, tiles: Tensor, targets: Tensor) -> Tensor:
        """Return targets float32 (batch, classes): labels and a teacher's answers to `tiles`, by their shares.

        Which teacher and which way is drawn from torch's generator of the CPU, which `SeedEachStep` seeds.
        """
        teacher, way = (int(torch.randint(n, (1,))) for n in (len(self._forwards), len(SYMMETRIES)))
        logits, _ = self._forwards[teacher](SYMMETRIES[way](tiles).contiguous())
        return torch.lerp(targets, logits.float().softmax(1), self._share)


def _teacher(run: RunFolder, classes: int, device: torch.device, compile: bool) -> Forward:
    ones = [1.0] * BAND_COUNT  # the statistics of its bands come with its weights
    classifier = Classifier(_backbone_of(run), classes, ones, ones)
    load_weights(classifier, run.best, "model.distillation.teachers")
    classifier.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    return compiled(classifier) if compile else classifier


def _backbone_of(run: RunFolder) -> nn.Module:
    """Return the network, with weights drawn, that the settings of `run` name."""
    if not run.settings.is_file():
        raise TrainingError(f"model.distillation.teachers: {run.root}: no run, since it has no {run.settings.name}")
    named = run.read_settings().get("model", {}).get("backbone")
    if named is None:
        return ResidualCNN()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--backbone", type=nn.Module)
    try:
        made = parser.instantiate_classes(parser.parse_object({"backbone": named})).backbone
    except ArgumentError as error:
        raise TrainingError(f"model.distillation.teachers: {run.settings}: {error}") from error
    assert isinstance(made, nn.Module)  # noqa: S101 - the parser checked it
    return made
