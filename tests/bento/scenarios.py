"""Asynchronous scenarios, each of which ends in some seconds or fails."""

import asyncio
from collections.abc import Awaitable, Callable


def run(scenario: Callable[[], Awaitable[None]], seconds: float = 10) -> None:
    """Run a scenario in an event loop of its own."""
    asyncio.run(asyncio.wait_for(scenario(), seconds))  # type: ignore[arg-type]
