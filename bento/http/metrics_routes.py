"""`GET /metrics`: what all processes of the service have counted, for Prometheus."""

import os

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bento.watch.metrics import SHARED_FOLDER


def show_metrics(request: Request) -> Response:
    """GET /metrics: in Prometheus' text format. Not `async`, so that the sums are made beside the event loop."""
    registry = REGISTRY
    if SHARED_FOLDER in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


ROUTES = [Route("/metrics", show_metrics, methods=["GET"])]
