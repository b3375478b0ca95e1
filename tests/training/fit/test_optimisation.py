"""Compiling where it pays: measured, without a trace, and with a way back."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from tilewise.models.network.backbones import ResidualCNN, TorchvisionBackbone
from tilewise.models.network.classifier import Classifier
from tilewise.models.network.pretrained import PretrainedBackbone
from tilewise.training.fit.optimisation import Optimisation, compiled, faster_forward, parameter_groups


def classifier(backbone: nn.Module | None = None) -> Classifier:
    torch.manual_seed(0)
    return Classifier(backbone or ResidualCNN((8,), (1,), (8,)), 10, [1000.0] * 13, [500.0] * 13)


def tiles() -> Tensor:
    return torch.randint(0, 5000, (4, 13, 64, 64)).float()


@pytest.mark.parametrize("backbone", [ResidualCNN, lambda: TorchvisionBackbone("resnet18")])
def test_a_network_is_one_graph_without_breaks(backbone: Callable[[], nn.Module]) -> None:
    explained = torch._dynamo.explain(classifier(backbone()))(tiles())
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


def test_batches_of_one_shape_are_compiled_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = CompileCounter()
    made = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *a, **more: made(*a, **more, backend=counted))
    network = classifier()
    forward = compiled(network)
    for _ in range(4):
        logits, _ = forward(tiles())
        logits.sum().backward()
        torch.optim.SGD(network.parameters(), lr=0.1).step()
    assert counted.frame_count == 1


def slowed(times: int) -> Callable[..., Any]:
    """A compiler whose graphs run `times` times."""

    def compile_with(graph: Any, inputs: Any) -> Any:
        def run(*arguments: Any) -> Any:
            for _ in range(times - 1):
                graph(*arguments)
            return graph(*arguments)

        return run

    return compile_with


def test_a_compiled_form_that_is_slower_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    made = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *a, **more: made(*a, **more, backend=slowed(5)))
    network = classifier()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    batch, random = tiles(), torch.get_rng_state()
    forward, line = faster_forward(network, batch)
    assert forward is network
    assert "not compiled: compiled it is 0." in line
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in network.parameters())


def test_a_network_that_cannot_be_compiled_is_used_as_it_is() -> None:
    class Stubborn(nn.Module):
        features = 8

        def forward(self, x: Tensor) -> Tensor:
            torch._dynamo.graph_break()
            return x.mean(dim=(2, 3))[:, :8]

    network = classifier(Stubborn())
    forward, line = faster_forward(network, tiles())
    assert forward is network
    assert line.startswith("the network is not compiled: ")
    assert "\n" not in line


def test_layers_nearer_to_the_input_learn_more_slowly() -> None:
    pytest.importorskip("timm")
    backbone = PretrainedBackbone("timm/test_efficientnet")
    module = nn.ModuleDict({"classifier": Classifier(backbone, 3, [1.0] * 13, [1.0] * 13)})
    groups = parameter_groups(module, Optimisation(rate=1.0, layer_decay=0.5))
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    named = {name: rates[id(parameter)] for name, parameter in module.named_parameters()}
    head, stem = named["classifier.head.weight"], named["classifier.backbone.network.conv_stem.weight"]
    blocks = [rate for name, rate in named.items() if ".blocks." in name]
    assert head == 1.0
    assert blocks == sorted(blocks)
    assert stem < min(blocks) < max(blocks) < head
    assert all(group["weight_decay"] == 0 for group in groups for p in group["params"] if p.ndim == 1)
