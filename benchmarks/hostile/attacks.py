"""Attacks on a service's time, memory and disk, each beside honest requests from another address.

Attackers come from 127.0.0.2 and honest callers from 127.0.0.1, which Linux allows. Each attack is bounded in
time and returns what became of it, and what of that must not be: an honest request that was not answered, a
hostile one that was answered otherwise than by a refusal, work or memory that goes on.
"""

import asyncio
import math
import os
import re
import resource
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.io import MemoryFile

from hostile.expanding import expanding_tiff
from hostile.requests import multipart, part, post
from hostile.service import SETTINGS, Heard, Workers, ask, serving
from hostile.sound import sound_files
from tilewise.bento.inference.engine import Engine
from tilewise.datasets.acquire.synthetic import TAGS
from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.core.errors import ModelFileError

ATTACKER, CALLER = "127.0.0.2", "127.0.0.1"
MAX_MEGABYTES = 1000.0  # of all processes that serve
_ANSWERED = (200,)
_REFUSED = (413, 503, 504)  # too much, come back later, took too long


@dataclass(frozen=True, slots=True)
class Target:
    """What is attacked: the model, the checkout whose service is started, and the seed of random choices."""

    model: Path
    project: Path
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an attack in words, and what of it must not be."""

    told: str
    wrong: tuple[str, ...] = ()


@dataclass
class Honest:
    """What became of the requests of an honest caller: their statuses (0: no answer), and seconds."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        """Return a percentile of the seconds, in milliseconds."""
        return float(np.percentile(self.seconds, share) * 1000)

    def __str__(self) -> str:
        ordered = sorted(self.seconds)
        return f"{_counted(self.statuses)}; median {ordered[len(ordered) // 2]:.2f} s, longest {ordered[-1]:.2f} s"


async def ask_honestly(port: int, content: bytes, seconds: float, pause: float = 0.1) -> Honest:
    """Send the same request again and again, for some seconds, and at least once."""
    honest, end = Honest(), time.monotonic() + seconds
    while not honest.seconds or time.monotonic() < end:
        began = time.monotonic()
        heard, streams = await ask(port, content, address=CALLER, patience=70)
        if streams:
            streams[1].close()
        honest.statuses[heard.status] += 1
        honest.seconds.append(time.monotonic() - began)
        await asyncio.sleep(pause)
    return honest


@cache
def padded_tile() -> bytes:
    """Return a tile of 64 × 64 pixels in a block of 1024 × 1024, in LZMA: some kilobytes, 27 MiB decoded."""
    with MemoryFile() as memory:
        form = {
            "tiled": True,
            "blockxsize": 1024,
            "blockysize": 1024,
            "compress": "lzma",
            "interleave": "pixel",
        }
        with memory.open(driver="GTiff", height=64, width=64, count=13, dtype="uint16", **form) as dataset:
            dataset.write(np.full((13, 64, 64), 1000, np.uint16))
            dataset.descriptions = BAND_NAMES
            dataset.update_tags(**TAGS)
        return bytes(memory.read())


@cache
def sound_scene(side: int = 256) -> bytes:
    """Return a scene of 13 bands that a service answers."""
    pixels = np.random.default_rng(0).integers(200, 4000, (13, side, side), np.uint16)
    place = {"crs": CRS.from_epsg(32629), "transform": Affine(10, 0, 540_000, 0, -10, 4_740_000)}
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff", height=side, width=side, count=13, dtype="uint16", compress="deflate", **place
        ) as dataset:
            dataset.write(pixels)
            dataset.descriptions = BAND_NAMES
            dataset.update_tags(**TAGS)
        return bytes(memory.read())


def padded_form(tiles: int) -> bytes:
    """Return a request with so many padded tiles."""
    body = multipart([part(b"tiles", padded_tile())] * tiles)
    return post(b"/classify", b"multipart/form-data; boundary=x", body)


def honest_tile() -> bytes:
    """Return a request with one sound tile."""
    return post(b"/classify", b"image/tiff", sound_files()[0])


def honest_scene() -> bytes:
    """Return a request with one sound scene of 16 windows."""
    return post(b"/scene", b"image/tiff", sound_scene())


# The attacks.


def previews(target: Target) -> Outcome:
    """Ask ten times for a picture of a file of 21 kB that decodes to 8 GB, beside polls of a task."""
    file = expanding_tiff(4096, 512, 64, "float64")
    bands = b"B04,B03,B02" + 61 * b",_"
    request = post(b"/preview?bands=" + bands, b"image/tiff", file)
    poll = b"GET /tasks/none HTTP/1.1\r\nHost: localhost\r\n\r\n"

    async def attack(port: int, workers: Workers) -> Outcome:
        sent = asyncio.gather(*(_ask_after(number, port, request) for number in range(10)))
        polls, tiles, _ = await asyncio.gather(
            ask_honestly(port, poll, 15), ask_honestly(port, honest_tile(), 15), _watch(workers, 15)
        )
        statuses, before = Counter(heard.status for heard in await sent), workers.processor_seconds
        await asyncio.sleep(10)
        after, megabytes = workers.processor_seconds - before, max(workers.history)
        return Outcome(
            f"{len(file):,} bytes: {_counted(statuses)}; GET /tasks: {polls}; tiles: {tiles}; memory at most "
            f"{megabytes:.0f} MB; processor in the 10 s after: {after:.1f} s",
            (
                *_others("pictures", statuses, _REFUSED),
                *_others("polls", polls.statuses, (404,)),
                *_others("tiles", tiles.statuses, _ANSWERED),
                *_holds(f"{megabytes:.0f} MB", megabytes > MAX_MEGABYTES),
                *_holds(f"{after:.1f} s of processor after all was answered", after > 3),
            ),
        )

    return _attack(target, attack)


def announced_scenes(target: Target) -> Outcome:
    """Keep ten connections that announce 512 MB each to /scene and send 1.3 kB/s."""
    return _announce(target, b"/scene", 512 * 2**20, 10, honest_scene())


def announced_tiles(target: Target) -> Outcome:
    """Keep 24 connections that announce 64 MB each to /classify and send 1.3 kB/s."""
    return _announce(target, b"/classify", 64 * 2**20, 24, honest_tile())


def padded_tiles(target: Target) -> Outcome:
    """Send 256 tiles of 4 kB that decode to 27 MiB each, in one request, beside honest tiles."""
    request = padded_form(256)

    async def attack(port: int, workers: Workers) -> Outcome:
        began = time.monotonic()
        sent = asyncio.create_task(ask(port, request, address=ATTACKER, patience=90))
        tiles = await ask_honestly(port, honest_tile(), 12)
        heard, _ = await sent
        codes = Counter(re.findall(rb'"code":"(\w+)"|"(class)":', heard.body))
        told = {(code or answered).decode(): count for (code, answered), count in codes.items()}
        return Outcome(
            f"{len(request):,} bytes: {heard.status} {told} after {time.monotonic() - began:.1f} s; tiles: {tiles}",
            (
                *_others("padded tiles", Counter([heard.status]), (*_ANSWERED, *_REFUSED)),
                *_others("tiles", tiles.statuses, _ANSWERED),
            ),
        )

    return _attack(target, attack)


def full_disk(target: Target) -> Outcome:
    """Send scenes and forms that the disk cannot hold (files of at most 8 MiB), then sound ones."""
    scene = post(b"/scene", b"image/tiff", b"II*\0" + bytes(20 * 2**20))
    form = b"multipart/form-data; boundary=x"
    forms = [post(path, form, multipart([part(field, bytes(20 * 2**20))])) for path, field in _FIELDS]

    async def attack(port: int, workers: Workers) -> Outcome:
        sent = (scene, *forms)
        statuses = [(await ask(port, request, address=ATTACKER))[0].status for request in sent]
        scenes = await ask_honestly(port, honest_scene(), 5)
        return Outcome(
            f"too large: {', '.join(map(str, statuses))}; then scenes: {scenes}",
            (
                *_others("scenes too large", Counter(statuses[:2]), (503,)),
                *_others("tiles too large", Counter(statuses[2:]), (200, 413, 415)),  # they need no disk
                *_others("scenes", scenes.statuses, _ANSWERED),
            ),
        )

    return _attack(target, attack, max_file_bytes=8 * 2**20)


_FIELDS = ((b"/scene", b"scene"), (b"/classify", b"tiles"), (b"/explain", b"tiles"), (b"/preview", b"tiles"))


def paused_processes(target: Target) -> Outcome:
    """Stop all processes of two workers for 25 s while 14 scenes are uploaded, and let them go on."""
    head, _, body = honest_scene().partition(b"\r\n\r\n")

    async def upload(port: int) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + b"\r\n\r\n" + body[: len(body) // 2])
        await asyncio.sleep(29)
        writer.write(body[len(body) // 2 :])
        with suppress(OSError, asyncio.IncompleteReadError):
            return int((await asyncio.wait_for(reader.readuntil(b"\r\n"), 60)).split()[1])
        return 0

    async def attack(port: int, workers: Workers) -> Outcome:
        uploads = [asyncio.create_task(upload(port)) for _ in range(14)]
        await asyncio.sleep(2)
        for kind, seconds in ((signal.SIGSTOP, 25.0), (signal.SIGCONT, 0.0)):
            for pid in workers.at_start:
                os.kill(pid, kind)
            await asyncio.sleep(seconds)
        statuses = Counter(await asyncio.gather(*uploads))
        return Outcome(f"uploads: {_counted(statuses)}", _others("uploads", statuses, _ANSWERED))

    return _attack(target, attack, workers="2")


def flipped_bits(target: Target) -> Outcome:
    """Load the model file 60 times, each with one other bit flipped, with all that lies beside it."""
    random, content, refused = Random(target.seed), bytearray(target.model.read_bytes()), 0  # noqa: S311
    with tempfile.TemporaryDirectory() as folder:
        for beside in target.model.parent.glob(f"{target.model.name}.*"):
            Path(folder, beside.name).write_bytes(beside.read_bytes())
        path = Path(folder, target.model.name)
        for _ in range(60):
            place, bit = random.randrange(len(content)), 1 << random.randrange(8)
            content[place] ^= bit
            path.write_bytes(content)
            content[place] ^= bit
            try:
                Engine(path, threads=1)
            except ModelFileError:
                refused += 1
    return Outcome(f"{refused} of 60 refused", _holds(f"{60 - refused} files loaded", refused < 60))


ATTACKS: dict[str, Callable[[Target], Outcome]] = {
    attack.__name__.replace("_", "-"): attack
    for attack in (
        previews, announced_scenes, announced_tiles, padded_tiles, full_disk, paused_processes, flipped_bits,
    )
}  # fmt: skip


async def trickle(port: int, path: bytes, length: int, end: float = math.inf) -> None:
    """Announce bodies of `length` bytes one after another, and send 1.3 kB/s of each, until `end`."""
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: image/tiff\r\nContent-Length: %d\r\n\r\nII*\0"
    while time.monotonic() < end:
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(ATTACKER, 0))
            writer.write(head % (path, length))
            while time.monotonic() < end and not writer.is_closing():
                writer.write(bytes(650))
                await writer.drain()
                await asyncio.sleep(0.5)
            writer.close()


def _announce(target: Target, path: bytes, length: int, connections: int, honest: bytes) -> Outcome:
    async def attack(port: int, workers: Workers) -> Outcome:
        end = time.monotonic() + 15
        slow = [asyncio.create_task(trickle(port, path, length, end)) for _ in range(connections)]
        await asyncio.sleep(1)
        answered = await ask_honestly(port, honest, 12)
        await asyncio.gather(*slow)
        return Outcome(
            f"{connections} × {length // 2**20} MiB announced; honest: {answered}",
            _others("honest", answered.statuses, _ANSWERED),
        )

    return _attack(target, attack)


def _attack(
    target: Target,
    attack: Callable[[int, Workers], Coroutine[Any, Any, Outcome]],
    workers: str = "1",
    max_file_bytes: int = resource.RLIM_INFINITY,
) -> Outcome:
    """Run one attack on a service of its own."""
    settings = SETTINGS | {"TILEWISE_WORKERS": workers, "TILEWISE_BODY_SECONDS": "10"}
    with tempfile.TemporaryDirectory() as folder:
        started = serving(
            target.model, Path(folder), None, target.project, settings, max_file_bytes=max_file_bytes
        )
        with started as (port, process):
            outcome = asyncio.run(attack(port, Workers(process)))
        failures = Path(folder, "log").read_text(errors="replace").count("Traceback")
    wrong = (*outcome.wrong, *_holds(f"{failures} tracebacks in the log", failures > 0))
    return Outcome(outcome.told, wrong)


async def _ask_after(seconds: float, port: int, request: bytes) -> Heard:
    await asyncio.sleep(seconds)
    return (await ask(port, request, address=ATTACKER, patience=100))[0]


async def _watch(workers: Workers, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        workers.note()
        await asyncio.sleep(0.5)


def _holds(what: str, wrong: bool) -> tuple[str, ...]:
    return (what,) if wrong else ()


def _others(what: str, statuses: Counter[int], allowed: Collection[int]) -> tuple[str, ...]:
    """Return a line on the statuses that are not allowed, if there are any."""
    others = Counter({status: count for status, count in statuses.items() if status not in allowed})
    return _holds(f"{what}: {_counted(others)}", bool(others))


def _counted(statuses: Counter[int]) -> str:
    return ", ".join(f"{count} × {status or 'no answer'}" for status, count in sorted(statuses.items()))
