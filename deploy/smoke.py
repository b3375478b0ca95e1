"""Smoke test of a service: API contract and a little load; for CI, staging, and after a release.

    python deploy/smoke.py --model artifacts/ci/run/model.onnx     # a model file; models:/tilewise@candidate,
    too python deploy/smoke.py --bento tilewise:1.2.0                   # what `tilewise build` made python
    deploy/smoke.py --url http://staging:3000               # a service that runs

Exit status 1: a check failed; each line of the output names one. benchmarks/serve.py measures throughput.
"""

import asyncio
import io
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np
from monitoring import free_ports, running, service

from tilewise.datasets.acquire.synthetic import render
from tilewise.datasets.core.console import one_line_errors
from tilewise.datasets.core.errors import TilewiseError
from tilewise.datasets.readers.eurosat import CLASSES

TILES = 4  # in a request
_BUSY = {httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE}


class SmokeError(TilewiseError):
    """A check of the service failed."""


@dataclass
class LoadResult:
    """The results of a load: seconds of each successful request, and the number of failures by kind."""

    seconds: list[float] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)

    def count(self, failure: str) -> None:
        """Count a failed request."""
        self.failures[failure] = self.failures.get(failure, 0) + 1


def violations(client: httpx.Client) -> Iterator[str]:
    """Send requests to a service as its clients do, and yield what is wrong with the responses.

    Predictions are not compared with the model's: the gates do that (`tilewise.training.registry.contract`).
    """
    card = client.get("/model").json()
    yield from (f"GET /model lacks {name}" for name in ("version", "sha256", "classes") if not card.get(name))
    response = client.post("/classify", **_request())
    if response.status_code != httpx.codes.OK:
        yield f"POST /classify returns {response.status_code} for valid tiles: {response.text[:200]}"
    else:
        yield from _invalid_results(response.json()["results"], card.get("classes", []))
    refusal = client.post("/classify", content=b"no tile", headers={"Content-Type": "image/tiff"})
    if not 400 <= refusal.status_code < 500:
        yield f"POST /classify returns {refusal.status_code} for an invalid tile"
    elif set(refusal.json().get("error", {})) != {"code", "message", "hint"}:
        yield "an error lacks code, message or hint"
    if "tilewise_requests_total" not in client.get("/metrics").text:
        yield "GET /metrics does not count requests; set TILEWISE_OPEN_METRICS=1, or give --key"


def _invalid_results(results: list[dict[str, Any]], classes: list[str]) -> Iterator[str]:
    if len(results) != TILES:
        yield f"{len(results)} results for {TILES} tiles"
    for number, result in enumerate(results):
        probabilities = result.get("probabilities", {})
        if result.get("class") not in classes or set(probabilities) != set(classes):
            yield f"tile {number} has other classes than GET /model"
        elif abs(sum(probabilities.values()) - 1) > 1e-3:
            yield f"the probabilities of tile {number} add up to {sum(probabilities.values()):.4f}"


async def load(url: str, headers: dict[str, str], connections: int, seconds: float) -> LoadResult:
    """Send tiles over several connections for some seconds, on each one request after another."""
    result, end = LoadResult(), time.monotonic() + seconds

    async def send(client: httpx.AsyncClient) -> None:
        while time.monotonic() < end:
            started = time.monotonic()
            try:
                response = await client.post("/classify", **_request())
            except httpx.TransportError as error:
                result.count(type(error).__name__)
                continue
            if response.status_code == httpx.codes.OK:
                result.seconds.append(time.monotonic() - started)
            else:
                result.count(str(response.status_code))
                await asyncio.sleep(0.2 if response.status_code in _BUSY else 0)

    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
        await asyncio.gather(*(send(client) for _ in range(connections)))
    return result


@cache
def _request() -> dict[str, Any]:
    """Return body and headers of a request for TILES tiles."""
    body = io.BytesIO()
    np.save(body, np.stack([render(CLASSES[n % len(CLASSES)], n, seed=7) for n in range(TILES)]))
    return {"content": body.getvalue(), "headers": {"Content-Type": "application/octet-stream"}}


@contextmanager
def served(model: str | None, bento: str | None) -> Iterator[str]:
    """Serve a model or a bento on a free port of the loopback interface for the duration of the block."""
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    with tempfile.TemporaryDirectory(prefix="tilewise-smoke-") as folder:
        command, settings = service(url, Path(folder), model or "")
        if bento:  # it has its model, and is in the caller's own store
            command[command.index(".")] = bento
            settings = {name: value for name, value in settings.items() if name == "BENTOML_DO_NOT_TRACK"}
        with running("service", command, Path(folder), f"{url}/readyz", settings):
            yield url


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--url", help="A running service.")
@click.option("--model", help="Serve this model file, or models:/NAME@ALIAS, for the duration of the test.")
@click.option("--bento", metavar="TAG", help="Serve this bento, likewise.")
@click.option(
    "--connections", default=8, show_default=True, type=click.IntRange(1, 256), help="Concurrent connections."
)
@click.option(
    "--seconds",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0.5, 600),
    help="Duration of the load.",
)
@click.option(
    "--max-p99",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Maximum p99 latency of a request, in seconds.",
)
@click.option("--key", envvar="TILEWISE_KEY", help="API key, if the service needs one [$TILEWISE_KEY].")
@one_line_errors
def main(
    url: str | None,
    model: str | None,
    bento: str | None,
    connections: int,
    seconds: float,
    max_p99: float,
    key: str | None,
) -> None:
    """Check a service's API contract, then send requests over several connections at once."""
    if sum(source is not None for source in (url, model, bento)) != 1:
        raise click.UsageError("name one of --url, --model and --bento")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    if url:
        smoke(url.rstrip("/"), headers, connections, seconds, max_p99)
        return
    with served(model, bento) as own:
        smoke(own, headers, connections, seconds, max_p99)


def smoke(url: str, headers: dict[str, str], connections: int, seconds: float, max_p99: float) -> None:
    """Print the results of all checks; raises SmokeError if one failed."""
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
            wrong = list(violations(client))
    except httpx.TransportError as error:
        raise SmokeError(f"{url}: the service does not respond: {error}") from error
    click.echo("contract: kept" if not wrong else "contract: broken")
    result = asyncio.run(load(url, headers, connections, seconds))
    p99 = float(np.percentile(result.seconds, 99)) if result.seconds else float("inf")
    click.echo(
        f"load: {len(result.seconds)} requests of {TILES} tiles in {seconds:g} s over {connections} "
        f"connections, "
        f"p99 {p99:.2f} s, failed: {result.failures or 'none'}"
    )
    wrong += [f"{count} requests failed with {kind}" for kind, count in result.failures.items()]
    if p99 > max_p99:
        wrong.append(f"p99 is {p99:.2f} s, above {max_p99:g} s")
    if wrong:
        raise SmokeError("; ".join(wrong))


if __name__ == "__main__":
    main()
