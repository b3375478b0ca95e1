"""Routes of the web page: `GET /`, its files under `/page/`, and its pictures of files by `POST /preview`.

The files are fixed and need no build and no API key. The page may run its own scripts and connect to this
service, and to nothing else, except for the images of a base map, which it requests only while a visitor
turns that on.
"""

import hashlib
import json
import mimetypes
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tilewise.bento.api.bodies import (
    FIELD,
    files_of,
    limit_body,
    media_type_of,
    parse_parameters,
    single_values,
)
from tilewise.bento.api.forms import read_form
from tilewise.bento.api.replies import headers, refusals
from tilewise.bento.api.scenes import parse_flag
from tilewise.bento.api.schemas import PNG, TIFF, PreviewParameters, form, operation, query
from tilewise.bento.inference.preview import Preview, View, preview
from tilewise.bento.serving.admission import caller_of
from tilewise.bento.serving.background import CLIENT_GONE, Check, ClientGoneError
from tilewise.bento.serving.runtime import serving_of
from tilewise.models.class_colours import FURTHER, KNOWN

router = APIRouter(tags=["people"])

CLOUD_FRACTION = "Tilewise-Cloud-Fraction"
_PARAMETERS = tuple(PreviewParameters.model_fields)


@router.post(
    "/preview",
    operation_id="preview",
    summary="Render a picture of a GeoTIFF",
    response_class=Response,
    response_description="The picture",
    responses={
        200: {"headers": headers(CLOUD_FRACTION), "content": {"image/png": PNG}},
        **refusals(400, 401, 405, 408, 413, 415, 422, 500, 503, 504),
    },
    openapi_extra=operation(
        "curl -F tiles=@tile.tif -o picture.png '{url}/preview?view=false'",
        parameters=query(PreviewParameters),
        body={"image/tiff": TIFF, "multipart/form-data": form(FIELD, PreviewParameters)},
    ),
)
async def show_preview(request: Request) -> Response:
    """A PNG of at most 512 pixels a side, as the web page shows it; pixels without data are transparent."""
    serving = serving_of(request)
    settings = serving.settings
    async with serving.admission.room(caller_of(request)) as room:
        parameters, content = await _read_file(limit_body(request, settings.max_bytes, room.grow))
        options, _ = parse_parameters(parameters, _PARAMETERS)
        name, view = parameters.get("name") or "tile", _parse_view(parameters)
        warp = parse_flag(parameters, "warp")

        def work(check: Check) -> Preview:
            return preview(content, options, name, view, settings.max_pixels, check, warp=warp)

        try:
            made = await serving.previews.run(request, work)
        except ClientGoneError:
            return Response(status_code=CLIENT_GONE)
    cloud = {} if made.cloud_fraction is None else {CLOUD_FRACTION: f"{made.cloud_fraction:.4f}"}
    return Response(made.png, media_type="image/png", headers=cloud)


def _parse_view(parameters: Mapping[str, str]) -> View:
    view = parameters.get("view") or View.TRUE
    if view not in list(View):
        raise HTTPException(422, f"view is {' or '.join(View)}, not {view!r}")
    return View(view)


async def _read_file(request: Request) -> tuple[dict[str, str], bytes]:
    """Return the parameters in the query and in the fields of a form, and the file's bytes."""
    kind = media_type_of(request)
    parameters = single_values(request.query_params)
    if kind == "image/tiff":
        return parameters, await request.body()
    if kind != "multipart/form-data":
        raise HTTPException(
            415, f"a body of {kind or 'no type'}; send one file as image/tiff, or in a form's {FIELD!r}"
        )
    form = await read_form(request, max_files=1, max_fields=len(_PARAMETERS))
    (file,) = files_of(form)
    fields = single_values(form)
    del fields[FIELD]
    return {"name": file.name or "tile", **parameters, **fields}, file.content


# The page and its files.

FOLDER = Path(__file__).parents[1] / "page"
BASE_MAP = "https://tile.openstreetmap.org"
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        f"img-src 'self' blob: {BASE_MAP}",
        "connect-src 'self'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "require-trusted-types-for 'script'",  # no text of a file or of the service can become markup or code
        "trusted-types 'none'",
    )
)
_INDEX = "index.html"
_MEDIA_TYPES = {".js": "text/javascript", ".svg": "image/svg+xml"}  # whatever the table of this machine has


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the page."""

    media_type: str
    content: bytes

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'


@router.get(
    "/",
    operation_id="showPage",
    summary="The web page",
    response_class=HTMLResponse,
    response_description="A page",
    responses={200: {"headers": headers()}, **refusals(405)},
    openapi_extra=operation("curl {url}/", security=[]),
)
async def show_page(request: Request) -> Response:
    """Classifies files in the browser, with pictures and a map."""
    return _send_file(request, _files()[_INDEX])


def file_routes() -> list[Route]:
    """Return a route for each file of the page; the files are read once."""

    def sender(file: _File) -> Callable[[Request], Awaitable[Response]]:
        async def send(request: Request) -> Response:
            return _send_file(request, file)

        return send

    files = {name: file for name, file in _files().items() if name != _INDEX}
    return [Route(f"/page/{name}", sender(file), include_in_schema=False) for name, file in files.items()]


def _send_file(request: Request, file: _File) -> Response:
    # Browsers ask each time, and download only what has changed: a new version of the service shows its page
    # at once.
    fields = {"ETag": file.etag, "Cache-Control": "no-cache", "Content-Security-Policy": POLICY}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=fields)
    return Response(file.content, media_type=file.media_type, headers=fields)


@cache
def _files() -> dict[str, _File]:
    files = {path.name: _File(_media_type(path), path.read_bytes()) for path in sorted(FOLDER.iterdir())}
    return {**files, "legend.json": _File("application/json", _legend())}


def _media_type(path: Path) -> str:
    return _MEDIA_TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"


def _legend() -> bytes:
    """Return the colours of classes on maps; those of the model are in `GET /model`, which may need a key."""
    known = {name: _hexadecimal(colour) for name, colour in KNOWN.items()}
    return json.dumps({"known": known, "further": [_hexadecimal(colour) for colour in FURTHER]}).encode()


def _hexadecimal(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
