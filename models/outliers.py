"""How unlike the training data a tile is, inside the graph: the largest of three scores, each about 1 at its limit.

What is shown: the sum of a distance and of a doubt, each in units of its spread over known tiles. The distance is the
squared Mahalanobis distance of the embedding to the nearest class mean under one shared covariance (Lee et al. 2018,
arXiv:1807.03888), less that to the mean of all tiles under theirs, which is large for any odd tile ("relative"
distance, Ren et al. 2021, arXiv:2106.09022); both divided by the number of features. The doubt is the largest logit,
negated (Hendrycks et al. 2022, arXiv:1911.11132). What the numbers are: the log odds of a fault
(`models.input_check`). What is missing: the share of no data in a band that has any data. Why these:
docs/decisions/0018-doubt-joins-distance.md.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.input_check import InputCheck
from models.sampling import sample

METHOD = "the largest of distance (relative Mahalanobis) and doubt (largest logit), input check, and missing pixels"
FALSE_ALARMS = 0.05  # share of known tiles that the threshold flags, of the kind of tiles where it flags most
MOST_MISSING = 0.02  # share of missing pixels at which a tile is flagged: training tiles miss none
# Shares of known tiles below the score 0. What is shown puts all tiles in order; the input check is mute about ordinary
# ones, for its order among them says nothing, and the larger of two scores would follow it.
_LOWEST = (0.01, 0.9)
_LEAST_SPREAD = 1e-6


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
        self.spread.copy_((far - middle).clamp(min=_LEAST_SPREAD))
        scores = self._scores(every)
        usual = torch.stack([scores[:, n].quantile(share) for n, share in enumerate(_LOWEST)])
        limit = torch.stack([self._scores(kind).quantile(1 - false_alarms / 2, dim=0) for kind in kinds]).amax(0)
        self.usual.copy_(usual)
        self.per_limit.copy_(1 / (limit - usual).clamp(min=_LEAST_SPREAD))
        self.per_missing.fill_(1 / MOST_MISSING)

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
