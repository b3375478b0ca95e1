"""`tilewise serve`: run the BentoML service, from any folder."""

import os
import sys
from collections.abc import Iterator
from typing import Any

import click

from tilewise.datasets.core.console import CONTEXT, one_line_errors

SERVICE = "tilewise.bento.service:Tilewise"


class ServeCommand(click.Command):
    """A command whose help ends with every setting of the service."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the environment variables, with descriptions and defaults."""
        with formatter.section("Environment variables"):
            formatter.write_dl(list(describe_settings()))


def describe_settings() -> Iterator[tuple[str, str]]:
    """Yield each setting of the service: its environment variable, and its description with the default."""
    from tilewise.bento.settings import Settings

    for name, field in Settings.model_fields.items():
        default = getattr(field.default, "value", field.default)
        shown = "" if default in (None, "") else f"  [default: {default}]"
        yield f"TILEWISE_{name.upper()}", f"{field.description}{shown}"


@click.command(cls=ServeCommand, context_settings=CONTEXT)
@click.option(
    "--host", "host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0: all."
)
@click.option("--port", "port", default=3000, show_default=True, help="Port to listen on.")
@click.option("--model", "model", help="Model file, or models:/NAME@ALIAS in MLflow's registry.")
@click.option(
    "--precision", "precision", type=click.Choice(["auto", "fp32", "int8"]), help="See TILEWISE_PRECISION."
)
@click.option("--device", "device", type=click.Choice(["auto", "cpu", "cuda"]), help="See TILEWISE_DEVICE.")
@click.option(
    "--workers", "workers", type=click.IntRange(0), help="Processes; 0: one for each core, eight at most."
)
@click.option("--threads", "threads", type=click.IntRange(0), help="Threads of the network in each process.")
@click.option(
    "--log", "log", type=click.Choice(["json", "text", "off"]), help="Format of the log on standard error."
)
@one_line_errors
def serve(host: str, port: int, **options: Any) -> None:
    """Serve a model by HTTP, with a page for browsers, until Ctrl-C.

    The options set the environment variables of the same names for this run; all settings are listed below.

    \b
      tilewise serve                                          # http://localhost:3000
      tilewise serve --host 0.0.0.0 --model artifacts/runs/first/model.onnx
      TILEWISE_API_KEYS=ada:secret tilewise serve --workers 4
    """
    from tilewise.bento.settings import Settings

    environment = {
        f"TILEWISE_{name.upper()}": str(value) for name, value in options.items() if value is not None
    }
    os.environ |= environment
    Settings.from_environment()  # a wrong value ends here, in one line
    command = [sys.executable, "-m", "bentoml", "serve", SERVICE, "--host", host, "--port", str(port)]
    os.execv(sys.executable, command)  # noqa: S606 - this very interpreter
