"""`GET /openapi.json`: the description of the API, in OpenAPI 3.1. It takes the place of BentoML's own."""

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tilewise.bento.api.schemas import components
from tilewise.bento.api_version import API_VERSION, VERSION_HEADER
from tilewise.bento.errors import error_body
from tilewise.bento.inference.occlusion import Method


@dataclass(frozen=True, slots=True)
class Code:
    """One code of an error.

    Attributes:
        code: in the error's body.
        status: of the answer.
        meaning: when it comes.
        message, hint: of one such error, as the service words it.
    """

    code: str
    status: int
    meaning: str
    message: str
    hint: str = ""


CODES = (
    Code(
        "bad_request",
        400,
        "The body is malformed, or holds no file",
        "no file in the multipart field 'tiles'",
        "curl -F tiles=@tile.tif sends one",
    ),
    Code(
        "api_version",
        400,
        "The request's header Tilewise-API-Version names another version",
        "the service speaks another version of the API",
        "it speaks version 1: use its release's client, or leave the header Tilewise-API-Version out",
    ),
    Code(
        "unauthorized",
        401,
        "The service asks for API keys, and the request has none of them",
        "this service needs an API key",
        "send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
    ),
    Code(
        "not_found",
        404,
        "There is no such path, or no such task of this caller's",
        "there is nothing at this path",
        "GET /openapi.json describes what there is",
    ),
    Code("method", 405, "The path has other methods; Allow lists them", "GET is not for this path", "use POST"),
    Code(
        "not_acceptable",
        406,
        "The header Accept names no form that the answer can have",
        "there is no such form of the answer",
        "Accept one of application/geo+json, image/tiff",
    ),
    Code(
        "too_slow",
        408,
        "The body came too slowly",
        "the body came too slowly",
        "send 32 KiB a second or more",
    ),
    Code(
        "not_done",
        409,
        "The task's result is not there yet",
        "the task is running",
        "GET /tasks/{task_id} says how far it is",
    ),
    Code("gone", 410, "The task's result was deleted", "its results were kept for 3600 s", "send the scene again"),
    Code(
        "too_large",
        413,
        "More bytes, tiles or pixels than the service takes",
        "a body of 70,000,000 bytes",
        "67,108,864 is the most",
    ),
    Code(
        "unsupported_type",
        415,
        "The body's Content-Type is none that the path takes",
        "a body of application/json",
        "send files as multipart/form-data (curl -F tiles=@tile.tif), one file as image/tiff, or a .npy array as "
        "application/octet-stream",
    ),
    Code("unreadable_image", 415, "The file is no readable GeoTIFF", "tile.tif: a JPEG, not a GeoTIFF"),
    Code(
        "invalid",
        422,
        "A parameter is unknown or makes no sense",
        "level is L1C or L2A, not 'L3'",
    ),
    Code(
        "tile_shape",
        422,
        "The file is no tile of 64 × 64 pixels, or no scene of about 10 m",
        "tile.tif: 63 × 64 pixels, not 64 × 64",
    ),
    Code(
        "no_data", 422, "No pixel holds data", "tile.tif: no pixel holds data in all of B02, B03", "nothing to classify"
    ),
    Code(
        "unknown_band", 422, "A band name that Sentinel-2 does not have", "unknown band 'B99'", "there are B01, B02, …"
    ),
    Code(
        "bands_unknown",
        422,
        "The file does not name its bands, and the request does not either",
        "tile.tif: 13 bands have no names",
        "say which they are: bands=eurosat, l1c, l2a, 10m, rgb, or names in order",
    ),
    Code(
        "band_missing",
        422,
        "The file lacks bands that are needed for what is asked",
        "tile.tif: it has no B08",
        "this picture shows B08, B04, B03 in red, green and blue",
    ),
    Code(
        "radiometry_unknown",
        422,
        "Nobody says how the file's numbers become reflectance",
        "tile.tif: neither a level nor an offset is said",
        "say level and offset: 0 before processing baseline 04.00, -1000 since",
    ),
    Code(
        "too_many_tasks",
        429,
        "As many scenes wait as may wait; come back after Retry-After",
        "as many scenes wait as may wait",
        "try again in 30 s",
    ),
    Code("head_too_large", 431, "The request's headers are too long", "headers of more than 65,536 bytes"),
    Code(
        "internal",
        500,
        "The service failed; its log has more under X-Request-ID",
        "the service failed",
        "try again; if it stays so, tell the operator the X-Request-ID of this answer",
    ),
    Code(
        "overloaded",
        503,
        "Too many requests wait; come back after Retry-After",
        "too many requests are waiting",
        "try again in 30 s",
    ),
    Code(
        "storage_full",
        503,
        "There is no room for another scene; come back after Retry-After",
        "there is no room for another scene",
        "try again in 30 s, or DELETE results that you have",
    ),
    Code("model", 503, "The model file cannot be used", "the model cannot be run", "export it again"),
    Code(
        "task_lost",
        500,
        "The processes that worked on a task ended before it was done",
        "the processes that worked on the scene ended before it was done",
        "send it again, or cut it into smaller ones",
    ),
    Code(
        "timeout",
        504,
        "The request was not done in time",
        "not done within 60 seconds",
        "send fewer tiles at once, or try again later",
    ),
)
_WAITS = {429, 503}
_PHRASES = {
    400: "malformed",
    401: "an API key is needed",
    404: "not there",
    405: "another method",
    406: "no such form",
    408: "too slow",
    409: "not done",
    410: "deleted",
    413: "too large",
    415: "not such a file",
    422: "not understood",
    429: "too many wait",
    431: "headers too long",
    500: "failed",
    503: "busy",
    504: "not done in time",
}


def name_of(status: int) -> str:
    """Return the name that the responses of a status have in the document."""
    return f"Refused{status}"


def responses() -> dict[str, Any]:
    """Return a reusable response for each status that a refusal can have."""
    return {name_of(status): _response(status) for status in sorted({code.status for code in CODES})}


def table() -> str:
    """Return the codes as a table in Markdown."""
    rows = [f"| `{c.code}` | {c.status} | {c.meaning} |" for c in CODES]
    return "\n".join(["| code | status | when |", "|---|---|---|", *rows])


def _response(status: int) -> dict[str, Any]:
    codes = [code for code in CODES if code.status == status]
    examples = {c.code: {"summary": c.meaning, "value": error_body(c.code, c.message, c.hint)} for c in codes}
    headers = ["X-Request-ID", "Tilewise-API-Version", *(["Retry-After"] if status in _WAITS else [])]
    headers += {401: ["WWW-Authenticate"], 405: ["Allow"]}.get(status, [])
    return {
        "description": f"Refused: {_PHRASES[status]}. " + "; ".join(f"`{c.code}`: {c.meaning}" for c in codes) + ".",
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in headers},
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}, "examples": examples}},
    }


Json = dict[str, Any]

_TIFF = {"schema": {"type": "string", "contentMediaType": "image/tiff"}}
_TEXT = {"type": "string"}
_NUMBER = {"type": "number"}
_SHARE = {"type": "number", "minimum": 0, "maximum": 1}
_COVERAGE = {"type": "number", "minimum": 0.5, "maximum": 1}

SAID: dict[str, Json] = {
    "bands": {
        "schema": _TEXT,
        "description": "Bands in the file's order, as names (`B04,B03,B02`) or as one of `l1c`, `l2a`, `10m`, `rgb`, "
        "`eurosat`; `-` leaves one out. For files whose bands have no names, and arrays.",
        "example": "eurosat",
    },
    "level": {"schema": {"enum": ["L1C", "L2A"]}, "description": "Processing level, for files that do not say."},
    "scale": {"schema": _NUMBER, "description": "Reflectance per unit of the file's numbers: 0.0001 for DN."},
    "offset": {
        "schema": _NUMBER,
        "description": "Added to the file's numbers before scaling: 0 before processing baseline 04.00, -1000 since.",
    },
}
_ASKED: dict[str, Json] = {
    "coverage": {
        "schema": _COVERAGE,
        "description": "Share of tiles whose prediction set shall hold the true class; 0.9 unless it is said.",
    }
}
_NAME: dict[str, Json] = {"name": {"schema": _TEXT, "description": "What the file is called in the answer."}}


def paths() -> Json:
    """Return the Path Items of all routes."""
    return {
        "/classify": {"post": _classify()},
        "/scene": {"post": _scene()},
        "/tasks/{task_id}": {"parameters": [_task_id()], "get": _show_task(), "delete": _remove_task()},
        "/tasks/{task_id}/result": {"parameters": [_task_id()], "get": _show_result()},
        "/explain": {"post": _explain()},
        "/preview": {"post": _preview()},
        "/model": {"get": _model()},
        "/openapi.json": {"get": _description()},
        "/metrics": {"get": _metrics()},
        "/livez": {"get": _health("isAlive", "Whether the process lives", "livez")},
        "/readyz": {"get": _health("isReady", "Whether requests can be answered: for load balancers", "readyz")},
        "/healthz": {"get": {**_health("isHealthy", "The same as /livez", "healthz"), "deprecated": True}},
        "/schema.json": {"get": _bentoml_schema()},
        "/": {"get": _page()},
    }


def _classify() -> Json:
    array = {"schema": _TEXT | {"contentMediaType": "application/octet-stream"}}
    return {
        **_head("classify", "classify", "Classify tiles"),
        "description": "Tiles of 64 × 64 pixels, in one of three forms. A tile that cannot be answered has its own "
        "`error` among the results and harms no other; as the only content of an `image/tiff` body, its error is the "
        "request's. What the files do not say of themselves is said as fields of the form, or in the query.\n\n"
        "A `.npy` body is an array of uint16 (n, bands, 64, 64) in DN (reflectance × 10 000, 0 = no data); for it, "
        "`scale` and `offset` are no parameters.",
        "parameters": [_in_header("Tilewise-Key"), *_query({**SAID, **_ASKED, **_NAME})],
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": _form("tiles", {**SAID, **_ASKED}, many=True)},
                "image/tiff": _TIFF,
                "application/octet-stream": array,
                "application/x-npy": array,
            },
        },
        "responses": {
            "200": _json("One result for each tile, in order", "Classified", {"a tile and a bad one": CLASSIFIED}),
            **_refusals(400, 401, 405, 408, 413, 415, 422, 500, 503, 504),
        },
        **_samples(
            "curl -F tiles=@tile.tif {url}/classify",
            "curl --data-binary @tile.tif -H 'Content-Type: image/tiff' '{url}/classify?name=tile.tif'",
            "curl --data-binary @tiles.npy -H 'Content-Type: application/octet-stream' '{url}/classify?level=L1C'",
        ),
    }


def _scene() -> Json:
    overrides = {**SAID, **_ASKED, **_NAME, **_MIN_VALID_FRACTION}
    prefer = _in_header("Prefer")
    return {
        **_head("classifyScene", "scenes", "Classify a scene larger than a tile"),
        "description": "A GeoTIFF of about 10 m, bounded in pixels and bytes. The header `Accept` decides the form of "
        "the answer: its windows as GeoJSON, or a class map as a Cloud-Optimised GeoTIFF on the scene's own grid. A "
        "large scene, or one sent with `Prefer: respond-async`, becomes a task: 202, with its place in `Location`.",
        "parameters": [prefer, *_query(overrides)],
        "requestBody": {
            "required": True,
            "content": {"image/tiff": _TIFF, "multipart/form-data": {"schema": _form("scene", overrides)}},
        },
        "responses": {
            "200": {**_windows_or_map(), "headers": _headers("Content-Disposition")},
            "202": {
                **_json("A task was made of it", "Task", {"waiting": TASK}),
                "headers": _headers("Location", "Retry-After"),
                "links": {name: _about_task(name) for name in ("showTask", "showResult", "removeTask")},
            },
            **_refusals(400, 401, 405, 406, 408, 413, 415, 422, 429, 500, 503, 504),
        },
        **_samples(
            "curl --data-binary @scene.tif -H 'Content-Type: image/tiff' {url}/scene",
            "curl -F scene=@scene.tif -H 'Accept: image/tiff' -o map.tif {url}/scene",
            "curl -F scene=@scene.tif -H 'Prefer: respond-async' {url}/scene",
        ),
    }


def _show_task() -> Json:
    return {
        **_head("showTask", "scenes", "Tell how far a task is"),
        "description": "Only who sent the scene, by the same API key, sees it.",
        "responses": {"200": _json("How far it is", "Task", {"waiting": TASK}), **_refusals(401, 404, 405, 410, 500)},
        **_samples("curl {url}/tasks/{task_id}"),
    }


def _remove_task() -> Json:
    return {
        **_head("removeTask", "scenes", "Stop a task, and delete its scene and results"),
        "responses": {"204": {"description": "Deleted", "headers": _headers()}, **_refusals(401, 404, 405, 410, 500)},
        **_samples("curl -X DELETE {url}/tasks/{task_id}"),
    }


def _show_result() -> Json:
    return {
        **_head("showResult", "scenes", "Fetch a task's result"),
        "description": "By `Accept`, as for `POST /scene`. Of a task that failed, it is the error.",
        "responses": {
            "200": {**_windows_or_map(), "headers": _headers("Content-Disposition")},
            **_refusals(401, 404, 405, 406, 409, 410, 413, 415, 422, 500),
        },
        **_samples("curl -H 'Accept: image/tiff' -o map.tif {url}/tasks/{task_id}/result"),
    }


def _explain() -> Json:
    wish: dict[str, Json] = {
        "method": {"schema": {"enum": list(Method)}, "description": "What is looked at when a part is taken away."},
        "size": {"schema": {"type": "integer", "minimum": 1, "maximum": 64}, "description": "Of a patch, in pixels."},
        "stride": {"schema": {"type": "integer", "minimum": 1}, "description": "Between patches, in pixels."},
        "class": {"schema": _TEXT, "description": "The class to explain; the likeliest unless it is said."},
    }
    return {
        **_head("explain", "classify", "Tell what a tile's class rests on"),
        "description": "Patches and bands are taken away in turn, and it is seen what becomes of the answer. One tile, "
        "in one of the forms of `/classify`. The header `Accept` decides: a heat map (PNG), or the numbers (JSON).",
        "parameters": [_in_header("Tilewise-Key"), *_query({**SAID, **_NAME, **wish})],
        "requestBody": {
            "required": True,
            "content": {
                "image/tiff": _TIFF,
                "multipart/form-data": {"schema": _form("tiles", SAID)},
                "application/octet-stream": {"schema": _TEXT | {"contentMediaType": "application/octet-stream"}},
            },
        },
        "responses": {
            "200": {
                "description": "A heat map, or its numbers",
                "headers": _headers(),
                "content": {
                    "image/png": {"schema": _TEXT | {"contentMediaType": "image/png"}},
                    "application/json": {"schema": {"$ref": "#/components/schemas/Explanation"}},
                },
            },
            **_refusals(400, 401, 405, 406, 408, 413, 415, 422, 500, 503, 504),
        },
        **_samples(
            "curl -F tiles=@tile.tif -o heat.png {url}/explain",
            "curl -F tiles=@tile.tif -H 'Accept: application/json' '{url}/explain?size=16&class=Forest'",
        ),
    }


def _preview() -> Json:
    overrides = {
        **SAID,
        **_NAME,
        "view": {"schema": {"enum": ["true", "false"]}, "description": "In true or in false colour (near infrared)."},
    }
    return {
        **_head("preview", "people", "Paint a picture of a GeoTIFF"),
        "description": "As the page at `/` shows it: 512 pixels a side at most, no data transparent.",
        "parameters": _query(overrides),
        "requestBody": {
            "required": True,
            "content": {"image/tiff": _TIFF, "multipart/form-data": {"schema": _form("tiles", overrides)}},
        },
        "responses": {
            "200": {
                "description": "The picture",
                "headers": _headers("Tilewise-Cloud-Fraction"),
                "content": {"image/png": {"schema": _TEXT | {"contentMediaType": "image/png"}}},
            },
            **_refusals(400, 401, 405, 408, 413, 415, 422, 500, 503, 504),
        },
        **_samples("curl -F tiles=@tile.tif -o picture.png '{url}/preview?view=false'"),
    }


def _model() -> Json:
    return {
        **_head("describeModel", "model", "Describe the model that answers"),
        "description": "Classes, bands, figures, licence and the hash of its file; and of a candidate, where one is "
        "tried out.",
        "responses": {"200": _json("Its card", "ModelCard", {}), **_refusals(401, 405, 500)},
        **_samples("curl {url}/model"),
    }


def _description() -> Json:
    return {
        **_head("describeApi", "operations", "This document"),
        "security": [],
        "responses": {"200": _plain("OpenAPI 3.1", "application/json", {"type": "object"}), **_refusals(405)},
        **_samples("curl {url}/openapi.json"),
    }


def _metrics() -> Json:
    return {
        **_head("showMetrics", "operations", "What has been counted, for Prometheus"),
        "description": "Needs a key, where keys are set, unless the setting TILEWISE_OPEN_METRICS opens it.",
        "responses": {"200": _plain("Prometheus' text format", "text/plain"), **_refusals(401, 405, 500)},
        **_samples("curl {url}/metrics"),
    }


def _health(operation: str, summary: str, path: str) -> Json:
    return {
        **_head(operation, "operations", summary),
        "security": [],
        "responses": {"200": _plain("Yes", "text/plain"), **_refusals(405)},
        **_samples(f"curl -f {{url}}/{path}"),
    }


def _bentoml_schema() -> Json:
    return {
        **_head("showBentomlSchema", "operations", "BentoML's own description, for its tools"),
        "responses": {"200": _plain("A list of paths", "application/json", {"type": "object"}), **_refusals(401, 405)},
        **_samples("curl {url}/schema.json"),
    }


def _page() -> Json:
    return {
        **_head("showPage", "people", "The page for people"),
        "security": [],
        "responses": {"200": _plain("A page", "text/html"), **_refusals(405)},
        **_samples("curl {url}/"),
    }


# The parts that operations are made of.


def _head(operation: str, tag: str, summary: str) -> Json:
    return {"operationId": operation, "tags": [tag], "summary": summary}


def _query(overrides: dict[str, Json]) -> list[Json]:
    return [{"name": name, "in": "query", **about} for name, about in overrides.items()]


def _in_header(name: str) -> Json:
    return {"$ref": f"#/components/parameters/{name}"}


def _task_id() -> Json:
    return {"name": "task_id", "in": "path", "required": True, "schema": _TEXT}


def _about_task(operation: str) -> Json:
    return {"operationId": operation, "parameters": {"task_id": "$response.body#/id"}}


def _form(field: str, overrides: dict[str, Json], *, many: bool = False) -> Json:
    """Return the schema of a form: files in `field`, and what is said of them."""
    file = _TEXT | {"contentMediaType": "image/tiff"}
    files = {"type": "array", "items": file, "minItems": 1} if many else file
    fields = {name: about["schema"] | {"description": about["description"]} for name, about in overrides.items()}
    return {"type": "object", "required": [field], "properties": {field: files, **fields}}


def _headers(*names: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-ID", "Tilewise-API-Version", *names)}


def _json(description: str, schema: str, examples: Json) -> Json:
    content: Json = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
    if examples:
        content["examples"] = {name: {"value": value} for name, value in examples.items()}
    return {"description": description, "headers": _headers(), "content": {"application/json": content}}


def _plain(description: str, media_type: str, schema: Json = _TEXT) -> Json:
    return {"description": description, "headers": _headers(), "content": {media_type: {"schema": schema}}}


def _windows_or_map() -> Json:
    windows = {"schema": {"$ref": "#/components/schemas/Windows"}}
    return {
        "description": "Its windows, or its class map",
        "content": {"application/geo+json": windows, "image/tiff": _TIFF},
    }


def _refusals(*statuses: int) -> Json:
    return {str(status): {"$ref": f"#/components/responses/{name_of(status)}"} for status in statuses}


def _samples(*lines: str) -> Json:
    return {"x-codeSamples": [{"lang": "Shell", "source": line.replace("{url}", URL)} for line in lines]}


URL = "http://localhost:3000"
_MIN_VALID_FRACTION: dict[str, Json] = {
    "min_valid_fraction": {"schema": _SHARE, "description": "Share of valid pixels below which a window is skipped."}
}
CLASSIFIED: Json = {
    "model": {
        "name": "eurosat",
        "version": "1",
        "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    },
    "results": [
        {
            "name": "tile.tif",
            "class": "Forest",
            "probabilities": {"Forest": 0.91, "Pasture": 0.06, "River": 0.03},
            "prediction_set": {"coverage": 0.9, "classes": ["Forest"]},
            "outlier": {"score": 12.4, "flag": False},
            "valid_fraction": 1.0,
            "bands": ["B02", "B03", "B04", "B08"],
            "level": "L1C",
            "footprint": {
                "type": "Polygon",
                "coordinates": [[[7.0, 46.0], [7.0, 45.994], [7.008, 45.994], [7.008, 46.0], [7.0, 46.0]]],
            },
        },
        {
            "name": "photo.tif",
            "error": {"code": "unreadable_image", "message": "photo.tif: a JPEG, not a GeoTIFF", "hint": ""},
        },
    ],
}
TASK: Json = {
    "id": "TFh0qVx3k1uY4nK2dJ7mWbZr9sLcPq5e",
    "status": "waiting",
    "progress": 0.0,
    "windows": 1024,
    "ahead": 0,
    "created": "2026-01-01T12:00:00.000+00:00",
    "finished": None,
    "expires": None,
    "error": None,
    "links": {
        "self": "/tasks/TFh0qVx3k1uY4nK2dJ7mWbZr9sLcPq5e",
        "result": "/tasks/TFh0qVx3k1uY4nK2dJ7mWbZr9sLcPq5e/result",
    },
    "forms": ["application/geo+json", "image/tiff"],
}


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
    "Tilewise-Cloud-Fraction": "Share (0-1) of the picture's valid pixels that look like cloud; absent without the bands.",
}
_ASKED_IN_HEADERS = {
    "Tilewise-Key": "Decides which model answers where a candidate is tried out: the same key, the same model. "
    "The caller's address decides where there is none.",
    "Prefer": "`respond-async` makes a task of any scene.",
}


@cache
def document() -> dict[str, Any]:
    """Return the description, JSON-ready."""
    about = _ABOUT.replace("CODES", table())
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tilewise",
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
            "responses": responses(),
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
