"""`POST /preview`: a picture of a GeoTIFF, as the page at `/` shows it."""

import asyncio
from collections.abc import Mapping

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bento.http.bodies import FIELD, SAID, announced_bytes, limited, parameters
from bento.preview import View, preview
from bento.process.serving import serving_of

CLOUD_SHARE = "Sentile-Cloud-Share"
_PARAMETERS = (*SAID, "name", "view")
_AT_ONCE = asyncio.Semaphore(1)  # of each process: pictures never take more than one core from the answers


async def show_preview(request: Request) -> Response:
    """POST /preview: a PNG of one GeoTIFF, of 512 pixels a side at most; what of it is cloud, in a header."""
    settings = serving_of(request).settings
    async with serving_of(request).admission.room(announced_bytes(request, settings.most_bytes)):
        said, content = await _read_body(limited(request, settings.most_bytes))
        statement, _ = parameters(said, _PARAMETERS)
        name, view = said.get("name") or "tile", _view_of(said)
        async with _AT_ONCE:
            made = await asyncio.to_thread(preview, content, statement, name, view, settings.most_pixels)
    headers = {} if made.cloud_share is None else {CLOUD_SHARE: f"{made.cloud_share:.4f}"}
    return Response(made.png, media_type="image/png", headers=headers)


def _view_of(said: Mapping[str, str]) -> View:
    view = said.get("view") or View.TRUE
    if view not in list(View):
        raise HTTPException(422, f"view is {' or '.join(View)}, not {view!r}")
    return View(view)


async def _read_body(request: Request) -> tuple[dict[str, str], bytes]:
    """Return what is said of a file, in the query and in the fields of a form, and the file's bytes."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    said = dict(request.query_params)
    if kind == "image/tiff":
        return said, await request.body()
    if kind != "multipart/form-data":
        raise HTTPException(
            415, f"a body of {kind or 'no type'}; send one file as image/tiff, or in a form's {FIELD!r}"
        )
    async with request.form(max_files=1, max_fields=len(_PARAMETERS)) as form:
        file = form.get(FIELD)
        if not isinstance(file, UploadFile):
            raise HTTPException(400, f"no file in the multipart field {FIELD!r}; curl -F {FIELD}=@tile.tif sends one")
        fields = {name: value for name, value in form.items() if isinstance(value, str)}
        return {"name": file.filename or "tile", **said, **fields}, await file.read()


ROUTES = [Route("/preview", show_preview, methods=["POST"])]
