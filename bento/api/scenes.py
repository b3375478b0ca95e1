"""`POST /scene`, and `/tasks/{id}` for the scenes that take long."""

import asyncio
import errno
import re
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from tilewise.bento import metrics
from tilewise.bento.api.bodies import SAID, announced_bytes, limited, parameters
from tilewise.bento.api.replies import answer, negotiate, refuse
from tilewise.bento.errors import status_of_code
from tilewise.bento.inference.engine import TileClassifier
from tilewise.bento.request_context import note_requested
from tilewise.bento.serving.runtime import Serving, serving_of
from tilewise.bento.serving.scene_answers import FORMS, MAP, SceneQuestion, answer_scene, count_windows, tell
from tilewise.bento.serving.task_runner import CLIENT_GONE, ClientGoneError, file_of
from tilewise.bento.serving.task_store import FullError, StoredTask, TaskState, TaskStore, owner_of

FIELD = "scene"
NAME = "scene"
_MAX_FIELDS = 8
_MAX_NAME = 200  # characters
_CHUNK = 2**20


class StorageFullError(Exception):
    """The disk that scenes are kept on has no room."""


async def spool(request: Request, path: Path, max_bytes: int) -> dict[str, str]:
    """Write the scene in the body of `request` to `path`; return what is said of it: query, and fields of a form.

    Raises:
        HTTPException: a body of another form, malformed, or longer than `max_bytes`.
        StorageFullError: the disk is full.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = limited(request, max_bytes)
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
    async with body.form(max_files=1, max_fields=_MAX_FIELDS, max_part_size=4096) as form:
        part = form.get(FIELD)
        if not isinstance(part, UploadFile):
            raise HTTPException(400, f"no file in the form's field {FIELD!r}; curl -F {FIELD}=@scene.tif sends one")
        await asyncio.to_thread(_copy, part, path)
        fields = {name: value for name, value in form.items() if isinstance(value, str)}
        return {"name": part.filename or NAME, **fields}


def _copy(part: UploadFile, path: Path) -> None:
    with path.open("xb") as file:
        shutil.copyfileobj(part.file, file, _CHUNK)


def _named(overrides: Mapping[str, str]) -> dict[str, str]:
    name = re.sub(r"[\x00-\x1f\x7f]", "", overrides.get("name", NAME)).strip()[:_MAX_NAME]
    return {**overrides, "name": name or NAME}


_PARAMETERS = (*SAID, "name", "coverage", "min_valid_fraction")
_MIN_VALID_FRACTION = 0.5
_SOON, _LATER = "2", "30"  # seconds


async def classify_scene(request: Request) -> Response:
    """POST /scene: a GeoTIFF larger than a tile; its windows or its class map, or 202 with a task."""
    serving, form = serving_of(request), _form_of(request)
    size = announced_bytes(request, serving.settings.max_scene_bytes)
    ledger = serving.scenes.store
    try:
        async with _held(ledger, _owner_of(request), size) as task_id:
            overrides = await spool(request, ledger.source(task_id), serving.settings.max_scene_bytes)
            question = _question_of(overrides, serving.best_coverage)
            windows = await asyncio.to_thread(
                count_windows,
                ledger.source(task_id),
                question,
                serving.engine.metadata.tile_size,
                serving.settings.max_pixels,
            )
            note_requested(windows, serving.engine.metadata.version)
            if windows > serving.settings.max_sync_windows or _prefers_a_task(request):
                return await _submit(request, serving, task_id, question, windows)
            return await _answer_now(request, serving, task_id, question, form)
    except ClientGoneError:
        return Response(status_code=CLIENT_GONE)
    except FullError as error:
        return _refuse_full(error)
    except StorageFullError:
        return _refuse_full(FullError(tasks=False))


async def show_task(request: Request) -> Response:
    """GET /tasks/{id}: how far it is."""
    ledger = serving_of(request).scenes.store
    task = await _task_of(request)
    headers = {"Retry-After": _SOON} if task.state in (TaskState.WAITING, TaskState.RUNNING) else {}
    return answer(await _describe(ledger, task), HTTPStatus.OK, **headers)


async def show_result(request: Request) -> Response:
    """GET /tasks/{id}/result: its windows or its class map."""
    form, task = _form_of(request), await _task_of(request)
    if task.state is TaskState.FAILED and task.error:
        return refuse(status_of_code(task.error["code"]), **task.error)
    if task.state is not TaskState.DONE:
        message, hint = f"the task is {task.state}", f"GET /tasks/{task.id} says how far it is"
        return refuse(HTTPStatus.CONFLICT, "not_done", message, hint, **{"Retry-After": _SOON})
    path = serving_of(request).scenes.store.result(task.id, file_of(form))
    return FileResponse(path, media_type=form, headers=_headers_of(form, task.question["name"]))


async def remove_task(request: Request) -> Response:
    """DELETE /tasks/{id}: stop it, and delete its scene and its results."""
    task = await _task_of(request)
    ledger = serving_of(request).scenes.store
    await asyncio.to_thread(ledger.remove, task.id, task.owner)
    return Response(status_code=HTTPStatus.NO_CONTENT)


async def _submit(request: Request, serving: Serving, task_id: str, question: SceneQuestion, windows: int) -> Response:
    scenes, owner = serving.scenes, _owner_of(request)
    await asyncio.to_thread(scenes.store.submit, task_id, question.to_json(), windows)
    scenes.runner.wake()
    task = await asyncio.to_thread(scenes.store.find, task_id, owner)
    assert task is not None  # noqa: S101 - nobody else knows its id yet
    headers = {"Location": f"/tasks/{task_id}", "Retry-After": _SOON}
    if _prefers_a_task(request):
        headers["Preference-Applied"] = "respond-async"
    return answer(await _describe(scenes.store, task), HTTPStatus.ACCEPTED, **headers)


async def _answer_now(request: Request, serving: Serving, task_id: str, question: SceneQuestion, form: str) -> Response:
    def work(scheduled: TileClassifier) -> bytes:
        return tell(answer_scene(scheduled, serving.scenes.store.source(task_id), question, lambda _: None), form)

    engine = serving.engine
    content = await serving.scenes.answer(request, lambda make: work(make(engine)))
    metrics.SCENES.labels("connection").inc()
    return Response(content, media_type=form, headers=_headers_of(form, question.name))


@asynccontextmanager
async def _held(ledger: TaskStore, owner: str, size: int) -> AsyncIterator[str]:
    """Hold room for a scene of `size` bytes for the length of the block, or until it becomes a task."""
    task_id = await asyncio.to_thread(ledger.hold, owner, size)
    try:
        yield task_id
    finally:
        # Not to be cut short where the request was: the file would stay until the process ends.
        await asyncio.shield(asyncio.to_thread(ledger.release, task_id))


async def _task_of(request: Request) -> StoredTask:
    """Return the task that the path names, if it is the caller's.

    Raises:
        HTTPException: there is none, or none any more.
    """
    ledger = serving_of(request).scenes.store
    task = await asyncio.to_thread(ledger.find, request.path_params["task_id"], _owner_of(request))
    if task is None:
        raise HTTPException(404, "there is no such task for this caller; POST /scene makes one")
    if task.state is TaskState.EXPIRED:
        raise HTTPException(410, f"its results were kept for {ledger.limits.kept:.0f} s; send the scene again")
    return task


async def _describe(ledger: TaskStore, task: StoredTask) -> dict[str, Any]:
    here = f"/tasks/{task.id}"
    waits = task.state is TaskState.WAITING
    expires = task.finished + ledger.limits.kept if task.finished else None
    return {
        "id": task.id,
        "status": task.state,
        "progress": round(task.progress, 4),
        "windows": task.windows,
        "ahead": await asyncio.to_thread(ledger.ahead, task) if waits else 0,
        "created": _moment(task.created),
        "finished": _moment(task.finished),
        "expires": _moment(expires),
        "error": task.error,
        "links": {"self": here, "result": f"{here}/result"},
        "forms": list(FORMS),
    }


def _moment(seconds: float | None) -> str | None:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds") if seconds else None


def _form_of(request: Request) -> str:
    """Return the form that the caller prefers; raises HTTPException where it takes none."""
    form = negotiate(request.headers.get("accept", ""), list(FORMS))
    if form is None:
        raise HTTPException(406, f"there is no such form of the answer; Accept one of {', '.join(FORMS)}")
    return form


def _headers_of(form: str, name: str) -> dict[str, str]:
    headers = {"Vary": "Accept"}
    if form == MAP:
        stem = "".join(
            c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name.rpartition(".")[0] or name
        )
        headers["Content-Disposition"] = f'attachment; filename="{stem}.classes.tif"'
    return headers


def _owner_of(request: Request) -> str:
    return owner_of(getattr(request.state, "caller", ""))


def _prefers_a_task(request: Request) -> bool:
    preferences = ",".join(request.headers.getlist("prefer")).lower().split(",")
    return any(preference.partition(";")[0].strip() == "respond-async" for preference in preferences)


def _question_of(overrides: Mapping[str, str], best_coverage: float) -> SceneQuestion:
    read_options, coverage = parameters(overrides, _PARAMETERS, best_coverage)
    return SceneQuestion(
        overrides["name"], read_options, _share_of(overrides, "min_valid_fraction", _MIN_VALID_FRACTION), coverage
    )


def _share_of(overrides: Mapping[str, str], name: str, default: float) -> float:
    try:
        share = float(overrides.get(name) or default)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise HTTPException(422, f"{name} is a share from 0 to 1, not {overrides[name]!r}")
    return share


def _refuse_full(error: FullError) -> Response:
    if error.tasks:
        message, hint = "as many scenes wait as may wait", f"try again in {_LATER} s"
        return refuse(HTTPStatus.TOO_MANY_REQUESTS, "too_many_tasks", message, hint, **{"Retry-After": _LATER})
    message, hint = "there is no room for another scene", f"try again in {_LATER} s, or DELETE results that you have"
    headers = {"Retry-After": _LATER, "Connection": "close"}  # the body may be unread
    return refuse(HTTPStatus.SERVICE_UNAVAILABLE, "storage_full", message, hint, **headers)


ROUTES = [
    Route("/scene", classify_scene, methods=["POST"]),
    Route("/tasks/{task_id}", show_task, methods=["GET"]),
    Route("/tasks/{task_id}", remove_task, methods=["DELETE"]),
    Route("/tasks/{task_id}/result", show_result, methods=["GET"]),
]
