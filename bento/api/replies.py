"""Answers in the service's one form, and what errors become."""

from collections.abc import Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ExceptionHandler

from tilewise.bento import metrics
from tilewise.bento.errors import INTERNAL, body_of, error_body, status_of
from tilewise.bento.request_context import note_code
from tilewise.bento.serving.admission import OverloadedError
from tilewise.bento.serving.batcher import ClosedError
from tilewise.datasets.core.errors import TilewiseError


def negotiate(accept: str, offers: Sequence[str]) -> str | None:
    """Return the offer that the header `accept` likes best, the earlier of equals; None where it likes none.

    Args:
        accept: as it was sent; empty means that anything will do.
        offers: media types without parameters, the default first.
    """
    wanted = [_parse(part) for part in accept.split(",") if part.strip()] or [("*/*", 1.0)]
    best = max(offers, key=lambda offer: _quality(offer, wanted))
    return best if _quality(best, wanted) > 0 else None


def _quality(offer: str, wanted: Sequence[tuple[str, float]]) -> float:
    """Return what the most specific range that `offer` falls into says of it (0-1)."""
    ranges = dict(reversed(wanted))
    for span in (offer, f"{offer.partition('/')[0]}/*", "*/*"):
        if span in ranges:
            return ranges[span]
    return 0.0


def _parse(part: str) -> tuple[str, float]:
    span, *parameters = (piece.strip().lower() for piece in part.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            return span, _number(value)
    return span, 1.0


def _number(text: str) -> float:
    try:
        quality = float(text)
    except ValueError:
        return 0.0
    return quality if 0 <= quality <= 1 else 0.0


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
    assert isinstance(error, TilewiseError)  # noqa: S101 - starlette's handlers are typed for any exception
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
    """Answer a request that failed through our fault; the error goes on to `tilewise.bento.monitoring.logs`, for the operator."""
    return refuse(500, **INTERNAL)


HANDLERS: dict[Any, ExceptionHandler] = {
    TilewiseError: on_our_error,
    HTTPException: on_http_error,
    OverloadedError: on_overload,
    ClosedError: on_overload,
    ClientDisconnect: on_client_gone,
    Exception: on_internal_error,
}
