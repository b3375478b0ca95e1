"""Classify one scene to files: the same work in this process, in another one, or on another machine.

A worker writes a scene's files to a folder of its own; only the run moves them into the folder of results. So
a worker that is killed, or that outlives its run, cannot damage results.
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

from tilewise.bento.batch.manifest import ResultFile, SceneOutcome, SceneState, is_intact
from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.window_grid import SceneInfo
from tilewise.bento.inference.windows import GridOptions, SceneBlock, SceneClassification, classify
from tilewise.bento.results.smoothing import radius_of, smooth
from tilewise.bento.results.writer import ModelFacts, OutputOptions, ResultWriter
from tilewise.datasets.core.errors import ModelFileError, OutsideAreaError, TilewiseError
from tilewise.datasets.core.files import sha256_of
from tilewise.datasets.scenes import MosaicSource, Scene, SceneSource
from tilewise.datasets.scenes.layers import in_utc
from tilewise.datasets.scenes.mosaic import Mosaic

_LOG = logging.getLogger("tilewise")
_CACHE_MB = 128  # of GDAL's blocks, in each process; GDAL's default is a fraction of the machine's memory
_KEY_VERSION = 2
NETWORK_THREADS = 1  # each of a scene's threads runs the network alone: answers do not depend on their number
_UTC = "%Y-%m-%dT%H:%M:%SZ"

Result = TypeVar("Result")
Advance = Callable[[int, int, int], None]
"""Called with the rows of the maps that are done, all rows, and the windows that are done."""


def ignore_progress(rows: int, total: int, windows: int) -> None:
    """Report nothing: the default."""


@dataclass(frozen=True, slots=True)
class WorkPlan:
    """What a worker needs to know of the run; the same for all its scenes.

    Attributes:
        out: the folder of results.
        staging: the folder inside it that workers write to.
        model: the model file.
        model_sha256: SHA-256 of its bytes.
        grid: how windows are laid.
        outputs: which results are kept.
        threads: number of threads that read and classify a scene.
    """

    out: Path
    staging: Path
    model: Path
    model_sha256: str
    grid: GridOptions
    outputs: OutputOptions
    threads: int

    def key(self, fingerprint: str) -> str:
        """Return the key of a scene's results: equal only where the results would be the same bytes."""
        content = {
            "version": _KEY_VERSION,
            "input": fingerprint,
            "model": self.model_sha256,
            "grid": repr(asdict(self.grid)),
            "outputs": repr(asdict(self.outputs)),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def load(self) -> Engine:
        """Load the model.

        Raises:
            ModelFileError: it cannot be loaded, or the file was replaced since the run began.
        """
        engine = Engine(self.model, NETWORK_THREADS)
        if engine.sha256 != self.model_sha256:
            raise ModelFileError(f"{self.model}: it was replaced during the run; start the run again")
        return engine


@dataclass(frozen=True, slots=True)
class SceneTask:
    """One scene to classify.

    Attributes:
        source: how it is read.
        name: stem of its results.
        location: its path or URL, as reports and the manifest name it.
        known: the manifest's outcome under that name, if any.
    """

    source: SceneSource | MosaicSource
    name: str
    location: str
    known: SceneOutcome | None = None

    def failed(self, why: str) -> "FinishedScene":
        """Return the scene as failed; `why` may begin with the name of the scene or of its file."""
        why = why.removeprefix(f"{self.source.name}: ").removeprefix(f"{Path(self.location).name}: ")
        error = f"{self.location}: {why}"
        return FinishedScene(SceneOutcome(self.name, self.location, SceneState.FAILED, error=error))


@dataclass(frozen=True, slots=True)
class StartedScene:
    """A scene that has to be classified.

    Attributes:
        task: the scene.
        plan: of the run.
        key: of its results.
        started_at: Unix time in seconds, since another machine may finish it.
    """

    task: SceneTask
    plan: WorkPlan
    key: str
    started_at: float


@dataclass(frozen=True, slots=True)
class FinishedScene:
    """A scene's outcome, and the staging folder whose files the run has to move, if there are any."""

    outcome: SceneOutcome
    staged: Path | None = None


def process_scene(
    task: SceneTask, plan: WorkPlan, engine: Engine, advance: Advance = ignore_progress
) -> FinishedScene:
    """Classify one scene into a new folder below the staging folder; a failure is returned, not raised."""

    def work() -> FinishedScene:
        started = start_scene(task, plan)
        if isinstance(started, FinishedScene):
            return started
        with task.source.open() as scene:
            return classify_and_write(started, engine, scene, advance)

    return catch_failures(task, plan, work)


def catch_failures(task: SceneTask, plan: WorkPlan, work: Callable[[], Result]) -> Result | FinishedScene:
    """Return the result of `work`, or the scene as failed; nothing is raised."""
    try:
        with rasterio.Env(GDAL_CACHEMAX=_CACHE_MB):
            return work()
    except OutsideAreaError:
        return FinishedScene(SceneOutcome(task.name, task.location, SceneState.OUTSIDE))
    except TilewiseError as error:
        return task.failed(str(error))
    except OSError as error:
        return task.failed(f"{plan.out} cannot be written to: {error.strerror or error}")
    except Exception as error:  # one scene's odd failure must not end the run of thousands
        _LOG.exception("%s", task.location)
        return task.failed(
            f"it failed in an unforeseen way ({type(error).__name__}: {error}); please report it"
        )


def start_scene(task: SceneTask, plan: WorkPlan) -> StartedScene | FinishedScene:
    """Fingerprint a scene; return it as started, or as finished where the folder has its results already.

    Raises:
        TilewiseError: a file of the scene cannot be read.
    """
    started = time.time()
    if task.source.options.area is not None:
        with task.source.open():  # one that is outside the area is not read to its end
            pass
    key = plan.key(task.source.fingerprint())
    if task.known and task.known.key == key and is_intact(task.known, plan.out):
        return FinishedScene(task.known.kept())
    return StartedScene(task, plan, key, started)


def classify_and_write(
    started: StartedScene, engine: Engine, scene: Scene | Mosaic, advance: Advance = ignore_progress
) -> FinishedScene:
    """Classify an open scene and write its results to a staging folder.

    Raises:
        TilewiseError: it cannot be read.
        OSError: the disk does not take the files.
    """
    plan = started.plan
    classification = classify(engine, scene, plan.grid, workers=plan.threads)
    facts = ModelFacts(engine.metadata, engine.sha256, plan.model)
    scene_info = scene_info_of(started.task, scene, classification)
    with closing(classification.iter_blocks()) as blocks:
        return write_scene(started, facts, scene_info, blocks, lambda: scene.broken, advance)


def write_scene(
    started: StartedScene,
    facts: ModelFacts,
    scene_info: SceneInfo,
    blocks: Iterable[SceneBlock],
    broken: Callable[[], int],
    advance: Advance = ignore_progress,
) -> FinishedScene:
    """Write the blocks of a scene into a new folder below the staging folder.

    Args:
        started: the scene and the run.
        facts: of the model that made the blocks.
        scene_info: the grid of the maps, and the scene's origin.
        blocks: from the first row to the last.
        broken: called after the last block: how many blocks of the scene's files could not be decoded.
        advance: called after each block with the progress.

    Raises:
        TilewiseError: a block cannot be made.
        OSError: the disk does not take the files.
    """
    plan = started.plan
    folder = Path(tempfile.mkdtemp(prefix="scene-", dir=plan.staging))
    try:
        rows = 0
        with ResultWriter(folder, scene_info, facts, plan.outputs) as writer:
            radius = radius_of(plan.outputs.smooth, scene_info.pixel_ha)
            for block in smooth(blocks, radius):
                writer.add(block)
                rows += len(block.class_map)
                advance(rows, scene_info.height, writer.counts.windows)
            files = writer.describe(writer.finish(), plan.out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    outcome = SceneOutcome(
        name=started.task.name,
        source=started.task.location,
        state=SceneState.DONE,
        key=started.key,
        windows=writer.counts.windows,
        skipped=writer.counts.skipped,
        broken=broken(),
        outliers=writer.counts.outliers,
        pixels=scene_info.width * scene_info.height,
        seconds=round(max(time.time() - started.started_at, 0.0), 3),
        area_ha=writer.areas(),
        no_data_ha=writer.no_data_ha(),
        footprint=scene_info.georeference.footprint(scene_info.width, scene_info.height),
        taken=scene_info.datetime,
        clouds=scene_info.clouds,
        files=tuple(ResultFile(file.name, file.stat().st_size, sha256_of(file)) for file in files),
    )
    return FinishedScene(outcome, folder)


def scene_info_of(task: SceneTask, scene: Scene | Mosaic, classification: SceneClassification) -> SceneInfo:
    """Return the grid of a scene's maps and the scene's origin."""
    times = sorted(map(in_utc, scene.times))
    when = times[:1] + times[-1:]
    return SceneInfo(
        name=task.name,
        georeference=classification.georeference,
        height=classification.height,
        width=classification.width,
        scene_georeference=scene.georeference,
        sources=tuple(p if "://" in p else str(Path(p).absolute()) for p in map(str, task.source.paths)),
        datetime="/".join(dict.fromkeys(time.strftime(_UTC) for time in when)) or None,
        platform=scene.platform,
        level=scene.level and str(scene.level),
        clouds=scene.clouds and scene.clouds.value,
        lineage=classification.lineage,
    )
