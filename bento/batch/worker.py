"""The work on one scene: the same whether it is done in this process, in another, or on another machine.

A worker leaves a scene's files in a folder of its own; only the run itself moves them to their place. So a worker that
is killed, or that lives on after its run was killed, cannot harm results.
"""

import hashlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import rasterio

from tilewise.bento.batch.manifest import ResultFile, SceneOutcome, State, is_intact
from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.window_grid import SceneInfo
from tilewise.bento.inference.windows import GridOptions, SceneAnswer, classify
from tilewise.bento.results.writer import Block, ModelFacts, OutputOptions, ResultWriter
from tilewise.datasets.core.errors import ModelFileError, TilewiseError
from tilewise.datasets.core.files import sha256_of
from tilewise.datasets.scenes import Scene, SceneSource

_LOG = logging.getLogger("tilewise")
_CACHE_MB = 128  # of GDAL's blocks, in each process; its own default is a share of the machine's memory
_KEY_VERSION = 1
NETWORK_THREADS = 1  # a scene's threads each ask the network for themselves, so that answers do not depend on how many
_UTC = "%Y-%m-%dT%H:%M:%SZ"

Answer = TypeVar("Answer")
Advance = Callable[[int, int, int], None]
"""Called with rows done, rows there are, and windows done."""


def unseen(rows: int, of: int, windows: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class WorkPlan:
    """What is the same for all scenes of a run.

    Attributes:
        out: the folder of results.
        staging: the folder in it that workers write to.
        model: the model file.
        model_sha256: of its bytes.
        grid: of windows.
        outputs: what is kept.
        threads: that read and classify a scene together.
    """

    out: Path
    staging: Path
    model: Path
    model_sha256: str
    grid: GridOptions
    outputs: OutputOptions
    threads: int

    def key(self, fingerprint: str) -> str:
        """Return the key of a scene's results: the same only if they would be the same bytes."""
        content = {
            "version": _KEY_VERSION,
            "input": fingerprint,
            "model": self.model_sha256,
            "grid": repr(asdict(self.grid)),
            "outputs": repr(asdict(self.outputs)),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def load(self) -> Engine:
        """Return the engine.

        Raises:
            ModelFileError: the model cannot be loaded, or is another one by now.
        """
        engine = Engine(self.model, NETWORK_THREADS)
        if engine.sha256 != self.model_sha256:
            raise ModelFileError(f"{self.model}: it was replaced while the run went on; start the run again")
        return engine


@dataclass(frozen=True, slots=True)
class Task:
    """One scene to work on.

    Attributes:
        source: where it is read from.
        name: stem of its results.
        place: what it is called in reports.
        known: what the manifest has under that name, if anything.
    """

    source: SceneSource
    name: str
    place: str
    known: SceneOutcome | None = None

    def failed(self, why: str) -> "Done":
        """Return that the scene failed; `why` may begin with the scene's name or its file's."""
        why = why.removeprefix(f"{self.source.name}: ").removeprefix(f"{Path(self.place).name}: ")
        return Done(SceneOutcome(self.name, self.place, State.FAILED, error=f"{self.place}: {why}"))


@dataclass(frozen=True, slots=True)
class Begun:
    """A scene that is being worked on.

    Attributes:
        task: the scene.
        plan: of the run.
        key: of its results.
        started: when, in seconds since 1970: it may be finished on another machine.
    """

    task: Task
    plan: WorkPlan
    key: str
    started: float


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a task, and the folder with its files if they are to be moved to their place."""

    outcome: SceneOutcome
    staged: Path | None = None


def perform(task: Task, plan: WorkPlan, engine: Engine, advance: Advance = unseen) -> Done:
    """Classify one scene into a folder of its own below the staging folder. It raises nothing: failure is an answer."""

    def work() -> Done:
        begun = look(task, plan)
        if isinstance(begun, Done):
            return begun
        with task.source.open() as scene:
            return classify_whole(begun, engine, scene, advance)

    return guarded(task, plan, work)


def guarded(task: Task, plan: WorkPlan, work: Callable[[], Answer]) -> Answer | Done:
    """Return what `work` does, or that the scene failed; it raises nothing."""
    try:
        with rasterio.Env(GDAL_CACHEMAX=_CACHE_MB):
            return work()
    except TilewiseError as error:
        return task.failed(str(error))
    except OSError as error:
        return task.failed(f"{plan.out} cannot be written to: {error.strerror or error}")
    except Exception as error:  # one scene's odd failure must not end the run of thousands
        _LOG.exception("%s", task.place)
        return task.failed(f"it failed in an unforeseen way ({type(error).__name__}: {error}); please report it")


def look(task: Task, plan: WorkPlan) -> Begun | Done:
    """Return the scene's beginning, or that it is done already.

    Raises:
        TilewiseError: a file of the scene cannot be read.
    """
    started = time.time()
    key = plan.key(task.source.fingerprint())
    if task.known and task.known.key == key and is_intact(task.known, plan.out):
        return Done(task.known.kept())
    return Begun(task, plan, key, started)


def classify_whole(begun: Begun, engine: Engine, scene: Scene, advance: Advance = unseen) -> Done:
    """Classify an open scene, and write what comes out.

    Raises:
        TilewiseError: it cannot be read.
        OSError: the disk does not take the files.
    """
    plan = begun.plan
    answer = classify(engine, scene, plan.grid, workers=plan.threads)
    facts = ModelFacts(engine.metadata, engine.sha256, plan.model)
    scene_info = scene_info_of(begun.task, scene, answer)
    with closing(answer.iter_blocks()) as blocks:
        return write_scene(begun, facts, scene_info, blocks, lambda: scene.broken, advance)


def write_scene(
    begun: Begun,
    facts: ModelFacts,
    scene_info: SceneInfo,
    blocks: Iterable[Block],
    broken: Callable[[], int],
    advance: Advance = unseen,
) -> Done:
    """Write the blocks of a scene into a new folder below the staging folder.

    Args:
        begun: the scene and the run.
        facts: of the model that made the blocks.
        frame: the grid that they lie on.
        blocks: from the first row to the last.
        broken: tells, after the last block, how many blocks of the scene's files could not be decoded.
        advance: told how far it is.

    Raises:
        TilewiseError: a block cannot be made.
        OSError: the disk does not take the files.
    """
    plan = begun.plan
    folder = Path(tempfile.mkdtemp(prefix="scene-", dir=plan.staging))
    try:
        rows = 0
        with ResultWriter(folder, scene_info, facts, plan.outputs) as writer:
            for block in blocks:
                writer.add(block)
                rows += len(block.class_map)
                advance(rows, scene_info.height, writer.tally.windows)
            files = writer.describe(writer.finish(), plan.out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    outcome = SceneOutcome(
        name=begun.task.name,
        source=begun.task.place,
        state=State.DONE,
        key=begun.key,
        windows=writer.tally.windows,
        skipped=writer.tally.skipped,
        broken=broken(),
        outliers=writer.tally.outliers,
        pixels=scene_info.width * scene_info.height,
        seconds=round(max(time.time() - begun.started, 0.0), 3),
        area_ha=writer.areas(),
        files=tuple(ResultFile(file.name, file.stat().st_size, sha256_of(file)) for file in files),
    )
    return Done(outcome, folder)


def scene_info_of(task: Task, scene: Scene, answer: SceneAnswer) -> SceneInfo:
    """Return what results need to know of an open scene, on the grid of its answer."""
    return SceneInfo(
        name=task.name,
        place=answer.place,
        height=answer.height,
        width=answer.width,
        window_place=scene.georeference,
        sources=tuple(p if "://" in p else str(Path(p).absolute()) for p in map(str, task.source.paths)),
        datetime=scene.taken.strftime(_UTC) if scene.taken else None,
        platform=scene.platform,
        level=scene.level and str(scene.level),
    )
