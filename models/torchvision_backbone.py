"""Any torchvision classification network as a backbone for 13 bands."""

from torch import Tensor, nn
from torchvision import models as zoo

from datasets.errors import TrainingError
from datasets.tile import BAND_COUNT, TILE_SIZE

_SQUARE_ONLY = {"image_size": TILE_SIZE}  # vision transformers fix the size of their input when they are built


class TorchvisionBackbone(nn.Module):
    """A torchvision network by name, its first layer taking 13 bands and its last layer taken off.

    Args:
        name: as `torchvision.models.list_models()` lists it, e.g. `resnet18`.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.network = _build(name)
        _widen_first_layer(self.network, name)
        self.features = _take_off_last_layer(self.network, name)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 13, 64, 64) to (batch, features)."""
        embedding: Tensor = self.network(x)
        return embedding


def _build(name: str) -> nn.Module:
    known = zoo.list_models(module=zoo)
    if name not in known:
        raise TrainingError(f"torchvision has no network {name!r}; it has {', '.join(known)}")
    options: dict[str, object] = dict(_SQUARE_ONLY) if name.startswith("vit_") else {}
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    return zoo.get_model(name, weights=None, **options)


def _widen_first_layer(network: nn.Module, name: str) -> None:
    path, first = next(((p, m) for p, m in network.named_modules() if isinstance(m, nn.Conv2d)), (None, None))
    if path is None or first is None:
        raise TrainingError(f"{name} has no convolution that could take 13 bands")
    wide = nn.Conv2d(
        BAND_COUNT,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    _replace(network, path, wide)


def _take_off_last_layer(network: nn.Module, name: str) -> int:
    linear = [(path, m) for path, m in network.named_modules() if isinstance(m, nn.Linear)]
    if not linear or linear[-1][1].out_features != 1000:
        raise TrainingError(f"{name} does not end in a linear layer, so its head cannot be replaced")
    path, last = linear[-1]
    _replace(network, path, nn.Identity())
    return last.in_features


def _replace(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, child = path.rpartition(".")
    setattr(network.get_submodule(parent), child, module)
