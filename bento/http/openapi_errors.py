"""Every code that an error can have, for the service's description: when it comes, and what to do."""

from dataclasses import dataclass
from typing import Any

from bento.http.http_errors import error_body


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
        "The request's header Sentile-API-Version names another version",
        "the service speaks another version of the API",
        "it speaks version 1: use its release's client, or leave the header Sentile-API-Version out",
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
    headers = ["X-Request-ID", "Sentile-API-Version", *(["Retry-After"] if status in _WAITS else [])]
    headers += {401: ["WWW-Authenticate"], 405: ["Allow"]}.get(status, [])
    return {
        "description": f"Refused: {_PHRASES[status]}. " + "; ".join(f"`{c.code}`: {c.meaning}" for c in codes) + ".",
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in headers},
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}, "examples": examples}},
    }
