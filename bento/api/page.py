"""`GET /`: the page for people, and its files under `/page/`. They are fixed, need no build and no key.

The page may run its own scripts and speak to this service, and nothing else. The one exception are the pictures of a
base map, which it only asks for where a person turns the map on.
"""

import asyncio
import hashlib
import json
import mimetypes
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tilewise.bento.api.bodies import FIELD, SAID, announced_bytes, limited, parameters
from tilewise.bento.inference.preview import View, preview
from tilewise.bento.results.maps import FURTHER, KNOWN
from tilewise.bento.serving.runtime import serving_of

CLOUD_FRACTION = "Tilewise-Cloud-Fraction"
_PARAMETERS = (*SAID, "name", "view")
_AT_ONCE = asyncio.Semaphore(1)  # of each process: pictures never take more than one core from the answers


async def show_preview(request: Request) -> Response:
    """POST /preview: a PNG of one GeoTIFF, of 512 pixels a side at most; what of it is cloud, in a header."""
    settings = serving_of(request).settings
    async with serving_of(request).admission.room(announced_bytes(request, settings.max_bytes)):
        overrides, content = await _read_body(limited(request, settings.max_bytes))
        read_options, _ = parameters(overrides, _PARAMETERS)
        name, view = overrides.get("name") or "tile", _view_of(overrides)
        async with _AT_ONCE:
            made = await asyncio.to_thread(preview, content, read_options, name, view, settings.max_pixels)
    headers = {} if made.cloud_fraction is None else {CLOUD_FRACTION: f"{made.cloud_fraction:.4f}"}
    return Response(made.png, media_type="image/png", headers=headers)


def _view_of(overrides: Mapping[str, str]) -> View:
    view = overrides.get("view") or View.TRUE
    if view not in list(View):
        raise HTTPException(422, f"view is {' or '.join(View)}, not {view!r}")
    return View(view)


async def _read_body(request: Request) -> tuple[dict[str, str], bytes]:
    """Return what is said of a file, in the query and in the fields of a form, and the file's bytes."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    overrides = dict(request.query_params)
    if kind == "image/tiff":
        return overrides, await request.body()
    if kind != "multipart/form-data":
        raise HTTPException(
            415, f"a body of {kind or 'no type'}; send one file as image/tiff, or in a form's {FIELD!r}"
        )
    async with request.form(max_files=1, max_fields=len(_PARAMETERS)) as form:
        file = form.get(FIELD)
        if not isinstance(file, UploadFile):
            raise HTTPException(400, f"no file in the multipart field {FIELD!r}; curl -F {FIELD}=@tile.tif sends one")
        fields = {name: value for name, value in form.items() if isinstance(value, str)}
        return {"name": file.filename or "tile", **overrides, **fields}, await file.read()


PREVIEW_ROUTES = [Route("/preview", show_preview, methods=["POST"])]


FOLDER = Path(__file__).parents[1] / "page"
START = "index.html"
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
_TYPES = {".js": "text/javascript", ".svg": "image/svg+xml"}  # whatever this machine's own table says


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the page as it is sent: what it is, its bytes, and the name of this version of it."""

    kind: str
    content: bytes

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'


def page_routes() -> list[Route]:
    """Return a route for each file of the page; the files are read now, and never again."""
    files = {path.name: _File(_kind_of(path), path.read_bytes()) for path in sorted(FOLDER.iterdir())}
    start = files.pop(START)
    files["legend.json"] = _File("application/json", _legend())
    served = {"/": start, **{f"/page/{name}": file for name, file in files.items()}}
    return [Route(path, _sender(file), methods=["GET"], include_in_schema=False) for path, file in served.items()]


def _kind_of(path: Path) -> str:
    return _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"


def _legend() -> bytes:
    """Return the colours of classes on maps; not the classes of the model, which are the model card's to tell."""
    known = {name: _hexadecimal(colour) for name, colour in KNOWN.items()}
    return json.dumps({"known": known, "further": [_hexadecimal(colour) for colour in FURTHER]}).encode()


def _hexadecimal(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _sender(file: _File) -> Callable[[Request], Awaitable[Response]]:
    # Asked about each time, sent only where it has changed: a new version of the service has a new page at once.
    headers = {"ETag": file.etag, "Cache-Control": "no-cache", "Content-Security-Policy": POLICY}

    async def send(request: Request) -> Response:
        if file.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(file.content, media_type=file.kind, headers=headers)

    return send
