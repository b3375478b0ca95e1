"""How unlike the training data a tile is, inside the graph: the largest of three scores, each about 1 at its limit.

What is shown: the sum of a distance and of a doubt, each in units of its spread over known tiles. The distance is the
squared Mahalanobis distance of the embedding to the nearest class mean under one shared covariance (Lee et al. 2018,
arXiv:1807.03888), less that to the mean of all tiles under theirs, which is large for any odd tile ("relative"
distance, Ren et al. 2021, arXiv:2106.09022); both divided by the number of features. The doubt is the largest logit,
negated (Hendrycks et al. 2022, arXiv:1911.11132). What the numbers are: the log odds of a fault
(`tilewise.models.network.outliers`). What is missing: the share of no data in a band that has any data. Why these:
docs/decisions/0018-doubt-joins-distance.md.
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

STATISTICS = 3  # of each band: level, spread, least value
_HIDDEN = 256
_MIN_STD = 10.0  # DN; below, sensor noise decides
_MAX_DN = 65_535.0
_MAX_DEVIATIONS = 8.0  # so that one absurd band does not drown the others
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
    variance = (centred * centred).mean((2, 3)) / whole + _MIN_STD**2
    product = (centred[:, :-1] * centred[:, 1:]).mean((2, 3)) / whole[:, :-1]
    alike = (product * (variance[:, :-1] * variance[:, 1:]).rsqrt()).clamp(-1.0, 1.0)
    minimum = _MAX_DN - (valid * _MAX_DN - pixels).amax((2, 3))
    logs = [mean.clamp(min=1.0).log(), variance.log() / 2, minimum.clamp(1.0, _MAX_DN).log()]
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
        present = (found.share * _MAX_DN).clamp(max=1.0)
        scaled = ((found.values - self.centre) * self.scale).clamp(-_MAX_DEVIATIONS, _MAX_DEVIATIONS)
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


METHOD = "the largest of distance (relative Mahalanobis) and doubt (largest logit), input check, and missing pixels"
FALSE_ALARMS = 0.05  # share of known tiles that the threshold flags, of the kind of tiles where it flags most
MAX_MISSING = 0.02  # share of missing pixels at which a tile is flagged: training tiles miss none
# Shares of known tiles below the score 0. What is shown puts all tiles in order; the input check is mute about ordinary
# ones, for its order among them says nothing, and the larger of two scores would follow it.
_LOWEST = (0.01, 0.9)
_MIN_SPREAD = 1e-6


class OutlierScore(nn.Module):
    """Scores tiles by what is shown, what the numbers are and what is missing; before it is fitted every score is 0.

    Args:
        classes: how many class means.
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
        """Take what embeddings (n, features) of each class, and of all together, are like; n >= 2."""
        self.distance.fit(embeddings, labels)
        self.background.fit(embeddings, torch.zeros_like(labels))

    def parts(self, tiles: Tensor, embedding: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return distance, doubt and log odds of a fault, (batch, 3), and missing pixels' share (0-1), (batch,)."""
        odds, valid = self.check(sample(tiles))
        return torch.stack([self._unlike(embedding), -logits.amax(1), odds], dim=1), missing(valid)

    def fit_limits(self, kinds: Sequence[Tensor], false_alarms: float = FALSE_ALARMS) -> None:
        """Bring the fitted scores to one scale: 1 where few known tiles go, 0 below what most reach (_LOWEST).

        Args:
            kinds: the first of `parts` (n, 3) of each kind of known tiles, that nothing was fitted on. Half of
                `false_alarms` goes to each score, for the kind of tiles where it is highest.
        """
        every = torch.cat(list(kinds))
        middle, far = every[:, :2].median(0).values, every[:, :2].quantile(1 - false_alarms / 2, dim=0)
        self.spread.copy_((far - middle).clamp(min=_MIN_SPREAD))
        scores = self._scores(every)
        usual = torch.stack([scores[:, n].quantile(share) for n, share in enumerate(_LOWEST)])
        limit = torch.stack([self._scores(kind).quantile(1 - false_alarms / 2, dim=0) for kind in kinds]).amax(0)
        self.usual.copy_(usual)
        self.per_limit.copy_(1 / (limit - usual).clamp(min=_MIN_SPREAD))
        self.per_missing.fill_(1 / MAX_MISSING)

    def forward(self, tiles: Tensor, embedding: Tensor, logits: Tensor) -> Tensor:
        """Map DN (batch, 13, 64, 64), embedding (batch, features) and logits (batch, classes) to the score.

        Returns:
            (batch,): 0 or more, larger for stranger.
        """
        return self.combine(*self.parts(tiles, embedding, logits))

    def combine(self, parts: Tensor, gone: Tensor) -> Tensor:
        """Map what `parts` returns to the score, (batch,)."""
        seen = ((self._scores(parts) - self.usual) * self.per_limit).amax(1)
        return torch.maximum(seen, gone * self.per_missing).clamp(min=0.0)

    def _unlike(self, embedding: Tensor) -> Tensor:
        """Return the relative distance (batch,): that to the nearest class less that to all tiles.

        It is that of the two scores, with their products put together: in a file, each small step costs as much as
        its numbers.
        """
        near, every = self.distance, self.background
        white = embedding @ torch.cat([near.whitening, every.whitening], dim=1)
        ends = torch.ones_like(near.whitening[:, :1])  # a column: onnxruntime multiplies no batch of 0 by a vector
        squares = ((white * white) @ torch.cat([ends, -ends])).squeeze(1)
        towards = 2 * (every.whitening @ every.means.t() - near.whitening @ near.means.t())
        offset = (near.means * near.means).sum(1) - (every.means * every.means).sum(1)
        return (squares + torch.addmm(offset, embedding, towards).amin(1)) / embedding.shape[1]

    def _scores(self, parts: Tensor) -> Tensor:
        """Return what is shown and what the numbers are, (batch, 2)."""
        return torch.stack([(parts[:, :2] / self.spread).sum(1), parts[:, 2]], dim=1)


def missing(valid: Tensor) -> Tensor:
    """Return the largest share (0-1) of no data in a band that has data, (batch,); 1 where no band has any.

    Args:
        valid: (batch, 13), the share of valid pixels of each band.
    """
    absent = 1 - (valid * 65_535.0).clamp(max=1.0)
    return torch.where(valid.amax(1) > 0, (1 - valid - absent).amax(1), 1.0)


class MahalanobisScore(nn.Module):
    """Scores embeddings; before it is fitted every score is 0.

    Args:
        classes: how many class means.
        features: length of an embedding.
    """

    means: Tensor
    whitening: Tensor

    def __init__(self, classes: int, features: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(classes, features), persistent=False)
        self.register_buffer("whitening", torch.zeros(features, features), persistent=False)

    def fit(self, embeddings: Tensor, labels: Tensor) -> None:
        """Take the class means and the covariance within classes of `embeddings` (n, features), n >= 2.

        The covariance is shrunk towards a sphere (Ledoit & Wolf 2004), as few tiles leave many directions unseen. A
        class without a tile takes the mean of all.
        """
        x, y = embeddings.double().numpy(), labels.numpy()
        means = np.stack([x[y == c].mean(0) if (y == c).any() else x.mean(0) for c in range(len(self.means))])
        from sklearn.covariance import LedoitWolf  # fitted at export; a machine that only trains may not have it

        covariance = LedoitWolf(assume_centered=True).fit(x - means[y]).covariance_
        self.whitening.copy_(torch.from_numpy(_inverse_root(covariance)))
        self.means.copy_(torch.from_numpy(means @ self.whitening.double().numpy()))

    def forward(self, embedding: Tensor) -> Tensor:
        """Map (batch, features) to (batch,): 0 or more, larger for stranger tiles."""
        white = embedding @ self.whitening
        # |a - b|² by parts: one matrix product in the place of a (batch, classes, features) array.
        squares = (white * white).sum(1, keepdim=True) + (self.means * self.means).sum(1)
        distances = squares - 2 * white @ self.means.t()
        return distances.amin(1).clamp(min=0.0) / embedding.shape[1]


def fit_threshold(
    scores: npt.NDArray[np.floating],
    false_alarms: float = FALSE_ALARMS,
    kinds: npt.NDArray[np.str_] | None = None,
) -> float:
    """Return the score above which a tile is flagged: exceeded by `false_alarms` of the known tiles' `scores`.

    Args:
        scores: float (n,).
        false_alarms: share (0-1).
        kinds: (n,), what kind of tile each is; the share then holds for the kind that is flagged most.
    """
    every = np.zeros(len(scores), "<U1") if kinds is None else kinds
    return max(float(np.quantile(scores[every == kind], 1 - false_alarms)) for kind in np.unique(every))


def _inverse_root(covariance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors / np.sqrt(np.maximum(values, values.max() * 1e-6)))
