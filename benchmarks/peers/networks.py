"""The networks that training is measured with."""

from torch import nn

from models.network import ResidualCNN


def build(name: str) -> nn.Module:
    """Return a backbone for 13 bands: `demo`, `sentile` (configs/model.yaml), or a network of torchvision."""
    if name == "demo":
        return ResidualCNN((32, 64, 128), (1, 1, 1), (16, 32))
    if name == "sentile":
        return ResidualCNN()
    from models.torchvision_backbone import TorchvisionBackbone

    return TorchvisionBackbone(name)
