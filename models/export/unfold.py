"""Load a model file's weights back into its network, so that training can start from the file alone.

Export folds each batch normalisation into the convolution before it. Here they are separated again: the
output of the convolution is measured on tiles, and the normalisation gets these means and deviations, and
undoes them. The network is the same function, also in training mode, where batches are normalised by their
own statistics.
"""

from collections.abc import Iterator
from copy import deepcopy

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from tilewise.datasets.core.errors import ModelFileError
from tilewise.datasets.core.tile import BAND_COUNT, TILE_SIZE
from tilewise.models.model_file import INPUT, ModelFile
from tilewise.models.network.classifier import Classifier

_ROOT = "classifier."
_LOGITS = "logits"
_MAX_DIFFERENCE = 1e-3  # of any logit: folding rounds
_BATCH = 128
_SYMMETRIES = (1, 2, 4, 8)


def unfold_weights(opened: ModelFile, backbone: nn.Module, tiles: Tensor) -> dict[str, Tensor]:
    """Return the weights of an fp32 model file, as the state of a `Classifier` with such a backbone.

    Args:
        opened: a file written by `tilewise.models.export.export`.
        backbone: its network, one of `tilewise.models.network.backbones`; the weights that it has are
            ignored.
        tiles: uint16 (n, 13, 64, 64), DN, like those of the training; some hundreds.

    Raises:
        ModelFileError: it is an INT8 file, or of another network.
    """
    path = opened.path
    if opened.metadata.quantised_from:
        raise ModelFileError(f"{path}: an INT8 file, whose weights are rounded; name the fp32 file beside it")
    ones = [1.0] * BAND_COUNT  # statistics of bands come with the weights
    classifier = Classifier(deepcopy(backbone).cpu(), len(opened.metadata.classes), ones, ones)
    try:
        classifier.load_state_dict(_state(onnx.load(path).graph, classifier))
    except (KeyError, RuntimeError) as error:
        raise ModelFileError(f"{path}: a model file of another network") from error
    _separate_normalisations(classifier.eval(), tiles)
    _compare(classifier, opened)
    return classifier.state_dict()


def _state(graph: onnx.GraphProto, classifier: Classifier) -> dict[str, Tensor]:
    """Return the graph's weights as the state of `classifier`; raises KeyError where the graph has no such
    weights."""
    arrays = {
        tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer
    }
    inputs = {node.output[0]: list(node.input) for node in graph.node}
    biases = {names[1]: names[2] for names in inputs.values() if len(names) > 2}
    state = classifier.state_dict()
    state |= {name: arrays[_ROOT + name] for name in state if name.startswith("preprocess.")}
    state |= {"head.weight": arrays[inputs[_LOGITS][1]], "head.bias": arrays[inputs[_LOGITS][2]]}
    for name, _ in _normalisations(classifier):
        kernel = f"{_ROOT}{name}.0.weight"
        bias = (
            arrays[biases[kernel]] if kernel in biases else torch.zeros(len(arrays[kernel]))
        )  # the graph has no bias of zeros
        state |= {f"{name}.0.weight": arrays[kernel], f"{name}.1.bias": bias}
    return state


def _normalisations(classifier: Classifier) -> Iterator[tuple[str, nn.BatchNorm2d]]:
    """Yield each normalisation that export folds into the convolution before it, with the name of the
    pair."""
    for name, module in classifier.backbone.named_modules(prefix="backbone"):
        if (
            isinstance(module, nn.Sequential) and len(module) == 2
        ):  # `tilewise.models.network.backbones.conv_norm`
            first, second = module
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                yield name, second


def _separate_normalisations(classifier: Classifier, tiles: Tensor) -> None:
    """Give each normalisation, whose bias is the folded one, the statistics of `tiles`, and weights that undo
    them."""
    norms = [norm for _, norm in _normalisations(classifier)]
    seen: list[list[Tensor]] = [[] for _ in norms]
    for norm, moments in zip(norms, seen, strict=True):
        norm.reset_running_stats()
        nn.init.constant_(norm.weight, (1 + norm.eps) ** 0.5)  # it only adds its bias for now
        norm.register_forward_pre_hook(lambda _, inputs, moments=moments: moments.append(_moments(*inputs)))
    with torch.no_grad():
        for batch in tiles.split(_BATCH):
            classifier(batch)
        for norm, moments in zip(norms, seen, strict=True):
            _undo(norm, *torch.stack(moments).mean(0))


def _undo(norm: nn.BatchNorm2d, mean: Tensor, square: Tensor) -> None:
    """Let a normalisation only add its bias to an input with this mean and mean square, (channels,)."""
    variance = (square - mean * mean).clamp(min=0.0)
    state = {"running_mean": mean, "running_var": variance, "weight": (variance + norm.eps).sqrt()}
    norm.load_state_dict(norm.state_dict() | state | {"bias": norm.bias + mean})


def _moments(x: Tensor) -> Tensor:
    """Return float32 (2, channels): the mean and the mean square of (batch, channels, height, width)."""
    return torch.stack([x.mean((0, 2, 3)), x.square().mean((0, 2, 3))])


def _compare(classifier: Classifier, opened: ModelFile) -> None:
    """Refuse weights with which the network is another function than the file, for any number of
    symmetries."""
    tiles = (
        np.random.default_rng(0).integers(1, 4000, (2, BAND_COUNT, TILE_SIZE, TILE_SIZE)).astype(np.uint16)
    )
    expected = opened.session.run([_LOGITS], {INPUT: tiles})[0]
    for classifier.symmetries in _SYMMETRIES:
        with torch.no_grad():
            found = classifier(torch.from_numpy(tiles))[0].numpy()
        if np.abs(found - expected).max() <= _MAX_DIFFERENCE * max(1.0, np.abs(expected).max()):
            return
    raise ModelFileError(
        f"{opened.path}: its weights fit this network, whose predictions with them differ from the file's"
    )
