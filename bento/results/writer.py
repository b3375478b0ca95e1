"""What is kept of a classified scene: its blocks go to one writer for each output that was asked for."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tilewise.bento.inference.window_grid import SceneInfo
from tilewise.bento.inference.windows import WindowAnswer
from tilewise.bento.results import quicklook, stac
from tilewise.bento.results.maps import (
    Layer,
    MapWriter,
    class_layer,
    confidence_layer,
    outlier_layer,
    probability_layer,
    to_steps,
)
from tilewise.bento.results.tables import VectorFormat, WindowsTable, check_available, convert, score_of, write_polygons
from tilewise.datasets.core.errors import TilewiseError
from tilewise.models.model_file import ModelMetadata


class Output(StrEnum):
    """What can be kept of a scene."""

    CLASSES = "classes"
    CONFIDENCE = "confidence"
    OUTLIER = "outlier"
    PROBABILITIES = "probabilities"
    WINDOWS = "windows"
    POLYGONS = "polygons"
    QUICKLOOK = "quicklook"
    STAC = "stac"


USUAL = tuple(output for output in Output if output is not Output.PROBABILITIES)
_LAYERS: dict[Output, Callable[[ModelMetadata], Layer]] = {
    Output.CLASSES: class_layer,
    Output.CONFIDENCE: confidence_layer,
    Output.OUTLIER: outlier_layer,
    Output.PROBABILITIES: probability_layer,
}
_FROM_CLASS_MAP = {Output.POLYGONS, Output.QUICKLOOK}


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """What is kept of each scene.

    Attributes:
        kinds: the outputs.
        formats: forms of the tables of windows and polygons.
        coverage: of the windows' prediction sets, 0-1.
    """

    kinds: tuple[Output, ...] = USUAL
    formats: tuple[VectorFormat, ...] = (VectorFormat.PARQUET,)
    coverage: float = 0.9

    def check(self, metadata: ModelMetadata) -> None:
        """Refuse what cannot be made, before any work is done.

        Raises:
            TilewiseError: nothing is asked for, a form needs a package that is not installed, or the model is not
                calibrated for the coverage.
        """
        if not self.kinds or not self.formats:
            raise TilewiseError(f"no output is asked for; choose from {', '.join(Output)}")
        for form in self.formats:
            check_available(form)
        if metadata.prediction_sets:
            try:
                metadata.prediction_sets.threshold(self.coverage)
            except ValueError as error:
                raise TilewiseError(f"prediction sets of coverage {self.coverage:g}: {error}") from error


class Block(Protocol):
    """Some rows of a classified scene; `tilewise.bento.inference.windows.Block` is one."""

    @property
    def class_map(self) -> npt.NDArray[np.uint8]:
        """(rows, width): position of the class, NO_CLASS where there is none."""

    @property
    def confidence(self) -> npt.NDArray[np.float32]:
        """(rows, width): probability of the class (0-1), NaN where there is none."""

    @property
    def outlier(self) -> npt.NDArray[np.float32]:
        """(rows, width): outlier score, NaN where there is none."""

    @property
    def probabilities(self) -> npt.NDArray[np.float32] | None:
        """(classes, rows, width): 0-1, NaN where there are none; None where they were not asked for."""

    @property
    def windows(self) -> Sequence[WindowAnswer]:
        """Those that begin in these rows."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What results tell of the model that made them."""

    metadata: ModelMetadata
    sha256: str
    path: Path


@dataclass(slots=True)
class Tally:
    """What was counted while a scene was written.

    Attributes:
        windows: how many have an answer.
        skipped: how many have none, for want of valid pixels.
        outliers: how many have a score above the model's threshold.
        pixels: of each class.
    """

    windows: int
    skipped: int
    outliers: int
    pixels: npt.NDArray[np.int64]


class ResultWriter:
    """Takes a scene's blocks from top to bottom, and leaves its files in a folder.

    Args:
        folder: an empty one.
        frame: the scene's grid.
        model: what made the blocks.
        options: what is kept.
    """

    def __init__(self, folder: Path, scene_info: SceneInfo, model: ModelFacts, options: OutputOptions) -> None:
        self._folder, self._scene_info, self._model, self._options = folder, scene_info, model, options
        self.tally = Tally(0, 0, 0, np.zeros(256, np.int64))
        self._opened = ExitStack()
        kinds = set(options.kinds)
        self._maps = {
            output: self._keep(MapWriter(folder, scene_info, make(model.metadata), self._tags()))
            for output, make in _LAYERS.items()
            if output in kinds or (output is Output.CLASSES and kinds & _FROM_CLASS_MAP)
        }
        self._windows = (
            self._keep(WindowsTable(self._path("windows.parquet"), scene_info, model.metadata, options.coverage))
            if Output.WINDOWS in kinds
            else None
        )

    def __enter__(self) -> "ResultWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def add(self, block: Block) -> None:
        """Take the next block.

        Raises:
            OSError: the disk does not take it.
        """
        for output, writer in self._maps.items():
            writer.add(_rows(block, output))
        if self._windows:
            self._windows.add(block.windows)
        self._count(block)

    def finish(self) -> list[Path]:
        """Make all files whole, when all blocks were taken; return them.

        Raises:
            OSError: the disk does not take them.
        """
        with ThreadPoolExecutor(max(1, len(self._maps))) as threads:
            made = dict(zip(self._maps, threads.map(MapWriter.finish, self._maps.values()), strict=True))
        files = [file for output, paths in made.items() if output in self._options.kinds for file in paths]
        if self._windows:
            files += self._in_formats(self._windows.finish())
        if Output.POLYGONS in self._options.kinds:
            table = self._path("polygons.parquet")
            write_polygons(made[Output.CLASSES][0], self._scene_info, self._model.metadata, table)
            files += self._in_formats(table)
        if Output.QUICKLOOK in self._options.kinds:
            files.append(self._draw(made[Output.CLASSES][0]))
        if Output.CLASSES in made and Output.CLASSES not in self._options.kinds:
            for path in made[Output.CLASSES]:
                path.unlink()
        return sorted(files)

    def areas(self) -> dict[str, float]:
        """Return the hectares of each class that occurs."""
        pixels = self.tally.pixels
        names = self._model.metadata.classes
        return {name: round(int(n) * self._scene_info.pixel_ha, 4) for name, n in zip(names, pixels, strict=False) if n}

    def describe(self, files: Sequence[Path], out: Path) -> list[Path]:
        """Return `files` and, where it is asked for, the STAC item of them; `out` is where they all will lie."""
        if Output.STAC not in self._options.kinds:
            return list(files)
        model = self._model
        path = self._path(stac.SUFFIX.removeprefix("."))
        item = stac.write_item(path, self._scene_info, model.metadata, files, model.path, model.sha256, out)
        return [*files, item]

    def _keep(self, writer: Any) -> Any:
        self._opened.callback(writer.close)
        return writer

    def _path(self, suffix: str) -> Path:
        return self._folder / f"{self._scene_info.name}.{suffix}"

    def _tags(self) -> dict[str, str]:
        metadata = self._model.metadata
        tags = {"MODEL": f"{metadata.name} {metadata.version}", "MODEL_SHA256": self._model.sha256}
        return {**tags, **({"TILEWISE_SYNTHETIC_MODEL": "yes"} if metadata.synthetic else {})}

    def _in_formats(self, table: Path) -> list[Path]:
        made = [convert(table, form) for form in self._options.formats]
        if VectorFormat.PARQUET not in self._options.formats:
            table.unlink()
        return made

    def _draw(self, class_map: Path) -> Path:
        path = self._path(quicklook.SUFFIX.removeprefix("."))
        return quicklook.write_quicklook(class_map, self._scene_info, self._model.metadata, self.areas(), path)

    def _count(self, block: Block) -> None:
        limit = self._model.metadata.outliers.threshold if self._model.metadata.outliers else np.inf
        for window in block.windows:
            if window.probabilities is None:
                self.tally.skipped += 1
                continue
            self.tally.windows += 1
            score = score_of(window)
            self.tally.outliers += score is not None and score > limit
        self.tally.pixels += np.bincount(block.class_map.ravel(), minlength=256)


def _rows(block: Block, output: Output) -> npt.NDArray[Any]:
    """Return a block's rows as the layer of `output` has them: (bands, rows, width)."""
    if output is Output.CLASSES:
        return block.class_map[None]
    if output is Output.CONFIDENCE:
        return to_steps(block.confidence)[None]
    if output is Output.OUTLIER:
        return block.outlier[None]
    if block.probabilities is None:
        raise TilewiseError("the windows were classified without probabilities; this is a defect, please report it")
    return to_steps(block.probabilities)
