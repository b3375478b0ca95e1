"""Whether a tile's numbers can be reflectances of the bands they stand for, from a few statistics, inside the graph.

A network that is trained to see through haze, gain and missing bands answers just as surely where an offset was left
in or bands were exchanged: its embedding hides what was done to the input. The level, spread and least value of each
band do not, and neither does how much neighbouring bands look alike: red follows the red edge more than blue does. A
small network of its own tells them from those of faulty input, having seen tiles with faults drawn at random ("outlier
exposure", Hendrycks et al. 2019, arXiv:1812.04606). It reads every seventh line (`models.sampling`). Why these:
docs/decisions/0011 and 0019.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from datasets.tile import BAND_COUNT, DN

STATISTICS = 3  # of each band: level, spread, least value
_HIDDEN = 256
_LEAST_STD = 10.0  # DN; below, sensor noise decides
_MOST_DN = 65_535.0
_MOST_DEVIATIONS = 8.0  # so that one absurd band does not drown the others
_ROUNDS = 60
_BATCH = 512
_RATE = 3e-3
_DECAY = 1e-3
_DROPPED = 0.3  # share of the hidden units that each step of fitting leaves out (dropout)
_ALIKE_WEIGHT = 2.0  # brings correlations to about the size of the other statistics


class Statistics(NamedTuple):
    """What is looked at of a batch of tiles.

    Attributes:
        values: float32 (batch, 13, 3), logarithms of mean, standard deviation and least DN of each band's valid
            pixels; of no meaning where a band is absent.
        share: float32 (batch, 13), of valid pixels (0-1) of each band.
        alike: float32 (batch, 12), correlation (-1 to 1) of each band with the next, less where they hardly differ from
            pixel to pixel (10 DN, as much as noise, join each deviation); 0 where one is absent.
    """

    values: Tensor
    share: Tensor
    alike: Tensor


def statistics(pixels: Tensor) -> Statistics:
    """Describe sampled pixels (batch, 13, height, width) in DN, 0 = no data."""
    valid = pixels.clamp(0.0, 1.0)
    share = valid.mean((2, 3))
    whole = share.clamp(min=1e-6)
    mean = pixels.mean((2, 3)) / whole
    # About the mean, and 0 where there is no data: a missing pixel then says nothing, and bright bands lose no digits.
    centred = pixels - mean[:, :, None, None] * valid
    variance = (centred * centred).mean((2, 3)) / whole + _LEAST_STD**2
    product = (centred[:, :-1] * centred[:, 1:]).mean((2, 3)) / whole[:, :-1]
    alike = (product * (variance[:, :-1] * variance[:, 1:]).rsqrt()).clamp(-1.0, 1.0)
    least = _MOST_DN - (valid * _MOST_DN - pixels).amax((2, 3))
    logs = [mean.clamp(min=1.0).log(), variance.log() / 2, least.clamp(1.0, _MOST_DN).log()]
    return Statistics(torch.stack(logs, dim=2), share, alike)


class InputCheck(nn.Module):
    """Tells faulty input from sound input by its statistics; before it is fitted every score is 0."""

    centre: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(BAND_COUNT, STATISTICS), persistent=False)
        self.register_buffer("scale", torch.zeros(BAND_COUNT, STATISTICS), persistent=False)
        width = BAND_COUNT * (STATISTICS + 1) + 2 * (BAND_COUNT - 1)
        # Buffers that are not kept, as all that is fitted at export: a checkpoint holds what training moves.
        for name, shape in {"w1": (width, _HIDDEN), "b1": (_HIDDEN,), "w2": (_HIDDEN, 1), "b2": (1,)}.items():
            self.register_buffer(name, torch.zeros(shape), persistent=False)

    def fit(self, pairs: Iterable[tuple[DN, DN]], seed: int = 0) -> None:
        """Learn from sampled pixels (n, 13, height, width) of sound tiles and of faulty ones, batch by batch."""
        described = [[statistics(torch.from_numpy(pixels).float()) for pixels in pair] for pair in pairs]
        sound, faulty = (Statistics(*map(torch.cat, zip(*side, strict=True))) for side in zip(*described, strict=True))
        self._take_scale(sound.values.double().numpy(), (sound.share > 0).numpy())
        x = torch.cat([self._features(sound), self._features(faulty)])
        y = torch.cat([torch.zeros(len(sound.share)), torch.ones(len(faulty.share))])
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # products as small as these cost more to share than to do
        try:
            first, last = _fit_layers(x, y, seed)
        finally:
            torch.set_num_threads(threads)
        for name, value in {"w1": first.weight.t(), "b1": first.bias, "w2": last.weight.t(), "b2": last.bias}.items():
            self.get_buffer(name).copy_(value.detach())

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Map sampled pixels (batch, 13, height, width) to the log odds of a fault and to the bands' valid shares.

        Returns:
            float32 (batch,) and float32 (batch, 13).
        """
        found = statistics(pixels)
        hidden = (self._features(found) @ self.get_buffer("w1") + self.get_buffer("b1")).relu()
        return (hidden @ self.get_buffer("w2") + self.get_buffer("b2")).squeeze(1), found.share

    def _features(self, found: Statistics) -> Tensor:
        """Return (batch, 76): the statistics in standard deviations, 0 where a band is absent, which bands are there,
        how much neighbours look alike, and which neighbours are both there."""
        present = (found.share * _MOST_DN).clamp(max=1.0)
        scaled = ((found.values - self.centre) * self.scale).clamp(-_MOST_DEVIATIONS, _MOST_DEVIATIONS)
        neighbours = present[:, :-1] * present[:, 1:]
        parts = [(scaled * present[:, :, None]).flatten(1), present, found.alike * _ALIKE_WEIGHT, neighbours]
        return torch.cat(parts, dim=1)

    def _take_scale(self, values: npt.NDArray[np.float64], present: npt.NDArray[np.bool_]) -> None:
        """Take each statistic's mean and deviation over the tiles that have its band; one that none has counts 0."""
        weights = present[:, :, None] / np.maximum(present.sum(0), 1)[:, None]
        centre = (values * weights).sum(0)
        spread = np.sqrt(((values - centre) ** 2 * weights).sum(0))
        self.centre.copy_(torch.from_numpy(centre))
        self.scale.copy_(torch.from_numpy(np.where(spread > 0, 1 / np.maximum(spread, 1e-6), 0.0)))


def _fit_layers(features: Tensor, faulty: Tensor, seed: int) -> tuple[nn.Linear, nn.Linear]:
    """Return the two layers that tell `faulty` (n,), 0 or 1, from `features` (n, 76)."""
    generator = torch.Generator().manual_seed(seed)
    first, last = nn.Linear(features.shape[1], _HIDDEN), nn.Linear(_HIDDEN, 1)
    for layer in (first, last):
        nn.init.kaiming_uniform_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
    parameters = [*first.parameters(), *last.parameters()]
    optimiser = torch.optim.AdamW(parameters, _RATE, weight_decay=_DECAY)
    steps = _ROUNDS * max(1, len(features) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, steps)
    for _ in range(steps):
        rows = torch.randint(0, len(features), (min(_BATCH, len(features)),), generator=generator)
        kept = (torch.rand(len(rows), _HIDDEN, generator=generator) >= _DROPPED) / (1 - _DROPPED)
        odds = last(first(features[rows]).relu() * kept).squeeze(1)
        loss = functional.binary_cross_entropy_with_logits(odds, faulty[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return first, last
