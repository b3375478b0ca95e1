"""Weights that a training starts from or is taught by: of a run's checkpoint, or of a model file."""

from pathlib import Path

import torch
from torch import Tensor

from datasets.errors import ModelFileError, TrainingError
from datasets.pack import Pack, spread
from models.classifier import Classifier

_PREFIX, _HEAD = "classifier.", "head."
_MODEL_FILE = ".onnx"
_MEASURED = 1024  # tiles


def load_weights(
    classifier: Classifier, source: Path, setting: str, any_classes: bool = False, pack: Pack | None = None
) -> None:
    """Load what `source` learned into `classifier`, with the bands' statistics that it was learned on.

    Args:
        classifier: of the same network.
        source: a checkpoint of a run, or where there is a `pack` an fp32 model file.
        setting: what named it, for messages.
        any_classes: whether the head may be left as it was drawn, where `source` has none (pretraining) or one for
            another number of classes.
        pack: whose train split tells what the layers of a model file's network give (`models.unfold`).

    Raises:
        TrainingError: there is no such file, or it is broken, or of another network or number of classes.
    """
    if pack is not None and source.suffix == _MODEL_FILE:
        weights = _of_model_file(classifier, source, setting, pack)
    else:
        weights = _saved(source, setting)
    if any_classes:
        head = {name: value for name, value in classifier.state_dict().items() if name.startswith(_HEAD)}
        if any(name not in weights or weights[name].shape != value.shape for name, value in head.items()):
            weights |= head
    try:
        classifier.load_state_dict(weights)
    except RuntimeError as error:
        raise TrainingError(f"{setting}: {source}: a checkpoint of another network or classes") from error


def _saved(checkpoint: Path, setting: str) -> dict[str, Tensor]:
    """Return the weights of the classifier in a run's checkpoint, bands' statistics included.

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
    return {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}


def _of_model_file(classifier: Classifier, path: Path, setting: str, pack: Pack) -> dict[str, Tensor]:
    """Return the weights in a model file of the network of `classifier`, whatever its classes."""
    from models.unfold import unfolded  # a machine that only fits may have no ONNX

    tiles = torch.from_numpy(pack.fetch(spread(pack.rows("train"), _MEASURED)))
    try:
        return unfolded(path, classifier.backbone, tiles)
    except ModelFileError as error:
        raise TrainingError(f"{setting}: {error}") from error
