"""`GET /openapi.json`: the description of the API, in OpenAPI 3.1. It takes the place of BentoML's own."""

import json
from functools import cache
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bento.http import openapi_errors
from bento.http.api_version import API_VERSION, VERSION_HEADER
from bento.http.openapi_operations import paths
from bento.http.schemas import components

_ABOUT = """Classifies Sentinel-2 tiles and scenes: a class, calibrated probabilities and a footprint on Earth.

## Errors

Every refusal has the body `{"error": {"code", "message", "hint"}}`: the code is for programs, the message says in one
line what is wrong, the hint the way out. A bad tile among others has such an `error` in its place instead.

CODES

After 429 and 503 the header `Retry-After` says in how many seconds to come back. All else that is refused will be
refused again.

## Versions

This is version VERSION of the API; every answer says so in the header `HEADER`. Within a version, fields, headers,
codes and paths may be added: ignore what you do not know. A request may say in the same header which version it
speaks; a service of another answers 400 `api_version` before it reads the rest.
"""
_TAGS = {
    "classify": "Tiles of 64 × 64 pixels",
    "scenes": "Larger GeoTIFFs, and the tasks that long ones become",
    "model": "What answers",
    "people": "For the page in a browser",
    "operations": "Health, metrics, this description",
}
_HEADERS = {
    "X-Request-ID": "The request's own, where it is sound, else a new one; by it the operator finds the request's log.",
    VERSION_HEADER: "The version of the API.",
    "Retry-After": "Seconds after which to come back.",
    "Location": "Where the task is told of.",
    "Content-Disposition": "A file name, for the class map.",
    "WWW-Authenticate": "How to send a key.",
    "Allow": "The methods that the path has.",
    "Sentile-Cloud-Share": "Share (0-1) of the picture's valid pixels that look like cloud; absent without the bands.",
}
_ASKED_IN_HEADERS = {
    "Sentile-Key": "Decides which model answers where a candidate is tried out: the same key, the same model. "
    "The caller's address decides where there is none.",
    "Prefer": "`respond-async` makes a task of any scene.",
}


@cache
def document() -> dict[str, Any]:
    """Return the description, JSON-ready."""
    about = _ABOUT.replace("CODES", openapi_errors.table())
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sentile",
            "version": API_VERSION,
            "description": about.replace("VERSION", API_VERSION).replace("HEADER", VERSION_HEADER),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "security": [{}, {"bearer": []}, {"header": []}],
        "paths": paths(),
        "components": {
            "schemas": components(),
            "responses": openapi_errors.responses(),
            "headers": {name: {"schema": {"type": "string"}, "description": text} for name, text in _HEADERS.items()},
            "parameters": {name: _header(name, text) for name, text in _ASKED_IN_HEADERS.items()},
            "securitySchemes": _keys(),
        },
    }


async def show_document(request: Request) -> Response:
    """GET /openapi.json."""
    return Response(_text(), media_type="application/json", headers={"Cache-Control": "no-cache"})


@cache
def _text() -> bytes:
    return json.dumps(document(), ensure_ascii=False, separators=(",", ":")).encode()


def _header(name: str, text: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "schema": {"type": "string"}, "description": text}


def _keys() -> dict[str, Any]:
    only = "Only where the operator has set keys."
    return {
        "bearer": {"type": "http", "scheme": "bearer", "description": only},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": only},
    }


ROUTES = [Route("/openapi.json", show_document, methods=["GET"])]
