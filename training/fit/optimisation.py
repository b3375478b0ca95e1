"""Optimiser, learning rate, gradient clipping, precision and compilation; the same for every task."""

import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from tilewise.datasets.core.errors import TrainingError

AUTO = "auto"
_LAYER = re.compile(r"(?:network\.)?[A-Za-z_]+\d*\.\d+(?:\.\d+)?(?=\.)")


def best_precision() -> str:
    """Return Lightning's name of the fastest stable precision on this machine.

    bf16 on GPUs that have it and on CPUs with bfloat16 instructions (AVX-512 BF16 or AMX), fp16 with loss
    scaling on older GPUs, 32 bit elsewhere.
    """
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    return "bf16-mixed" if _cpu_has_bf16() else "32-true"


def allow_tf32(allowed: bool) -> None:
    """Let NVIDIA GPUs since Ampere multiply 32-bit numbers with 10-bit mantissas (TF32), or forbid it.

    Training takes it: what of it runs in 32 bit is then several times faster, and no less exact than the rest
        in bf16.
    Testing and export do not: what is measured and shipped is measured and shipped in 32 bit. Without this
        call, torch
    would use it in convolutions and not in products of matrices.
    """
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def _cpu_has_bf16() -> bool:
    has_avx = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return bool(has_avx() or has_amx())


Forward = Callable[[Tensor], tuple[Tensor, Tensor]]
_ROUNDS = 5
_GAIN = 1.02  # below, a recompilation would cost more than the gain


def wanted(setting: bool | None, device: torch.device) -> bool:
    """Return whether to compile: by the setting; None: on a GPU."""
    return device.type == "cuda" if setting is None else setting


def compiled(network: nn.Module) -> Callable[..., Any]:
    """Return `network` compiled as one graph, for batches of one shape."""
    made: Callable[..., Any] = torch.compile(network, fullgraph=True, dynamic=False)
    return made


def faster_forward(classifier: nn.Module, tiles: Tensor) -> tuple[Forward, str]:
    """Return the faster of `classifier` and its compiled form, and a line with the choice and the speedup.

    If it cannot be compiled, it is used plain. Weights, buffers and random state are unchanged.

    Args:
        classifier: maps `tiles` to logits and embedding.
        tiles: a batch of the shape that all batches will have.
    """
    with _undisturbed(classifier, tiles.device):
        plain = seconds(classifier, tiles)
        try:
            candidate = compiled(classifier)
            quick = seconds(candidate, tiles)
        except Exception as error:  # the compiler raises any error of its back end
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            return classifier, f"the network is not compiled: {reason}"
    figures = f"{plain / quick:.2f} times as fast ({plain * 1e3:.1f} ms plain, {quick * 1e3:.1f} ms compiled)"
    if plain < quick * _GAIN:
        return classifier, f"the network is not compiled: compiled it is {figures}"
    return candidate, f"the network is compiled: {figures}"


def seconds(forward: Forward, tiles: Tensor, rounds: int = _ROUNDS) -> float:
    """Return the shortest time of a pass forward and backward, after two warm-up passes."""
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


@dataclass(frozen=True)
class Optimisation:
    """Settings of the optimiser. Attributes:
    rate: highest learning rate.
    weight_decay: of AdamW, on matrices and kernels only.
    warmup: fraction (0-1) of all steps in which the rate rises from 0; then it falls as a cosine to
        `final_rate`.
    final_rate: fraction of `rate` at the last step.
    label_smoothing: 0 to 1.
    balance_classes: weigh classes by the inverse of their frequency.
    layer_decay: factor of the rate from each layer of the backbone to the one before it (0-1), so that the
        first layers, which are the most general, change least (Clark et al. 2020, arXiv:2003.10555).
    frozen_backbone: only the head learns: a linear probe.
    """

    rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    final_rate: float = 0.0
    label_smoothing: float = 0.1
    balance_classes: bool = False
    layer_decay: float = 1.0
    frozen_backbone: bool = False


class OptimisedModule(pl.LightningModule):
    """A task that is optimised by `Optimisation`, and whose losses are watched.

    Attributes:
        broken: bool (), whether any training loss was not finite (`tilewise.training.fit.callbacks`).
    """

    broken: Tensor

    def __init__(self, optimisation: Optimisation) -> None:
        super().__init__()
        self.optimisation = optimisation

    def on_fit_start(self) -> None:
        """Start watching the loss."""
        self.broken = torch.zeros((), dtype=torch.bool, device=self.device)

    def watched(self, loss: Tensor, tiles: int) -> Tensor:
        """Log the `loss` () of a training batch of so many tiles, record whether it is finite, and return
        it."""
        self.broken = self.broken | ~loss.detach().isfinite()
        self.log(
            "train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=tiles, sync_dist=True
        )
        return loss

    def freeze_backbone(self, backbone: nn.Module) -> None:
        """Take the backbone out of training, where the settings say so."""
        if self.optimisation.frozen_backbone:
            backbone.requires_grad_(False)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW with linear warm-up and cosine decay of the learning rate, step by step."""
        groups = parameter_groups(self, self.optimisation)
        # A fused step unscales the loss itself, so gradients cannot be clipped in between.
        fused = self.trainer.precision != "16-mixed"
        optimiser = torch.optim.AdamW(groups, lr=self.optimisation.rate, fused=fused)
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise TrainingError(
                "the learning rate schedule needs an end; set trainer.max_epochs or trainer.max_steps"
            )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, partial(warmup_cosine, int(steps), self.optimisation)
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients; Lightning refuses to with a fused optimiser, which is safe without loss scaling."""
        if not gradient_clip_val or self.trainer.precision == "16-mixed":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val)
        else:
            nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)


def parameter_groups(module: nn.Module, options: Optimisation) -> list[dict[str, Any]]:
    """Return the groups of a module's learning parameters for AdamW: by layer of the backbone, and kernels
    apart from biases, which do not decay."""
    depths = layer_depths(module)
    deepest = max(depths.values(), default=0)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        depth, kernel = depths.get(name, deepest + 1), parameter.ndim > 1
        rate = options.rate * options.layer_decay ** (deepest + 1 - depth)
        decay = options.weight_decay if kernel else 0.0
        key = (depth if options.layer_decay != 1 else 0, kernel)
        groups.setdefault(key, {"params": [], "lr": rate, "weight_decay": decay})["params"].append(parameter)
    return list(groups.values())


def layer_depths(module: nn.Module) -> dict[str, int]:
    """Return the number of the layer of each parameter of a backbone, by name, from 0 at the input.

    A layer is what a name begins with up to its second number, such as `blocks.1.0` or `layer1.0`; parameters
    outside the backbone have none.
    """
    layers: dict[str, int] = {}
    found = {}
    for name, _ in module.named_parameters():
        if ".backbone." not in f".{name}":
            continue
        layer = _LAYER.match(name.rpartition("backbone.")[2])
        found[name] = layers.setdefault(layer[0] if layer else name.rpartition(".")[0], len(layers))
    return found


def warmup_cosine(steps: int, options: Optimisation, step: int) -> float:
    """Return the factor (0-1) of the learning rate at `step` of `steps`."""
    warm = max(1, round(steps * options.warmup))
    if step < warm:
        return (step + 1) / warm
    way = min(1.0, (step - warm) / max(1, steps - warm))
    return options.final_rate + (1 - options.final_rate) * 0.5 * (1 + math.cos(math.pi * way))
