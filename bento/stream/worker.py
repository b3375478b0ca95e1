"""One scene after another, each into a folder of its own below the folder of results, by what `tilewise.bento.batch` does.

A scene's folder is named by what it is, has a manifest, and is locked while it is written. So several consumers may
share the folder of results, a notice that comes twice changes nothing, and what a killed consumer left is done again.
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
from tilewise.bento.results.stac import SUFFIX
from tilewise.bento.results.writer import Output, OutputOptions
from tilewise.bento.stream.notices import Told
from tilewise.datasets.core.errors import SceneTooLargeError, TilewiseError

RESULT = "tilewise.scene"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class SceneWorkerOptions:
    """How scenes are classified.

    Attributes:
        grid: of windows.
        outputs: what is kept.
        threads: that work on a scene together.
        max_pixels: of a scene.
    """

    grid: GridOptions
    outputs: OutputOptions
    threads: int
    max_pixels: int


class SceneWorker:
    """Where scenes are classified. Its methods may be called from several threads.

    Args:
        out: the folder of results; made where it is missing.
        engine: the model, of one thread.
        options: how.

    Raises:
        TilewiseError: the options cannot be, or not with this model.
        OSError: the folder cannot be made.
    """

    def __init__(self, out: Path, engine: Engine, options: SceneWorkerOptions) -> None:
        options.outputs.check(engine.metadata)
        options.grid.check(engine.metadata.tile_size)
        grid = replace(options.grid, keep_probabilities=Output.PROBABILITIES in options.outputs.kinds)
        self._out, self._engine, self._options = out, engine, replace(options, grid=grid)
        out.mkdir(parents=True, exist_ok=True)

    def classify(self, told: Told, check: Callable[[], None]) -> SceneOutcome:
        """Classify a scene into its folder, unless it lies there as this model and these options make it.

        Args:
            told: the scene.
            check: called between strips; whatever it raises ends the work.

        Raises:
            FolderBusyError: another consumer is at it.
            TilewiseError: the scene cannot be read, or is too large.
            OSError: the folder cannot be written to.
        """
        self._measure(told)
        check()
        with Manifest(self._out / told.folder) as manifest:
            task = SceneTask(told.source, told.source.name, told.place, manifest.known_as(told.source.name))
            done = process_scene(task, self._plan(manifest), self._engine, lambda *_: check())
            if done.outcome.state is SceneState.FAILED:
                raise TilewiseError(done.outcome.error or told.place)
            if done.outcome.state is SceneState.DONE:
                manifest.enter(done.outcome, done.staged)
        return done.outcome

    def result(self, told: Told, outcome: SceneOutcome, sender_id: str) -> dict[str, Any]:
        """Return what is published of a scene: the same, to the byte, however often it is told of."""
        files = [{"name": file.name, "size": file.size, "sha256": file.sha256} for file in outcome.files]
        items = [file.name for file in outcome.files if file.name.endswith(SUFFIX)]
        return {
            "type": RESULT,
            "version": _VERSION,
            "id": outcome.key,
            "notice": sender_id,
            "scene": told.place,
            "name": outcome.name,
            "folder": told.folder,
            "item": items[0] if items else None,
            "files": files,
            "model": {**self._engine.identity, "synthetic": self._engine.metadata.synthetic},
            "windows": outcome.windows,
            "skipped": outcome.skipped,
            "outliers": outcome.outliers,
            "broken": outcome.broken,
            "pixels": outcome.pixels,
            "area_ha": outcome.area_ha,
            "tile": self._tile(self._out / told.folder, outcome),
        }

    def _tile(self, folder: Path, outcome: SceneOutcome) -> dict[str, Any] | None:
        """Return the answer of a scene that is one window, as the service words it; None without its table."""
        table = folder / f"{outcome.name}.windows.parquet"
        if outcome.windows != 1 or table.name not in {file.name for file in outcome.files}:
            return None
        (row,) = (row for row in pq.read_table(table).to_pylist() if row["class"] is not None)
        shares = {name: round(row[f"p_{name}"], 6) for name in self._engine.metadata.classes}
        return {"class": row["class"], "probabilities": shares, "valid_fraction": round(row["valid_fraction"], 6)}

    def _measure(self, told: Told) -> None:
        with told.source.open() as scene:
            pixels = scene.width * scene.height
        if pixels > self._options.max_pixels:
            raise SceneTooLargeError(
                f"{told.place}: {pixels:,} pixels, more than {self._options.max_pixels:,}; allow more by --max-pixels"
            )

    def _plan(self, manifest: Manifest) -> WorkPlan:
        model, options = self._engine, self._options
        parts = (options.grid, options.outputs, options.threads)
        return WorkPlan(
            manifest.out.absolute(), manifest.staging.absolute(), model.path.absolute(), model.sha256, *parts
        )
