"""Compiling a network where that is faster, which is measured and not assumed."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]
_ROUNDS = 5
_GAIN = 1.02  # below that, a recompilation somewhere would cost more than is won


def wanted(setting: bool | None, device: torch.device) -> bool:
    """Return whether to compile: as the setting says, and where it leaves that open on a GPU."""
    return device.type == "cuda" if setting is None else setting


def compiled(network: nn.Module) -> Callable[..., Any]:
    """Return `network` compiled as one graph, for batches of one shape."""
    made: Callable[..., Any] = torch.compile(network, fullgraph=True, dynamic=False)
    return made


def faster_forward(classifier: nn.Module, tiles: Tensor) -> tuple[Forward, str]:
    """Return the faster of `classifier` and its compiled form, and a line that says which and by how much.

    Where it cannot be compiled, it is used as it is. Weights, buffers and random numbers are left as they were.

    Args:
        classifier: maps `tiles` to logits and embedding.
        tiles: a batch of the shape that all batches will have.
    """
    with _undisturbed(classifier, tiles.device):
        plain = seconds(classifier, tiles)
        try:
            candidate = compiled(classifier)
            quick = seconds(candidate, tiles)
        except Exception as error:  # the compiler raises whatever its back end does
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            return classifier, f"the network is not compiled: {reason}"
    figures = f"{plain / quick:.2f} times as fast ({plain * 1e3:.1f} ms plain, {quick * 1e3:.1f} ms compiled)"
    if plain < quick * _GAIN:
        return classifier, f"the network is not compiled: compiled it is {figures}"
    return candidate, f"the network is compiled: {figures}"


def seconds(forward: Forward, tiles: Tensor, rounds: int = _ROUNDS) -> float:
    """Return the shortest time of a pass forward and backward, after two that do not count."""
    taken = []
    for _ in range(rounds + 2):
        _wait(tiles.device)
        start = time.perf_counter()
        logits, _ = forward(tiles)
        parameters = [p for p in _parameters(forward) if p.requires_grad]
        # Not `backward`: that would run the hooks by which processes exchange gradients.
        torch.autograd.grad(logits.float().sum(), parameters, allow_unused=True)
        _wait(tiles.device)
        taken.append(time.perf_counter() - start)
    return min(taken[2:])


def _parameters(forward: Forward) -> Iterator[nn.Parameter]:
    assert isinstance(forward, nn.Module)  # noqa: S101 - a compiled module is one
    return forward.parameters()


@contextmanager
def _undisturbed(module: nn.Module, device: torch.device) -> Iterator[None]:
    kept = [buffer.clone() for buffer in module.buffers()]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
    with torch.no_grad():
        for buffer, value in zip(module.buffers(), kept, strict=True):
            buffer.copy_(value)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
