"""Routes of single tiles, and of the model: `/classify`, `/explain`, `/model`, `/model.stac.json`."""

import asyncio
import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tilewise.bento.api.bodies import read_tiles
from tilewise.bento.api.replies import headers, negotiate, refusals, reply, status_of_code
from tilewise.bento.api.schemas import (
    ARRAY,
    JPEG,
    PNG,
    TIFF,
    ClassifyResponse,
    ExplainParameters,
    ExplainResponse,
    ModelResponse,
    NamedParameters,
    NamedTileParameters,
    ReadParameters,
    TileParameters,
    encoded,
    example,
    form,
    header,
    operation,
    query,
)
from tilewise.bento.inference.engine import TileClassifier
from tilewise.bento.inference.occlusion import MAX_PATCHES, Explanation, Method, explain, paint
from tilewise.bento.inference.uploads import Upload, read_upload
from tilewise.bento.request_context import note_answered, note_requested
from tilewise.bento.serving.admission import caller_of
from tilewise.bento.serving.background import CLIENT_GONE, ClientGoneError
from tilewise.bento.serving.runtime import serving_of
from tilewise.bento.serving.scene_answers import GEOJSON
from tilewise.datasets.core.errors import NoDataError
from tilewise.datasets.core.tile import Tile
from tilewise.models.model_item import model_item
from tilewise.models.occlusion import patch_starts

router = APIRouter()
_ITEM = {
    "type": "object",
    "required": ["type", "stac_version", "id", "properties", "assets"],
    "description": "https://github.com/radiantearth/stac-spec/blob/v1.1.0/item-spec/item-spec.md",
}


@router.post(
    "/classify",
    operation_id="classify",
    tags=["classify"],
    summary="Classify tiles",
    response_model=ClassifyResponse,
    response_description="One result for each tile, in order",
    responses={
        200: {"headers": headers(), "content": example("classified")},
        **refusals(400, 401, 405, 408, 413, 415, 422, 500, 503, 504),
    },
    openapi_extra=operation(
        "curl -F tiles=@tile.tif {url}/classify",
        "curl --data-binary @tile.tif -H 'Content-Type: image/tiff' '{url}/classify?name=tile.tif'",
        "curl --data-binary @tiles.npy -H 'Content-Type: application/octet-stream' "
        "'{url}/classify?level=L1C'",
        parameters=[header("Tilewise-Key"), *query(NamedTileParameters)],
        body={
            "multipart/form-data": form("tiles", TileParameters, many=True),
            "image/tiff": TIFF,
            "image/jpeg": JPEG,
            "image/png": PNG,
            "application/octet-stream": ARRAY,
            "application/x-npy": ARRAY,
            "application/json": encoded("tiles", TileParameters),
        },
    ),
)
async def classify(request: Request) -> Response:
    """Tiles of 64 × 64 pixels, in one of four kinds of bodies.

    A tile that cannot be classified has its own `error` among the results and does not affect the others;
    where it is the whole of the body, its error is the response. What the files' metadata leave open is
    stated in fields of the form, in the query, or beside the files in a JSON object.

    A JPEG or PNG is read as EuroSAT's RGB tiles are. A `.npy` body is an array of (n, bands, 64, 64), (bands,
    64, 64) or (64, 64, bands). Its integers are DN (reflectance × 10 000, 0 = no data) where `scale` does not
    say otherwise; floats and bytes need a scale.
    """
    serving = serving_of(request)
    caller = caller_of(request)
    async with serving.admission.room(caller) as room:
        batch = await read_tiles(request, serving.settings, serving.best_coverage, room.grow, serving.fetcher)
        engine, results = await serving.classify(batch.uploads, sticky_key(request), caller)
    note_answered()
    if batch.single and "error" in results[0]:
        return reply({"error": results[0]["error"]}, status_of_code(results[0]["error"]["code"]))
    return reply({"model": engine.identity, "results": results})


@router.get(
    "/model",
    operation_id="describeModel",
    tags=["model"],
    summary="Describe the model",
    response_model=ModelResponse,
    response_description="Its metadata",
    responses={200: {"headers": headers()}, **refusals(401, 405, 500)},
    openapi_extra=operation("curl {url}/model"),
)
async def describe_model(request: Request) -> Response:
    """Classes, bands, metrics, licence and hash of the model file; likewise of a candidate, if it has one."""
    releases = serving_of(request).releases
    content = _describe_engine(releases.champion)
    if releases.candidate:
        card = _describe_engine(releases.candidate)
        content["candidate"] = {**card, "mode": releases.mode, "fraction": releases.fraction}
    return reply(content)


@router.get(
    "/model.stac.json",
    operation_id="describeModelAsItem",
    tags=["model"],
    summary="The model as a STAC item",
    response_class=Response,
    response_description="A STAC item with the Machine Learning Model extension (MLM)",
    responses={
        200: {"headers": headers(), "content": {GEOJSON: {"schema": _ITEM}}},
        **refusals(401, 405, 500),
    },
    openapi_extra=operation("curl {url}/model.stac.json"),
)
async def describe_model_as_item(request: Request) -> Response:
    """What the model takes and answers, for catalogues and other programs.

    The service gives no model files away: the asset's link names the file by its SHA-256 (RFC 6920).
    """
    champion = serving_of(request).releases.champion
    digest = base64.urlsafe_b64encode(bytes.fromhex(champion.sha256)).decode().rstrip("=")
    item = model_item({"model": (champion, f"ni:///sha-256;{digest}")})
    item["links"] = [{"rel": "self", "href": str(request.url), "type": GEOJSON}]
    return JSONResponse(item, media_type=GEOJSON)


def _describe_engine(engine: TileClassifier) -> dict[str, Any]:
    card = engine.metadata.model_dump(
        mode="json", exclude={"histograms", "histogram_edges", "self_test", "digest"}
    )
    return {**card, "sha256": engine.sha256}


def sticky_key(request: Request) -> str:
    """Return what assigns a caller to a model: the header `Tilewise-Key`, its API key, or its address."""
    address = request.client.host if request.client else ""
    return request.headers.get("tilewise-key") or getattr(request.state, "caller", "") or address


# Explanations.

_PNG, _JSON = "image/png", "application/json"
_PARAMETERS = tuple(field.alias or name for name, field in ExplainParameters.model_fields.items())
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class ExplainOptions:
    """How to explain a tile: the arguments of `tilewise.bento.inference.occlusion.explain`."""

    method: Method
    size: int
    stride: int
    class_name: str | None


@router.post(
    "/explain",
    operation_id="explain",
    tags=["classify"],
    summary="Explain the class of a tile",
    response_model=ExplainResponse,
    response_description="A heat map, or its numbers",
    responses={
        200: {"headers": headers(), "content": {_PNG: PNG}},
        **refusals(400, 401, 405, 406, 408, 413, 415, 422, 500, 503, 504),
    },
    openapi_extra=operation(
        "curl -F tiles=@tile.tif -o heat.png {url}/explain",
        "curl -F tiles=@tile.tif -H 'Accept: application/json' '{url}/explain?size=16&class=Forest'",
        parameters=[header("Tilewise-Key"), *query(NamedParameters, ExplainParameters)],
        body={
            "multipart/form-data": form("tiles", ReadParameters),
            "image/tiff": TIFF,
            "application/octet-stream": ARRAY,
        },
    ),
)
async def explain_tile(request: Request) -> Response:
    """Occlude patches and bands one after another, and measure how the result changes.

    One tile, in one of the bodies of `/classify`. The header `Accept` chooses a heat map (PNG) or numbers
    (JSON).
    """
    serving = serving_of(request)
    media_type = negotiate(request.headers.get("accept", ""), (_PNG, _JSON))
    if media_type is None:
        raise HTTPException(406, f"the response has no such media type; Accept {_PNG} or {_JSON}")
    engine = serving.releases.route(sticky_key(request))
    options = _parse_options(request.query_params, engine)
    async with serving.admission.room(caller_of(request)) as room:
        single = serving.settings.model_copy(update={"max_tiles": 1})
        batch = await read_tiles(
            _without_parameters(request), single, serving.best_coverage, room.grow, serving.fetcher
        )
        tile = await asyncio.to_thread(_read_only_tile, batch.uploads, engine.metadata.tile_size)
    note_requested(1, engine.metadata.version)

    def work(scheduled: TileClassifier) -> bytes:
        found = explain(scheduled, tile, options.method, options.size, options.stride, options.class_name)
        return (
            paint(found) if media_type == _PNG else json.dumps(_describe_explanation(engine, found)).encode()
        )

    try:
        content = await serving.scenes.answer(request, lambda make: work(make(engine)))
    except ClientGoneError:
        return Response(status_code=CLIENT_GONE)
    return Response(content, media_type=media_type, headers={"Vary": "Accept"})


def _read_only_tile(uploads: list[Upload], size: int) -> Tile:
    """Return the one tile of a request; raises TilewiseError, or HTTPException where there is not one."""
    if len(uploads) != 1:
        raise HTTPException(422, f"{len(uploads)} tiles; send one at a time")
    tile = read_upload(uploads[0], size)
    if tile.valid_fraction == 0:
        raise NoDataError(
            f"{tile.name}: no pixel holds data in all of {', '.join(tile.bands)}; nothing to explain"
        )
    return tile


def _describe_explanation(engine: TileClassifier, found: Explanation) -> dict[str, Any]:
    return {
        "model": engine.identity,
        "name": found.tile.name,
        "class": found.class_name,
        "probability": round(found.probability, _DIGITS),
        "method": found.method,
        "size": found.size,
        "stride": found.stride,
        "starts": patch_starts(found.tile.pixels.shape[1], found.size, found.stride),
        "grid": [[round(float(effect), _DIGITS) for effect in row] for row in found.grid],
        "bands": {name: round(effect, _DIGITS) for name, effect in found.bands.items()},
    }


def _parse_options(parameters: Mapping[str, str], engine: TileClassifier) -> ExplainOptions:
    """Return the options in the query; raises HTTPException where one is not valid."""
    tile, classes = engine.metadata.tile_size, engine.metadata.classes
    method, class_name = parameters.get("method") or Method.OCCLUSION, parameters.get("class") or None
    if method not in list(Method):
        raise HTTPException(422, f"method is {' or '.join(Method)}, not {method!r}")
    if class_name is not None and class_name not in classes:
        raise HTTPException(422, f"class is one of {', '.join(classes)}, not {class_name!r}")
    size = _parse_integer(parameters, "size", 8, tile)
    stride = _parse_integer(parameters, "stride", max(size // 2, 1), size)
    patches = len(patch_starts(tile, size, stride)) ** 2
    if patches > MAX_PATCHES:
        raise HTTPException(422, f"{patches:,} patches, the limit is {MAX_PATCHES:,}; use a larger stride")
    return ExplainOptions(Method(method), size, stride, class_name)


def _parse_integer(parameters: Mapping[str, str], name: str, default: int, limit: int) -> int:
    text = parameters.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= limit):
        raise HTTPException(422, f"{name} is a whole number from 1 to {limit}, not {text!r}")
    return int(text)


def _without_parameters(request: Request) -> Request:
    """Return `request` without the parameters that do not describe the tile."""
    rest = [(name, value) for name, value in request.query_params.multi_items() if name not in _PARAMETERS]
    return Request({**request.scope, "query_string": urlencode(rest).encode()}, request.receive)
