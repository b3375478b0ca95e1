"""What a network learns from others: their answers to the very tiles that it sees, beside the labels.

Knowledge distillation (Hinton et al. 2015, arXiv:1503.02531), with one augmented view for teachers and student as in
Beyer et al. 2022 (arXiv:2106.05237): a tile that is cut, mixed, hazy or short of bands gets what the teachers make of
it, where its label would claim more than can be seen.

In each step one teacher answers, drawn by chance, and sees the tiles turned or mirrored in one of the eight ways, drawn
by chance. The loss is linear in its target, so that the student learns the mean over all teachers and all ways, which
is more often right than any of them (docs/decisions/0016), at the price of a single answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor, nn

from tilewise.datasets.core.errors import ModelFileError, TrainingError
from tilewise.datasets.core.tile import BAND_COUNT
from tilewise.datasets.packs.pack import Pack, spread
from tilewise.models.network.backbones import ResidualCNN
from tilewise.models.network.classifier import SYMMETRIES, Classifier
from tilewise.training.fit.optimisation import Forward, compiled
from tilewise.training.settings import RunFolder

_PREFIX, _HEAD = "classifier.", "head."
_PRETRAINED = "reconstruction."  # what a checkpoint of `training.pretraining` has and no other
_MODEL_FILE = ".onnx"
_MEASURED = 1024  # tiles


def load_weights(classifier: Classifier, checkpoint: Path, setting: str) -> None:
    """Load what `checkpoint` learned into `classifier`, with the bands' statistics that it was learned on.

    Args:
        classifier: of the same network and as many classes.
        checkpoint: of a run.
        setting: what named it, for messages.

    Raises:
        TrainingError: there is no such checkpoint, or it is broken, or of another network or number of classes.
    """
    _load(classifier, _saved(checkpoint, setting), f"{setting}: {checkpoint}")


def start_from(
    classifier: Classifier, source: Path, classes: Sequence[str], pack: Pack | None, setting: str
) -> None:
    """Load what a training starts from into `classifier`, whatever the classes it was learned for.

    The head stays as it was drawn where the classes of a model file are others, where a checkpoint is for another
    number of them (it does not know their names), and where it is of pretraining.

    Args:
        classifier: of the same network.
        source: a checkpoint of a run or of pretraining, or where there is a `pack` an fp32 model file.
        classes: what the classifier is to know.
        pack: whose train split tells what the layers of a model file's network give (`tilewise.models.export.unfold`).
        setting: what named it, for messages.

    Raises:
        TrainingError: there is no such file, or it is broken, or of another network.
    """
    if pack is not None and source.suffix == _MODEL_FILE:
        weights = _of_model_file(classifier, source, classes, pack, setting)
    else:
        weights = _saved(source, setting)
    head = {name: value for name, value in classifier.state_dict().items() if name.startswith(_HEAD)}
    if any(name not in weights or weights[name].shape != value.shape for name, value in head.items()):
        weights |= head
    _load(classifier, weights, f"{setting}: {source}")


def _load(classifier: Classifier, weights: dict[str, Tensor], overrides: str) -> None:
    try:
        classifier.load_state_dict(weights)
    except RuntimeError as error:
        raise TrainingError(f"{overrides}: a checkpoint of another network or classes") from error


def _saved(checkpoint: Path, setting: str) -> dict[str, Tensor]:
    """Return the weights of the classifier in a checkpoint, bands' statistics included; no head if it was pretrained.

    Args:
        checkpoint: a `best.ckpt` or `last.ckpt`.
        setting: what named it, for the message.

    Raises:
        TrainingError: there is none, or it is broken.
    """
    if not checkpoint.is_file():
        raise TrainingError(
            f"{setting}: {checkpoint}: there is no such checkpoint; name one of a finished run"
        )
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:  # torch raises whatever the broken part of the archive makes it raise
        raise TrainingError(f"{setting}: {checkpoint}: no checkpoint of a run, or a broken one") from error
    weights = {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}
    pretrained = any(name.startswith(_PRETRAINED) for name in state)
    return {name: value for name, value in weights.items() if not (pretrained and name.startswith(_HEAD))}


def _of_model_file(
    classifier: Classifier, path: Path, classes: Sequence[str], pack: Pack, setting: str
) -> dict[str, Tensor]:
    """Return the weights in a model file of the network of `classifier`; without the head of other classes."""
    from tilewise.models.export.unfold import unfolded
    from tilewise.models.model_file import open_model  # a machine that only fits may have no ONNX

    tiles = torch.from_numpy(pack.fetch(spread(pack.rows("train"), _MEASURED)))
    try:
        opened = open_model(path)
        weights = unfolded(opened, classifier.backbone, tiles)
    except ModelFileError as error:
        raise TrainingError(f"{setting}: {error}") from error
    known = opened.metadata.classes == tuple(classes)
    return {name: value for name, value in weights.items() if known or not name.startswith(_HEAD)}


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
        self._forwards = [
            _teacher(RunFolder(folder), classes, device, compile) for folder in options.teachers
        ]

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
        raise TrainingError(
            f"model.distillation.teachers: {run.root}: no run, since it has no {run.settings.name}"
        )
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
