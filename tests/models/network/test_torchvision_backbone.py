import pytest
import torch

from tilewise.datasets.core.errors import TrainingError
from tilewise.models.network.backbones import TorchvisionBackbone


@pytest.mark.parametrize(
    ("name", "features"), [("resnet18", 512), ("mobilenet_v3_small", 1024), ("shufflenet_v2_x0_5", 1024)]
)
def test_a_torchvision_network_takes_13_bands_and_gives_its_embedding(name: str, features: int) -> None:
    backbone = TorchvisionBackbone(name).eval()
    assert backbone.features == features
    assert backbone(torch.zeros(2, 13, 64, 64)).shape == (2, features)


def test_a_vision_transformer_is_built_for_tiles_of_64_pixels() -> None:
    backbone = TorchvisionBackbone("vit_b_32").eval()
    assert backbone(torch.zeros(1, 13, 64, 64)).shape == (1, backbone.features)


def test_an_unknown_name_lists_the_networks_there_are() -> None:
    with pytest.raises(TrainingError, match=r"no network 'resnet19'; it has .*resnet18"):
        TorchvisionBackbone("resnet19")


def test_a_network_without_a_linear_head_says_so() -> None:
    with pytest.raises(TrainingError, match="squeezenet1_0 does not end in a linear layer"):
        TorchvisionBackbone("squeezenet1_0")
