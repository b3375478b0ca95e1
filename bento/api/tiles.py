"""`POST /explain`: what the answer to a tile rests on, as a picture or as numbers."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tilewise.bento.api.bodies import announced_bytes, read_tiles
from tilewise.bento.api.replies import answer, negotiate
from tilewise.bento.errors import status_of_code
from tilewise.bento.inference.engine import Engine, TileClassifier
from tilewise.bento.inference.occlusion import MAX_PATCHES, Explanation, Method, explain, paint, patch_starts
from tilewise.bento.inference.uploads import Upload
from tilewise.bento.request_context import note_answered, note_requested
from tilewise.bento.serving.runtime import serving_of
from tilewise.bento.serving.task_runner import CLIENT_GONE, ClientGoneError
from tilewise.datasets.core.errors import NoDataError
from tilewise.datasets.core.tile import Tile
from tilewise.datasets.readers.geotiff import read_tile


async def classify(request: Request) -> Response:
    """POST /classify: tiles in one of three forms (`tilewise.bento.api.bodies`); one result for each, in order."""
    serving = serving_of(request)
    async with serving.admission.room(announced_bytes(request, serving.settings.max_bytes)):
        asked = await read_tiles(request, serving.settings, serving.best_coverage)
        engine, results = await serving.classify(asked.uploads, sticky_key(request))
    note_answered()
    if asked.single and "error" in results[0]:
        return answer({"error": results[0]["error"]}, status_of_code(results[0]["error"]["code"]))
    return answer({"model": identity(engine), "results": results})


async def describe_model(request: Request) -> Response:
    """GET /model: what the answering model says of itself, and the candidate, without their reference histograms."""
    releases = serving_of(request).releases
    content = _card(releases.champion)
    if releases.candidate:
        content["candidate"] = {**_card(releases.candidate), "mode": releases.mode, "share": releases.fraction}
    return answer(content)


def sticky_key(request: Request) -> str:
    """Return what decides which model answers a caller: the header `Tilewise-Key`, its API key, or its address."""
    address = request.client.host if request.client else ""
    return request.headers.get("tilewise-key") or getattr(request.state, "caller", "") or address


def _card(engine: Engine) -> dict[str, Any]:
    card = engine.metadata.model_dump(mode="json", exclude={"histograms", "histogram_edges"})
    return {**card, "sha256": engine.sha256}


def identity(engine: Engine) -> dict[str, str]:
    """Return the name, version and hash of a model."""
    return engine.identity


ROUTES = [
    Route("/classify", classify, methods=["POST"]),
    Route("/model", describe_model, methods=["GET"]),
]


PNG, JSON = "image/png", "application/json"
_PARAMETERS = ("method", "size", "stride", "class")
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Wish:
    """How a tile is to be explained: see `tilewise.bento.inference.occlusion.explain`."""

    method: Method
    size: int
    stride: int
    class_name: str | None


async def explain_tile(request: Request) -> Response:
    """POST /explain: one tile in one of the three forms of /classify; a heat map or its numbers."""
    serving = serving_of(request)
    form = negotiate(request.headers.get("accept", ""), (PNG, JSON))
    if form is None:
        raise HTTPException(406, f"there is no such form of the answer; Accept {PNG} or {JSON}")
    engine = serving.releases.route(sticky_key(request))
    wish = _wish_of(request.query_params, engine)
    async with serving.admission.room(announced_bytes(request, serving.settings.max_bytes)):
        alone = serving.settings.model_copy(update={"max_tiles": 1})
        asked = await read_tiles(_without(request, _PARAMETERS), alone, serving.best_coverage)
        tile = await asyncio.to_thread(_read, asked.uploads, engine.metadata.tile_size)
    note_requested(1, engine.metadata.version)

    def work(scheduled: TileClassifier) -> bytes:
        found = explain(scheduled, tile, wish.method, wish.size, wish.stride, wish.class_name)
        return paint(found) if form == PNG else json.dumps(_describe(engine, found)).encode()

    try:
        content = await serving.scenes.answer(request, lambda make: work(make(engine)))
    except ClientGoneError:
        return Response(status_code=CLIENT_GONE)
    return Response(content, media_type=form, headers={"Vary": "Accept"})


def _read(uploads: list[Upload], size: int) -> Tile:
    """Return the one tile that was sent; raises TilewiseError, or HTTPException where there is none."""
    if len(uploads) != 1:
        raise HTTPException(422, f"{len(uploads)} tiles; one is explained at a time")
    content, name = uploads[0].content, uploads[0].name
    tile = content if isinstance(content, Tile) else read_tile(content, uploads[0].overrides, name, size)
    if tile.valid_fraction == 0:
        raise NoDataError(f"{name}: no pixel holds data in all of {', '.join(tile.bands)}; nothing to explain")
    return tile


def _describe(engine: Engine, found: Explanation) -> dict[str, Any]:
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


def _wish_of(overrides: Mapping[str, str], engine: Engine) -> Wish:
    """Return what the query asks; raises HTTPException where it makes no sense."""
    tile, classes = engine.metadata.tile_size, engine.metadata.classes
    method, class_name = overrides.get("method") or Method.OCCLUSION, overrides.get("class") or None
    if method not in list(Method):
        raise HTTPException(422, f"method is {' or '.join(Method)}, not {method!r}")
    if class_name is not None and class_name not in classes:
        raise HTTPException(422, f"class is one of {', '.join(classes)}, not {class_name!r}")
    size = _whole_number(overrides, "size", 8, tile)
    stride = _whole_number(overrides, "stride", max(size // 2, 1), size)
    patches = len(patch_starts(tile, size, stride)) ** 2
    if patches > MAX_PATCHES:
        raise HTTPException(422, f"{patches:,} patches, {MAX_PATCHES:,} are the most; ask for a larger stride")
    return Wish(Method(method), size, stride, class_name)


def _whole_number(overrides: Mapping[str, str], name: str, default: int, limit: int) -> int:
    text = overrides.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= limit):
        raise HTTPException(422, f"{name} is a whole number from 1 to {limit}, not {text!r}")
    return int(text)


def _without(request: Request, names: tuple[str, ...]) -> Request:
    """Return `request` without parameters that are not about the tile."""
    rest = [(name, value) for name, value in request.query_params.multi_items() if name not in names]
    return Request({**request.scope, "query_string": urlencode(rest).encode()}, request.receive)


EXPLAIN_ROUTES = [Route("/explain", explain_tile, methods=["POST"])]
