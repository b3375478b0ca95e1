"""What can be asked of the service, for its description: each path's parameters, bodies, answers and a `curl` line.

The tests run each line, and hold what it prints against the forms that are promised here.
"""

from typing import Any

from bento.explain import Method
from bento.http.openapi_errors import name_of

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
        "parameters": [_in_header("Sentile-Key"), *_query({**SAID, **_ASKED, **_NAME})],
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
    said = {**SAID, **_ASKED, **_NAME, **_LEAST_VALID}
    prefer = _in_header("Prefer")
    return {
        **_head("classifyScene", "scenes", "Classify a scene larger than a tile"),
        "description": "A GeoTIFF of about 10 m, bounded in pixels and bytes. The header `Accept` decides the form of "
        "the answer: its windows as GeoJSON, or a class map as a Cloud-Optimised GeoTIFF on the scene's own grid. A "
        "large scene, or one sent with `Prefer: respond-async`, becomes a task: 202, with its place in `Location`.",
        "parameters": [prefer, *_query(said)],
        "requestBody": {
            "required": True,
            "content": {"image/tiff": _TIFF, "multipart/form-data": {"schema": _form("scene", said)}},
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
        "parameters": [_in_header("Sentile-Key"), *_query({**SAID, **_NAME, **wish})],
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
    said = {
        **SAID,
        **_NAME,
        "view": {"schema": {"enum": ["true", "false"]}, "description": "In true or in false colour (near infrared)."},
    }
    return {
        **_head("preview", "people", "Paint a picture of a GeoTIFF"),
        "description": "As the page at `/` shows it: 512 pixels a side at most, no data transparent.",
        "parameters": _query(said),
        "requestBody": {
            "required": True,
            "content": {"image/tiff": _TIFF, "multipart/form-data": {"schema": _form("tiles", said)}},
        },
        "responses": {
            "200": {
                "description": "The picture",
                "headers": _headers("Sentile-Cloud-Share"),
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
        "description": "Needs a key, where keys are set, unless the setting SENTILE_OPEN_METRICS opens it.",
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


def _query(said: dict[str, Json]) -> list[Json]:
    return [{"name": name, "in": "query", **about} for name, about in said.items()]


def _in_header(name: str) -> Json:
    return {"$ref": f"#/components/parameters/{name}"}


def _task_id() -> Json:
    return {"name": "task_id", "in": "path", "required": True, "schema": _TEXT}


def _about_task(operation: str) -> Json:
    return {"operationId": operation, "parameters": {"task_id": "$response.body#/id"}}


def _form(field: str, said: dict[str, Json], *, many: bool = False) -> Json:
    """Return the schema of a form: files in `field`, and what is said of them."""
    file = _TEXT | {"contentMediaType": "image/tiff"}
    files = {"type": "array", "items": file, "minItems": 1} if many else file
    fields = {name: about["schema"] | {"description": about["description"]} for name, about in said.items()}
    return {"type": "object", "required": [field], "properties": {field: files, **fields}}


def _headers(*names: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-ID", "Sentile-API-Version", *names)}


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
_LEAST_VALID: dict[str, Json] = {
    "least_valid": {"schema": _SHARE, "description": "Share of valid pixels below which a window is skipped."}
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
            "valid_share": 1.0,
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
