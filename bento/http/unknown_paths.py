"""What is answered where there is nothing: the one shape of an error, not BentoML's plain text or its own pages.

BentoML looks for a path among its health routes, then among ours, then among its documentation. A last route of ours
that takes every path keeps the documentation from the world: it describes none of our routes, and calls third parties.
"""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

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
ROUTES = [_EVERYWHERE]
