"""Responses: JSON bodies, the status and meaning of every error code, and the handlers of exceptions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ExceptionHandler

from tilewise.bento import metrics
from tilewise.bento.errors import INTERNAL, body_of, error_body
from tilewise.bento.request_context import note_code
from tilewise.bento.serving.admission import OverloadedError
from tilewise.bento.serving.batcher import ClosedError
from tilewise.bento.serving.task_store import FULL, FullError, is_full
from tilewise.datasets.core.errors import TilewiseError


class ErrorCode(NamedTuple):
    """The HTTP status and the documentation of an error code.

    Attributes:
        status: of the response.
        meaning: when the error occurs.
        message, hint: of an example, as the service words them.
    """

    status: int
    meaning: str
    message: str
    hint: str = ""


ERROR_CODES: dict[str, ErrorCode] = {
    "bad_request": ErrorCode(
        400,
        "The body is malformed, or contains no file",
        "no file in the multipart field 'tiles'",
        "curl -F tiles=@tile.tif sends one",
    ),
    "api_version": ErrorCode(
        400,
        "The request header Tilewise-API-Version names another version",
        "the service speaks another version of the API",
        "it speaks version 1: use its release's client, or omit the header Tilewise-API-Version",
    ),
    "unauthorized": ErrorCode(
        401,
        "The service requires an API key, and the request has no valid one",
        "this service needs an API key",
        "send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
    ),
    "not_found": ErrorCode(
        404,
        "There is no such path, or the caller has no such task",
        "there is no such path",
        "GET /openapi.json lists the paths",
    ),
    "method": ErrorCode(
        405,
        "The path does not accept the method; the header Allow lists those that it accepts",
        "this path does not accept GET",
        "use POST",
    ),
    "not_acceptable": ErrorCode(
        406,
        "The header Accept names no media type that the path can return",
        "the response has no such media type",
        "Accept one of application/geo+json, image/tiff, image/png",
    ),
    "too_slow": ErrorCode(
        408, "The body arrived too slowly", "the body arrived too slowly", "send 32 KiB a second or more"
    ),
    "not_done": ErrorCode(
        409,
        "The task has no result yet",
        "the task is running",
        "GET /tasks/{task_id} returns its progress",
    ),
    "gone": ErrorCode(
        410,
        "The result of the task was deleted",
        "the results were kept for 3600 s",
        "send the scene again",
    ),
    "too_large": ErrorCode(
        413,
        "More bytes, tiles or pixels than the service accepts",
        "a body of 70,000,000 bytes",
        "the limit is 67,108,864",
    ),
    "unsupported_type": ErrorCode(
        415,
        "The path does not accept the Content-Type of the body",
        "a body of application/json",
        "send files as multipart/form-data (curl -F tiles=@tile.tif), one file as image/tiff, image/jpeg or "
        "image/png, a .npy array as application/octet-stream, or files in base64 as application/json",
    ),
    "unreadable_image": ErrorCode(
        415, "The file is not a readable GeoTIFF", "tile.tif: a JPEG, not a GeoTIFF"
    ),
    "invalid": ErrorCode(
        422, "A parameter is unknown, or its value is not valid", "level is L1C or L2A, not 'L3'"
    ),
    "tile_shape": ErrorCode(
        422,
        "The file is not a tile of 64 × 64 pixels, or not a scene of about 10 m a pixel",
        "tile.tif: 63 × 64 pixels, not 64 × 64",
    ),
    "no_data": ErrorCode(
        422,
        "No pixel has data",
        "tile.tif: no pixel holds data in all of B02, B03",
        "nothing to classify",
    ),
    "unknown_band": ErrorCode(
        422, "Sentinel-2 has no band of that name", "unknown band 'B99'", "there are B01, B02, …"
    ),
    "bands_unknown": ErrorCode(
        422,
        "Neither the file nor the request names the bands",
        "tile.tif: 13 bands have no names",
        "say which they are: bands=eurosat, l1c, l2a, 10m, rgb, or names in order",
    ),
    "band_missing": ErrorCode(
        422,
        "The file lacks a band that the request needs",
        "tile.tif: it has no B08",
        "this picture shows B08, B04, B03 in red, green and blue",
    ),
    "radiometry_unknown": ErrorCode(
        422,
        "Neither the file nor the request says how its numbers become reflectance",
        "tile.tif: neither a level nor an offset is given",
        "say level and offset: 0 before processing baseline 04.00, -1000 since",
    ),
    "too_many_tasks": ErrorCode(
        429,
        "The queue of scenes is full; try again after Retry-After seconds",
        "the queue of scenes is full",
        "try again in 30 s",
    ),
    "head_too_large": ErrorCode(
        431, "The request's headers are too long", "headers of more than 65,536 bytes"
    ),
    "internal": ErrorCode(
        500,
        "The service failed; its log has the cause under the X-Request-ID",
        INTERNAL["message"],
        INTERNAL["hint"],
    ),
    "task_lost": ErrorCode(
        500,
        "The processes that worked on a task ended before it was done",
        "the processes that worked on the scene ended before it was done",
        "send it again, or cut it into smaller ones",
    ),
    "not_fetched": ErrorCode(
        502,
        "The file could not be fetched from its url",
        "tile.tif: tiles.example.org answered with status 404",
        "the address must answer by itself, without a login or a redirect",
    ),
    "overloaded": ErrorCode(
        503,
        "Too many requests are waiting; try again after Retry-After seconds",
        "too many requests are waiting",
        "try again in 30 s",
    ),
    "storage_full": ErrorCode(
        503,
        "There is no disk space for another scene; try again after Retry-After seconds",
        "there is no disk space for another scene",
        "try again in 30 s, or DELETE the tasks whose results you have",
    ),
    "model": ErrorCode(503, "The model file cannot be used", "the model cannot be run", "export it again"),
    "timeout": ErrorCode(
        504,
        "The request was not done in time",
        "not done within 60 seconds",
        "send fewer tiles at once, or try again later",
    ),
}
"""Every error code of the API. The first code of a status is that of an `HTTPException` with the status."""

_CODE_OF_STATUS = {error.status: code for code, error in reversed(ERROR_CODES.items())}
_RETRY_STATUSES = (429, 503)


def status_of_code(code: str) -> int:
    """Return the HTTP status of an error code; 500 where it is unknown."""
    return ERROR_CODES[code].status if code in ERROR_CODES else 500


def code_of_status(status: int) -> str:
    """Return the error code of an `HTTPException` with the status."""
    return _CODE_OF_STATUS.get(status, "http")


# Responses.


def reply(content: dict[str, Any], status: int = 200, **headers: str) -> JSONResponse:
    """Return a JSON response."""
    return JSONResponse(content, status, headers)


def refuse(status: int, code: str, message: str, hint: str = "", **headers: str) -> JSONResponse:
    """Return an error response, and count it in the metrics and the request context."""
    metrics.ERRORS.labels(code).inc()
    note_code(code)
    return reply(error_body(code, message, hint), status, **headers)


def negotiate(accept: str, offers: Sequence[str]) -> str | None:
    """Return the offer that an Accept header prefers; None where it accepts none (RFC 9110, 12.5.1).

    Args:
        accept: the header as it was sent; empty means that any media type will do.
        offers: media types without parameters, the default first; of equals the earlier one is returned.
    """
    ranges = [_parse_range(part) for part in accept.split(",") if part.strip()] or [("*/*", 1.0)]
    best = max(offers, key=lambda offer: _quality(offer, ranges))
    return best if _quality(best, ranges) > 0 else None


def _quality(offer: str, ranges: Sequence[tuple[str, float]]) -> float:
    """Return the quality (0-1) that the most specific matching range gives to a media type."""
    qualities = dict(reversed(ranges))
    for media_range in (offer, f"{offer.partition('/')[0]}/*", "*/*"):
        if media_range in qualities:
            return qualities[media_range]
    return 0.0


def _parse_range(part: str) -> tuple[str, float]:
    media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            return media_range, _parse_quality(value)
    return media_range, 1.0


def _parse_quality(text: str) -> float:
    try:
        quality = float(text)
    except ValueError:
        return 0.0
    return quality if 0 <= quality <= 1 else 0.0


# Handlers of exceptions.


async def handle_tilewise_error(request: Request, error: Exception) -> Response:
    """Respond to an error that the caller can fix."""
    assert isinstance(error, TilewiseError)  # noqa: S101 - starlette types handlers for any exception
    body = body_of(error)["error"]
    return refuse(status_of_code(body["code"]), **body)


async def handle_http_error(request: Request, error: Exception) -> Response:
    """Respond to an `HTTPException`; what follows the first `; ` of its detail is the hint."""
    assert isinstance(error, HTTPException)  # noqa: S101 - as above
    message, _, hint = error.detail.partition("; ")
    status = error.status_code
    return refuse(status, code_of_status(status), message, hint, **dict(error.headers or {}))


async def handle_overload(request: Request, error: Exception) -> Response:
    """Respond with 503 to a request whose body was not read, and close its connection."""
    seconds = f"{error.retry_after:.0f}" if isinstance(error, OverloadedError) else "5"
    headers = {"Retry-After": seconds, "Connection": "close"}
    return refuse(503, "overloaded", "too many requests are waiting", f"try again in {seconds} s", **headers)


async def handle_full(request: Request, error: Exception) -> Response:
    """Respond with 503 where there is no space for a scene or an upload, 429 where too many tasks wait."""
    headers = {"Retry-After": "30", "Connection": "close"}  # the body may be unread
    if isinstance(error, FullError) and error.tasks:
        return refuse(429, "too_many_tasks", "the queue of scenes is full", "try again in 30 s", **headers)
    if not is_full(error):
        raise error
    return refuse(503, **FULL, **headers)


async def handle_disconnect(request: Request, error: Exception) -> Response:
    """Count a client that disconnected while it sent its body as 499, which is no failure of the service."""
    return Response(status_code=499)


async def handle_internal_error(request: Request, error: Exception) -> Response:
    """Respond to a failure of the service; starlette raises the error again, for `monitoring.logs`."""
    return refuse(500, **INTERNAL)


HANDLERS: dict[Any, ExceptionHandler] = {
    TilewiseError: handle_tilewise_error,
    HTTPException: handle_http_error,
    OverloadedError: handle_overload,
    ClosedError: handle_overload,
    FullError: handle_full,
    OSError: handle_full,
    ClientDisconnect: handle_disconnect,
    Exception: handle_internal_error,
}


# Their part of the OpenAPI document.


def headers(*names: str) -> dict[str, Any]:
    """Return references to the headers of a response in OpenAPI: those of every response, and `names`."""
    every = ("X-Request-ID", "Tilewise-API-Version")
    return {name: {"$ref": f"#/components/headers/{name}"} for name in (*every, *names)}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the error responses of a route in OpenAPI, for FastAPI's argument `responses`."""
    return {status: {"$ref": f"#/components/responses/Error{status}"} for status in statuses}


def error_responses() -> dict[str, Any]:
    """Return the OpenAPI components that `refusals` refers to, with an example of each code."""
    statuses = sorted({error.status for error in ERROR_CODES.values()})
    return {f"Error{status}": _error_response(status) for status in statuses}


def code_table() -> str:
    """Return the error codes as a table in Markdown."""
    rows = [f"| `{code}` | {error.status} | {error.meaning} |" for code, error in ERROR_CODES.items()]
    return "\n".join(["| code | status | when |", "|---|---|---|", *rows])


def _error_response(status: int) -> dict[str, Any]:
    examples = {
        code: {"summary": error.meaning, "value": error_body(code, error.message, error.hint)}
        for code, error in ERROR_CODES.items()
        if error.status == status
    }
    more = {401: ["WWW-Authenticate"], 405: ["Allow"]}.get(status, [])
    more += ["Retry-After"] if status in _RETRY_STATUSES else []
    schema = {"$ref": "#/components/schemas/ErrorResponse"}
    return {
        "description": "; ".join(f"`{code}`: {example['summary']}" for code, example in examples.items())
        + ".",
        "headers": headers(*more),
        "content": {"application/json": {"schema": schema, "examples": examples}},
    }
