"""The outlier score inside the graph: the largest of three scores, each about 1 at its limit.

1. Content: the sum of a distance and of a doubt, each in units of its spread over in-distribution tiles. The
distance is the squared Mahalanobis distance of the embedding to the nearest class mean under one shared
covariance (Lee et al. 2018, arXiv:1807.03888), less that to the mean of all tiles under theirs ("relative"
distance, Ren et al. 2021, arXiv:2106.09022); both divided by the number of features. The doubt is the largest
logit, negated (Hendrycks et al. 2022, arXiv:1911.11132). 2. Input check: the log odds that the DN have a
fault, by their statistics. 3. Missing pixels: the fraction of no data in a band that has any data.

The reasons are in docs/decisions/0018-doubt-joins-distance.md.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from tilewise.datasets.core.tile import BAND_COUNT, DN
from tilewise.models.network.preprocess import sample

STATISTICS = 3  # of each band: mean, standard deviation, minimum
_HIDDEN = 256
_MIN_STD = 10.0  # DN; smaller ones are sensor noise
_MAX_DN = 65_535.0
_MAX_DEVIATIONS = 8.0  # bounds the effect of a single band
_ROUNDS = 60
_BATCH = 512
_RATE = 3e-3
_DECAY = 1e-3
_MAX_RANK = 160  # of a whitening: embeddings of 1,280 features would take 13 MB of a model file
_DROPPED = 0.3  # fraction of the hidden units that each step of fitting leaves out (dropout)
_CORRELATION_WEIGHT = 2.0  # brings correlations to about the scale of the other statistics


class Statistics(NamedTuple):
    """Statistics of a batch of tiles.

    Attributes:
        values: float32 (batch, 13, 3), logarithms of mean, standard deviation and minimum DN of each band's
            valid pixels; undefined where a band is absent.
        valid: float32 (batch, 13), fraction (0-1) of valid pixels of each band.
        correlation: float32 (batch, 12), correlation (-1 to 1) of each band with the next, damped where they
            hardly vary (10 DN, as much as noise, are added to each deviation); 0 where one is absent.
    """

    values: Tensor
    valid: Tensor
    correlation: Tensor


def statistics(pixels: Tensor) -> Statistics:
    """Compute the statistics of sampled pixels (batch, 13, height, width) in DN, 0 = no data."""
    valid = pixels.clamp(0.0, 1.0)
    fraction = valid.mean((2, 3))
    whole = fraction.clamp(min=1e-6)
    mean = pixels.mean((2, 3)) / whole
    # About the mean, and 0 where there is no data: missing pixels then do not count, and bright bands lose no
    # digits.
    centred = pixels - mean[:, :, None, None] * valid
    variance = (centred * centred).mean((2, 3)) / whole + _MIN_STD**2
    product = (centred[:, :-1] * centred[:, 1:]).mean((2, 3)) / whole[:, :-1]
    correlation = (product * (variance[:, :-1] * variance[:, 1:]).rsqrt()).clamp(-1.0, 1.0)
    minimum = _MAX_DN - (valid * _MAX_DN - pixels).amax((2, 3))
    logs = [mean.clamp(min=1.0).log(), variance.log() / 2, minimum.clamp(1.0, _MAX_DN).log()]
    return Statistics(torch.stack(logs, dim=2), fraction, correlation)


class InputCheck(nn.Module):
    """Detect faulty input by its statistics; before it is fitted every score is 0."""

    centre: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(BAND_COUNT, STATISTICS), persistent=False)
        self.register_buffer("scale", torch.zeros(BAND_COUNT, STATISTICS), persistent=False)
        width = BAND_COUNT * (STATISTICS + 1) + 2 * (BAND_COUNT - 1)
        # Not persistent, as everything that is fitted at export: checkpoints have the trained weights.
        for name, shape in {"w1": (width, _HIDDEN), "b1": (_HIDDEN,), "w2": (_HIDDEN, 1), "b2": (1,)}.items():
            self.register_buffer(name, torch.zeros(shape), persistent=False)

    def fit(self, pairs: Iterable[tuple[DN, DN]], seed: int = 0) -> None:
        """Fit to sampled pixels (n, 13, height, width) of valid tiles and of faulty ones, batch by batch."""
        described = [[statistics(torch.from_numpy(pixels).float()) for pixels in pair] for pair in pairs]
        valid, faulty = (
            Statistics(*map(torch.cat, zip(*side, strict=True))) for side in zip(*described, strict=True)
        )
        self._fit_scale(valid.values.double().numpy(), (valid.valid > 0).numpy())
        x = torch.cat([self._features(valid), self._features(faulty)])
        y = torch.cat([torch.zeros(len(valid.valid)), torch.ones(len(faulty.valid))])
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # products this small cost more to distribute than to compute
        try:
            first, last = _fit_layers(x, y, seed)
        finally:
            torch.set_num_threads(threads)
        for name, value in {
            "w1": first.weight.t(),
            "b1": first.bias,
            "w2": last.weight.t(),
            "b2": last.bias,
        }.items():
            self.get_buffer(name).copy_(value.detach())

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Map sampled pixels (batch, 13, height, width) to the log odds of a fault and to the bands' valid
        fractions.

        Returns:
            float32 (batch,) and float32 (batch, 13).
        """
        found = statistics(pixels)
        hidden = (self._features(found) @ self.get_buffer("w1") + self.get_buffer("b1")).relu()
        return (hidden @ self.get_buffer("w2") + self.get_buffer("b2")).squeeze(1), found.valid

    def _features(self, found: Statistics) -> Tensor:
        """Return (batch, 76): the statistics in standard deviations, 0 where a band is absent, which bands
        are present, the correlations of neighbours, and which neighbours are both present."""
        present = (found.valid * _MAX_DN).clamp(max=1.0)
        scaled = ((found.values - self.centre) * self.scale).clamp(-_MAX_DEVIATIONS, _MAX_DEVIATIONS)
        neighbours = present[:, :-1] * present[:, 1:]
        parts = [
            (scaled * present[:, :, None]).flatten(1),
            present,
            found.correlation * _CORRELATION_WEIGHT,
            neighbours,
        ]
        return torch.cat(parts, dim=1)

    def _fit_scale(self, values: npt.NDArray[np.float64], present: npt.NDArray[np.bool_]) -> None:
        """Fit each statistic's mean and deviation over the tiles that have its band; a band that none has
        counts 0."""
        weights = present[:, :, None] / np.maximum(present.sum(0), 1)[:, None]
        centre = (values * weights).sum(0)
        spread = np.sqrt(((values - centre) ** 2 * weights).sum(0))
        self.centre.copy_(torch.from_numpy(centre))
        self.scale.copy_(torch.from_numpy(np.where(spread > 0, 1 / np.maximum(spread, 1e-6), 0.0)))


def _fit_layers(features: Tensor, faulty: Tensor, seed: int) -> tuple[nn.Linear, nn.Linear]:
    """Return the two layers that predict `faulty` (n,), 0 or 1, from `features` (n, 76)."""
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


METHOD = (
    "the largest of distance (relative Mahalanobis) and doubt (largest logit), input check, "
    "and missing pixels"
)
FALSE_ALARMS = 0.05  # fraction of in-distribution tiles above the threshold, of the kind with most of them
MAX_MISSING = 0.02  # fraction of missing pixels at which a tile is flagged: training tiles miss none
# Fractions of in-distribution tiles below the score 0. The content score ranks all tiles; the input check is
# 0 for most in-distribution tiles, as its order among them has no meaning and would dominate the larger of
# the two.
_LOWEST = (0.01, 0.9)
_MIN_SPREAD = 1e-6


class OutlierScore(nn.Module):
    """Score tiles by content, input check and missing pixels; before it is fitted every score is 0.

    Args:
        classes: number of class means.
        features: length of an embedding.
    """

    spread: Tensor
    usual: Tensor
    per_limit: Tensor
    per_missing: Tensor

    def __init__(self, classes: int, features: int) -> None:
        super().__init__()
        self.distance = MahalanobisScore(classes, features)
        self.background = MahalanobisScore(1, features)
        self.check = InputCheck()
        self.register_buffer("spread", torch.ones(2), persistent=False)
        self.register_buffer("usual", torch.zeros(2), persistent=False)
        self.register_buffer("per_limit", torch.zeros(2), persistent=False)
        self.register_buffer("per_missing", torch.zeros(()), persistent=False)

    def fit_distance(self, embeddings: Tensor, labels: Tensor) -> None:
        """Fit the distances to embeddings (n, features) of each class, and of all together; n >= 2."""
        self.distance.fit(embeddings, labels)
        self.background.fit(embeddings, torch.zeros_like(labels))

    def parts(self, tiles: Tensor, embedding: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return distance, doubt and log odds of a fault, (batch, 3), and the missing fraction (0-1),
        (batch,)."""
        odds, valid = self.check(sample(tiles))
        return torch.stack([self._relative_distance(embedding), -logits.amax(1), odds], dim=1), missing(valid)

    def fit_limits(self, kinds: Sequence[Tensor], false_alarms: float = FALSE_ALARMS) -> None:
        """Bring the fitted scores to one scale: 1 at the limit, 0 at the quantiles `_LOWEST`.

        Args:
            kinds: the first of `parts` (n, 3) for each kind of in-distribution tiles that nothing was fitted
                on. Half of `false_alarms` goes to each score, for the kind of tiles where it is highest.
        """
        every = torch.cat(list(kinds))
        middle, far = every[:, :2].median(0).values, every[:, :2].quantile(1 - false_alarms / 2, dim=0)
        self.spread.copy_((far - middle).clamp(min=_MIN_SPREAD))
        scores = self._scores(every)
        usual = torch.stack([scores[:, n].quantile(fraction) for n, fraction in enumerate(_LOWEST)])
        limit = torch.stack(
            [self._scores(kind).quantile(1 - false_alarms / 2, dim=0) for kind in kinds]
        ).amax(0)
        self.usual.copy_(usual)
        self.per_limit.copy_(1 / (limit - usual).clamp(min=_MIN_SPREAD))
        self.per_missing.fill_(1 / MAX_MISSING)

    def forward(self, tiles: Tensor, embedding: Tensor, logits: Tensor) -> Tensor:
        """Map DN (batch, 13, 64, 64), embedding (batch, features) and logits (batch, classes) to the score.

        Returns:
            (batch,): 0 or more, larger further out of distribution.
        """
        return self.combine(*self.parts(tiles, embedding, logits))

    def combine(self, parts: Tensor, missing_fraction: Tensor) -> Tensor:
        """Map the results of `parts` to the score, (batch,)."""
        scores = ((self._scores(parts) - self.usual) * self.per_limit).amax(1)
        return torch.maximum(scores, missing_fraction * self.per_missing).clamp(min=0.0)

    def _relative_distance(self, embedding: Tensor) -> Tensor:
        """Return the relative distance (batch,): that to the nearest class less that to all tiles.

        It equals the difference of the two scores; their products are computed together, as each small
        operation of a graph has a fixed cost.
        """
        near, every = self.distance, self.background
        white = embedding @ torch.cat([near.whitening, every.whitening], dim=1)
        # A column: onnxruntime multiplies no batch of 0 by a vector.
        ends = torch.ones_like(near.whitening[:1]).t()
        squares = ((white * white) @ torch.cat([ends, -ends])).squeeze(1)
        towards = 2 * (every.whitening @ every.means.t() - near.whitening @ near.means.t())
        offset = (near.means * near.means).sum(1) - (every.means * every.means).sum(1)
        return (squares + torch.addmm(offset, embedding, towards).amin(1)) / embedding.shape[1]

    def _scores(self, parts: Tensor) -> Tensor:
        """Return content score and input check, (batch, 2)."""
        return torch.stack([(parts[:, :2] / self.spread).sum(1), parts[:, 2]], dim=1)


def missing(valid: Tensor) -> Tensor:
    """Return the largest fraction (0-1) of no data in a band that has data, (batch,); 1 where no band has
    any.

    Args:
        valid: (batch, 13), the fraction of valid pixels of each band.
    """
    absent = 1 - (valid * 65_535.0).clamp(max=1.0)
    return torch.where(valid.amax(1) > 0, (1 - valid - absent).amax(1), 1.0)


class MahalanobisScore(nn.Module):
    """Score embeddings by Mahalanobis distance; before it is fitted every score is 0.

    Args:
        classes: number of class means.
        features: length of an embedding.
    """

    means: Tensor
    whitening: Tensor

    def __init__(self, classes: int, features: int) -> None:
        super().__init__()
        rank = min(features, _MAX_RANK)
        self.register_buffer("means", torch.zeros(classes, rank), persistent=False)
        self.register_buffer("whitening", torch.zeros(features, rank), persistent=False)

    def fit(self, embeddings: Tensor, labels: Tensor) -> None:
        """Fit the class means and the covariance within classes to `embeddings` (n, features), n >= 2.

        The covariance is shrunk towards a sphere (Ledoit & Wolf 2004), as few tiles leave many directions
        undetermined. Of long embeddings the directions in which tiles vary most count. A class without tiles
        gets the mean of all.
        """
        x, y = embeddings.double().numpy(), labels.numpy()
        means = np.stack([x[y == c].mean(0) if (y == c).any() else x.mean(0) for c in range(len(self.means))])
        from sklearn.covariance import LedoitWolf  # fitted at export; a machine that only fits may lack it

        covariance = LedoitWolf(assume_centered=True).fit(x - means[y]).covariance_
        self.whitening.copy_(torch.from_numpy(_inverse_root(covariance)[:, -self.whitening.shape[1] :]))
        self.means.copy_(torch.from_numpy(means @ self.whitening.double().numpy()))

    def forward(self, embedding: Tensor) -> Tensor:
        """Map (batch, features) to (batch,): 0 or more, larger further out of distribution."""
        white = embedding @ self.whitening
        # |a - b|² expanded: one matrix product in place of a (batch, classes, features) array.
        squares = (white * white).sum(1, keepdim=True) + (self.means * self.means).sum(1)
        distances = squares - 2 * white @ self.means.t()
        return distances.amin(1).clamp(min=0.0) / embedding.shape[1]


def fit_threshold(
    scores: npt.NDArray[np.floating],
    false_alarms: float = FALSE_ALARMS,
    kinds: npt.NDArray[np.str_] | None = None,
) -> float:
    """Return the threshold that a fraction `false_alarms` of the in-distribution tiles' `scores` exceeds.

    Args:
        scores: float (n,).
        false_alarms: fraction (0-1).
        kinds: (n,), the kind of each tile; the fraction then holds for the kind that is flagged most.
    """
    every = np.zeros(len(scores), "<U1") if kinds is None else kinds
    return max(float(np.quantile(scores[every == kind], 1 - false_alarms)) for kind in np.unique(every))


def _inverse_root(covariance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return a whitening (features, features), its columns by the variance of their direction, ascending."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors / np.sqrt(np.maximum(values, values.max() * 1e-6)))
