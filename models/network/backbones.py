"""Backbones for 13-band tiles of 64 × 64 pixels: two small CNNs, and any torchvision classification
network."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models as zoo

from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.core.tile import BAND_COUNT, TILE_SIZE


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Return a convolution without bias and the batch normalisation that follows it."""
    padding = (kernel - 1) // 2 if kernel % 2 else (kernel - stride) // 2
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = conv_norm(inputs, outputs, 3, stride)
        self.second = conv_norm(outputs, outputs, 3)
        same = stride == 1 and inputs == outputs
        # A strided shortcut takes all pixels (2 × 2), not every fourth.
        self.shortcut = nn.Identity() if same else conv_norm(inputs, outputs, stride, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, h, w) to (batch, outputs, h / stride, w / stride)."""
        inner = self.second(functional.relu(self.first(x)))
        return functional.relu(inner + self.shortcut(x))


class ResidualCNN(nn.Module):
    """A backbone: 13 normalised bands to one embedding a tile.

    Args:
        widths: channels of each stage; every stage after the first halves the grid.
        depths: residual blocks of each stage.
        stem: channels after each of the two strided convolutions that lead from 64 × 64 to 16 × 16; with a
            single number there is one convolution of 4 × 4 pixels instead, which is faster and resolves less
            texture.
        dropout: fraction of the embedding that is dropped in training.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 256),
        depths: Sequence[int] = (1, 1, 1),
        stem: Sequence[int] = (32, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.stem = _stem(stem)
        blocks, channels = [], stem[-1]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for block in range(depth):
                blocks.append(ResidualBlock(channels, width, stride=2 if block == 0 and stage > 0 else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.features = channels

    def grid(self, x: Tensor) -> Tensor:
        """Map (batch, 13, 64, 64) to (batch, features, side, side): the grid of features."""
        features: Tensor = self.blocks(self.stem(x))
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 13, 64, 64) to (batch, features)."""
        embedding: Tensor = self.dropout(torch.mean(self.grid(x), dim=(2, 3)))
        return embedding


class ConvBlock(nn.Module):
    """One 3 × 3 convolution, with a shortcut where input and output have one shape."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.convolution = conv_norm(inputs, outputs, 3, stride)
        self.same = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, h, w) to (batch, outputs, h / stride, w / stride)."""
        y = self.convolution(x)
        return functional.relu(x + y if self.same else y)


class PatchCNN(nn.Module):
    """A backbone for CPUs: patches of 4 × 4 pixels, then dense 3 × 3 convolutions on small grids of many
    channels.

    INT8 is fastest on these (docs/decisions/0013): depthwise convolutions and large grids are bound by memory
    bandwidth. 0.05 GFLOP a tile with the default widths.

    Args:
        patch: channels of the first layer, which has one output for each patch of 4 × 4 pixels.
        window: side of that layer's kernel in pixels: 4, the patch alone; 6 or 8, some of its neighbours as
            well.
        widths: channels of each stage; every stage begins by halving the grid, the first from 16 × 16 to 8 ×
            8.
        depths: convolutions of each stage.
        dropout: fraction of the embedding that is dropped in training.
    """

    def __init__(
        self,
        patch: int = 64,
        widths: Sequence[int] = (96, 160),
        depths: Sequence[int] = (3, 2),
        dropout: float = 0.0,
        window: Literal[4, 6, 8] = 4,
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = [*_patches(patch, window)]
        channels = patch
        for width, depth in zip(widths, depths, strict=True):
            for block in range(depth):
                blocks.append(ConvBlock(channels, width, stride=2 if block == 0 else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.features = channels

    def grid(self, x: Tensor) -> Tensor:
        """Map (batch, 13, 64, 64) to (batch, features, side, side): the grid of features."""
        features: Tensor = self.blocks(x)
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 13, 64, 64) to (batch, features)."""
        embedding: Tensor = self.dropout(torch.mean(self.grid(x), dim=(2, 3)))
        return embedding


def _stem(channels: Sequence[int]) -> nn.Sequential:
    if len(channels) == 1:
        return _patches(channels[0], 4)
    first, second = channels
    return nn.Sequential(
        conv_norm(BAND_COUNT, first, 4, 2), nn.ReLU(), conv_norm(first, second, 3, 2), nn.ReLU()
    )


def _patches(channels: int, window: int) -> nn.Sequential:
    return nn.Sequential(conv_norm(BAND_COUNT, channels, window, 4), nn.ReLU())


_SQUARE_ONLY = {
    "image_size": TILE_SIZE
}  # vision transformers fix the size of their input when they are built


class TorchvisionBackbone(nn.Module):
    """A torchvision network by name, with a first layer for 13 bands and without its last layer.

    Args:
        name: as `torchvision.models.list_models()` lists it, e.g. `resnet18`.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.network = _build(name)
        _widen_first_layer(self.network, name)
        self.features = _remove_last_layer(self.network, name)

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
        raise TrainingError(f"{name} has no convolution that can be replaced by one for 13 bands")
    wide = nn.Conv2d(
        BAND_COUNT,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    _replace(network, path, wide)


def _remove_last_layer(network: nn.Module, name: str) -> int:
    linear = [(path, m) for path, m in network.named_modules() if isinstance(m, nn.Linear)]
    if not linear or linear[-1][1].out_features != 1000:
        raise TrainingError(f"{name} does not end in a linear layer, so its head cannot be replaced")
    path, last = linear[-1]
    _replace(network, path, nn.Identity())
    return last.in_features


def _replace(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, child = path.rpartition(".")
    setattr(network.get_submodule(parent), child, module)
