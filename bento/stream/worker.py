"""Scene worker: classify scenes one by one, each into a folder of its own, as `tilewise.bento.batch` does.

The name of a scene's folder depends on the scene only; the folder has a manifest, and is locked while it is
written. So several consumers may share the folder of results, a notice that comes twice changes nothing, and
the work that a killed consumer left is done again.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tilewise.bento.batch.manifest import Manifest, SceneOutcome, SceneState
from tilewise.bento.batch.worker import SceneTask, WorkPlan, process_scene
from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.windows import GridOptions
from tilewise.bento.results.writer import Output, OutputOptions
from tilewise.bento.stream.notices import SceneJob
from tilewise.datasets.core.errors import SceneTooLargeError, TilewiseError
from tilewise.models.model_item import SUFFIX

RESULT = "tilewise.scene"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class SceneWorkerOptions:
    """How scenes are classified.

    Attributes:
        grid: the grid of windows.
        outputs: the files to write.
        threads: that classify one scene together.
        max_pixels: of a scene; a larger one is refused.
    """

    grid: GridOptions
    outputs: OutputOptions
    threads: int
    max_pixels: int


class SceneWorker:
    """Classify scenes by one model with the same options. Its methods may be called from several threads.

    Args:
        out: the folder of results; created if it is missing.
        engine: the model, with one thread.
        options: how scenes are classified.

    Raises:
        TilewiseError: the options are invalid, or do not fit the model.
        OSError: the folder cannot be created.
    """

    def __init__(self, out: Path, engine: Engine, options: SceneWorkerOptions) -> None:
        options.outputs.check(engine.metadata)
        options.grid.check(engine.metadata.tile_size)
        grid = replace(options.grid, keep_probabilities=Output.PROBABILITIES in options.outputs.kinds)
        self._out, self._engine, self._options = out, engine, replace(options, grid=grid)
        out.mkdir(parents=True, exist_ok=True)

    def classify(self, job: SceneJob, check: Callable[[], None]) -> SceneOutcome:
        """Classify a scene into its folder, unless results of this model and these options are there.

        Args:
            job: the scene.
            check: called between strips; whatever it raises ends the work.

        Raises:
            FolderBusyError: another consumer works on it.
            TilewiseError: the scene cannot be read, or is too large.
            OSError: the folder cannot be written to.
        """
        self._measure(job)
        check()
        with Manifest(self._out / job.folder) as manifest:
            task = SceneTask(job.source, job.source.name, job.location, manifest.known_as(job.source.name))
            done = process_scene(task, self._plan(manifest), self._engine, lambda *_: check())
            if done.outcome.state is SceneState.FAILED:
                raise TilewiseError(done.outcome.error or job.location)
            if done.outcome.state is SceneState.DONE:
                manifest.enter(done.outcome, done.staged)
        return done.outcome

    def result(self, job: SceneJob, outcome: SceneOutcome, sender_id: str) -> dict[str, Any]:
        """Return the result to publish of a scene: identical for every notice of it."""
        files = [{"name": file.name, "size": file.size, "sha256": file.sha256} for file in outcome.files]
        items = [file.name for file in outcome.files if file.name.endswith(SUFFIX)]
        return {
            "type": RESULT,
            "version": _VERSION,
            "id": outcome.key,
            "notice": sender_id,
            "scene": job.location,
            "name": outcome.name,
            "folder": job.folder,
            "item": items[0] if items else None,
            "files": files,
            "model": {**self._engine.identity, "synthetic": self._engine.metadata.synthetic},
            "windows": outcome.windows,
            "skipped": outcome.skipped,
            "outliers": outcome.outliers,
            "broken": outcome.broken,
            "pixels": outcome.pixels,
            "area_ha": outcome.area_ha,
            "tile": self._tile(self._out / job.folder, outcome),
        }

    def _tile(self, folder: Path, outcome: SceneOutcome) -> dict[str, Any] | None:
        """Return the answer of a scene of one window, as the service gives it; None without its table."""
        table = folder / f"{outcome.name}.windows.parquet"
        if outcome.windows != 1 or table.name not in {file.name for file in outcome.files}:
            return None
        (row,) = (row for row in pq.read_table(table).to_pylist() if row["class"] is not None)
        probabilities = {name: round(row[f"p_{name}"], 6) for name in self._engine.metadata.classes}
        return {
            "class": row["class"],
            "probabilities": probabilities,
            "valid_fraction": round(row["valid_fraction"], 6),
        }

    def _measure(self, job: SceneJob) -> None:
        with job.source.open() as scene:
            pixels = scene.width * scene.height
        if pixels > self._options.max_pixels:
            raise SceneTooLargeError(
                f"{job.location}: {pixels:,} pixels, more than {self._options.max_pixels:,}; allow more by "
                f"--max-pixels"
            )

    def _plan(self, manifest: Manifest) -> WorkPlan:
        model, options = self._engine, self._options
        parts = (options.grid, options.outputs, options.threads)
        return WorkPlan(
            manifest.out.absolute(), manifest.staging.absolute(), model.path.absolute(), model.sha256, *parts
        )
