"""The files that are kept of a classified scene: one writer for each requested output."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewise.bento.inference.blending import NO_CLASS, OUT_OF_DISTRIBUTION
from tilewise.bento.inference.window_grid import SceneInfo
from tilewise.bento.inference.windows import SceneBlock
from tilewise.bento.results import quicklook, stac
from tilewise.bento.results.maps import (
    UNLIKE,
    MapSpec,
    MapWriter,
    class_spec,
    count_numbers,
    model_tags,
    outlier_spec,
    probabilities_spec,
    probability_spec,
    to_steps,
)
from tilewise.bento.results.tables import (
    VectorFormat,
    WindowsTable,
    check_available,
    convert,
    score_of,
    write_polygons,
)
from tilewise.datasets.core.errors import TilewiseError
from tilewise.models.model_file import ModelMetadata
from tilewise.models.model_item import SUFFIX


class Output(StrEnum):
    """A result that can be kept of a scene."""

    CLASSES = "classes"
    PROBABILITY = "probability"
    OUTLIER = "outlier"
    PROBABILITIES = "probabilities"
    WINDOWS = "windows"
    POLYGONS = "polygons"
    QUICKLOOK = "quicklook"
    STAC = "stac"


USUAL = tuple(output for output in Output if output is not Output.PROBABILITIES)
_MAPS: dict[Output, Callable[[ModelMetadata], MapSpec]] = {
    Output.CLASSES: class_spec,
    Output.PROBABILITY: probability_spec,
    Output.OUTLIER: outlier_spec,
    Output.PROBABILITIES: probabilities_spec,
}
_FROM_CLASS_MAP = {Output.POLYGONS, Output.QUICKLOOK}


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """Which results are kept of each scene.

    Attributes:
        kinds: the outputs.
        formats: file formats of the tables of windows and polygons.
        coverage: of the windows' prediction sets, 0-1.
        min_area: hectares; smaller patches of the class map get the class of their largest neighbour.
        smooth: metres; each pixel of the class map takes the class with the most votes in the square of this
            side around it, weighted by probability. 0: its own.
    """

    kinds: tuple[Output, ...] = USUAL
    formats: tuple[VectorFormat, ...] = (VectorFormat.PARQUET,)
    coverage: float = 0.9
    min_area: float = 0.0
    smooth: float = 0.0

    def check(self, metadata: ModelMetadata) -> None:
        """Refuse what cannot be made, before any work is done.

        Raises:
            TilewiseError: no output is requested, a format needs a package that is not installed, or the
                model is not calibrated for the coverage.
        """
        if not self.kinds or not self.formats:
            raise TilewiseError(f"no output is requested; choose from {', '.join(Output)}")
        for form in self.formats:
            check_available(form)
        if metadata.prediction_sets:
            try:
                metadata.prediction_sets.threshold(self.coverage)
            except ValueError as error:
                raise TilewiseError(f"prediction sets of coverage {self.coverage:g}: {error}") from error


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The model that makes results, as they name it: metadata, SHA-256 of the file, path."""

    metadata: ModelMetadata
    sha256: str
    path: Path


@dataclass(slots=True)
class SceneCounts:
    """Counts of what was written of a scene.

    Attributes:
        windows: windows with an answer.
        skipped: windows with too few valid pixels.
        outliers: windows whose score is above the model's threshold.
        pixels: int64 (256,), pixels of each class index.
    """

    windows: int
    skipped: int
    outliers: int
    pixels: npt.NDArray[np.int64]


class ResultWriter:
    """Write the results of one scene to a folder, from blocks that come from top to bottom.

    Args:
        folder: an empty folder.
        scene_info: the scene's grid and origin.
        model: the model that made the blocks.
        options: which results are kept.
    """

    def __init__(
        self, folder: Path, scene_info: SceneInfo, model: ModelFacts, options: OutputOptions
    ) -> None:
        self._folder, self._scene_info, self._model, self._options = folder, scene_info, model, options
        self.counts = SceneCounts(0, 0, 0, np.zeros(256, np.int64))
        self._opened = ExitStack()
        self._colours: quicklook.TrueColour | None = None
        kinds, tags = set(options.kinds), model_tags(model.metadata, model.sha256)
        self._maps = {
            output: self._keep(
                MapWriter(
                    *(folder, scene_info, make(model.metadata), tags),
                    min_pixels=self._min_pixels if output is Output.CLASSES else 1,
                )
            )
            for output, make in _MAPS.items()
            if output in kinds or (output is Output.CLASSES and kinds & _FROM_CLASS_MAP)
        }
        self._windows = (
            self._keep(
                WindowsTable(self._path("windows.parquet"), scene_info, model.metadata, options.coverage)
            )
            if Output.WINDOWS in kinds
            else None
        )

    def __enter__(self) -> "ResultWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def add(self, block: SceneBlock) -> None:
        """Take the next block.

        Raises:
            OSError: the disk does not take it.
        """
        for output, writer in self._maps.items():
            writer.add(_rows(block, output))
        if self._windows:
            self._windows.add(block.windows)
        if block.colours is not None and Output.QUICKLOOK in self._options.kinds:
            self._colours = self._colours or quicklook.TrueColour(self._scene_info)
            self._colours.add(block.colours)
        self._count(block)

    def finish(self) -> list[Path]:
        """Complete all files once all blocks were added; return them.

        Raises:
            OSError: the disk does not take them.
        """
        with ThreadPoolExecutor(max(1, len(self._maps))) as threads:
            made = dict(zip(self._maps, threads.map(MapWriter.finish, self._maps.values()), strict=True))
        if self._min_pixels > 1 and Output.CLASSES in made:
            self.counts.pixels = count_numbers(made[Output.CLASSES][0])
        files = [file for output, paths in made.items() if output in self._options.kinds for file in paths]
        if self._windows:
            files += self._in_formats(self._windows.finish())
        if Output.POLYGONS in self._options.kinds:
            table = self._path("polygons.parquet")
            write_polygons(made[Output.CLASSES][0], self._scene_info, self._model.metadata, table)
            files += self._in_formats(table)
        if Output.QUICKLOOK in self._options.kinds:
            files += self._draw(made[Output.CLASSES][0])
        if Output.CLASSES in made and Output.CLASSES not in self._options.kinds:
            for path in made[Output.CLASSES]:
                path.unlink()
        return sorted(files)

    def areas(self) -> dict[str, float]:
        """Return the hectares of each class that occurs, and of UNLIKE, which no class contains."""
        pixels = self.counts.pixels
        counts = dict(zip(self._model.metadata.classes, pixels.tolist(), strict=False))
        counts[UNLIKE] = int(pixels[OUT_OF_DISTRIBUTION])
        return {name: round(n * self._scene_info.pixel_ha, 4) for name, n in counts.items() if n}

    def no_data_ha(self) -> float:
        """Return the hectares without data, of cloud or of skipped windows."""
        return round(int(self.counts.pixels[NO_CLASS]) * self._scene_info.pixel_ha, 4)

    def describe(self, files: Sequence[Path], out: Path) -> list[Path]:
        """Return `files` and, if requested, their STAC item.

        Args:
            out: the folder that the files end up in, which the item's links start from.
        """
        if Output.STAC not in self._options.kinds:
            return list(files)
        model = self._model
        path = self._path(SUFFIX.removeprefix("."))
        item = stac.write_item(
            *(path, self._scene_info, model.metadata, files, model.path, model.sha256, out),
            min_area=self._options.min_area,
            smooth=self._options.smooth,
        )
        return [*files, item]

    @property
    def _min_pixels(self) -> int:
        return (
            max(1, math.ceil(self._options.min_area / self._scene_info.pixel_ha))
            if self._options.min_area
            else 1
        )

    def _keep(self, writer: Any) -> Any:
        self._opened.callback(writer.close)
        return writer

    def _path(self, suffix: str) -> Path:
        return self._folder / f"{self._scene_info.name}.{suffix}"

    def _in_formats(self, table: Path) -> list[Path]:
        made = [convert(table, form) for form in self._options.formats]
        if VectorFormat.PARQUET not in self._options.formats:
            table.unlink()
        return made

    def _draw(self, class_map: Path) -> list[Path]:
        path = self._path(quicklook.SUFFIX.removeprefix("."))
        metadata = self._model.metadata
        drawn = [quicklook.write_quicklook(class_map, self._scene_info, metadata, self.areas(), path)]
        if self._colours:
            drawn.append(self._colours.write(self._path(quicklook.COLOUR_SUFFIX.removeprefix("."))))
        return drawn

    def _count(self, block: SceneBlock) -> None:
        limit = self._model.metadata.outliers.threshold if self._model.metadata.outliers else np.inf
        for window in block.windows:
            if window.probabilities is None:
                self.counts.skipped += 1
                continue
            self.counts.windows += 1
            score = score_of(window)
            self.counts.outliers += score is not None and score > limit
        self.counts.pixels += np.bincount(block.class_map.ravel(), minlength=256)


def _rows(block: SceneBlock, output: Output) -> npt.NDArray[Any]:
    """Return a block's rows as the map of `output` stores them: (bands, rows, width)."""
    if output is Output.CLASSES:
        return block.class_map[None]
    if output is Output.PROBABILITY:
        return to_steps(block.probability)[None]
    if output is Output.OUTLIER:
        return block.outlier[None]
    if block.probabilities is None:
        raise TilewiseError(
            "the windows were classified without probabilities; this is a defect, please report it"
        )
    return to_steps(block.probabilities)
