"""A scene on its way in: from the wire into a private file, counted as it comes, never whole in memory."""

import asyncio
import errno
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from bento.http.bodies import limited

FIELD = "scene"
NAME = "scene"
_MOST_FIELDS = 8
_MOST_NAME = 200  # characters
_CHUNK = 2**20


class StorageFullError(Exception):
    """The disk that scenes are kept on has no room."""


async def spool(request: Request, path: Path, most_bytes: int) -> dict[str, str]:
    """Write the scene in the body of `request` to `path`; return what is said of it: query, and fields of a form.

    Raises:
        HTTPException: a body of another form, malformed, or longer than `most_bytes`.
        StorageFullError: the disk is full.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = limited(request, most_bytes)
    try:
        if kind == "image/tiff":
            await _spool_raw(body, path)
            return _named(request.query_params)
        if kind == "multipart/form-data":
            return _named({**request.query_params, **await _spool_form(body, path)})
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError from error
        raise
    raise HTTPException(
        415,
        f"a body of {kind or 'no type'}; send the scene as image/tiff (curl --data-binary @scene.tif -H "
        f"'Content-Type: image/tiff'), or in the field {FIELD!r} of a form (curl -F {FIELD}=@scene.tif)",
    )


async def _spool_raw(body: Request, path: Path) -> None:
    with path.open("xb") as file:
        waiting = bytearray()
        async for chunk in body.stream():
            waiting += chunk
            if len(waiting) >= _CHUNK:
                await asyncio.to_thread(file.write, bytes(waiting))
                waiting.clear()
        await asyncio.to_thread(file.write, bytes(waiting))


async def _spool_form(body: Request, path: Path) -> dict[str, str]:
    """Write the one file of a form; return its fields. Starlette keeps what is large in a file without a name."""
    async with body.form(max_files=1, max_fields=_MOST_FIELDS, max_part_size=4096) as form:
        part = form.get(FIELD)
        if not isinstance(part, UploadFile):
            raise HTTPException(400, f"no file in the form's field {FIELD!r}; curl -F {FIELD}=@scene.tif sends one")
        await asyncio.to_thread(_copy, part, path)
        fields = {name: value for name, value in form.items() if isinstance(value, str)}
        return {"name": part.filename or NAME, **fields}


def _copy(part: UploadFile, path: Path) -> None:
    with path.open("xb") as file:
        shutil.copyfileobj(part.file, file, _CHUNK)


def _named(said: Mapping[str, str]) -> dict[str, str]:
    name = re.sub(r"[\x00-\x1f\x7f]", "", said.get("name", NAME)).strip()[:_MOST_NAME]
    return {**said, "name": name or NAME}
