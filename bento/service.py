"""The BentoML service, which `bentoml serve` starts at the project's root.

BentoML itself answers the health checks (`/livez`, `/readyz`); the application of `tilewise.bento.api.app` is
mounted.
"""

import ctypes
import gc
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import bentoml

from tilewise.bento.api.app import make_app
from tilewise.bento.api.middleware import outer_middleware, silence_libraries
from tilewise.bento.inference.device import Device, choose, precision_on
from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.precision import Precision, settled
from tilewise.bento.monitoring import logs, prediction_log
from tilewise.bento.serving.fetching import parse_hosts
from tilewise.bento.serving.releases import find_at_start, source_of
from tilewise.bento.serving.runtime import Serving
from tilewise.bento.serving.task_runner import check_folder, shared_folder
from tilewise.bento.settings import Settings
from tilewise.datasets.core.errors import TilewiseError

_ARENA_MAX = -8  # M_ARENA_MAX of mallopt(3)


def bound_arenas(limit: int = 2) -> None:
    """Make all threads share `limit` heaps of glibc; call it before any thread starts.

    Decoding hostile and valid files in several threads otherwise fragments hundreds of megabytes.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, limit)


def _read_settings() -> Settings:
    """Return the settings, or exit with one line."""
    try:
        return Settings.from_environment()
    except TilewiseError as error:
        _stop(error)


def _stop(error: TilewiseError) -> NoReturn:
    print(f"error: {error}", file=sys.stderr, flush=True)
    raise SystemExit(error.exit_status) from None


def _middleware() -> list[tuple[type, dict[str, Any]]]:
    """Return the middleware of the service, or exit with one line."""
    try:
        return outer_middleware(settings)
    except TilewiseError as error:
        _stop(error)


# By default, GDAL caches decoded blocks in 5 % of the machine's memory, in each process. Scenes are read
# block by block, and a small cache is as fast.
os.environ.setdefault("GDAL_CACHEMAX", "128")  # MiB

settings = _read_settings()
app = make_app(settings)
logs.configure(logs.style_of(settings.log, sys.stderr))
if sys.platform != "win32":  # which has neither httptools nor a limit of open files
    from tilewise.bento.api.connections import bound_connections

    bound_connections(settings.max_connections, settings.head_seconds)
silence_libraries()
bound_arenas()


@bentoml.service(
    name="tilewise",
    workers=settings.processes,
    traffic={
        "timeout": settings.request_seconds + 15
    },  # beyond our own deadline, whose response has a JSON body
    logging={"access": {"enabled": False}},
    metrics={
        "enabled": False
    },  # ours have routes as labels, not paths, of which a client can invent any number
    # OpenTelemetry's middleware costs each request 0.1 ms even where nothing is traced.
    tracing={"excluded_urls": ".*"},
)
@bentoml.asgi_app(app, path="/")
class Tilewise:
    """Classifies Sentinel-2 tiles."""

    def __init__(self) -> None:
        app.state.serving = Serving.start(settings)
        gc.collect()
        gc.freeze()  # what was imported and loaded stays: full collections need not look through it

    @bentoml.on_deployment
    @staticmethod
    def check() -> None:
        """Exit with one line where there is no valid model; BentoML would restart its workers for ever."""
        try:
            device = choose(Device(settings.device))
            os.environ["TILEWISE_DEVICE"] = device  # inherited by the worker processes
            precision = precision_on(device, Precision(settings.precision))
            found = find_at_start(source_of(settings.model, precision)).path
            Engine(found, settings.network_threads, device)
            os.environ["TILEWISE_PRECISION"] = settled(found, precision)  # likewise
            parse_hosts(settings.url_hosts)
            if settings.predictions:
                prediction_log.prepare(settings.predictions)
            check_folder(Path(settings.tasks or shared_folder()))  # likewise
        except TilewiseError as error:
            _stop(error)

    @bentoml.on_shutdown
    def close(self) -> None:
        """Stop the batcher's thread."""
        app.state.serving.close()


service: Any = Tilewise  # bentoml's decorator made a service of the class, which its types do not state
for middleware, options in _middleware():
    service.add_asgi_middleware(middleware, **options)
