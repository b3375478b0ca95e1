"""The HTTP application that the BentoML service mounts, and its OpenAPI document.

Routes are declared on FastAPI routers: FastAPI makes the document of them, and starlette serves them.
FastAPI's own request handling would cost each request 0.1 ms more, for validation that the routes do not use
(docs/decisions/0004 says why BentoML's own file inputs are not used either).
"""

import json
import os
from functools import cache
from typing import Any

from fastapi import APIRouter
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from tilewise.bento.api import inference_protocol, page, scenes, tiles
from tilewise.bento.api.middleware import Turnover, VersionCheck
from tilewise.bento.api.replies import HANDLERS, code_table, error_responses, headers, refusals
from tilewise.bento.api.schemas import (
    EXAMPLES,
    ErrorResponse,
    SceneResponse,
    open_schema,
    operation,
    schema_of,
)
from tilewise.bento.api_version import API_VERSION, VERSION_HEADER
from tilewise.bento.metrics import SHARED_FOLDER
from tilewise.bento.settings import Settings

router = APIRouter(tags=["operations"])


def make_app(settings: Settings) -> Starlette:
    """Return the application; set `app.state.serving` before it serves."""
    middleware = []
    if settings.processes > 1:
        middleware.append(Middleware(Turnover, requests=settings.turnover))
    middleware.append(Middleware(VersionCheck))
    routes = [
        *[Route(route.path, route.endpoint, methods=route.methods) for route in _described_routes()],
        *page.file_routes(),
        *inference_protocol.routes(),
        _unknown_paths(),  # matches every path, so it is last
    ]
    return Starlette(routes=routes, middleware=middleware, exception_handlers=HANDLERS)


def _described_routes() -> list[APIRoute]:
    routers = (tiles.router, scenes.router, page.router, router)
    return [route for part in routers for route in part.routes if isinstance(route, APIRoute)]


@router.get(
    "/metrics",
    operation_id="showMetrics",
    summary="Metrics for Prometheus",
    response_class=PlainTextResponse,
    response_description="Prometheus' text format",
    responses={200: {"headers": headers()}, **refusals(401, 405, 500)},
    openapi_extra=operation("curl {url}/metrics"),
)
def show_metrics(request: Request) -> Response:
    """Where API keys are set, it needs one, unless the setting TILEWISE_OPEN_METRICS opens it."""
    registry = REGISTRY  # not `async`: starlette runs it in a thread, off the event loop
    if SHARED_FOLDER in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


# Paths without a route.

BENTOML_PATHS: dict[str, dict[str, Any]] = {
    "/livez": {"operationId": "isAlive", "summary": "Liveness: whether the process is alive"},
    "/readyz": {"operationId": "isReady", "summary": "Readiness: whether it can answer; for load balancers"},
    "/healthz": {"operationId": "isHealthy", "summary": "The same as /livez", "deprecated": True},
    "/schema.json": {
        "operationId": "showBentomlSchema",
        "summary": "BentoML's own description, for its tools",
    },
}
"""Paths that BentoML answers itself, to GET and HEAD."""


def _unknown_paths() -> Route:
    route = Route("/{path:path}", refuse_path, include_in_schema=False)
    route.methods = None  # all of them; by default, starlette serves GET only
    return route


async def refuse_path(request: Request) -> Response:
    """Refuse a request: 405 where the path has other methods, else 404."""
    allowed = _allowed_methods(request)
    if allowed:
        names = ", ".join(sorted(allowed))
        raise HTTPException(405, f"this path does not accept {request.method}; use {names}", {"Allow": names})
    raise HTTPException(404, "there is no such path; GET /openapi.json lists the paths")


def _allowed_methods(request: Request) -> set[str]:
    """Return the methods that the path of a request accepts."""
    if request.url.path in BENTOML_PATHS:
        return {"GET", "HEAD"}
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    same_path = [route for route in routes if route.matches(request.scope)[0] is Match.PARTIAL]
    return {method for route in same_path for method in route.methods or ()}


# The OpenAPI document.

_DESCRIPTION = f"""Classifies Sentinel-2 tiles and scenes: a class, calibrated probabilities and a footprint.

## Errors

Every error response has the body `{{"error": {{"code", "message", "hint"}}}}`: the code is for programs, the
message says in one line what is wrong, and the hint how to fix it. A bad tile among others has such an
`error` in its place.

{code_table()}

After 429 and 503 the header `Retry-After` gives the seconds after which to try again. Every other request
that was refused will be refused again.

## Versions

This is version {API_VERSION} of the API; every response says so in the header `{VERSION_HEADER}`. Within a
version, fields, headers, codes and paths may be added: ignore those that you do not know. A request may name
the version that it speaks in the same header; a service of another version responds 400 `api_version` before
it reads the body.

## Open Inference Protocol

`/v2` and the paths below it speak the Open Inference Protocol (KServe V2), which has its own specification:
https://github.com/kserve/open-inference-protocol. Its errors are `{{"error": "message; hint"}}`.
"""
_TAGS = {
    "classify": "Tiles of 64 × 64 pixels",
    "scenes": "Larger GeoTIFFs, and the tasks that large ones become",
    "model": "The model that answers",
    "people": "The web page",
    "operations": "Health, metrics, this document",
}
_RESPONSE_HEADERS = {
    "X-Request-ID": "The request's own ID, where it is valid, else a new one; the service's log has it.",
    VERSION_HEADER: "The version of the API.",
    "Retry-After": "Seconds after which to try again.",
    "Location": "The path of the task.",
    "Content-Disposition": "A file name, for the class map.",
    "WWW-Authenticate": "How to send an API key.",
    "Allow": "The methods that the path accepts.",
    page.CLOUD_FRACTION: "Fraction (0-1) of valid pixels that look like cloud; absent without the bands.",
}
_REQUEST_HEADERS = {
    "Tilewise-Key": "Assigns requests to a model while a candidate is tested: the same key, the same model. "
    "Without the header, the caller's address decides.",
    "Prefer": "`respond-async` makes a task of any scene.",
}
_TEXT = {"type": "string"}


@router.get(
    "/openapi.json",
    operation_id="describeApi",
    summary="This document",
    response_description="OpenAPI 3.1",
    responses={
        200: {"headers": headers(), "content": {"application/json": {"schema": {"type": "object"}}}},
        **refusals(405),
    },
    response_class=JSONResponse,
    openapi_extra=operation("curl {url}/openapi.json", security=[]),
)
async def show_document(request: Request) -> Response:
    """The description of the API. It replaces BentoML's own."""
    return Response(_document_json(), media_type="application/json", headers={"Cache-Control": "no-cache"})


@cache
def document() -> dict[str, Any]:
    """Return the OpenAPI document, JSON-ready."""
    made = get_openapi(
        title="tilewise",
        version=API_VERSION,
        description=_DESCRIPTION,
        routes=_described_routes(),
        tags=[{"name": name, "description": text} for name, text in _TAGS.items()],
        servers=[{"url": "/"}],
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    made["security"] = [{}, {"bearer": []}, {"header": []}]
    made["paths"] |= {path: {"get": _bentoml_operation(path, about)} for path, about in BENTOML_PATHS.items()}
    schemas = made["components"]["schemas"] | schema_of(ErrorResponse) | schema_of(SceneResponse)
    made["components"] = {
        "schemas": {name: open_schema(schema) for name, schema in sorted(schemas.items())},
        "responses": error_responses(),
        "examples": EXAMPLES,
        "headers": {name: {"schema": _TEXT, "description": text} for name, text in _RESPONSE_HEADERS.items()},
        "parameters": {
            name: {"name": name, "in": "header", "schema": _TEXT, "description": text}
            for name, text in _REQUEST_HEADERS.items()
        },
        "securitySchemes": _security_schemes(),
    }
    return made


@cache
def _document_json() -> bytes:
    return json.dumps(document(), ensure_ascii=False, separators=(",", ":")).encode()


def _bentoml_operation(path: str, about: dict[str, Any]) -> dict[str, Any]:
    if path == "/schema.json":
        media_type, errors, more = "application/json", refusals(401, 405), operation(f"curl {{url}}{path}")
    else:
        media_type, errors, more = (
            "text/plain",
            refusals(405),
            operation(f"curl -f {{url}}{path}", security=[]),
        )
    content = {media_type: {"schema": {"type": "object"} if media_type == "application/json" else _TEXT}}
    success = {"description": about["summary"], "headers": headers(), "content": content}
    responses = {"200": success, **{str(status): error for status, error in errors.items()}}
    return {**about, "tags": ["operations"], "responses": responses, **more}


def _security_schemes() -> dict[str, Any]:
    description = "Needed where the operator has set API keys."
    return {
        "bearer": {"type": "http", "scheme": "bearer", "description": description},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": description},
    }
