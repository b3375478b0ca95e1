"""A whole classifier: preprocessing, backbone, head and calibration, as it is trained and as it is exported."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.outliers import OutlierScore
from models.preprocess import Preprocess


class Classifier(nn.Module):
    """DN in; class logits and an embedding out.

    Args:
        backbone: maps (batch, 13, 64, 64) to (batch, features) and says `features`.
        classes: how many.
        band_mean, band_std: of the training data, 13 numbers each, in DN.
    """

    temperature: Tensor

    def __init__(
        self, backbone: nn.Module, classes: int, band_mean: Sequence[float], band_std: Sequence[float]
    ) -> None:
        super().__init__()
        self.preprocess = Preprocess(band_mean, band_std)
        self.backbone = backbone
        self.head = nn.Linear(int(backbone.features), classes)  # type: ignore[arg-type]
        # Calibration is fitted at export and lives in the model file; checkpoints hold what training moves.
        self.register_buffer("temperature", torch.ones(()), persistent=False)
        self.outliers = OutlierScore(classes, int(backbone.features))  # type: ignore[arg-type]

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Map DN (batch, 13, 64, 64), uint16 or float, to logits (batch, classes) and embedding (batch, features)."""
        normalised = self.preprocess(tiles).contiguous(memory_format=torch.channels_last)
        embedding = self.backbone(normalised)
        return self.head(embedding), embedding


class Exported(nn.Module):
    """The graph of the model file: what `models.modelfile` promises, around a classifier."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map uint16 tiles to calibrated probabilities, logits, embedding and outlier score."""
        logits, embedding = self.classifier(tiles)
        probabilities = torch.softmax(logits / self.classifier.temperature, dim=1)
        return probabilities, logits, embedding, self.classifier.outliers(tiles, embedding)
