"""What follows the embedding in the graph of a fine-tuned model file: head, temperature and outlier score.

The outlier score is the largest of three, each divided by its limit. 1. Distance: one minus the mean cosine
similarity of the embedding to the nearest training tiles (k nearest neighbours, Sun et al. 2022,
arXiv:2204.06507). 2. The input check (`tilewise.models.network.outliers`) of the file that fine-tuning
started from. 3. Missing pixels: the fraction of no data in a band that has any data. The last two count
above their limits only.

The reasons are in docs/decisions/0029-fine-tuning-keeps-the-network.md.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tilewise.models.network.outliers import MAX_MISSING, InputCheck, missing
from tilewise.models.network.preprocess import sample

NEIGHBOURS = 5
METHOD = (
    f"the largest of distance (mean cosine distance to the {NEIGHBOURS} nearest training tiles), input "
    "check, and missing pixels"
)
_CHECK_LIMIT = 1.0  # the limit that the input check was fitted with
_FAULTY = 0.01  # of in-distribution tiles, above the limits of the input check and of missing pixels
_MIN_DISTANCE = 1e-4  # a limit of 0 would flag every tile but the training tiles


class FineTunedHead(nn.Module):
    """Map tiles and their embeddings to probabilities, logits and outlier score.

    Args:
        weight: float32 (classes, features), of the head.
        bias: float32 (classes,).
        temperature: divisor of the logits before softmax.
        bank: float32 (n, features), embeddings of training tiles, each of length 1.
        check: the input check, 1 at its limit.
    """

    temperature: Tensor
    bank: Tensor
    limits: Tensor

    def __init__(
        self, weight: Tensor, bias: Tensor, temperature: float, bank: Tensor, check: InputCheck
    ) -> None:
        super().__init__()
        self.head = nn.Linear(weight.shape[1], weight.shape[0])
        self.head.load_state_dict({"weight": weight, "bias": bias})
        self.check = check
        self.register_buffer("temperature", torch.tensor(temperature))
        self.register_buffer("bank", bank)
        self.register_buffer("limits", torch.tensor([1.0, _CHECK_LIMIT, MAX_MISSING]))

    def forward(self, tiles: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map DN (batch, 13, 64, 64), uint16, and embeddings (batch, features) to the other outputs.

        Returns:
            Calibrated probabilities (batch, classes), logits (batch, classes) and outlier score (batch,):
            0 or more, above 1 where one of the three scores is above its limit.
        """
        logits = self.head(embedding)
        probabilities = torch.softmax(logits / self.temperature, dim=1)
        distance = nearest_distance(cosine(embedding, self.bank))
        return probabilities, logits, self.combine(distance, self.input_scores(tiles))

    def input_scores(self, tiles: Tensor) -> Tensor:
        """Return the input check and the missing fraction (0-1) of DN (batch, 13, 64, 64): (batch, 2)."""
        odds, valid = self.check(sample(tiles))
        return torch.stack([odds, missing(valid)], dim=1)

    def fit_limits(self, distance: Tensor, input_scores: Tensor, false_alarms: float) -> None:
        """Fit the limits to in-distribution tiles: (n,) and (n, 2), of tiles outside the bank.

        A fraction `false_alarms` (0-1) of the tiles is further than the limit of the distance. The limits of
        the input check and of missing pixels, which were fitted on more tiles, are raised until hardly any of
        these tiles is above them.
        """
        far = distance.quantile(1 - false_alarms).clamp(min=_MIN_DISTANCE)
        faulty = input_scores.quantile(1 - _FAULTY, dim=0)
        lowest = torch.tensor([_CHECK_LIMIT, MAX_MISSING])
        self.limits.copy_(torch.cat([far[None], torch.maximum(faulty, lowest)]))

    def combine(self, distance: Tensor, input_scores: Tensor) -> Tensor:
        """Map (batch,) and (batch, 2) to the outlier score, (batch,)."""
        scores = torch.cat([distance[:, None], input_scores], dim=1) / self.limits
        # Below its limit a check says nothing about the class; the distance alone ranks such tiles.
        faults = torch.where(scores[:, 1:] > 1, scores[:, 1:], 0.0)
        return torch.maximum(scores[:, 0], faults.amax(1)).clamp(min=0.0)


def cosine(embedding: Tensor, bank: Tensor) -> Tensor:
    """Return the cosine similarities (-1 to 1) of (batch, features) to a bank (n, features): (batch, n)."""
    return functional.normalize(embedding) @ bank.t()


def nearest_distance(similarity: Tensor) -> Tensor:
    """Return one minus the mean of the largest similarities of each row, (batch, n) to (batch,), 0 to 2."""
    return 1 - similarity.topk(min(NEIGHBOURS, similarity.shape[1]), dim=1).values.mean(1)
