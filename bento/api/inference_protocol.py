"""The Open Inference Protocol (KServe V2, REST), for clients that know nothing of tilewise.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md, with the
binary tensor extension:
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md.
Tiles join the batches of `/classify`, under the same limits. The routes are not in the OpenAPI document: the
protocol has one of its own.
"""

import json
import math
import re
from collections.abc import Awaitable, Callable
from functools import wraps
from importlib.metadata import version as installed_version
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tilewise.bento.api.bodies import DEFAULT_COVERAGE, limit_body
from tilewise.bento.api.replies import HANDLERS, reply, status_of_code
from tilewise.bento.api.tiles import sticky_key
from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.uploads import Answer, Upload
from tilewise.bento.request_context import note_answered
from tilewise.bento.serving.admission import Reservation, caller_of
from tilewise.bento.serving.runtime import Serving, serving_of
from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.core.tile import BAND_COUNT, DN, TILE_SIZE, Tile
from tilewise.models.model_file import INPUT

JSON_LENGTH = "Inference-Header-Content-Length"
OUTPUT_NAMES = ("probabilities", "logits", "embedding")
MAX_JSON_BYTES = 4 * 2**20
_BYTES_PARSED = 16  # that a byte of JSON takes as Python's objects: lists of small numbers take the most
_TILE_SHAPE = (BAND_COUNT, TILE_SIZE, TILE_SIZE)

Endpoint = Callable[[Request], Awaitable[Response]]


class InputTensor(BaseModel):
    """A tensor in a request; its numbers are in `data`, or follow the JSON as `binary_data_size` bytes."""

    name: str
    shape: list[Annotated[int, Field(ge=0)]]
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class RequestedOutput(BaseModel):
    """An output that a request asks for."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(BaseModel):
    """The JSON of an inference request."""

    id: str | None = None
    inputs: list[InputTensor] = Field(min_length=1, max_length=1)
    outputs: list[RequestedOutput] = Field(default=[], max_length=len(OUTPUT_NAMES))
    parameters: dict[str, Any] = {}


def routes() -> list[Route]:
    """Return the routes of the protocol."""
    model, pinned = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
    gets: list[tuple[str, Endpoint]] = [
        ("/v2", describe_server),
        ("/v2/health/live", is_live),
        ("/v2/health/ready", is_ready),
        *[(path, describe_model) for path in (model, pinned)],
        *[(f"{path}/ready", is_model_ready) for path in (model, pinned)],
    ]
    found = [Route(path, _in_its_form(endpoint), include_in_schema=False) for path, endpoint in gets]
    return found + [
        Route(f"{path}/infer", _in_its_form(infer), methods=["POST"], include_in_schema=False)
        for path in (model, pinned)
    ]


def _in_its_form(endpoint: Endpoint) -> Endpoint:
    """Return `endpoint` with its errors in the protocol's form, `{"error": "message; hint"}`."""

    @wraps(endpoint)
    async def respond(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Exception as error:
            handler: Any = next((HANDLERS[kind] for kind in type(error).__mro__ if kind in HANDLERS), None)
            if handler is None or handler is HANDLERS[Exception]:
                raise  # the log gets it
            refused = await handler(request, error)
        if isinstance(refused, JSONResponse):
            about = json.loads(bytes(refused.body))["error"]
            text = "; ".join(part for part in (about["message"], about["hint"]) if part)
            headers = {
                name: value for name, value in refused.headers.items() if not name.startswith("content-")
            }
            return reply({"error": text}, refused.status_code, **headers)
        return refused

    return respond


# Descriptions.


async def describe_server(request: Request) -> Response:
    """Respond with the name and the version of the server, and the extensions that it speaks."""
    about = {
        "name": "tilewise",
        "version": installed_version("tilewise"),
        "extensions": ["binary_tensor_data"],
    }
    return reply(about)


async def is_live(request: Request) -> Response:
    """Respond that the process is alive."""
    return reply({"live": True})


async def is_ready(request: Request) -> Response:
    """Respond that requests are served: a process that accepts them has loaded its model."""
    return reply({"ready": True})


async def is_model_ready(request: Request) -> Response:
    """Respond whether the model is served: 200 if so, else 404."""
    engine = _named_engine(request)
    return reply({"name": engine.metadata.name, "ready": True})


async def describe_model(request: Request) -> Response:
    """Respond with the names, types and shapes of the model's input and outputs."""
    engine = _named_engine(request)
    widths = engine.widths
    return reply(
        {
            "name": engine.metadata.name,
            "versions": [engine.metadata.version],
            "platform": "onnx_onnxv1",
            "inputs": [{"name": INPUT, "datatype": "UINT16", "shape": [-1, *_TILE_SHAPE]}],
            "outputs": [
                {"name": name, "datatype": "FP32", "shape": [-1, widths[name]]} for name in OUTPUT_NAMES
            ],
        }
    )


def _named_engine(request: Request) -> Engine:
    """Return the model that answers the caller; 404 if the path names another one."""
    engine = serving_of(request).releases.route(sticky_key(request))
    known, asked = engine.metadata, request.path_params
    if asked["name"] != known.name:
        raise HTTPException(404, f"there is no model {asked['name'][:80]!r}; the model is {known.name!r}")
    if asked.get("version", known.version) != known.version:
        raise HTTPException(
            404, f"there is no version {asked['version'][:80]!r} of it; version {known.version!r} is served"
        )
    return engine


# Inference.


async def infer(request: Request) -> Response:
    """Classify the tiles of a tensor; one tile without data refuses the whole request."""
    _named_engine(request)
    serving, caller = serving_of(request), caller_of(request)
    async with serving.admission.room(caller) as room:
        body = await limit_body(request, serving.settings.max_bytes, room.grow).body()
        asked, binary = await _parse(body, request.headers.get(JSON_LENGTH), room)
        tiles = _read_tensor(asked.inputs[0], binary, serving.settings.max_tiles)
        names = _requested(asked)
        engine, results = await serving.classify(_uploads(tiles, serving), sticky_key(request), caller)
    note_answered()
    failed = next((result["error"] for result in results if "error" in result), None)
    if failed:
        return reply({"error": f"tile {failed['message']}"}, status_of_code(failed["code"]))
    return _respond(asked, engine, names, results)


def _uploads(tiles: DN, serving: Serving) -> list[Upload]:
    """Return the tiles as uploads; a band without any data is absent, as in a model file."""
    coverage = min(DEFAULT_COVERAGE, serving.best_coverage)
    uploads = []
    for index, pixels in enumerate(tiles):
        present = tuple(name for name, plane in zip(BAND_NAMES, pixels, strict=True) if plane.any())
        tile = Tile(str(index), pixels, present or BAND_NAMES, None)
        uploads.append(Upload(tile.name, tile, coverage=coverage, raw=True))
    return uploads


async def _parse(body: bytes, announced: str | None, room: Reservation) -> tuple[InferRequest, bytes]:
    """Return the request in the JSON of a body, and the bytes that follow it.

    Raises:
        HTTPException: the header or the JSON is malformed, or the JSON too long.
    """
    length = len(body)
    if announced is not None:
        if not re.fullmatch("[0-9]{1,18}", announced) or int(announced) > length:
            raise HTTPException(400, f"{JSON_LENGTH} is not a length within the body of {length:,} bytes")
        length = int(announced)
    if length > MAX_JSON_BYTES:
        raise HTTPException(
            413, f"JSON of {length:,} bytes, the limit is {MAX_JSON_BYTES:,}; send the tensor in binary form"
        )
    await room.grow(length * _BYTES_PARSED)
    try:
        return InferRequest.model_validate_json(body[:length]), body[length:]
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        raise HTTPException(400, f"not an inference request: {where}: {first['msg']}") from None


def _read_tensor(tensor: InputTensor, binary: bytes, max_tiles: int) -> DN:
    """Return uint16 (n, 13, 64, 64), n >= 1; raises HTTPException for any other tensor."""
    shape = tuple(tensor.shape)
    if tensor.name != INPUT or tensor.datatype != "UINT16":
        raise HTTPException(
            422, f"the input {tensor.name[:80]!r} of {tensor.datatype[:20]}; send {INPUT!r} of UINT16"
        )
    if len(shape) != 4 or shape[1:] != _TILE_SHAPE or shape[0] < 1:
        raise HTTPException(422, f"a tensor of shape {list(shape)[:8]}; send [n, 13, 64, 64], n of 1 or more")
    if shape[0] > max_tiles:
        raise HTTPException(413, f"{shape[0]} tiles; the limit is {max_tiles}")
    if tensor.data is not None:
        return _from_json(tensor.data, shape, binary)
    size = math.prod(shape) * 2
    if tensor.parameters.get("binary_data_size") != size or len(binary) != size:
        raise HTTPException(
            400, f"{len(binary):,} bytes follow the JSON; its shape and binary_data_size want {size:,}"
        )
    return np.frombuffer(binary, "<u2").astype(np.uint16, copy=False).reshape(shape)


def _from_json(data: list[Any], shape: tuple[int, ...], binary: bytes) -> DN:
    """Return the numbers of `data`, nested or flat, in the given shape."""
    try:
        numbers = np.array(data)
    except ValueError:
        raise HTTPException(
            422, "data has rows of different lengths; nest it evenly, or not at all"
        ) from None
    if binary or numbers.dtype.kind not in "iu" or numbers.shape not in (shape, (math.prod(shape),)):
        raise HTTPException(
            422, f"data is {numbers.dtype} of shape {list(numbers.shape)}; its shape says {list(shape)}"
        )
    if numbers.min() < 0 or numbers.max() > np.iinfo(np.uint16).max:
        raise HTTPException(422, "data has numbers outside 0-65535; UINT16 holds no others")
    return numbers.astype(np.uint16).reshape(shape)


def _requested(asked: InferRequest) -> dict[str, bool]:
    """Return the names of the outputs that a request wants, with whether it wants each in binary form."""
    every = asked.parameters.get("binary_data_output") is True
    wanted = asked.outputs or [RequestedOutput(name=name) for name in OUTPUT_NAMES]
    for output in wanted:
        if output.name not in OUTPUT_NAMES:
            raise HTTPException(
                422, f"there is no output {output.name[:80]!r}; there are {', '.join(OUTPUT_NAMES)}"
            )
    return {output.name: output.parameters.get("binary_data", every) is True for output in wanted}


def _respond(asked: InferRequest, engine: Engine, names: dict[str, bool], results: list[Answer]) -> Response:
    content: dict[str, Any] = {"model_name": engine.metadata.name, "model_version": engine.metadata.version}
    content |= {"id": asked.id} if asked.id is not None else {}
    content["outputs"], parts = [], []
    for name, as_binary in names.items():
        values: npt.NDArray[np.float32] = np.stack([result["outputs"][name] for result in results])
        output: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(values.shape)}
        if as_binary:
            parts.append(values.astype("<f4", copy=False).tobytes())
            output["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            output["data"] = values.ravel().tolist()
        content["outputs"].append(output)
    if not parts:
        return reply(content)
    head = json.dumps(content).encode()
    return Response(
        b"".join([head, *parts]),
        media_type="application/octet-stream",
        headers={JSON_LENGTH: str(len(head))},
    )
