"""The BentoML service: `bentoml serve` at the project's root.

Health (`/livez`, `/readyz`) is BentoML's; the routes of `tilewise.bento.api.app` are mounted.
"""

import ctypes
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import bentoml

from tilewise.bento.api.app import make_app
from tilewise.bento.api.middleware import guards, quieten
from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.precision import Precision, settled
from tilewise.bento.monitoring import logs, prediction_log
from tilewise.bento.serving.releases import source_of
from tilewise.bento.serving.runtime import Serving
from tilewise.bento.serving.task_runner import check_folder, shared_folder
from tilewise.bento.settings import Settings
from tilewise.datasets.core.errors import TilewiseError

_ARENA_MAX = -8  # M_ARENA_MAX of mallopt(3)


def bound_arenas(limit: int = 2) -> None:
    """Let all threads share `most` heaps, where the C library is glibc; to be called before there are threads.

    Decoding hostile and honest files in turn, in several threads, otherwise leaves hundreds of megabytes in pieces.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, limit)


def _settings() -> Settings:
    """Return the settings, or stop with one line."""
    try:
        return Settings.from_environment()
    except TilewiseError as error:
        _stop(error)


def _stop(error: TilewiseError) -> NoReturn:
    print(f"error: {error}", file=sys.stderr, flush=True)
    raise SystemExit(error.exit_status) from None


def _guards() -> list[tuple[type, dict[str, Any]]]:
    """Return what stands before every route, or stop with one line."""
    try:
        return guards(settings)
    except TilewiseError as error:
        _stop(error)


# By itself, GDAL keeps decoded blocks in a twentieth of the machine's memory, in each process. Scenes are read block by
# block, and take as long with little.
os.environ.setdefault("GDAL_CACHEMAX", "128")  # MiB

settings = _settings()
app = make_app(settings)
logs.configure(logs.style_of(settings.log, sys.stderr))
if sys.platform != "win32":  # where there is neither httptools nor a limit of open files
    from tilewise.bento.api.connections import bound_connections

    bound_connections(settings.max_connections, settings.head_seconds)
quieten()
bound_arenas()


@bentoml.service(
    name="tilewise",
    workers=settings.processes,
    traffic={"timeout": settings.request_seconds + 15},  # behind our own bound, whose answer has our form
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},  # ours tell more, and label routes, not paths, of which anybody can think up any number
    # OpenTelemetry's middleware costs each request a tenth of a millisecond even where nothing is traced.
    tracing={"excluded_urls": ".*"},
)
@bentoml.asgi_app(app, path="/")
class Tilewise:
    """Classifies Sentinel-2 tiles."""

    def __init__(self) -> None:
        app.state.serving = Serving.start(settings)

    @bentoml.on_deployment
    @staticmethod
    def check() -> None:
        """Stop with one line where there is no sound model; BentoML would start failing workers for ever."""
        try:
            precision = Precision(settings.precision)
            found = source_of(settings.model, precision).find().path
            Engine(found, settings.network_threads)
            os.environ["TILEWISE_PRECISION"] = settled(found, precision)  # to the processes that are started after this
            if settings.predictions:
                prediction_log.prepare(settings.predictions)
            check_folder(Path(settings.tasks or shared_folder()))  # named to the processes that are started after this
        except TilewiseError as error:
            _stop(error)

    @bentoml.on_shutdown
    def close(self) -> None:
        """End the batcher's thread."""
        app.state.serving.close()


service: Any = Tilewise  # bentoml's decorator made a service of the class, which its types do not say
for guard, options in _guards():
    service.add_asgi_middleware(guard, **options)
