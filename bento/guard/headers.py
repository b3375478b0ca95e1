"""Headers that every answer carries: the API's version, and what browsers must not do with it."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bento.http.api_version import API_VERSION

ALWAYS = (
    (b"sentile-api-version", API_VERSION.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
)
UNLESS_SAID = (  # a route that knows better says so: the page, and its files
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"),
    (b"cache-control", b"no-store"),
)


class Headers:
    """ASGI middleware that adds the headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                said = list(message.get("headers", ()))
                names = {name.lower() for name, _ in said}
                more = [pair for pair in (*ALWAYS, *UNLESS_SAID) if pair[0] not in names]
                message["headers"] = said + more
            await send(message)

        await self._app(scope, receive, send_with_headers)
