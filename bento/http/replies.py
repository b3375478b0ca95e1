"""Answers in the service's one form, and what errors become."""

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ExceptionHandler

from bento.http.http_errors import INTERNAL, body_of, error_body, status_of
from bento.process.admission import OverloadedError
from bento.process.batcher import ClosedError
from bento.watch import metrics
from bento.watch.notes import note_code
from datasets.errors import SentileError

_CODES: dict[int, str] = {
    400: "bad_request",
    401: "unauthorized",
    404: "not_found",
    405: "method",
    406: "not_acceptable",
    408: "too_slow",
    410: "gone",
    413: "too_large",
    415: "unsupported_type",
    422: "invalid",
}


def answer(content: dict[str, Any], status: int = 200, **headers: str) -> JSONResponse:
    """Return a JSON answer."""
    return JSONResponse(content, status, headers)


def refuse(status: int, code: str, message: str, hint: str = "", **headers: str) -> JSONResponse:
    """Return an error in its one form, and count it."""
    metrics.ERRORS.labels(code).inc()
    note_code(code)
    return answer(error_body(code, message, hint), status, **headers)


async def on_our_error(request: Request, error: Exception) -> Response:
    """Answer an error that the user can mend."""
    assert isinstance(error, SentileError)  # noqa: S101 - starlette's handlers are typed for any exception
    body = body_of(error)["error"]
    return refuse(status_of(error), body["code"], body["message"], body["hint"])


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer a refusal; what comes after `; ` in its detail is the way out."""
    assert isinstance(error, HTTPException)  # noqa: S101 - as above
    message, _, hint = error.detail.partition("; ")
    return refuse(error.status_code, _CODES.get(error.status_code, "http"), message, hint, **dict(error.headers or {}))


async def on_overload(request: Request, error: Exception) -> Response:
    """Turn a request away; its body was never read, so the connection cannot be used again."""
    seconds = f"{error.retry_after:.0f}" if isinstance(error, OverloadedError) else "5"
    headers = {"Retry-After": seconds, "Connection": "close"}
    return refuse(503, "overloaded", "too many requests are waiting", f"try again in {seconds} s", **headers)


async def on_client_gone(request: Request, error: Exception) -> Response:
    """Answer nobody: the client left before it had sent its body, which is no failure of ours."""
    return Response(status_code=499)


async def on_internal_error(request: Request, error: Exception) -> Response:
    """Answer a request that failed through our fault; the error goes on to `bento.watch.logs`, for the operator."""
    return refuse(500, **INTERNAL)


HANDLERS: dict[Any, ExceptionHandler] = {
    SentileError: on_our_error,
    HTTPException: on_http_error,
    OverloadedError: on_overload,
    ClosedError: on_overload,
    ClientDisconnect: on_client_gone,
    Exception: on_internal_error,
}
