"""A Python client of the service, with and without asyncio; it needs httpx and numpy only."""

from tilewise.bento.client.answers import Result, ServiceError
from tilewise.bento.client.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "Result", "ServiceError"]
