"""A run over many scenes: find them, skip those that are done, classify the others, report."""

import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from tilewise.bento.batch.cluster import BLOCK_STRIPS, work_on_cluster
from tilewise.bento.batch.manifest import Manifest, SceneOutcome, SceneState, is_intact, peek
from tilewise.bento.batch.processes import work_here, work_in_processes
from tilewise.bento.batch.report import write_reports
from tilewise.bento.batch.worker import NETWORK_THREADS, FinishedScene, SceneTask, WorkPlan
from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.precision import Precision, pick
from tilewise.bento.inference.windows import GridOptions
from tilewise.bento.results.maps import MAP_SUFFIXES
from tilewise.bento.results.writer import ModelFacts, Output, OutputOptions
from tilewise.datasets.core.errors import NoTilesError, OutsideAreaError, TilewiseError
from tilewise.datasets.scenes import (
    MosaicKind,
    MosaicSource,
    SceneOptions,
    SceneSource,
    find_scenes,
    make_mosaic,
)
from tilewise.datasets.scenes.stac_api import StacSearch
from tilewise.models.model_file import find_model, usable_cores

Source = SceneSource | MosaicSource
"""What has a map of its own."""


class Backend(StrEnum):
    """Where scenes are classified: in processes of this machine, or on a Ray cluster."""

    LOCAL = "local"
    RAY = "ray"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How scenes are classified.

    Attributes:
        reading: how scenes are read.
        grid: how windows are laid.
        outputs: which results are kept.
        backend: where scenes are classified.
        jobs: processes, each with a model of its own; a Ray cluster takes as many as it has cores for.
        threads: of each process; 0: the cores divided by the processes.
        address: of the Ray cluster; None: the one on this machine, else a new one of this machine alone.
        precision: whether the INT8 file beside the model file may take its place.
        block_strips: scenes with more strips of windows than this are split into several tasks on a cluster.
        mosaic: how all scenes become one map; None: each scene has its own.
    """

    reading: SceneOptions = field(default_factory=SceneOptions)
    grid: GridOptions = field(default_factory=GridOptions)
    outputs: OutputOptions = field(default_factory=OutputOptions)
    backend: Backend = Backend.LOCAL
    jobs: int = 1
    threads: int = 0
    address: str | None = None
    precision: Precision = Precision.AUTO
    block_strips: int = BLOCK_STRIPS
    mosaic: MosaicKind | None = None

    def threads_each(self) -> int:
        """Return the threads of each process.

        Raises:
            TilewiseError: processes and threads together are more than the cores.
        """
        cores = usable_cores()
        if self.backend is Backend.LOCAL and self.jobs * max(self.threads, 1) > cores:
            raise TilewiseError(
                f"{self.jobs} processes of {max(self.threads, 1)} threads are more than the {cores} cores; "
                "processes and threads together get no faster beyond them"
            )
        return self.threads or (1 if self.backend is Backend.RAY else max(1, cores // self.jobs))


@dataclass(frozen=True, slots=True)
class RunProgress:
    """The progress of a run.

    Attributes:
        done: scenes that are classified, kept or failed.
        total: all scenes.
        in_progress: finished part of the scenes in progress, counted in scenes.
        windows: windows that this run has classified so far.
        seconds: since the run began.
    """

    done: int
    total: int
    in_progress: float
    windows: int
    seconds: float

    @property
    def fraction(self) -> float:
        """Finished fraction of the run, 0-1."""
        return (self.done + self.in_progress) / max(self.total, 1)

    @property
    def windows_per_second(self) -> float:
        """Mean speed since the run began."""
        return self.windows / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """Estimated remaining time, if scenes are alike; None before anything is finished."""
        return self.seconds * (1 - self.fraction) / self.fraction if self.fraction > 0 else None


ProgressCallback = Callable[[RunProgress], None]


def ignore_progress(progress: RunProgress) -> None:
    """Report nothing: the default."""


def classify_scenes(
    paths: Sequence[str | Path] | str | Path,
    out: str | Path,
    *,
    model: str | Path | None = None,
    options: RunOptions | None = None,
    progress: ProgressCallback = ignore_progress,
) -> Iterator[SceneOutcome]:
    """Classify scenes into the folder `out`; yield each outcome as soon as it is known.

    Work begins with the first `next`; the summary and the report are written after the last scene. Scenes
    that an earlier run has classified with the same input, options and model are not classified again.

    Args:
        paths: folders, files, globs or lists of scenes, as `tilewise.datasets.scenes.find_scenes` takes them.
        out: the folder of results.
        model: the model file; None: the newest exported one.
        options: how scenes are classified; with several jobs, call this from a file guarded by
            `if __name__ == "__main__":`.
        progress: called now and then with the progress of the run.

    Raises:
        TilewiseError: there is no scene, the model cannot be used, or the options contradict each other.
        OSError: `out` cannot be written to. A scene that fails raises nothing; its outcome has the error.
    """
    options = options or RunOptions()
    run = Run(Path(out), model, options, progress)
    found = find([paths] if isinstance(paths, str | Path) else list(paths), options.reading)
    sources = join(found, options.mosaic)
    with run.begin():
        yield from run.take(sources)
        run.report()


def find(
    paths: Sequence[str | Path],
    reading: SceneOptions,
    search: StacSearch | None = None,
) -> list[SceneSource]:
    """Return the scenes at `paths`, and those that a search finds in the area of `reading`.

    The maps of earlier runs are left out; see `datasets.scenes.find_scenes`.
    """
    absolute = [path if "://" in str(path) else _absolute(path) for path in paths]
    items = search.find(reading.area) if search and reading.area else []
    return find_scenes([*absolute, *items], reading, skip=MAP_SUFFIXES)


def join(scenes: Sequence[SceneSource], mosaic: MosaicKind | None) -> list[Source]:
    """Return the mosaic of scenes, where one is wanted, else the scenes."""
    return [make_mosaic(scenes, mosaic)] if mosaic else list(scenes)


class Run:
    """A run into one folder of results, to which scenes may be given several times.

    Args:
        out: the folder of results.
        model: the model file; None: the newest exported one.
        options: how scenes are classified.
        progress: called now and then with the progress of the run.

    Attributes:
        outside: number of scenes without a pixel inside the area of interest; they have no outcome.

    Raises:
        TilewiseError: the model cannot be used, or the options are invalid.
    """

    def __init__(
        self,
        out: Path,
        model: str | Path | None,
        options: RunOptions,
        progress: ProgressCallback = ignore_progress,
    ) -> None:
        self._threads = options.threads_each()
        chosen = pick(find_model(model), options.precision)
        self._engine = Engine(chosen, NETWORK_THREADS)
        options.outputs.check(self._engine.metadata)
        options.grid.check(self._engine.metadata.tile_size)
        grid = replace(options.grid, keep_probabilities=Output.PROBABILITIES in options.outputs.kinds)
        self._options, self._out, self._on_progress = replace(options, grid=grid), out, progress
        self._manifest: Manifest | None = None
        self._outcomes: dict[str, SceneOutcome] = {}
        self._started = time.monotonic()
        self._windows = self._total = 0
        self.outside = 0

    @property
    def model(self) -> ModelFacts:
        """The model that makes the results."""
        return ModelFacts(self._engine.metadata, self._engine.sha256, self._engine.path)

    @property
    def outcomes(self) -> list[SceneOutcome]:
        """The latest outcome of each scene so far, by name."""
        return [self._outcomes[name] for name in sorted(self._outcomes)]

    def begin(self) -> Manifest:
        """Lock the folder of results; the manifest is a context manager, whose end releases the lock."""
        self._manifest = Manifest(self._out)
        self._started = time.monotonic()
        return self._manifest

    def take(self, sources: Sequence[Source]) -> Iterator[SceneOutcome]:
        """Classify scenes; yield the outcome of each."""
        assert self._manifest is not None  # noqa: S101 - `begin` comes first
        self._total += len(sources)
        tasks = self._tasks(sources, self._manifest.known())
        plan = self._plan(self._manifest.staging)
        for task, finished in self._classify(iter(tasks), plan):
            outcome = self._enter(task, finished)
            if outcome.state is SceneState.OUTSIDE:
                self.outside += 1
                self._outcomes.pop(outcome.name, None)
            else:
                self._outcomes[outcome.name] = outcome
            self._windows += outcome.windows if outcome.state is SceneState.DONE else 0
            yield outcome
        self._report_progress(0.0, 0)

    def preview(self, sources: Sequence[Source]) -> Iterator[tuple[SceneTask, str]]:
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
            except OutsideAreaError:
                yield task, "nothing to do: outside the area"
            except TilewiseError as error:
                yield task, f"would fail: {error}"

    def report(self) -> list[Path]:
        """Write the summary and the HTML report of all scenes so far; return the files."""
        return write_reports(self._out, self.outcomes, self.model)

    def _plan(self, staging: Path) -> WorkPlan:
        model = self._engine
        parts = (self._options.grid, self._options.outputs, self._threads)
        return WorkPlan(self._out.absolute(), staging.absolute(), model.path.absolute(), model.sha256, *parts)

    def _tasks(self, sources: Sequence[Source], known: Mapping[str, SceneOutcome]) -> list[SceneTask]:
        names = name_results([(source.name, location_of(source)) for source in sources], known)
        return [
            SceneTask(source, name, location_of(source), known.get(name))
            for source, name in zip(sources, names, strict=True)
        ]

    def _classify(
        self, tasks: Iterator[SceneTask], plan: WorkPlan
    ) -> Iterable[tuple[SceneTask, FinishedScene]]:
        if self._options.backend is Backend.RAY:
            return work_on_cluster(
                tasks, plan, self._options.address, self._report_progress, self._options.block_strips
            )
        if self._options.jobs > 1:
            return work_in_processes(tasks, plan, self._options.jobs, self._report_progress)
        return work_here(tasks, plan, self._engine, self._report_progress)

    def _enter(self, task: SceneTask, finished: FinishedScene) -> SceneOutcome:
        """Move a scene's files into the folder; a disk that does not take them makes the scene fail."""
        assert self._manifest is not None  # noqa: S101 - `begin` comes first
        try:
            if finished.outcome.state is SceneState.DONE:
                self._manifest.enter(finished.outcome, finished.staged)
        except (OSError, sqlite3.Error) as error:
            why = getattr(error, "strerror", None) or error
            return task.failed(f"{self._out} cannot be written to: {why}").outcome
        return finished.outcome

    def _report_progress(self, in_progress: float, windows: int) -> None:
        seconds = time.monotonic() - self._started
        done = len(self._outcomes) + self.outside
        self._on_progress(RunProgress(done, self._total, in_progress, self._windows + windows, seconds))


def location_of(source: Source) -> str:
    """Return how reports and the manifest name a scene: its file, the folder of its files, or its URL."""
    paths = [str(path) for path in source.paths]
    if len(paths) == 1:
        return paths[0] if "://" in paths[0] else _absolute(paths[0])
    return source.name if any("://" in path for path in paths) else os.path.commonpath(map(_absolute, paths))


def _absolute(path: str | Path) -> str:
    """Return an absolute path without `..`; links are kept, so that scenes have the names the user typed."""
    return os.path.abspath(path)  # noqa: PTH100 - pathlib has this only with links followed


def name_results(scenes: Sequence[tuple[str, str]], known: Mapping[str, SceneOutcome]) -> list[str]:
    """Return the stem of each scene's results.

    A scene keeps the name that its results have already. A new one takes its own name; if that belongs to the
    results of another scene that still exists, a number is added, so that they are not overwritten.

    Args:
        scenes: name and location of each.
        known: the manifest's outcomes, by name.
    """
    before = {outcome.source: name for name, outcome in known.items()}
    taken = {before[location] for _, location in scenes if location in before}
    taken |= {
        name for name, outcome in known.items() if "://" in outcome.source or Path(outcome.source).exists()
    }
    names = []
    for name, location in scenes:
        number, chosen = 1, before.get(location, name)
        while location not in before and chosen in taken:
            number += 1
            chosen = f"{name}-{number}"
        taken.add(chosen)
        names.append(chosen)
    return names


FileStates = tuple[tuple[str, int, int], ...]
"""Path, size in bytes and modification time (ns) of every file of a scene."""


def watch_scenes(
    find: Callable[[], Sequence[Source]],
    every: float,
    idle: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[list[Source]]:
    """Yield scenes that are new or have changed, once they are no longer being written.

    A scene is yielded when its files look the same in two consecutive looks: one that is still being written
    is left alone.

    Args:
        find: returns the scenes that are there.
        every: seconds between looks.
        idle: seconds without a new scene after which the watch ends; None: it never ends.
        sleep: waits for so many seconds.
    """
    taken: dict[str, FileStates] = {}
    before: dict[str, FileStates] = {}
    since = time.monotonic()
    while True:
        try:
            found = {_identity(source): source for source in find()}
        except NoTilesError:  # no scene yet
            found = {}
        now = {name: _file_states(source) for name, source in found.items()}
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


def _identity(source: Source) -> str:
    """Return what identifies a scene: its files, since its name may change with other scenes beside it."""
    return "\n".join(str(path) for path in source.paths)


def _file_states(source: Source) -> FileStates:
    """Return what changes while a scene is written; empty for URLs."""
    files = [file for path in source.paths if "://" not in str(path) for file in _files(Path(path))]
    states = []
    for file in sorted(files):
        try:
            state = file.stat()
        except OSError:  # removed between two looks
            continue
        states.append((str(file), state.st_size, state.st_mtime_ns))
    return tuple(states)


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
