"""Transfer learning: initial weights from a checkpoint or model file, and distillation from teacher networks.

Knowledge distillation (Hinton et al. 2015, arXiv:1503.02531), with one augmented view for teachers and
student as in Beyer et al. 2022 (arXiv:2106.05237): the target of a tile that is cut, mixed, hazy or short of
bands is what a teacher predicts for that very view, where its label would be overconfident.

Each step draws one teacher and one of the eight symmetries of the tiles. The loss is linear in its target, so
the student learns the mean over all teachers and symmetries, which is more accurate than any of them
(docs/decisions/0016), at the cost of a single prediction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor, nn

from tilewise.datasets.core.errors import ModelFileError, TrainingError
from tilewise.datasets.core.tile import BAND_COUNT
from tilewise.datasets.packs.pack import Pack, spread
from tilewise.models.network.backbones import ResidualCNN
from tilewise.models.network.classifier import SYMMETRIES, Classifier
from tilewise.models.network.pretrained import PretrainedBackbone, PretrainedOptions
from tilewise.training.fit.optimisation import Forward, compiled
from tilewise.training.settings import RunFolder

_PREFIX, _HEAD = "classifier.", "head."
_PRETRAINED = "reconstruction."  # prefix that only checkpoints of pretraining have
_MODEL_FILE = ".onnx"
ANCESTRY = "ancestry"
"""The key of a checkpoint that names the published weights its own come from."""
_MEASURED = 1024  # tiles, for `unfold_weights`


def load_weights(classifier: Classifier, checkpoint: Path, setting: str) -> None:
    """Load the weights of `checkpoint` into `classifier`, with the band statistics of its training.

    Args:
        classifier: with the same network and number of classes.
        checkpoint: of a run.
        setting: the setting that names it, for messages.

    Raises:
        TrainingError: there is no such checkpoint, or it is broken, or of another network or number of
            classes.
    """
    _load(classifier, _weights_of(read_checkpoint(checkpoint, setting)), f"{setting}: {checkpoint}")


def start_from(
    classifier: Classifier, source: Path, classes: Sequence[str], pack: Pack | None, setting: str
) -> str:
    """Load initial weights into `classifier`, which may have other classes; return their ancestry.

    The head keeps its random initialisation where the classes of a model file differ, where a checkpoint has
    another number of classes (it has no names), and where it is of pretraining.

    Args:
        classifier: with the same network.
        source: a checkpoint of a run or of pretraining, or with a `pack` an fp32 model file.
        classes: names of the classes.
        pack: whose train split a model file's layers are measured on (`tilewise.models.export.unfold`).
        setting: the setting that names it, for messages.

    Raises:
        TrainingError: there is no such file, or it is broken, or of another network.
    """
    if pack is not None and source.suffix == _MODEL_FILE:
        weights, ancestry = _of_model_file(classifier, source, classes, pack, setting)
    else:
        saved = read_checkpoint(source, setting)
        weights, ancestry = _weights_of(saved), str(saved.get(ANCESTRY, ""))
    head = {name: value for name, value in classifier.state_dict().items() if name.startswith(_HEAD)}
    if any(name not in weights or weights[name].shape != value.shape for name, value in head.items()):
        weights |= head
    _load(classifier, weights, f"{setting}: {source}")
    return ancestry


def make_backbone(named: nn.Module | str | None, pretrained: PretrainedOptions) -> nn.Module:
    """Return the backbone of the settings `model.backbone` and `model.pretrained`.

    Raises:
        TrainingError: no library has it, or weights are named for a class, which has none.
    """
    if isinstance(named, str):
        return PretrainedBackbone(named, pretrained)
    if pretrained != PretrainedOptions():
        raise TrainingError(
            "model.pretrained: published weights need a published network: model.backbone timm/NAME or "
            "torchgeo/NAME"
        )
    return named or ResidualCNN()


def _load(classifier: Classifier, weights: dict[str, Tensor], origin: str) -> None:
    try:
        classifier.load_state_dict(weights)
    except RuntimeError as error:
        raise TrainingError(f"{origin}: a checkpoint of another network or classes") from error


def read_checkpoint(checkpoint: Path, setting: str) -> dict[str, Any]:
    """Return the content of a checkpoint; its weights are in `state_dict`.

    Args:
        checkpoint: a `best.ckpt` or `last.ckpt`.
        setting: the setting that names it, for messages.

    Raises:
        TrainingError: there is none, or it is broken.
    """
    if not checkpoint.is_file():
        raise TrainingError(
            f"{setting}: {checkpoint}: there is no such checkpoint; name one of a finished run"
        )
    try:
        saved: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
        saved["state_dict"]
    except Exception as error:  # torch raises many kinds of errors for broken archives
        raise TrainingError(f"{setting}: {checkpoint}: no checkpoint of a run, or a broken one") from error
    return saved


def _weights_of(saved: dict[str, Any]) -> dict[str, Tensor]:
    """Return the classifier's weights in a checkpoint, with band statistics; without the head if it was
    pretrained."""
    state = saved["state_dict"]
    weights = {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}
    pretrained = any(name.startswith(_PRETRAINED) for name in state)
    return {name: value for name, value in weights.items() if not (pretrained and name.startswith(_HEAD))}


def _of_model_file(
    classifier: Classifier, path: Path, classes: Sequence[str], pack: Pack, setting: str
) -> tuple[dict[str, Tensor], str]:
    """Return the weights of a model file of the same network, without the head if its classes differ; and
    their ancestry."""
    from tilewise.models.export.unfold import unfold_weights
    from tilewise.models.model_file import open_model  # a machine that only fits may have no ONNX

    tiles = torch.from_numpy(pack.fetch(spread(pack.rows("train"), _MEASURED)))
    try:
        opened = open_model(path)
        weights = unfold_weights(opened, classifier.backbone, tiles)
    except ModelFileError as error:
        raise TrainingError(f"{setting}: {error}") from error
    known = opened.metadata.classes == tuple(classes)
    kept = {name: value for name, value in weights.items() if known or not name.startswith(_HEAD)}
    return kept, opened.metadata.ancestry


@dataclass(frozen=True)
class Distillation:
    """The teachers, and their weight in the target.

    Attributes:
        teachers: folders of finished runs, of any network, with the same classes in the same order.
        share: fraction of the target (0-1) that is the teacher's probabilities; the rest is the label.
    """

    teachers: list[Path]
    share: float = 0.7

    def __post_init__(self) -> None:
        if not self.teachers:
            raise TrainingError("model.distillation.teachers: name at least one folder of a run")
        if not 0 <= self.share <= 1:
            raise TrainingError(f"model.distillation.share: {self.share} is not between 0 and 1")


class Teachers:
    """Frozen networks whose predictions are targets.

    Args:
        options: their folders and weight.
        classes: the number of classes that they must have.
        device: the device that they run on.
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
        """Return targets float32 (batch, classes): labels blended with a teacher's probabilities for `tiles`.

        Teacher and symmetry are drawn from torch's CPU generator, which `SeedEachStep` seeds.
        """
        teacher, symmetry = (int(torch.randint(n, (1,))) for n in (len(self._forwards), len(SYMMETRIES)))
        logits, _ = self._forwards[teacher](SYMMETRIES[symmetry](tiles).contiguous())
        return torch.lerp(targets, logits.float().softmax(1), self._share)


def _teacher(run: RunFolder, classes: int, device: torch.device, compile: bool) -> Forward:
    ones = [1.0] * BAND_COUNT  # band statistics come with the weights
    classifier = Classifier(_backbone_of(run), classes, ones, ones)
    load_weights(classifier, run.best, "model.distillation.teachers")
    classifier.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    return compiled(classifier) if compile else classifier


def _backbone_of(run: RunFolder) -> nn.Module:
    """Return the network that the settings of `run` name, randomly initialised."""
    if not run.settings.is_file():
        raise TrainingError(
            f"model.distillation.teachers: {run.root}: no run, since it has no {run.settings.name}"
        )
    settings = run.read_settings().get("model", {})
    pretrained = PretrainedOptions(**(settings.get("pretrained") or {}))
    named = settings.get("backbone")
    if named is None or (isinstance(named, str) and "/" in named):
        return make_backbone(named, pretrained)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--backbone", type=nn.Module)
    try:
        made: nn.Module = parser.instantiate_classes(parser.parse_object({"backbone": named})).backbone
    except ArgumentError as error:
        raise TrainingError(f"model.distillation.teachers: {run.settings}: {error}") from error
    return make_backbone(made, pretrained)
