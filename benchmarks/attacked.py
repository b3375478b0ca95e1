"""What an honest caller notices while another address attacks: its latencies and refusals, calm and attacked.

    python benchmarks/attacked.py --model fast --minutes 10

A caller at 127.0.0.1 sends twenty tiles a second, each over a connection of its own, a minute or a third of
the time alone. Then 127.0.0.2 sends what `fuzz.py` sends, drawn by --seed, over sixteen connections without
pauses, and announces bodies of 64 MiB that trickle in; in the last half it sends forms of padded tiles, too.
Exits with 1 where an honest request was not answered, a hostile one got 500 or above (but 503 with
Retry-After), a process ended, the honest p99 rose to more than --slower times its calm value, or memory to
more than 1 GB for both processes.
"""

import argparse
import asyncio
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle, repeat
from multiprocessing.connection import Connection
from pathlib import Path

import uvloop
from hostile.attacks import ATTACKER, MAX_MEGABYTES, Honest, honest_tile, padded_form, trickle
from hostile.requests import Hostile, Sent
from hostile.service import Streams, Workers, ask, serving
from hostile.sound import sound_files
from hostile.tiffs import parse as parse_tiff
from hostile.watch import Canary

from tilewise.models.model_file import find_model

CALM_S = 60.0
RATE = 20.0  # honest requests a second
CONNECTIONS = 16
TRICKLES = 8
DRAWN = 3000  # requests, sent again and again
PATIENCE_S = 90.0


async def call_honestly(port: int, seconds: float) -> Honest:
    """Send tiles at a steady rate, whether or not those before are answered."""
    noticed, request, sent = Honest(), honest_tile(), set[asyncio.Task[None]]()

    async def one() -> None:
        began = time.perf_counter()
        heard, streams = await ask(port, request)
        noticed.statuses[heard.status] += 1
        if heard.status == 200:
            noticed.seconds.append(time.perf_counter() - began)
        if streams:
            streams[1].close()

    for _ in range(round(seconds * RATE)):
        task = asyncio.create_task(one())
        sent.add(task)
        task.add_done_callback(sent.discard)
        await asyncio.sleep(1 / RATE)
    await asyncio.gather(*sent)
    return noticed


async def send(port: int, requests: Iterator[Sent], heard: Counter[str]) -> None:
    """Send one request after another, and count what comes, for ever."""
    streams: Streams | None = None
    for sent in requests:
        answer, streams = await ask(port, sent.content, streams, ATTACKER, PATIENCE_S)
        heard[answer.fault or f"{answer.status // 100}xx"] += 1
        if not sent.goes_on and streams is not None:
            streams[1].close()
            streams = None


async def flood(port: int, drawn: list[Sent], padded: bool, seconds: float) -> Counter[str]:
    """Attack for some seconds, and return what was heard."""
    heard = Counter[str]()
    requests = cycle(drawn)
    attacks = [send(port, requests, heard) for _ in range(CONNECTIONS)]
    attacks += [trickle(port, b"/classify", 64 * 2**20) for _ in range(TRICKLES)]
    if padded:
        attacks.append(send(port, repeat(Sent("padded", padded_form(64), 64)), heard))
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(*attacks)
    return heard


def attack(port: int, seed: int, padded: bool, seconds: float, pipe: Connection) -> None:
    """Make the requests before they are sent, so that the attacker takes little of this machine's time."""
    files = sound_files()
    with tempfile.TemporaryDirectory() as temporary:
        names = Canary(Path(temporary)).names
        hostile = Hostile([parse_tiff(file) for file in files], files, names, seed)
        drawn = [hostile.request(index) for index in range(DRAWN)]
    pipe.send(None)
    pipe.send(uvloop.run(flood(port, drawn, padded, seconds)))


async def look_on(workers: Workers) -> None:
    """Note the memory of the processes every two seconds, for ever."""
    while True:
        workers.note()
        await asyncio.sleep(2)


async def call_attacked(port: int, seed: int, padded: bool, seconds: float, heard: Counter[str]) -> Honest:
    """Return what the honest caller notices while a process of its own attacks."""
    pipe, theirs = multiprocessing.Pipe()
    arguments = (port, seed, padded, seconds + 2, theirs)
    attacker = multiprocessing.get_context("spawn").Process(target=attack, args=arguments, daemon=True)
    attacker.start()
    theirs.close()
    await asyncio.to_thread(pipe.recv)  # its requests are made
    await asyncio.sleep(1)
    noticed = await call_honestly(port, seconds)
    heard.update(await asyncio.to_thread(pipe.recv))
    return noticed


async def run(
    port: int, seed: int, workers: Workers, seconds: float
) -> tuple[dict[str, Honest], Counter[str]]:
    """Return what the honest caller noticed, calm and attacked, and what the attacker heard."""
    heard = Counter[str]()
    looking = asyncio.create_task(look_on(workers))
    await call_honestly(port, 3)  # warm up
    calm = min(seconds / 3, CALM_S)
    half = (seconds - calm) / 2
    noticed = {
        "calm": await call_honestly(port, calm),
        "hostile and trickling uploads": await call_attacked(port, seed, False, half, heard),
        "padded tiles, too": await call_attacked(port, seed + 1, True, half, heard),
    }
    looking.cancel()
    return noticed, heard


def report(noticed: dict[str, Honest], heard: Counter[str], workers: Workers, max_slower: float) -> list[str]:
    """Print what was noticed, and return what must not be."""
    print("| honest caller | requests | answered | p50 ms | p99 ms | longest ms | p99, times calm |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    calm = noticed["calm"].percentile(99)
    for name, of in noticed.items():
        numbers = " | ".join(f"{of.percentile(share):.1f}" for share in (50, 99, 100))
        slower = of.percentile(99) / calm
        print(f"| {name} | {of.statuses.total():,} | {of.statuses[200]:,} | {numbers} | {slower:.1f} |")
    print(f"\nthe attacker heard: {dict(heard.most_common())}")
    print(f"memory of both processes: at most {max(workers.history):.0f} MB")
    unanswered = {name: of.statuses.total() - of.statuses[200] for name, of in noticed.items()}
    faults = {what: count for what, count in heard.items() if not what.endswith("xx")}
    wrong = {
        f"honest requests not answered: {unanswered}": any(unanswered.values()),
        f"answers that must not be: {faults}": bool(faults),
        "a process ended": workers.ids() != workers.at_start,
        f"p99 over {max_slower:g} × its calm value": any(
            of.percentile(99) > max_slower * calm for of in noticed.values()
        ),
        f"more than {MAX_MEGABYTES:.0f} MB": max(workers.history) > MAX_MEGABYTES,
    }
    return [what for what, holds in wrong.items() if holds]


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=find_model, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--slower", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as temporary,
        serving(arguments.model, Path(temporary), settings={"TILEWISE_WORKERS": "2"}) as (port, parent),
    ):
        workers = Workers(parent)
        seen = uvloop.run(run(port, arguments.seed, workers, arguments.minutes * 60))
        wrong = report(*seen, workers, arguments.slower)
    print("\n".join(wrong))
    sys.exit(int(bool(wrong)))


if __name__ == "__main__":
    main()
