"""Headers that every answer of ours carries: the API's version, and what keeps browsers from guessing."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bento.replies import API_VERSION

_ALWAYS = (
    (b"sentile-api-version", API_VERSION.encode()),
    (b"x-content-type-options", b"nosniff"),
)


class Headers:
    """ASGI middleware that adds the headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_ALWAYS]
            await send(message)

        await self._app(scope, receive, send_with_headers)
