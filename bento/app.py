"""The HTTP routes: an ASGI application that the BentoML service mounts.

BentoML's own file inputs lose the upload's name, write it to a temporary file on the event loop, and answer a bad one
with an error for its whole batch; a mounted route has none of that (docs/decisions/0004).
"""

from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from bento import metrics
from bento.admission import Admission, OverloadedError
from bento.batcher import Batcher, ClosedError
from bento.bodies import announced_bytes, read_tiles
from bento.engine import Engine
from bento.http_errors import body_of, error_body, status_of, status_of_code
from bento.settings import Settings
from bento.uploads import Answer, Upload, classify_uploads
from datasets.errors import SentileError

API_VERSION = "1"
_CODES: dict[int, str] = {
    400: "bad_request",
    404: "not_found",
    405: "method",
    413: "too_large",
    415: "unsupported_type",
    422: "invalid",
}


@dataclass(frozen=True, slots=True)
class Serving:
    """What the routes share, in `app.state.serving`."""

    settings: Settings
    engine: Engine
    admission: Admission
    batcher: Batcher[Upload, Answer]

    @classmethod
    def start(cls, settings: Settings, engine: Engine) -> "Serving":
        """Start serving `engine`."""

        def work(uploads: list[Upload]) -> list[Answer]:
            return classify_uploads(engine, uploads)

        def observe(tiles: int, waiting: int) -> None:
            metrics.BATCH.observe(tiles)
            metrics.WAITING.set(waiting)

        admission = Admission(settings.room, settings.most_waiting, settings.most_seconds)
        return cls(settings, engine, admission, Batcher(work, settings.most_in_batch, observe))


def make_app() -> Starlette:
    """Return the application; `app.state.serving` must be set before it serves."""
    return Starlette(
        routes=[
            Route("/classify", classify, methods=["POST"]),
            Route("/model", describe_model, methods=["GET"]),
        ],
        exception_handlers={
            SentileError: _on_our_error,
            HTTPException: _on_http_error,
            OverloadedError: _on_overload,
            ClosedError: _on_overload,
        },
    )


async def classify(request: Request) -> JSONResponse:
    """POST /classify: tiles in one of three forms (`bento.bodies`); one result for each, in order."""
    serving: Serving = request.app.state.serving
    sets = serving.engine.metadata.prediction_sets
    async with serving.admission.room(announced_bytes(request, serving.settings.most_bytes)):
        asked = await read_tiles(request, serving.settings, max(sets.thresholds) if sets else 0.0)
        results = await serving.batcher.submit(asked.uploads)
    if asked.single and "error" in results[0]:
        return _answer({"error": results[0]["error"]}, status_of_code(results[0]["error"]["code"]))
    return _answer({"model": _identity(serving.engine), "results": results})


async def describe_model(request: Request) -> JSONResponse:
    """GET /model: what the model says of itself, without its reference histograms."""
    engine: Engine = request.app.state.serving.engine
    card = engine.metadata.model_dump(mode="json", exclude={"histograms", "histogram_edges"})
    return _answer({**card, "sha256": engine.sha256})


def _identity(engine: Engine) -> dict[str, str]:
    return {"name": engine.metadata.name, "version": engine.metadata.version, "sha256": engine.sha256}


def _answer(content: dict[str, Any], status: int = 200, **headers: str) -> JSONResponse:
    return JSONResponse(content, status, {"Sentile-Api-Version": API_VERSION, **headers})


def _refuse(status: int, code: str, message: str, hint: str = "", **headers: str) -> JSONResponse:
    metrics.ERRORS.labels(code).inc()
    return _answer(error_body(code, message, hint), status, **headers)


async def _on_our_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SentileError)  # noqa: S101 - starlette's handlers are typed for any exception
    body = body_of(error)
    metrics.ERRORS.labels(body["error"]["code"]).inc()
    return _answer(body, status_of(error))


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - as above
    message, _, hint = error.detail.partition("; ")
    return _refuse(error.status_code, _CODES.get(error.status_code, "http"), message, hint)


async def _on_overload(request: Request, error: Exception) -> JSONResponse:
    seconds = f"{error.retry_after:.0f}" if isinstance(error, OverloadedError) else "5"
    # The body was never read, so the connection cannot be used again.
    headers = {"Retry-After": seconds, "Connection": "close"}
    return _refuse(503, "overloaded", "too many requests are waiting", f"try again in {seconds} s", **headers)
