"""Connections are handed over now and then, so that the processes share them evenly.

The processes of the service accept from one socket, and whichever is awake first may take all of a burst of connections
and keep them. As web servers do (nginx's `keepalive_requests`), a connection is closed politely after a number of
requests; the client opens another, which the idlest process is the quickest to accept. The number is drawn for each
connection: those that were opened in one burst would else come back in one, and one process would take them all again.
"""

import random
from collections import OrderedDict

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MOST_REMEMBERED = 10_000  # connections; older ones start counting again


class Turnover:
    """ASGI middleware that closes each connection after 1 to `requests` requests, with `Connection: close`."""

    def __init__(self, app: ASGIApp, requests: int) -> None:
        self._app, self._requests = app, requests
        self._left: OrderedDict[tuple[str, int], int] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http" or not self._is_last(scope.get("client")):
            return await self._app(scope, receive, send)

        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        return await self._app(scope, receive, send_last)

    def _is_last(self, client: tuple[str, int] | None) -> bool:
        if client is None:  # a Unix socket: its peer balances
            return False
        left = self._left.pop(client, None) or random.randint(1, self._requests)  # noqa: S311 - nothing is secret here
        if left == 1:
            return True
        self._left[client] = left - 1
        if len(self._left) > _MOST_REMEMBERED:
            self._left.popitem(last=False)
        return False
