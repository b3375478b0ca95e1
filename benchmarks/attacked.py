"""What an honest caller notices while another address attacks: its latencies and refusals, calm and attacked.

    python benchmarks/attacked.py --model fast --minutes 10

A caller at 127.0.0.1 sends twenty tiles a second, each over a connection of its own, a third of the time
alone. Then 127.0.0.2 sends what `fuzz.py` sends, drawn by --seed, over sixteen connections without pauses,
and announces bodies of 64 MiB that trickle in; in the last third it sends forms of padded tiles, too. Exits
with 1 where an honest request was not answered, a hostile one got 500 or above (but 503 with Retry-After), a
process ended, the honest p99 rose to more than three times its calm value, or memory to more than 1 GB for
both processes.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import uvloop
from hostile.attacks import ATTACKER, Honest, honest_tile, padded_form, trickle
from hostile.requests import Hostile
from hostile.service import Streams, Workers, ask, serving
from hostile.sound import sound_files
from hostile.tiffs import parse as parse_tiff
from hostile.watch import Canary

from tilewise.models.model_file import find_model

RATE = 20.0  # honest requests a second
CONNECTIONS = 16
TRICKLES = 8
MAX_SLOWER = 3.0
MAX_MEGABYTES = 1000.0


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


async def send_drawn(port: int, hostile: Hostile, turn: Callable[[], int], heard: Counter[str]) -> None:
    """Send one drawn request after another, and count what comes, for ever."""
    streams: Streams | None = None
    while True:
        sent = hostile.request(turn())
        answer, streams = await ask(port, sent.content, streams, ATTACKER)
        heard[answer.fault or f"{answer.status // 100}xx"] += 1
        if not sent.goes_on and streams is not None:
            streams[1].close()
            streams = None


async def send_padded(port: int, heard: Counter[str]) -> None:
    """Send forms of 64 tiles of 4 kB that decode to 27 MiB each, for ever."""
    form = padded_form(64)
    while True:
        answer, streams = await ask(port, form, address=ATTACKER, patience=90)
        heard[answer.fault or f"{answer.status // 100}xx"] += 1
        if streams:
            streams[1].close()


async def look_on(workers: Workers) -> None:
    """Note the memory of the processes every two seconds, for ever."""
    while True:
        workers.note()
        await asyncio.sleep(2)


async def run(
    port: int, hostile: Hostile, workers: Workers, seconds: float
) -> tuple[dict[str, Honest], Counter[str]]:
    """Return what the honest caller noticed in each third of the time, and what the attacker heard."""
    heard, turns = Counter[str](), iter(range(2**62))
    tasks = [asyncio.create_task(look_on(workers))]
    await call_honestly(port, 3)  # warm up
    noticed = {"calm": await call_honestly(port, seconds / 3)}
    drawn = [send_drawn(port, hostile, lambda: next(turns), heard) for _ in range(CONNECTIONS)]
    tasks += [
        asyncio.create_task(one)
        for one in (*drawn, *(trickle(port, b"/classify", 64 * 2**20) for _ in range(TRICKLES)))
    ]
    noticed["hostile and trickling uploads"] = await call_honestly(port, seconds / 3)
    tasks.append(asyncio.create_task(send_padded(port, heard)))
    noticed["padded tiles, too"] = await call_honestly(port, seconds / 3)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return noticed, heard


def report(noticed: dict[str, Honest], heard: Counter[str], workers: Workers) -> list[str]:
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
        f"p99 over {MAX_SLOWER:g} × its calm value": any(
            of.percentile(99) > MAX_SLOWER * calm for of in noticed.values()
        ),
        f"more than {MAX_MEGABYTES:.0f} MB": max(workers.history) > MAX_MEGABYTES,
    }
    return [what for what, holds in wrong.items() if holds]


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=find_model, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        files = sound_files()
        names = Canary(Path(temporary)).names
        hostile = Hostile([parse_tiff(file) for file in files], files, names, arguments.seed)
        with serving(arguments.model, Path(temporary)) as (port, parent):
            workers = Workers(parent)
            wrong = report(*uvloop.run(run(port, hostile, workers, arguments.minutes * 60)), workers)
    print("\n".join(wrong))
    sys.exit(int(bool(wrong)))


if __name__ == "__main__":
    main()
