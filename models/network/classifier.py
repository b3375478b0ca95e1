"""A whole classifier: preprocessing, backbone, head and calibration, as it is trained and as it is exported."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tilewise.models.network.outliers import OutlierScore
from tilewise.models.network.preprocess import Preprocess

_SIDES = (2, 3)


def _turned(turns: int, mirrored: bool) -> Callable[[Tensor], Tensor]:
    return lambda tiles: torch.rot90(tiles.flip(3) if mirrored else tiles, turns, _SIDES)


SYMMETRIES = [_turned(turns, mirrored) for mirrored in (False, True) for turns in range(4)]
"""Functions of tiles (batch, bands, height, width): the tile itself first, four turns, then the same of its mirror."""


class Classifier(nn.Module):
    """DN in; class logits and an embedding out.

    Args:
        backbone: maps (batch, 13, 64, 64) to (batch, features) and says `features`.
        classes: how many.
        band_mean, band_std: of the training data, 13 numbers each, in DN.
        symmetries: how many of a tile's eight turns and mirrors are seen, 1 to 8: once it learns no more, the
            embedding is the mean over them, and the logits with it, since the head is linear. Each costs as much as
            the first.
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
        # Calibration is fitted at export and lives in the model file; checkpoints hold what training moves.
        self.register_buffer("temperature", torch.ones(()), persistent=False)
        self.outliers = OutlierScore(classes, int(backbone.features))  # type: ignore[arg-type]

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Map DN (batch, 13, 64, 64), uint16 or float, to logits (batch, classes) and embedding (batch, features)."""
        embedding = self._embed(tiles) if self.training or self.symmetries == 1 else self._embed_all_ways(tiles)
        return self.head(embedding), embedding

    def _embed(self, tiles: Tensor) -> Tensor:
        normalised = self.preprocess(tiles).contiguous(memory_format=torch.channels_last)
        embedding: Tensor = self.backbone(normalised)
        return embedding

    def _embed_all_ways(self, tiles: Tensor) -> Tensor:
        ways = SYMMETRIES[: self.symmetries]
        return self._embed(torch.cat([way(tiles) for way in ways])).unflatten(0, (len(ways), -1)).mean(0)


class Exported(nn.Module):
    """The graph of the model file: what `tilewise.models.model_file` promises, around a classifier."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map uint16 tiles to calibrated probabilities, logits, embedding and outlier score."""
        logits, embedding = self.classifier(tiles)
        probabilities = torch.softmax(logits / self.classifier.temperature, dim=1)
        return probabilities, logits, embedding, self.classifier.outliers(tiles, embedding, logits)
