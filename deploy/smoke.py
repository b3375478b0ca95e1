"""Does a service keep its contract, and does it bear a little load: for CI, for staging, and after a release.

    python deploy/smoke.py --model artifacts/ci/run/model.onnx     # a model file; models:/tilewise@candidate, too
    python deploy/smoke.py --bento tilewise:1.2.0                   # what `tilewise build` made
    python deploy/smoke.py --url http://staging:3000               # a service that runs

Exit status 1 says that something is wrong; each line says what. It is no measurement: benchmarks/serve.py is.
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
from monitoring import free_ports
from programs import running, service

from tilewise.datasets.acquire.synthetic import render
from tilewise.datasets.core.console import one_line_errors
from tilewise.datasets.core.errors import TilewiseError
from tilewise.datasets.readers.eurosat import CLASSES

TILES = 4  # in a request
_BUSY = {httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE}


class SmokeError(TilewiseError):
    """A service that does not keep what it promises."""


@dataclass
class Load:
    """What the callers got: seconds of each answered request, and how often something else came instead."""

    seconds: list[float] = field(default_factory=list)
    others: dict[str, int] = field(default_factory=dict)

    def note(self, overrides: str) -> None:
        """Count an answer that was none."""
        self.others[overrides] = self.others.get(overrides, 0) + 1


def violations(client: httpx.Client) -> Iterator[str]:
    """Ask a service as its callers do, and tell what is wrong with its answers, in words.

    Its answers are not held to the model's: the gates do that (`tilewise.training.registry.contract`).
    """
    card = client.get("/model").json()
    yield from (
        f"GET /model does not tell its {name}" for name in ("version", "sha256", "classes") if not card.get(name)
    )
    answer = client.post("/classify", **_request())
    if answer.status_code != httpx.codes.OK:
        yield f"POST /classify answers {answer.status_code} to sound tiles: {answer.text[:200]}"
    else:
        yield from _unsound(answer.json()["results"], card.get("classes", []))
    refusal = client.post("/classify", content=b"no tile", headers={"Content-Type": "image/tiff"})
    if not 400 <= refusal.status_code < 500:
        yield f"POST /classify answers {refusal.status_code} to what is no tile"
    elif set(refusal.json().get("error", {})) != {"code", "message", "hint"}:
        yield "an error has another shape than code, message and hint"
    if "tilewise_requests_total" not in client.get("/metrics").text:
        yield "GET /metrics does not count requests; with keys, set TILEWISE_OPEN_METRICS=1 or give one"


def _unsound(results: list[dict[str, Any]], classes: list[str]) -> Iterator[str]:
    if len(results) != TILES:
        yield f"{TILES} tiles get {len(results)} results"
    for number, result in enumerate(results):
        shares = result.get("probabilities", {})
        if result.get("class") not in classes or set(shares) != set(classes):
            yield f"tile {number} is answered with other classes than GET /model tells"
        elif abs(sum(shares.values()) - 1) > 1e-3:
            yield f"the probabilities of tile {number} add up to {sum(shares.values()):.4f}"


async def load(url: str, headers: dict[str, str], connections: int, seconds: float) -> Load:
    """Let so many callers send tiles for so long, each its next request after its answer."""
    seen, end = Load(), time.monotonic() + seconds

    async def caller(client: httpx.AsyncClient) -> None:
        while time.monotonic() < end:
            begun = time.monotonic()
            try:
                answer = await client.post("/classify", **_request())
            except httpx.TransportError as error:
                seen.note(type(error).__name__)
                continue
            if answer.status_code == httpx.codes.OK:
                seen.seconds.append(time.monotonic() - begun)
            else:
                seen.note(str(answer.status_code))
                await asyncio.sleep(0.2 if answer.status_code in _BUSY else 0)

    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
        await asyncio.gather(*(caller(client) for _ in range(connections)))
    return seen


@cache
def _request() -> dict[str, Any]:
    """Return body and headers of a request for TILES tiles."""
    body = io.BytesIO()
    np.save(body, np.stack([render(CLASSES[n % len(CLASSES)], n, seed=7) for n in range(TILES)]))
    return {"content": body.getvalue(), "headers": {"Content-Type": "application/octet-stream"}}


@contextmanager
def served(model: str | None, bento: str | None) -> Iterator[str]:
    """Serve a model or a bento on a free port of the loopback interface for the length of the block."""
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    with tempfile.TemporaryDirectory(prefix="tilewise-smoke-") as folder:
        command, settings = service(url, Path(folder), model or "")
        if bento:  # it brings its model, and lies in the caller's own store
            command[command.index(".")] = bento
            settings = {name: value for name, value in settings.items() if name == "BENTOML_DO_NOT_TRACK"}
        with running("service", command, Path(folder), f"{url}/readyz", settings):
            yield url


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--url", help="A service that runs.")
@click.option("--model", help="Serve this model file, or models:/NAME@ALIAS, for the length of the smoke.")
@click.option("--bento", metavar="TAG", help="Serve this bento, likewise.")
@click.option("--connections", default=8, show_default=True, type=click.IntRange(1, 256), help="Callers at once.")
@click.option("--seconds", default=10.0, show_default=True, type=click.FloatRange(0.5, 600), help="Of load.")
@click.option("--max-p99", default=10.0, show_default=True, type=click.FloatRange(0), help="Seconds, of a request.")
@click.option("--key", envvar="TILEWISE_KEY", help="Where the service asks for one [$TILEWISE_KEY].")
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
    """Ask a service what its callers ask, then let some of them ask at once."""
    if sum(overrides is not None for overrides in (url, model, bento)) != 1:
        raise click.UsageError("say one of --url, --model and --bento")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    if url:
        smoke(url.rstrip("/"), headers, connections, seconds, max_p99)
        return
    with served(model, bento) as own:
        smoke(own, headers, connections, seconds, max_p99)


def smoke(url: str, headers: dict[str, str], connections: int, seconds: float, max_p99: float) -> None:
    """Print what the service did; raises SmokeError where that is not what it promises."""
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
            wrong = list(violations(client))
    except httpx.TransportError as error:
        raise SmokeError(f"{url}: the service does not answer: {error}") from error
    click.echo("contract: kept" if not wrong else "contract: broken")
    seen = asyncio.run(load(url, headers, connections, seconds))
    p99 = float(np.percentile(seen.seconds, 99)) if seen.seconds else float("inf")
    click.echo(
        f"load: {len(seen.seconds)} requests of {TILES} tiles in {seconds:g} s over {connections} connections, "
        f"p99 {p99:.2f} s, not answered: {seen.others or 'none'}"
    )
    wrong += [f"{count} requests ended in {what}" for what, count in seen.others.items()]
    if p99 > max_p99:
        wrong.append(f"p99 is {p99:.2f} s, above {max_p99:g} s")
    if wrong:
        raise SmokeError("; ".join(wrong))


if __name__ == "__main__":
    main()
