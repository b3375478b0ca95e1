"""Weights that a training starts from or is taught by: of a run's checkpoint, or of a model file."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from datasets.errors import ModelFileError, TrainingError
from datasets.pack import Pack, spread
from models.classifier import Classifier

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


def start_from(classifier: Classifier, source: Path, classes: Sequence[str], pack: Pack | None, setting: str) -> None:
    """Load what a training starts from into `classifier`, whatever the classes it was learned for.

    The head stays as it was drawn where the classes of a model file are others, where a checkpoint is for another
    number of them (it does not know their names), and where it is of pretraining.

    Args:
        classifier: of the same network.
        source: a checkpoint of a run or of pretraining, or where there is a `pack` an fp32 model file.
        classes: what the classifier is to know.
        pack: whose train split tells what the layers of a model file's network give (`models.unfold`).
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


def _load(classifier: Classifier, weights: dict[str, Tensor], said: str) -> None:
    try:
        classifier.load_state_dict(weights)
    except RuntimeError as error:
        raise TrainingError(f"{said}: a checkpoint of another network or classes") from error


def _saved(checkpoint: Path, setting: str) -> dict[str, Tensor]:
    """Return the weights of the classifier in a checkpoint, bands' statistics included; no head if it was pretrained.

    Args:
        checkpoint: a `best.ckpt` or `last.ckpt`.
        setting: what named it, for the message.

    Raises:
        TrainingError: there is none, or it is broken.
    """
    if not checkpoint.is_file():
        raise TrainingError(f"{setting}: {checkpoint}: there is no such checkpoint; name one of a finished run")
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
    from models.modelfile import open_model  # a machine that only fits may have no ONNX
    from models.unfold import unfolded

    tiles = torch.from_numpy(pack.fetch(spread(pack.rows("train"), _MEASURED)))
    try:
        opened = open_model(path)
        weights = unfolded(opened, classifier.backbone, tiles)
    except ModelFileError as error:
        raise TrainingError(f"{setting}: {error}") from error
    known = opened.metadata.classes == tuple(classes)
    return {name: value for name, value in weights.items() if known or not name.startswith(_HEAD)}
