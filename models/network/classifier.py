"""The classifier: preprocessing, backbone, head and outlier score; and the graph that is exported."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tilewise.models.network.outliers import OutlierScore
from tilewise.models.network.preprocess import Preprocess

_SIDES = (2, 3)


def _symmetry(turns: int, mirrored: bool) -> Callable[[Tensor], Tensor]:
    return lambda tiles: torch.rot90(tiles.flip(3) if mirrored else tiles, turns, _SIDES)


SYMMETRIES = [_symmetry(turns, mirrored) for mirrored in (False, True) for turns in range(4)]
"""The symmetries of a square, as functions of tiles (batch, bands, height, width); the identity first."""


class Classifier(nn.Module):
    """Map DN to class logits and an embedding.

    Args:
        backbone: maps (batch, 13, 64, 64) to (batch, features); has the attribute `features`.
        classes: number of classes.
        band_mean, band_std: of the training data, 13 numbers each, in DN.
        symmetries: number of a tile's eight rotations and reflections, 1 to 8, that embedding and logits are
            averaged over outside training (test-time augmentation); each costs as much as the first.
    """

    temperature: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        classes: int,
        band_mean: Sequence[float],
        band_std: Sequence[float],
        symmetries: int = 1,
    ) -> None:
        super().__init__()
        self.symmetries = symmetries
        self.preprocess = Preprocess(band_mean, band_std)
        self.backbone = backbone
        self.head = nn.Linear(int(backbone.features), classes)  # type: ignore[arg-type]
        # Calibration is fitted at export and is in the model file only; checkpoints have the trained weights.
        self.register_buffer("temperature", torch.ones(()), persistent=False)
        self.outliers = OutlierScore(classes, int(backbone.features))  # type: ignore[arg-type]

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Map DN (batch, 13, 64, 64), uint16 or float, to logits (batch, classes) and embedding (batch,
        features)."""
        embedding = (
            self._embed(tiles) if self.training or self.symmetries == 1 else self._embed_symmetries(tiles)
        )
        return self.head(embedding), embedding

    def _embed(self, tiles: Tensor) -> Tensor:
        normalised = self.preprocess(tiles).contiguous(memory_format=torch.channels_last)
        embedding: Tensor = self.backbone(normalised)
        return embedding

    def _embed_symmetries(self, tiles: Tensor) -> Tensor:
        views = [symmetry(tiles) for symmetry in SYMMETRIES[: self.symmetries]]
        return self._embed(torch.cat(views)).unflatten(0, (len(views), -1)).mean(0)


class Exported(nn.Module):
    """The graph of the model file, with the outputs of `tilewise.models.model_file`, around a classifier."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map uint16 tiles to calibrated probabilities, logits, embedding and outlier score."""
        logits, embedding = self.classifier(tiles)
        probabilities = torch.softmax(logits / self.classifier.temperature, dim=1)
        return probabilities, logits, embedding, self.classifier.outliers(tiles, embedding, logits)
