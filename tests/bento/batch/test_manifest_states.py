"""A writer of results is killed at any moment: what it acknowledged is known, and whole."""

import hashlib
import multiprocessing
import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tilewise.bento.batch.manifest import STAGING, Manifest, ResultFile, SceneOutcome, SceneState, is_intact

SUFFIXES = (".classes.tif", ".windows.parquet", ".png")
CALLS = 2500  # of functions; to enter a scene takes about 700
MEMORY = Path("/dev/shm")  # noqa: S108 - a kill loses nothing that a disk would keep, and to synchronise is quick


@dataclass(frozen=True)
class Entry:
    """A scene that is entered: its name, its state, and how many files it has if it is done."""

    name: str
    state: SceneState
    files: int


@dataclass(frozen=True)
class Run:
    """A run that enters scenes over and over until it is killed.

    Attributes:
        entries: in their order, then again.
        calls: calls of functions after which it kills itself; None: it is killed from outside.
        seconds: after which it is killed from outside.
    """

    entries: tuple[Entry, ...]
    calls: int | None
    seconds: float


def contents(run: int, turn: int, entry: Entry) -> dict[str, bytes]:
    """The files of a scene; no two turns write the same."""
    suffixes = SUFFIXES[: entry.files] if entry.state is SceneState.DONE else ()
    return {f"{entry.name}{suffix}": f"{run} {turn} {suffix}".encode() * 100 for suffix in suffixes}


def outcome_of(run: int, turn: int, entry: Entry) -> SceneOutcome:
    """What a run enters at a turn."""
    files = contents(run, turn, entry).items()
    described = tuple(ResultFile(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in files)
    return SceneOutcome(entry.name, f"{entry.name}.tif", entry.state, f"{run} {turn}", files=described)


def die_after(calls: int) -> None:
    """Have this process kill itself after so many calls of functions."""
    left = calls

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal left
        left -= event in ("call", "c_call")
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)


def write(out: Path, number: int, run: Run, acknowledged: int) -> None:
    """Enter scenes without end, and write a byte to the pipe `acknowledged` after each."""
    with Manifest(out) as manifest:
        for turn, entry in enumerate(cycle(run.entries)):
            staged = manifest.staging / f"{turn}"
            staged.mkdir()
            for name, data in contents(number, turn, entry).items():
                (staged / name).write_bytes(data)
            outcome = outcome_of(number, turn, entry)
            if turn == 0 and run.calls is not None:
                die_after(run.calls)
            manifest.enter(outcome, staged)
            os.write(acknowledged, b".")


def entered_until_killed(out: Path, number: int, run: Run) -> int:
    """Run a writer until it is killed; return how many entries it has acknowledged."""
    reader, writer = os.pipe()
    process = multiprocessing.get_context("fork").Process(target=write, args=(out, number, run, writer))
    process.start()
    os.close(writer)
    process.join(run.seconds if run.calls is None else 30)
    process.kill()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL, "it failed before it was killed"
    with os.fdopen(reader, "rb") as pipe:
        return len(pipe.read())


ENTRIES = st.builds(
    Entry,
    name=st.sampled_from(("coast", "valley")),
    state=st.sampled_from((SceneState.DONE, SceneState.DONE, SceneState.DONE, SceneState.FAILED)),
    files=st.integers(1, len(SUFFIXES)),
)
KILLS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.fixed_dictionaries({"calls": st.integers(0, CALLS), "seconds": st.just(0.0)}),
    st.fixed_dictionaries({"calls": st.none(), "seconds": st.floats(0, 0.04)}),
)
RUNS = st.builds(
    lambda entries, kill: Run(tuple(entries), **kill), st.lists(ENTRIES, min_size=2, max_size=4), KILLS
)


def assert_possible(
    known: dict[str, SceneOutcome], before: dict[str, SceneOutcome], last: SceneOutcome
) -> None:
    """Assert that a manifest has what it had before, while `last` is entered, was entered, or neither."""
    others = {name: outcome for name, outcome in known.items() if name != last.name}
    assert others == {name: outcome for name, outcome in before.items() if name != last.name}
    if last.state is SceneState.DONE:
        assert known.get(last.name) in (before.get(last.name), None, last)
    else:
        assert known.get(last.name) == before.get(last.name)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(runs=st.lists(RUNS, min_size=1, max_size=3))
def test_what_was_acknowledged_is_known_and_whole_whenever_the_writer_is_killed(runs: list[Run]) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        out, known = Path(folder), dict[str, SceneOutcome]()
        for number, run in enumerate(runs):
            count = entered_until_killed(out, number, run)
            entries = islice(cycle(run.entries), count + 1)
            *acknowledged, last = [outcome_of(number, turn, entry) for turn, entry in enumerate(entries)]
            before = known | {o.name: o for o in acknowledged if o.state is SceneState.DONE}
            with Manifest(out) as manifest:
                known = manifest.known()
                assert_possible(known, before, last)
                assert all(is_intact(outcome, out) for outcome in known.values())
                assert len(list(out.glob(f"{STAGING}*"))) == 1, "this one's own"
