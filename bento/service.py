"""The BentoML service: `bentoml serve` at the project's root.

Health (`/livez`, `/readyz`) and Prometheus metrics (`/metrics`) are BentoML's; the routes of `bento.app` are
mounted.
"""

import sys

import bentoml

from bento.app import make_app
from bento.engine import Engine
from bento.settings import Settings, find_model
from datasets.errors import SentileError

app = make_app()


@bentoml.service(name="sentile", workers=1, traffic={"timeout": 60})
@bentoml.asgi_app(app, path="/")
class Sentile:
    """Classifies Sentinel-2 tiles."""

    def __init__(self) -> None:
        app.state.settings = settings = Settings.from_environment()
        app.state.engine = _open_engine(settings)

    @bentoml.on_deployment
    @staticmethod
    def check() -> None:
        """Stop with one line where there is no sound model; BentoML would start failing workers for ever."""
        try:
            _open_engine(Settings.from_environment())
        except SentileError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            raise SystemExit(error.exit_status) from None


def _open_engine(settings: Settings) -> Engine:
    return Engine(find_model(settings.model), settings.threads)
