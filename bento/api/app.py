"""The HTTP routes, put together: an ASGI application that the BentoML service mounts.

BentoML's own file inputs lose the upload's name, write it to a temporary file on the event loop, and answer a bad one
with an error for its whole batch; a mounted route has none of that (docs/decisions/0004).
"""

import os
import random
from collections import OrderedDict

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tilewise.bento.api import openapi, page, scenes, tiles
from tilewise.bento.api.page import page_routes
from tilewise.bento.api.replies import HANDLERS, refuse
from tilewise.bento.api_version import API_VERSION, VERSION_HEADER
from tilewise.bento.metrics import SHARED_FOLDER
from tilewise.bento.settings import Settings


def show_metrics(request: Request) -> Response:
    """GET /metrics: in Prometheus' text format. Not `async`, so that the sums are made beside the event loop."""
    registry = REGISTRY
    if SHARED_FOLDER in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


METRICS_ROUTES = [Route("/metrics", show_metrics, methods=["GET"])]


BENTOML_PATHS = ("/livez", "/readyz", "/healthz", "/schema.json")
"""Answered by BentoML itself, with GET and HEAD."""


async def refuse_path(request: Request) -> Response:
    """Refuse: 405 where another method would be answered, else 404."""
    allowed = _methods(request)
    if allowed:
        names = ", ".join(sorted(allowed))
        raise HTTPException(405, f"{request.method} is not for this path; use {names}", {"Allow": names})
    raise HTTPException(404, "there is nothing at this path; GET /openapi.json describes what there is")


def _methods(request: Request) -> set[str]:
    """Return the methods with which the request's path is answered."""
    if request.url.path in BENTOML_PATHS:
        return {"GET", "HEAD"}
    near = [r for r in request.app.routes if isinstance(r, Route) and r.matches(request.scope)[0] is Match.PARTIAL]
    return {method for route in near for method in route.methods or ()}


_EVERYWHERE = Route("/{path:path}", refuse_path, include_in_schema=False)
_EVERYWHERE.methods = None  # all of them; for a function, starlette takes GET where none are said
UNKNOWN_ROUTES = [_EVERYWHERE]


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


_BYTES_OF_ONE = 64 * 2**10  # about a tile
_MAX_REMEMBERED = 10_000  # connections; older ones start counting again


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
        if len(self._left) > _MAX_REMEMBERED:
            self._left.popitem(last=False)
        return False


def _weight(scope: Scope) -> int:
    """Return as how many requests one counts: 1, and 1 for each further tile that it announces."""
    announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    return 1 + int(announced) // _BYTES_OF_ONE if announced.isdigit() else 1


def make_app(settings: Settings) -> Starlette:
    """Return the application; `app.state.serving` must be set before it serves."""
    middleware = []
    if settings.processes > 1:
        middleware.append(Middleware(Turnover, requests=settings.turnover))
    middleware.append(Middleware(VersionCheck))
    routes = [
        *tiles.ROUTES,
        *scenes.ROUTES,
        *tiles.EXPLAIN_ROUTES,
        *page.PREVIEW_ROUTES,
        *page_routes(),
        *METRICS_ROUTES,
        *openapi.ROUTES,
        *UNKNOWN_ROUTES,  # takes every path, so it stands last
    ]
    return Starlette(routes=routes, middleware=middleware, exception_handlers=HANDLERS)
