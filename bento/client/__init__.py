"""Python clients of the service, synchronous and for asyncio; they need httpx, tenacity and numpy only."""

from tilewise.bento.client.answers import (
    ModelIdentity,
    Outlier,
    PredictionSet,
    Result,
    ServiceError,
    TileError,
    raise_for_errors,
)
from tilewise.bento.client.client import AsyncClient, Client
from tilewise.bento.client.exchange import GEOJSON, GEOTIFF, JSON, PNG

__all__ = [
    "GEOJSON",
    "GEOTIFF",
    "JSON",
    "PNG",
    "AsyncClient",
    "Client",
    "ModelIdentity",
    "Outlier",
    "PredictionSet",
    "Result",
    "ServiceError",
    "TileError",
    "raise_for_errors",
]
