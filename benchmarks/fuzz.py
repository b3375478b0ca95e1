"""Send hostile uploads to a real service, and say what became of them and of it.

    python benchmarks/fuzz.py --model fast    # 100,000 uploads, under ten minutes on 2 cores
    python benchmarks/fuzz.py --model fast --uploads 4000 --strace    # and every file that was opened
    python benchmarks/fuzz.py --model fast --attacks                  # on time, memory and disk: 3 minutes

Each request is decided by --seed and its number. What must not be is saved in --out with its number, and made
as small as still does it: an answer of 500 and above (but 503 with Retry-After), a tile's error `internal`,
no answer where the request was sound HTTP. `--replay NUMBER` sends one again. The exit status is 1 if there
was any of it, if a process ended, or if a file or port was touched that uploads name; of `--attacks`, if an
honest request was not answered, or anything else was as it must not be.
"""

import argparse
import asyncio
import json
import re
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from hostile.attacks import ATTACKS, Target
from hostile.requests import Hostile, Sent
from hostile.service import PROJECT, Heard, Streams, Workers, ask, serving
from hostile.sound import sound_files
from hostile.tiffs import parse as parse_tiff
from hostile.watch import Canary

from tilewise.models.model_file import find_model

HARDLY_HTTP = ("wire", "headers", "path")


@dataclass
class Tally:
    """What was sent and heard, by kind."""

    requests: Counter[str] = field(default_factory=Counter)
    uploads: Counter[str] = field(default_factory=Counter)
    statuses: defaultdict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    tiles: Counter[tuple[bytes, bytes]] = field(default_factory=Counter)
    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    slowest: list[tuple[float, int]] = field(default_factory=list)
    faults: list[tuple[int, str]] = field(default_factory=list)

    def note(self, index: int, sent: Sent, heard: Heard, seconds: float) -> None:
        """Count a request."""
        self.requests[sent.kind] += 1
        self.uploads[sent.kind] += sent.uploads
        self.statuses[sent.kind][heard.status] += 1
        if not heard.body.startswith(b'{"openapi"'):
            self.tiles.update(re.findall(rb'"error":{"code":"(\w+)"|"(class)":', heard.body))
        self.seconds[sent.kind].append(seconds)
        self.slowest = sorted([*self.slowest, (seconds, index)], reverse=True)[:5]
        fault = heard.fault or ("no answer" if heard.status == 0 and sent.kind not in HARDLY_HTTP else "")
        if fault:
            self.faults.append((index, fault))


async def send_all(port: int, hostile: Hostile, uploads: int, connections: int, workers: "Workers") -> Tally:
    """Send requests until they held `uploads` uploads."""
    tally, turn = Tally(), iter(range(2**62))
    waiting = uploads

    async def connection() -> None:
        nonlocal waiting
        streams: Streams | None = None
        while waiting > 0:
            index = next(turn)
            sent = hostile.request(index)
            waiting -= sent.uploads
            began = time.perf_counter()
            fresh = streams is None
            heard, streams = await ask(port, sent.content, streams)
            if heard.status == 0 and not fresh:  # the connection may have been closed as it was idle
                heard, streams = await ask(port, sent.content)
            tally.note(index, sent, heard, time.perf_counter() - began)
            if not sent.goes_on and streams is not None:
                streams[1].close()
                streams = None

    async def look_on() -> None:
        while True:
            workers.note()
            done = sum(tally.uploads.values())
            print(
                f"\r{done:,} uploads, {len(tally.faults)} faults, {workers.megabytes:.0f} MB ",
                end="",
                file=sys.stderr,
            )
            await asyncio.sleep(2)

    looking = asyncio.create_task(look_on())
    await asyncio.gather(*(connection() for _ in range(connections)))
    looking.cancel()
    print(file=sys.stderr)
    return tally


async def minimise(port: int, content: bytes, fault: str, limit: int = 150) -> bytes:
    """Return a shorter request with the same fault: pieces of its body are left out as long as it stays."""
    head, _, body = content.partition(b"\r\n\r\n")
    if b"Content-Length" not in head:
        return content

    def whole(body: bytes) -> bytes:
        return re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(body), head) + b"\r\n\r\n" + body

    size, tried = len(body) // 2, 0
    while size >= 1 and tried < limit:
        place = 0
        while place < len(body) and tried < limit:
            shorter = body[:place] + body[place + size :]
            tried += 1
            if (await ask(port, whole(shorter)))[0].fault == fault:
                body = shorter
            else:
                place += size
        size //= 2
    return whole(body)


def save_faults(port: int, hostile: Hostile, tally: Tally, out: Path) -> None:
    """Save what must not be: each request, and the first of each fault and kind as small as can be."""
    done = set()
    for index, fault in tally.faults[:200]:
        sent = hostile.request(index)
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{index}.request").write_bytes(sent.content)
        if (fault, sent.kind) not in done and fault != "no answer":
            done.add((fault, sent.kind))
            (out / f"{index}.small.request").write_bytes(uvloop.run(minimise(port, sent.content, fault)))
        print(f"fault: {fault}, {sent.kind}, --replay {index}")


def print_table(tally: Tally) -> None:
    """Print what was sent and heard."""
    print(
        "\n| kind | requests | uploads | 2xx | 4xx | 503, come back | other 5xx | no answer | p50 ms | "
        "slowest ms |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    kinds = [*sorted(tally.requests), "all"]
    for kind in kinds:
        of = kinds[:-1] if kind == "all" else [kind]
        statuses: Counter[int] = sum((tally.statuses[k] for k in of), Counter())
        seconds = sorted(s for k in of for s in tally.seconds[k])
        faults = [index for index, fault in tally.faults if fault.startswith("HTTP")] if kind == "all" else []
        late = sum(n for status, n in statuses.items() if status == 503)
        other = sum(n for status, n in statuses.items() if status >= 500 and status != 503)
        cells = (
            sum(tally.requests[k] for k in of),
            sum(tally.uploads[k] for k in of),
            sum(n for status, n in statuses.items() if 200 <= status < 300),
            sum(n for status, n in statuses.items() if 300 <= status < 500),
            late,
            max(other, len(faults)),
            statuses[0],
        )
        numbers = " | ".join(f"{cell:,}" for cell in cells)
        print(f"| {kind} | {numbers} | {seconds[len(seconds) // 2] * 1000:.1f} | {seconds[-1] * 1000:.0f} |")
    codes = {(code or answered).decode(): count for (code, answered), count in tally.tiles.most_common()}
    print(f"\nanswers and errors of tiles and requests: {json.dumps(codes)}")
    print("slowest: " + ", ".join(f"{seconds:.2f} s (--replay {index})" for seconds, index in tally.slowest))


def print_memory(history: list[float]) -> None:
    """Print the memory of all processes: of tenths of the run."""
    tenths = [history[min(len(history) - 1, len(history) * i // 10)] for i in range(11)]
    print(f"memory of the workers, MB, from start to end: {', '.join(f'{value:.0f}' for value in tenths)}")


def opened_files(trace: Path, since: int) -> tuple[Counter[str], list[str]]:
    """Return the files that were opened, and the connections to other than the service's own, after `since`
    bytes."""
    with trace.open("rb") as file:
        file.seek(since)
        lines = file.read().decode(errors="replace").splitlines()
    found = (re.search(r'open(?:at)?\((?:AT_FDCWD, )?"([^"]*)"', line) for line in lines)
    calls = [line for line in lines if "connect(" in line and "AF_INET" in line]
    return Counter(re.sub(r"/[\w-]{32}\b", "/TASK", match.group(1)) for match in found if match), calls


def parse_arguments() -> argparse.Namespace:
    """Return what was said on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=find_model, required=True)
    parser.add_argument("--uploads", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("artifacts/fuzz"), help="Where faults are saved.")
    parser.add_argument(
        "--strace", action="store_true", help="Run the service under strace; list what it opens."
    )
    parser.add_argument(
        "--attacks",
        nargs="*",
        metavar="NAME",
        help=f"Run these attacks, or all, instead of the uploads: {', '.join(ATTACKS)}.",
    )
    parser.add_argument("--project", type=Path, default=PROJECT, help="Attack the service of this checkout.")
    parser.add_argument("--replay", type=int, help="Send this request alone, and print the answer.")
    return parser.parse_args()


def attack(target: Target, names: list[str]) -> bool:
    """Run attacks, print what became of each, and return whether anything was as it must not be."""
    outcomes = {}
    for name in names:
        outcomes[name] = ATTACKS[name](target)
        print(f"{name}: {outcomes[name].told}", flush=True)
    for name, outcome in outcomes.items():
        for what in outcome.wrong:
            print(f"must not be: {name}: {what}")
    return any(outcome.wrong for outcome in outcomes.values())


def main() -> None:
    """Run."""
    arguments = parse_arguments()
    if arguments.attacks is not None:
        target = Target(arguments.model, arguments.project.resolve(), arguments.seed)
        sys.exit(int(attack(target, arguments.attacks or list(ATTACKS))))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        canary = Canary(folder)
        files = sound_files()
        hostile = Hostile([parse_tiff(file) for file in files], files, canary.names, arguments.seed)
        trace = folder / "trace" if arguments.strace else None
        with serving(arguments.model, folder, trace) as (port, parent):
            if arguments.replay is not None:
                heard, _ = uvloop.run(ask(port, hostile.request(arguments.replay).content))
                print(heard.status, heard.head.decode("latin-1"), heard.body[:2000].decode(errors="replace"))
                return
            bad = run(arguments, hostile, canary, Workers(parent), port, trace)
        log = (folder / "log").read_text(errors="replace")
        print(
            f"lines in the service's log: {log.count(chr(10)):,}, of them tracebacks: "
            f"{log.count('Traceback')}"
        )
        if "Traceback" in log:
            arguments.out.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "log", arguments.out / "log")
            print(f"the log is in {arguments.out}/log")
            bad = True
    sys.exit(int(bad))


def run(
    arguments: argparse.Namespace,
    hostile: Hostile,
    canary: Canary,
    workers: Workers,
    port: int,
    trace: Path | None,
) -> bool:
    """Send everything, print what was heard, and return whether anything was as it must not be."""
    since = trace.stat().st_size if trace else 0
    began = time.perf_counter()
    tally: Tally = uvloop.run(send_all(port, hostile, arguments.uploads, arguments.connections, workers))
    seconds = time.perf_counter() - began
    after = workers.ids()
    opened, called = canary.look()
    rate = sum(tally.requests.values()) / seconds
    print(
        f"seed {arguments.seed}, {seconds:.0f} s, {rate:.0f} requests/s over {arguments.connections} "
        f"connections"
    )
    print_table(tally)
    print_memory(workers.history)
    died = len(workers.at_start - after)
    print(f"processes: {len(workers.at_start)} at the start, of which ended: {died}")
    print(f"the canary file was opened or read {opened} times, the canary port called {called} times")
    if trace:
        files, calls = opened_files(trace, since)
        print(f"files opened: {json.dumps(dict(files.most_common(60)))}\nconnections: {calls[:10]}")
    save_faults(port, hostile, tally, arguments.out)
    return bool(tally.faults or died or opened or called)


if __name__ == "__main__":
    main()
