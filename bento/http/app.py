"""The HTTP routes, put together: an ASGI application that the BentoML service mounts.

BentoML's own file inputs lose the upload's name, write it to a temporary file on the event loop, and answer a bad one
with an error for its whole batch; a mounted route has none of that (docs/decisions/0004).
"""

from starlette.applications import Starlette
from starlette.middleware import Middleware

from bento.guard.turnover import Turnover
from bento.guard.version_check import VersionCheck
from bento.http import (
    classify_routes,
    explain_routes,
    metrics_routes,
    openapi,
    preview_routes,
    scene_routes,
    unknown_paths,
)
from bento.http.page_routes import page_routes
from bento.http.replies import HANDLERS
from bento.settings import Settings


def make_app(settings: Settings) -> Starlette:
    """Return the application; `app.state.serving` must be set before it serves."""
    middleware = []
    if settings.processes > 1:
        middleware.append(Middleware(Turnover, requests=settings.turnover))
    middleware.append(Middleware(VersionCheck))
    routes = [
        *classify_routes.ROUTES,
        *scene_routes.ROUTES,
        *explain_routes.ROUTES,
        *preview_routes.ROUTES,
        *page_routes(),
        *metrics_routes.ROUTES,
        *openapi.ROUTES,
        *unknown_paths.ROUTES,  # takes every path, so it stands last
    ]
    return Starlette(routes=routes, middleware=middleware, exception_handlers=HANDLERS)
