"""How unlike the training data a tile is, from its embedding, inside the graph.

The score is the squared Mahalanobis distance to the nearest class mean under one shared covariance (Lee et al. 2018,
"A Simple Unified Framework for Detecting Out-of-Distribution Samples", arXiv:1807.03888), divided by the number of
features, so that it is about 1 for training tiles.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

METHOD = "Mahalanobis distance of the embedding"
FALSE_ALARMS = 0.05  # share of known tiles that the threshold flags


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


def fit_threshold(scores: npt.NDArray[np.floating], false_alarms: float = FALSE_ALARMS) -> float:
    """Return the score above which a tile is flagged: exceeded by `false_alarms` of the known tiles' `scores`."""
    return float(np.quantile(scores, 1 - false_alarms))


def _inverse_root(covariance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors / np.sqrt(np.maximum(values, values.max() * 1e-6)))
