"""The networks that training is measured with."""

from torch import nn

from tilewise.models.network.backbones import ResidualCNN


def build(name: str) -> nn.Module:
    """Return a backbone for 13 bands: `demo`, `tilewise` (configs/model.yaml), or a network of
    torchvision."""
    if name == "demo":
        return ResidualCNN((32, 64, 128), (1, 1, 1), (16, 32))
    if name == "tilewise":
        return ResidualCNN()
    from tilewise.models.network.backbones import TorchvisionBackbone

    return TorchvisionBackbone(name)
