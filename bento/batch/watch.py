"""New scenes of a folder, taken up when they are whole."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from datasets.errors import NoTilesError
from datasets.scenes import SceneSource

Signature = tuple[tuple[str, int, int], ...]
"""Path, bytes and time of change of every file of a scene."""


def watch_scenes(
    find: Callable[[], Sequence[SceneSource]],
    every: float,
    idle: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[list[SceneSource]]:
    """Yield scenes that are new, or have changed, and have settled; for ever, or until nothing was new for long.

    A scene has settled when its files look the same in two looks, one after the other: one that is still being
    written is left alone.

    Args:
        find: returns the scenes that are there.
        every: seconds between looks.
        idle: seconds without anything new, after which the watch ends; None: it never does.
        sleep: waits.
    """
    taken: dict[str, Signature] = {}
    before: dict[str, Signature] = {}
    since = time.monotonic()
    while True:
        try:
            found = {scene_id(source): source for source in find()}
        except NoTilesError:  # nothing there yet
            found = {}
        now = {name: signature(source) for name, source in found.items()}
        settled = [name for name in now if before.get(name) == now[name] != taken.get(name)]
        if settled:
            yield [found[name] for name in settled]
            taken |= {name: now[name] for name in settled}
        if settled or any(now[name] != taken.get(name) for name in now):
            since = time.monotonic()
        elif idle is not None and time.monotonic() - since >= idle:
            return
        before = now
        sleep(every)


def scene_id(source: SceneSource) -> str:
    """Return what tells a scene from others: its files, since its name may change with what lies beside it."""
    return "\n".join(str(path) for path in source.paths)


def signature(source: SceneSource) -> Signature:
    """Return what changes while a scene is written; of an address nothing is known."""
    files = [path for place in source.paths if "://" not in str(place) for path in _files(Path(place))]
    seen = []
    for path in sorted(files):
        try:
            state = path.stat()
        except OSError:  # gone between two looks
            continue
        seen.append((str(path), state.st_size, state.st_mtime_ns))
    return tuple(seen)


def _files(place: Path) -> list[Path]:
    return [path for path in place.rglob("*") if path.is_file()] if place.is_dir() else [place]
