"""Routes of scenes: `POST /scene`, and `/tasks/{task_id}` for large ones."""

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO

from fastapi import APIRouter
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tilewise.bento import metrics
from tilewise.bento.api.bodies import (
    announced_bytes,
    limit_body,
    media_type_of,
    parse_parameters,
    single_values,
)
from tilewise.bento.api.replies import headers, negotiate, refusals, refuse, reply, status_of_code
from tilewise.bento.api.schemas import (
    PNG,
    TIFF,
    SceneParameters,
    SceneResponse,
    TaskResponse,
    example,
    form,
    header,
    operation,
    query,
    schema_reference,
)
from tilewise.bento.inference.engine import TileClassifier
from tilewise.bento.inference.windows import MIN_STRIDE
from tilewise.bento.request_context import note_requested
from tilewise.bento.serving.admission import caller_of
from tilewise.bento.serving.background import CLIENT_GONE, ClientGoneError
from tilewise.bento.serving.runtime import Serving, serving_of
from tilewise.bento.serving.scene_answers import (
    FORMS,
    MAP,
    SceneRequest,
    answer_scene,
    count_windows,
    serialise,
)
from tilewise.bento.serving.task_runner import file_of
from tilewise.bento.serving.task_store import StoredTask, TaskState, TaskStore, owner_of
from tilewise.datasets.core.errors import SceneError
from tilewise.datasets.core.tile import TILE_SIZE
from tilewise.datasets.scenes import CloudKind, parse_clouds

router = APIRouter(tags=["scenes"])

FIELD = "scene"
DEFAULT_NAME = "scene"
_PARAMETERS = tuple(SceneParameters.model_fields)
_MIN_VALID_FRACTION = 0.5
_NO_TASK = "this caller has no such task; POST /scene makes one"
_SEND_BYTES = 2**18
_SOON, _LATER = "2", "30"  # seconds of Retry-After

_TASK_ID = {"name": "task_id", "in": "path", "required": True, "schema": {"type": "string"}}
_TASK_LINKS = {
    operation_id: {"operationId": operation_id, "parameters": {"task_id": "$response.body#/id"}}
    for operation_id in ("showTask", "showResult", "removeTask")
}
_WINDOWS_OR_MAP = {
    "description": "Its windows, its class map, or a picture of that map",
    "headers": headers("Content-Disposition"),
    "content": {
        "application/geo+json": {"schema": schema_reference(SceneResponse)},
        "image/tiff": TIFF,
        "image/png": PNG,
    },
}


@router.post(
    "/scene",
    operation_id="classifyScene",
    summary="Classify a scene larger than a tile",
    response_class=Response,
    responses={
        200: _WINDOWS_OR_MAP,
        202: {
            "model": TaskResponse,
            "description": "The scene became a task",
            "headers": headers("Location", "Retry-After"),
            "content": example("task"),
            "links": _TASK_LINKS,
        },
        **refusals(400, 401, 405, 406, 408, 413, 415, 422, 429, 500, 503, 504),
    },
    openapi_extra=operation(
        "curl --data-binary @scene.tif -H 'Content-Type: image/tiff' {url}/scene",
        "curl -F scene=@scene.tif -H 'Accept: image/tiff' -o map.tif {url}/scene",
        "curl -F scene=@scene.tif -H 'Prefer: respond-async' {url}/scene",
        parameters=[header("Prefer"), *query(SceneParameters)],
        body={"image/tiff": TIFF, "multipart/form-data": form(FIELD, SceneParameters)},
    ),
)
async def classify_scene(request: Request) -> Response:
    """A GeoTIFF of about 10 m a pixel, within limits of pixels and bytes.

    The header `Accept` chooses the response: the windows as GeoJSON, a class map on the scene's own grid as a
    Cloud-Optimised GeoTIFF, or a picture of that map as PNG, of at most 1024 pixels a side: transparent where
    there is no class, hatched where the scene is unlike the training data. A large scene, or one that is sent
    with `Prefer: respond-async`, becomes a task: the response is 202, with the task's path in `Location`.
    """
    serving, media_type = serving_of(request), _choose_media_type(request)
    ledger = serving.scenes.store
    async with _held(ledger, request) as task_id:
        parameters = await spool(request, ledger, task_id, serving.settings.max_scene_bytes)
        question = _parse_question(parameters, serving.best_coverage)
        windows = await asyncio.to_thread(
            count_windows,
            ledger.source(task_id),
            question,
            serving.engine.metadata.tile_size,
            serving.settings.max_pixels,
        )
        note_requested(windows, serving.engine.metadata.version)
        if windows > serving.settings.max_sync_windows or _prefers_task(request):
            return await _submit(request, serving, task_id, question, windows)
        try:
            return await _answer_now(request, serving, task_id, question, media_type)
        except ClientGoneError:
            return Response(status_code=CLIENT_GONE)


@router.get(
    "/tasks/{task_id}",
    operation_id="showTask",
    summary="Show the progress of a task",
    response_model=TaskResponse,
    response_description="The task",
    responses={
        200: {"headers": headers(), "content": example("task")},
        **refusals(401, 404, 405, 410, 500, 503),
    },
    openapi_extra=operation("curl {url}/tasks/{task_id}", parameters=[_TASK_ID]),
)
async def show_task(request: Request) -> Response:
    """Only the caller who sent the scene can see it, with the same API key."""
    ledger = serving_of(request).scenes.store
    task = await _find_task(request)
    retry = {"Retry-After": _SOON} if task.state in (TaskState.WAITING, TaskState.RUNNING) else {}
    return reply(await _describe_task(ledger, task), HTTPStatus.OK, **retry)


@router.get(
    "/tasks/{task_id}/result",
    operation_id="showResult",
    summary="Download the result of a task",
    response_class=Response,
    responses={
        200: _WINDOWS_OR_MAP,
        206: {**_WINDOWS_OR_MAP, "description": "The part that the header Range names"},
        **refusals(401, 404, 405, 406, 409, 410, 413, 415, 422, 500, 503),
    },
    openapi_extra=operation(
        "curl -H 'Accept: image/tiff' -o map.tif {url}/tasks/{task_id}/result", parameters=[_TASK_ID]
    ),
)
async def show_result(request: Request) -> Response:
    """The header `Accept` chooses the response, as in `POST /scene`. If the task failed, it is the error."""
    media_type, task = _choose_media_type(request), await _find_task(request)
    if task.state is TaskState.FAILED and task.error:
        status = status_of_code(task.error["code"])
        retry = {"Retry-After": _LATER} if status == HTTPStatus.SERVICE_UNAVAILABLE else {}
        return refuse(status, **task.error, **retry)
    if task.state is not TaskState.DONE:
        message, hint = f"the task is {task.state}", f"GET /tasks/{task.id} returns its progress"
        return refuse(HTTPStatus.CONFLICT, "not_done", message, hint, **{"Retry-After": _SOON})
    path = serving_of(request).scenes.store.result(task.id, file_of(media_type))
    try:
        file = await asyncio.to_thread(path.open, "rb")
    except FileNotFoundError as error:
        raise HTTPException(404, _NO_TASK) from error  # it was deleted a moment ago
    return _send_file(request, file, media_type, _result_headers(media_type, task.question["name"]))


def _send_file(request: Request, file: BinaryIO, media_type: str, headers: dict[str, str]) -> Response:
    """Return a response of an open file, which may be deleted meanwhile; of a part, if one is asked for.

    A Range that is malformed, of several parts or beyond the end is ignored (RFC 9110, 14.2).
    """
    size = os.fstat(file.fileno()).st_size
    part = "" if "if-range" in request.headers else request.headers.get("range", "")
    first, end = _parse_range(part, size) or (0, size)
    status = HTTPStatus.OK
    if end - first < size:
        status = HTTPStatus.PARTIAL_CONTENT
        headers = {**headers, "Content-Range": f"bytes {first}-{end - 1}/{size}"}
    headers = {**headers, "Accept-Ranges": "bytes", "Content-Length": str(end - first)}
    return StreamingResponse(_chunks(file, first, end), status, headers, media_type)


def _parse_range(text: str, size: int) -> tuple[int, int] | None:
    """Return the first byte of a Range and the one after its last; None: it is to be ignored."""
    found = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", text.strip())
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        first, end = max(0, size - int(found[2])), size
    else:
        first, end = int(found[1]), min(size, int(found[2]) + 1) if found[2] else size
    return (first, end) if first < end else None


async def _chunks(file: BinaryIO, first: int, end: int) -> AsyncIterator[bytes]:
    with file:
        file.seek(first)
        while first < end and (chunk := await asyncio.to_thread(file.read, min(_SEND_BYTES, end - first))):
            first += len(chunk)
            yield chunk


@router.delete(
    "/tasks/{task_id}",
    operation_id="removeTask",
    summary="Stop a task, and delete its scene and result",
    status_code=HTTPStatus.NO_CONTENT,
    response_class=Response,
    response_description="Deleted",
    responses={204: {"headers": headers()}, **refusals(401, 404, 405, 410, 500, 503)},
    openapi_extra=operation("curl -X DELETE {url}/tasks/{task_id}", parameters=[_TASK_ID]),
)
async def remove_task(request: Request) -> Response:
    """Only the caller who sent the scene can delete it, with the same API key."""
    task = await _find_task(request)
    ledger = serving_of(request).scenes.store
    await asyncio.to_thread(ledger.remove, task.id, task.owner)
    return Response(status_code=HTTPStatus.NO_CONTENT)


# Bodies on disk.

_MAX_FIELD_BYTES = 4096
_MAX_NAME = 200  # characters
_CHUNK_BYTES = 2**20
_STEP_BYTES = 4 * 2**20  # that are reserved at a time


async def spool(request: Request, ledger: TaskStore, task_id: str, max_bytes: int) -> dict[str, str]:
    """Write the scene in a request's body to its file; return the parameters in the query and in a form.

    The bytes are charged to the store as they arrive, and not as they are announced.

    Raises:
        HTTPException: a body of another media type, malformed, or longer than `max_bytes`.
        FullError: the store or the disk is full.
    """
    kind, path = media_type_of(request), ledger.source(task_id)
    announced = announced_bytes(request)
    most = max_bytes if announced is None else announced
    received = reserved = 0

    async def charge(size: int) -> None:
        nonlocal received, reserved
        received += size
        if received > reserved:
            reserved = max(received, min(received + _STEP_BYTES, most))
            await asyncio.to_thread(ledger.grow, task_id, reserved)

    body = limit_body(request, max_bytes, charge)
    if kind == "image/tiff":
        await _spool_raw(body, path)
        return _with_name(single_values(request.query_params))
    if kind == "multipart/form-data":
        return _with_name({**single_values(request.query_params), **await _spool_form(body, path)})
    raise HTTPException(
        415,
        f"a body of {kind or 'no type'}; send the scene as image/tiff (curl --data-binary @scene.tif -H "
        f"'Content-Type: image/tiff'), or in the field {FIELD!r} of a form (curl -F {FIELD}=@scene.tif)",
    )


async def _spool_raw(body: Request, path: Path) -> None:
    with path.open("xb") as file:
        buffer = bytearray()
        async for chunk in body.stream():
            buffer += chunk
            if len(buffer) >= _CHUNK_BYTES:
                await asyncio.to_thread(file.write, bytes(buffer))
                buffer.clear()
        await asyncio.to_thread(file.write, bytes(buffer))


async def _spool_form(body: Request, path: Path) -> dict[str, str]:
    """Write the one file of a form; return its fields. Starlette keeps a large part in an unnamed file."""
    async with body.form(max_files=1, max_fields=len(_PARAMETERS), max_part_size=_MAX_FIELD_BYTES) as parts:
        part = parts.get(FIELD)
        if not isinstance(part, UploadFile):
            raise HTTPException(
                400, f"no file in the form's field {FIELD!r}; curl -F {FIELD}=@scene.tif sends one"
            )
        await asyncio.to_thread(_copy, part, path)
        fields = single_values(parts)
        del fields[FIELD]
        return {"name": part.filename or DEFAULT_NAME, **fields}


def _copy(part: UploadFile, path: Path) -> None:
    with path.open("xb") as file:
        shutil.copyfileobj(part.file, file, _CHUNK_BYTES)


def _with_name(parameters: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters with a name that is one line of bounded length."""
    name = re.sub(r"[\x00-\x1f\x7f]", "", parameters.get("name", DEFAULT_NAME)).strip()[:_MAX_NAME]
    return {**parameters, "name": name or DEFAULT_NAME}


# Responses and tasks.


async def _submit(
    request: Request, serving: Serving, task_id: str, question: SceneRequest, windows: int
) -> Response:
    scenes, owner = serving.scenes, _owner_of(request)
    await asyncio.to_thread(scenes.store.submit, task_id, question.to_json(), windows)
    scenes.runner.wake()
    task = await asyncio.to_thread(scenes.store.find, task_id, owner)
    assert task is not None  # noqa: S101 - no one else knows its ID yet
    fields = {"Location": f"/tasks/{task_id}", "Retry-After": _SOON}
    if _prefers_task(request):
        fields["Preference-Applied"] = "respond-async"
    return reply(await _describe_task(scenes.store, task), HTTPStatus.ACCEPTED, **fields)


async def _answer_now(
    request: Request, serving: Serving, task_id: str, question: SceneRequest, media_type: str
) -> Response:
    def work(scheduled: TileClassifier) -> bytes:
        source = serving.scenes.store.source(task_id)
        return serialise(answer_scene(scheduled, source, question, lambda _: None), media_type)

    engine = serving.engine
    content = await serving.scenes.answer(request, lambda make: work(make(engine)))
    metrics.SCENES.labels("connection").inc()
    return Response(content, media_type=media_type, headers=_result_headers(media_type, question.name))


@asynccontextmanager
async def _held(ledger: TaskStore, request: Request) -> AsyncIterator[str]:
    """Hold an entry of the store during the block, or until it becomes a task."""
    task_id = await asyncio.to_thread(ledger.hold, _owner_of(request), caller_of(request))
    try:
        yield task_id
    finally:
        # Shielded: where the request is cancelled, the file would otherwise stay until the process ends.
        await asyncio.shield(asyncio.to_thread(ledger.release, task_id))


async def _find_task(request: Request) -> StoredTask:
    """Return the task in the path, if it is the caller's.

    Raises:
        HTTPException: the caller has no such task, or its result was deleted.
    """
    ledger = serving_of(request).scenes.store
    task = await asyncio.to_thread(ledger.find, request.path_params["task_id"], _owner_of(request))
    if task is None:
        raise HTTPException(404, _NO_TASK)
    if task.state is TaskState.EXPIRED:
        raise HTTPException(
            410, f"the results were kept for {ledger.limits.kept:.0f} s; send the scene again"
        )
    return task


async def _describe_task(ledger: TaskStore, task: StoredTask) -> dict[str, Any]:
    path = f"/tasks/{task.id}"
    waiting = task.state is TaskState.WAITING
    expires = task.finished + ledger.limits.kept if task.finished else None
    return {
        "id": task.id,
        "status": task.state,
        "progress": round(task.progress, 4),
        "windows": task.windows,
        "ahead": await asyncio.to_thread(ledger.ahead, task) if waiting else 0,
        "created": _iso_time(task.created),
        "finished": _iso_time(task.finished),
        "expires": _iso_time(expires),
        "error": task.error,
        "links": {"self": path, "result": f"{path}/result"},
        "media_types": list(FORMS),
    }


def _iso_time(seconds: float | None) -> str | None:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds") if seconds else None


def _choose_media_type(request: Request) -> str:
    """Return the media type that the caller prefers; raises HTTPException where it accepts none."""
    media_type = negotiate(request.headers.get("accept", ""), list(FORMS))
    if media_type is None:
        raise HTTPException(406, f"the response has no such media type; Accept one of {', '.join(FORMS)}")
    return media_type


def _result_headers(media_type: str, name: str) -> dict[str, str]:
    if media_type != MAP:
        return {"Vary": "Accept"}
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", name.rpartition(".")[0] or name)
    return {"Vary": "Accept", "Content-Disposition": f'attachment; filename="{stem}.classes.tif"'}


def _owner_of(request: Request) -> str:
    return owner_of(getattr(request.state, "caller", ""))


def _prefers_task(request: Request) -> bool:
    preferences = ",".join(request.headers.getlist("prefer")).lower().split(",")
    return any(preference.partition(";")[0].strip() == "respond-async" for preference in preferences)


def _parse_question(parameters: Mapping[str, str], best_coverage: float) -> SceneRequest:
    options, coverage = parse_parameters(parameters, _PARAMETERS, best_coverage)
    min_valid_fraction = _parse_fraction(parameters, "min_valid_fraction", _MIN_VALID_FRACTION)
    return SceneRequest(
        parameters["name"],
        options,
        min_valid_fraction,
        coverage,
        _parse_stride(parameters),
        _parse_cloud_mask(parameters),
        parse_flag(parameters, "warp"),
    )


def _parse_stride(parameters: Mapping[str, str]) -> int:
    text = parameters.get("stride") or str(TILE_SIZE)
    stride = int(text) if re.fullmatch(r"[0-9]{1,4}", text) else 0
    if not MIN_STRIDE <= stride <= TILE_SIZE:
        raise HTTPException(
            422, f"stride is a number of pixels from {MIN_STRIDE} to {TILE_SIZE}, not {text!r}"
        )
    return stride


def _parse_cloud_mask(parameters: Mapping[str, str]) -> str:
    """Return the cloud mask in a request; a file beside the scene, as in batch inference, was not sent."""
    text = parameters.get("clouds") or CloudKind.AUTO.value
    try:
        mask = parse_clouds(text)
    except SceneError:
        raise _not_a_mask(text) from None
    if mask and mask.kind is CloudKind.FILE:
        raise _not_a_mask(text)
    return text


def _not_a_mask(text: str) -> HTTPException:
    kinds = ", ".join(kind for kind in CloudKind if kind is not CloudKind.FILE)
    return HTTPException(422, f"clouds is none, {kinds} or probability:PERCENT, not {text!r}")


def parse_flag(parameters: Mapping[str, str], name: str) -> bool:
    """Return a parameter that is true or false; raises HTTPException for anything else."""
    text = parameters.get(name) or "false"
    if text not in ("true", "false"):
        raise HTTPException(422, f"{name} is true or false, not {text!r}")
    return text == "true"


def _parse_fraction(parameters: Mapping[str, str], name: str, default: float) -> float:
    try:
        fraction = float(parameters.get(name) or default)
    except ValueError:
        fraction = -1.0
    if not 0 <= fraction <= 1:
        raise HTTPException(422, f"{name} is a fraction from 0 to 1, not {parameters[name]!r}")
    return fraction
