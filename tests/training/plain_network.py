"""A tiny backbone for tests, without statistics of batches: what it learns depends on the global batch
alone."""

from torch import Tensor, nn
from torch.nn import functional


class PlainNetwork(nn.Module):
    """One strided convolution and a mean.

    Args:
        features: of the embedding.
        dropout: share of the embedding that is dropped in training.
        limit: a tile with a normalised value above it makes the embedding infinite.
    """

    def __init__(self, features: int = 8, dropout: float = 0.0, limit: float | None = None) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(13, features, 8, 8)
        self.dropout = nn.Dropout(dropout)
        self.features, self.limit = features, limit

    def forward(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.dropout(functional.relu(self.convolution(x)).mean(dim=(2, 3)))
        if self.limit is not None:
            embedding = embedding / (x.amax(dim=(1, 2, 3)) < self.limit)[:, None].to(embedding.dtype)
        return embedding


PLAIN = [
    "--model.backbone.class_path=plain_network.PlainNetwork",
    "--data.batch_size=10",
    "--trainer.precision=32-true",
    "--tracking.enabled=false",
]
