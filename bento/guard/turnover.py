"""Connections are handed over now and then, so that the processes share them evenly.

The processes of the service accept from one socket, and whichever is awake first may take all of a burst of connections
and keep them. As web servers do (nginx's `keepalive_requests`), a connection is closed politely after a number of
requests; the client opens another, which the idlest process is the quickest to accept. The number is drawn for each
connection: those that were opened in one burst would else come back in one, and one process would take them all again.
A request with a large body counts as several, as it keeps its process busy as long.
"""

import random
from collections import OrderedDict

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_BYTES_OF_ONE = 64 * 2**10  # about a tile
_MOST_REMEMBERED = 10_000  # connections; older ones start counting again


class Turnover:
    """ASGI middleware that closes each connection after 1 to `requests` requests, with `Connection: close`."""

    def __init__(self, app: ASGIApp, requests: int) -> None:
        self._app, self._requests = app, requests
        self._left: OrderedDict[tuple[str, int], int] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http" or not self._is_last(scope.get("client"), _weight(scope)):
            return await self._app(scope, receive, send)

        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        return await self._app(scope, receive, send_last)

    def _is_last(self, client: tuple[str, int] | None, weight: int) -> bool:
        if client is None:  # a Unix socket: its peer balances
            return False
        left = self._left.pop(client, None) or random.randint(1, self._requests)  # noqa: S311 - nothing is secret here
        if left <= weight:
            return True
        self._left[client] = left - weight
        if len(self._left) > _MOST_REMEMBERED:
            self._left.popitem(last=False)
        return False


def _weight(scope: Scope) -> int:
    """Return as how many requests one counts: 1, and 1 for each further tile that it announces."""
    announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    return 1 + int(announced) // _BYTES_OF_ONE if announced.isdigit() else 1
