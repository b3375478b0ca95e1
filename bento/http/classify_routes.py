"""`POST /classify` and `GET /model`."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bento.engine import Engine
from bento.http.bodies import announced_bytes, read_tiles
from bento.http.http_errors import status_of_code
from bento.http.replies import answer
from bento.process.serving import serving_of
from bento.watch.notes import note_answered


async def classify(request: Request) -> Response:
    """POST /classify: tiles in one of three forms (`bento.http.bodies`); one result for each, in order."""
    serving = serving_of(request)
    async with serving.admission.room(announced_bytes(request, serving.settings.most_bytes)):
        asked = await read_tiles(request, serving.settings, serving.best_coverage)
        engine, uploads = serving.assign(asked.uploads, sticky_key(request))
        results = await serving.batcher.submit(uploads)
    note_answered()
    if asked.single and "error" in results[0]:
        return answer({"error": results[0]["error"]}, status_of_code(results[0]["error"]["code"]))
    return answer({"model": identity(engine), "results": results})


async def describe_model(request: Request) -> Response:
    """GET /model: what the answering model says of itself, and the candidate, without their reference histograms."""
    releases = serving_of(request).releases
    content = _card(releases.champion)
    if releases.candidate:
        content["candidate"] = {**_card(releases.candidate), "mode": releases.mode, "share": releases.share}
    return answer(content)


def sticky_key(request: Request) -> str:
    """Return what decides which model answers a caller: the header `Sentile-Key`, its API key, or its address."""
    address = request.client.host if request.client else ""
    return request.headers.get("sentile-key") or getattr(request.state, "caller", "") or address


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
