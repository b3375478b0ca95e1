"""A run over many scenes: found, compared with what is there already, worked on, moved to their place and told of."""

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from tilewise.bento.batch.cluster import BLOCK_STRIPS, work_on_cluster
from tilewise.bento.batch.manifest import Manifest, SceneOutcome, State, is_intact, peek
from tilewise.bento.batch.processes import work_here, work_in_processes
from tilewise.bento.batch.report import write_reports
from tilewise.bento.batch.worker import NETWORK_THREADS, Done, Task, WorkPlan
from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.precision import Precision, pick
from tilewise.bento.inference.windows import GridOptions
from tilewise.bento.results.maps import MAP_SUFFIXES
from tilewise.bento.results.writer import ModelFacts, Output, OutputOptions
from tilewise.datasets.core.errors import NoTilesError, TilewiseError
from tilewise.datasets.scenes import SceneOptions, SceneSource, find_scenes
from tilewise.models.model_file import find_model, usable_cores

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


_LOG = logging.getLogger("tilewise")


class Crew(StrEnum):
    """Who works on the scenes: processes of this machine, or a Ray cluster."""

    LOCAL = "local"
    RAY = "ray"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How scenes are classified.

    Attributes:
        reading: what is said of the scenes.
        grid: of windows.
        outputs: what is kept.
        crew: who works.
        jobs: processes, each with a model of its own; Ray takes as many as its cluster has cores for.
        threads: of each process; 0: the cores shared out among the processes.
        precision: whether the INT8 file beside the model's may take its place.
        block_strips: strips of windows beyond which a cluster works on a scene in parts.
        address: of the Ray cluster; None: the one that runs here, or else one of this machine alone.
    """

    reading: SceneOptions = field(default_factory=SceneOptions)
    grid: GridOptions = field(default_factory=GridOptions)
    outputs: OutputOptions = field(default_factory=OutputOptions)
    crew: Crew = Crew.LOCAL
    jobs: int = 1
    threads: int = 0
    address: str | None = None
    precision: Precision = Precision.AUTO
    block_strips: int = BLOCK_STRIPS

    def threads_each(self) -> int:
        """Return the threads of each process; with the processes, no more than there are cores.

        Raises:
            TilewiseError: more were asked for.
        """
        cores = usable_cores()
        if self.crew is Crew.LOCAL and self.jobs * max(self.threads, 1) > cores:
            raise TilewiseError(
                f"{self.jobs} processes of {max(self.threads, 1)} threads are more than the {cores} cores; "
                "processes and threads together get no faster beyond them"
            )
        return self.threads or (1 if self.crew is Crew.RAY else max(1, cores // self.jobs))


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a run is.

    Attributes:
        done: scenes that are done, kept or failed.
        total: scenes there are.
        in_work: how much of the scenes in work is done, counted in scenes.
        windows: classified so far by this run.
        seconds: since the run began.
    """

    done: int
    total: int
    in_work: float
    windows: int
    seconds: float

    @property
    def share(self) -> float:
        """How much of the run is done, 0-1."""
        return (self.done + self.in_work) / max(self.total, 1)

    @property
    def windows_per_second(self) -> float:
        """How fast windows are classified, over the whole run."""
        return self.windows / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """How long it will still take, if the rest is like what is done; None before anything is."""
        return self.seconds * (1 - self.share) / self.share if self.share > 0 else None


Watch = Callable[[Standing], None]


def unwatched(standing: Standing) -> None:
    """Tell nobody."""


def classify_scenes(
    paths: Sequence[str | Path] | str | Path,
    out: str | Path,
    *,
    model: str | Path | None = None,
    options: RunOptions | None = None,
    watch: Watch = unwatched,
) -> Iterator[SceneOutcome]:
    """Classify scenes into the folder `out`, and yield what became of each, as soon as it is known.

    Nothing is done before the first is asked for; the summary and the report are written after the last. Scenes that
    an earlier run has done with the same input, options and model are not done again.

    Args:
        paths: folders, files, globs or lists of scenes, as `tilewise.datasets.scenes.find_scenes` takes them.
        out: the folder of results.
        model: the model file; None: the newest exported one.
        options: how; with more than one job, call it from a file guarded by `if __name__ == "__main__":`.
        watch: told now and then how far the run is.

    Raises:
        TilewiseError: nothing is there to classify, the model cannot be used, or the options contradict each other.
        OSError: `out` cannot be written to. A scene that fails raises nothing: its outcome says so.
    """
    options = options or RunOptions()
    run = Run(Path(out), model, options, watch)
    sources = find([paths] if isinstance(paths, str | Path) else list(paths), options.reading)
    with run.begin():
        yield from run.take(sources)
        run.report()


def find(paths: Sequence[str | Path], reading: SceneOptions) -> list[SceneSource]:
    """Return the scenes at `paths`, without the maps of earlier runs; see `tilewise.datasets.scenes.find_scenes`."""
    places = [path if "://" in str(path) else _absolute(path) for path in paths]
    return find_scenes(places, reading, skip=MAP_SUFFIXES)


class Run:
    """A run into one folder, which may take scenes more than once."""

    def __init__(self, out: Path, model: str | Path | None, options: RunOptions, watch: Watch = unwatched) -> None:
        self._threads = options.threads_each()
        chosen = pick(find_model(model), options.precision)
        self._engine = Engine(chosen, NETWORK_THREADS)
        options.outputs.check(self._engine.metadata)
        options.grid.check(self._engine.metadata.tile_size)
        grid = replace(options.grid, keep_probabilities=Output.PROBABILITIES in options.outputs.kinds)
        self._options, self._out, self._watch = replace(options, grid=grid), out, watch
        self._manifest: Manifest | None = None
        self._outcomes: dict[str, SceneOutcome] = {}
        self._begun = time.monotonic()
        self._windows = self._total = 0

    @property
    def model(self) -> ModelFacts:
        """What makes the results."""
        return ModelFacts(self._engine.metadata, self._engine.sha256, self._engine.path)

    @property
    def outcomes(self) -> list[SceneOutcome]:
        """What became of the scenes so far, the last word on each, by name."""
        return [self._outcomes[name] for name in sorted(self._outcomes)]

    def begin(self) -> Manifest:
        """Lock the folder; use the answer as a context, at whose end the folder is free again."""
        self._manifest = Manifest(self._out)
        self._begun = time.monotonic()
        return self._manifest

    def take(self, sources: Sequence[SceneSource]) -> Iterator[SceneOutcome]:
        """Work on scenes, and yield what became of each."""
        assert self._manifest is not None  # noqa: S101 - `begin` comes first
        self._total += len(sources)
        tasks = self._tasks(sources, self._manifest.known())
        plan = self._plan(self._manifest.staging)
        for task, done in self._crew(iter(tasks), plan):
            outcome = self._settle(task, done)
            self._outcomes[outcome.name] = outcome
            self._windows += outcome.windows if outcome.state is State.DONE else 0
            yield outcome
        self._tell(0.0, 0)

    def preview(self, sources: Sequence[SceneSource]) -> Iterator[tuple[Task, str]]:
        """Yield what would be done with each scene: `done already`, `to do: …` or `would fail: …`."""
        plan = self._plan(self._out)
        for task in self._tasks(sources, peek(self._out)):
            try:
                key = plan.key(task.source.fingerprint())
                if task.known and task.known.key == key and is_intact(task.known, self._out):
                    yield task, "done already"
                    continue
                with task.source.open() as scene:
                    yield task, f"to do: {scene.width} × {scene.height} pixels"
            except TilewiseError as error:
                yield task, f"would fail: {error}"

    def report(self) -> list[Path]:
        """Write the summary and the page of all scenes so far."""
        return write_reports(self._out, self.outcomes, self.model)

    def _plan(self, staging: Path) -> WorkPlan:
        model = self._engine
        parts = (self._options.grid, self._options.outputs, self._threads)
        return WorkPlan(self._out.absolute(), staging.absolute(), model.path.absolute(), model.sha256, *parts)

    def _tasks(self, sources: Sequence[SceneSource], known: Mapping[str, SceneOutcome]) -> list[Task]:
        names = name_results([(source.name, place_of(source)) for source in sources], known)
        return [
            Task(source, name, place_of(source), known.get(name)) for source, name in zip(sources, names, strict=True)
        ]

    def _crew(self, tasks: Iterator[Task], plan: WorkPlan) -> Iterable[tuple[Task, Done]]:
        if self._options.crew is Crew.RAY:
            return work_on_cluster(tasks, plan, self._options.address, self._tell, self._options.block_strips)
        if self._options.jobs > 1:
            return work_in_processes(tasks, plan, self._options.jobs, self._tell)
        return work_here(tasks, plan, self._engine, self._tell)

    def _settle(self, task: Task, done: Done) -> SceneOutcome:
        """Move a scene's files to their place; a disk that does not take them makes it a failure."""
        assert self._manifest is not None  # noqa: S101 - `begin` comes first
        try:
            if done.outcome.state is State.DONE:
                self._manifest.enter(done.outcome, done.staged)
        except (OSError, sqlite3.Error) as error:
            why = getattr(error, "strerror", None) or error
            return task.failed(f"{self._out} cannot be written to: {why}").outcome
        return done.outcome

    def _tell(self, in_work: float, windows: int) -> None:
        seconds = time.monotonic() - self._begun
        self._watch(Standing(len(self._outcomes), self._total, in_work, self._windows + windows, seconds))


def place_of(source: SceneSource) -> str:
    """Return what a scene is called in reports and in the manifest: its file, or the folder of its files."""
    paths = [str(path) for path in source.paths]
    if len(paths) == 1:
        return paths[0] if "://" in paths[0] else _absolute(paths[0])
    return source.name if any("://" in path for path in paths) else os.path.commonpath(map(_absolute, paths))


def _absolute(path: str | Path) -> str:
    """Return a whole path without `..`; links are not followed, so that a scene is called as it was named."""
    return os.path.abspath(path)  # noqa: PTH100 - pathlib has this only with links followed


def name_results(scenes: Sequence[tuple[str, str]], known: Mapping[str, SceneOutcome]) -> list[str]:
    """Return the stem of each scene's results.

    A scene keeps the name that its results have already. Another takes its own name, with a number behind it where
    that belongs to the results of a scene that still exists elsewhere: they are not overwritten.

    Args:
        scenes: name and place of each.
        known: what the manifest has.
    """
    before = {outcome.source: name for name, outcome in known.items()}
    taken = {before[place] for _, place in scenes if place in before}
    taken |= {name for name, outcome in known.items() if "://" in outcome.source or Path(outcome.source).exists()}
    names = []
    for name, place in scenes:
        number, chosen = 1, before.get(place, name)
        while place not in before and chosen in taken:
            number += 1
            chosen = f"{name}-{number}"
        taken.add(chosen)
        names.append(chosen)
    return names
