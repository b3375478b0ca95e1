"""The HTTP routes: an ASGI application that the BentoML service mounts.

BentoML's own file inputs lose the upload's name, write it to a temporary file on the event loop, and answer a
bad one with an error for its whole batch; a mounted route has none of that.
"""

import math

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Message

from bento.engine import Engine
from bento.http_errors import body_of, error_body, status_of
from bento.settings import Settings
from bento.uploads import Upload, classify_uploads
from datasets.command import make_statement
from datasets.errors import SentileError
from datasets.radiometry import Level, Statement

FIELD = "tiles"
FIELDS = (FIELD, "bands", "level", "scale", "offset")
_CODES: dict[int, str] = {
    400: "bad_request",
    404: "not_found",
    405: "method",
    413: "too_large",
    422: "invalid",
}


def make_app() -> Starlette:
    """Return the application; `app.state.engine` and `app.state.settings` must be set before it serves."""
    return Starlette(
        routes=[
            Route("/classify", classify, methods=["POST"]),
            Route("/model", describe_model, methods=["GET"]),
        ],
        exception_handlers={SentileError: _on_our_error, HTTPException: _on_http_error},
    )


async def classify(request: Request) -> JSONResponse:
    """POST /classify: GeoTIFF tiles in the multipart field `tiles`; one result for each, in order."""
    engine: Engine = request.app.state.engine
    settings: Settings = request.app.state.settings
    body = _no_longer_than(settings.most_bytes, request)
    async with body.form(max_files=settings.most_tiles, max_fields=len(FIELDS)) as form:
        _refuse_unknown_fields(form)
        said = _statement(form)
        uploads = await _uploads(form)
    results = await run_in_threadpool(classify_uploads, engine, uploads, said)
    return JSONResponse({"model": _identity(engine), "results": results})


async def describe_model(request: Request) -> JSONResponse:
    """GET /model: what the model says of itself, without its reference histograms."""
    engine: Engine = request.app.state.engine
    card = engine.metadata.model_dump(exclude={"histograms", "histogram_edges"})
    return JSONResponse({**card, "sha256": engine.sha256})


def _identity(engine: Engine) -> dict[str, str]:
    return {"name": engine.metadata.name, "version": engine.metadata.version, "sha256": engine.sha256}


async def _uploads(form: FormData) -> list[Upload]:
    parts = form.getlist(FIELD)
    if not parts or not all(isinstance(part, UploadFile) for part in parts):
        raise HTTPException(400, f"no file in the multipart field {FIELD!r}; curl -F {FIELD}=@tile.tif sends one")
    files = [part for part in parts if isinstance(part, UploadFile)]
    return [Upload(file.filename or "tile", await file.read()) for file in files]


def _refuse_unknown_fields(form: FormData) -> None:
    """Refuse a misspelt field: left unread, it would change the answers in silence."""
    for name in form:
        if name not in FIELDS:
            raise HTTPException(422, f"there is no field {name!r}; the fields are {', '.join(FIELDS)}")


def _statement(form: FormData) -> Statement:
    """Return what the form's fields say of all files: bands, level, scale, offset."""
    level = _text(form, "level")
    if level and level.upper() not in Level.__members__:
        raise HTTPException(422, f"level is L1C or L2A, not {level!r}")
    return make_statement(_text(form, "bands"), level, _number(form, "scale"), _number(form, "offset"))


def _text(form: FormData, name: str) -> str | None:
    value = form.get(name)
    return value if isinstance(value, str) and value else None


def _number(form: FormData, name: str) -> float | None:
    text = _text(form, name)
    try:
        number = float(text) if text else None
    except ValueError:
        number = math.nan
    if number is not None and not math.isfinite(number):
        raise HTTPException(422, f"{name} is a number, not {text!r}")
    return number


def _no_longer_than(most_bytes: int, request: Request) -> Request:
    """Return `request` with a body that cannot be read beyond `most_bytes`, even if it hides its length."""
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > most_bytes:
        raise HTTPException(413, f"a body of {int(length):,} bytes; {most_bytes:,} is the most")
    taken = 0

    async def receive() -> Message:
        nonlocal taken
        message = await request.receive()
        taken += len(message.get("body", b""))
        if taken > most_bytes:
            raise HTTPException(413, f"a body of more than {most_bytes:,} bytes, which is the most")
        return message

    return Request(request.scope, receive)


async def _on_our_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SentileError)  # noqa: S101 - starlette's handlers are typed for any exception
    return JSONResponse(body_of(error), status_code=status_of(error))


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - as above
    message, _, hint = error.detail.partition("; ")
    code = _CODES.get(error.status_code, "http")
    return JSONResponse(error_body(code, message, hint), status_code=error.status_code)
