"""`tilewise serve`: the BentoML service, from any folder."""

import os
import sys

import click

SERVICE = "tilewise.bento.service:Tilewise"


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=3000, show_default=True)
@click.option("--model", help="Model file, or models:/NAME@ALIAS; sets TILEWISE_MODEL.")
def serve(host: str, port: int, model: str | None) -> None:
    """Serve a model behind an HTTP API, with a page for browsers."""
    if model:
        os.environ["TILEWISE_MODEL"] = model
    command = [sys.executable, "-m", "bentoml", "serve", SERVICE, "--host", host, "--port", str(port)]
    os.execv(sys.executable, command)  # noqa: S606
