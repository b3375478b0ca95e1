"""Requests in another version of the API are refused before they are read."""

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from bento.http.api_version import API_VERSION, VERSION_HEADER
from bento.http.replies import refuse


class VersionCheck:
    """ASGI middleware that answers 400 where a request says another version than ours; saying none is well."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http" or Request(scope).headers.get(VERSION_HEADER, API_VERSION) == API_VERSION:
            return await self._app(scope, receive, send)
        hint = f"it speaks version {API_VERSION}: use its release's client, or leave the header {VERSION_HEADER} out"
        refusal = refuse(400, "api_version", "the service speaks another version of the API", hint, Connection="close")
        return await refusal(scope, receive, send)
