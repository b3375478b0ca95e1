"""What changed between two class maps of one place: hectares from class to class, and their uncertainty.

A pixel counts as changed where both maps have a class and the classes differ. No data (255) and what is
unlike the training data (254) in either map are never change; their hectares are told apart.

**Uncertainty** is that of post-classification comparison: a change is right where both maps are, so its
probability is the product of both maps' probabilities of their classes (Singh 1989, Digital change detection
techniques using remotely-sensed data, doi:10.1080/01431168908903939), taken as independent and calibrated.
`expected_ha` is the sum of these products: the hectares for which both classes are expected to be right. In
`sd_ha`, its standard deviation, the pixels of a square of 640 m, which share a window of the network, are
right or wrong together, and squares independently of one another.

What this leaves out: one model errs alike at one place on both dates, and probabilities of a model replace no
sample of reference data. Published areas need one (Olofsson et al. 2014, doi:10.1016/j.rse.2014.02.015).
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from tilewise.bento.inference.blending import NO_CLASS, OUT_OF_DISTRIBUTION
from tilewise.bento.inference.window_grid import SceneInfo
from tilewise.bento.results.maps import (
    NO_PROBABILITY,
    RESULT_TAG,
    STEPS,
    MapSpec,
    MapWriter,
    category_names,
    qgis_style,
)
from tilewise.bento.results.quicklook import LegendRow, draw_page, read_small
from tilewise.datasets.core.errors import ResultsError
from tilewise.datasets.core.tile import Georeference
from tilewise.models.class_colours import Colour, colours

UNCHANGED, NOT_COMPARED = 0, 65535
"""Numbers in a map of changes; 1 + before × classes + after is a change."""

_SUFFIX = ".changes.tif"
_SQUARE_METRES = 640.0  # a window of the network: 64 pixels of 10 m
_ROWS = 512
_TOLD = 14  # changes in the legend of the picture, the largest first
_SWATCH, _LEGEND = 16, 420  # pixels of the picture; its font has no arrow
_STILL: Colour = (205, 208, 210)
_NONE: Colour = (245, 245, 245)

Areas = npt.NDArray[np.float64]
Classes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ClassMap:
    """A finished map of classes, `NAME.classes.tif`.

    Attributes:
        path: of the file.
        classes: names, by number.
        model: name and version of the model that made it.
        scene_info: its grid, and NAME.
    """

    path: Path
    classes: tuple[str, ...]
    model: str
    scene_info: SceneInfo

    @property
    def probability(self) -> Path:
        """Path of the map of probabilities that belongs to it, which may be missing."""
        return self.path.with_name(f"{self.scene_info.name}.probability.tif")


@dataclass(frozen=True, slots=True)
class Comparison:
    """What changed between two maps.

    Attributes:
        before, after: the maps.
        hectares: float64 (classes, classes): from the class of the row to that of the column.
        expected_ha: likewise, the hectares for which both classes are expected to be right; None where a map
            of probabilities is missing.
        sd_ha: likewise, standard deviation of `expected_ha`.
        changed_sd_ha: standard deviation of the expected hectares of all changes.
        no_data_ha, unlike_ha: hectares that are no data in either map; unlike the training data in either.
        notes: what a reader must know.
        files: of the map and the picture of changes.
    """

    before: ClassMap
    after: ClassMap
    hectares: Areas
    expected_ha: Areas | None
    sd_ha: Areas | None
    changed_sd_ha: float | None
    no_data_ha: float
    unlike_ha: float
    notes: tuple[str, ...]
    files: tuple[Path, ...] = ()

    def changed(self, areas: Areas) -> float:
        """Return the sum of what is not on the diagonal of `areas`."""
        return float(areas.sum() - np.trace(areas))


def open_class_map(path: Path) -> ClassMap:
    """Read what a map of classes tells of itself.

    Raises:
        ResultsError: the file is no map of classes, or its grid is in degrees, in which areas have no
            hectares.
    """
    try:
        with rasterio.open(path) as dataset:
            tags, dtype, count = dataset.tags(), dataset.dtypes[0], dataset.count
            place, (height, width) = Georeference(dataset.crs, dataset.transform), dataset.shape
    except RasterioError as error:
        raise ResultsError(f"{path} cannot be read: {error}") from error
    classes = _classes_in(tags.get("CLASSES", ""))
    if tags.get(RESULT_TAG) != "classes" or (dtype, count) != ("uint8", 1) or not classes:
        raise ResultsError(
            f"{path} is no map of classes by tilewise; give a NAME.classes.tif that `tilewise batch` wrote, "
            "or its folder"
        )
    if place.crs is None or not place.crs.is_projected:
        raise ResultsError(f"{path}: its grid has no metres; map the scene again with --warp")
    name = path.name.removesuffix(".tif").removesuffix(".classes")
    return ClassMap(path, classes, tags.get("MODEL", "?"), SceneInfo(name, place, height, width))


def _classes_in(tag: str) -> tuple[str, ...]:
    try:
        found = json.loads(tag)
    except ValueError:
        return ()
    is_valid = isinstance(found, list) and 0 < len(found) <= OUT_OF_DISTRIBUTION
    return tuple(found) if is_valid and all(isinstance(name, str) for name in found) else ()


def compare_maps(before: ClassMap, after: ClassMap, folder: Path, *, align: bool = False) -> Comparison:
    """Compare two maps; write `STEM.changes.tif`, its side-cars and `STEM.changes.png` into `folder`.

    STEM is the name of both maps, or `BEFORE_to_AFTER`. Memory holds some rows of the maps.

    Args:
        before, after: the maps.
        folder: an existing folder.
        align: bring `after`, by nearest neighbour, to the grid of `before` where the two differ.

    Raises:
        ResultsError: the maps have other classes or, without `align`, other grids; or a map cannot be read.
        OSError: the disk does not take the files.
    """
    notes = [*_check(before, after, align=align)]
    tally = _Tally(before, with_confidence=before.probability.is_file() and after.probability.is_file())
    if not tally.with_confidence:
        lacking = [str(m.probability) for m in (before, after) if not m.probability.is_file()]
        notes.append(f"without uncertainty: {' and '.join(lacking)} missing")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".changes-") as staging:
        made = _write_changes(before, after, tally, Path(staging))
        for file in made:
            file.replace(folder / file.name)
    return tally.finish(before, after, tuple(notes), tuple(folder / file.name for file in made))


def _check(before: ClassMap, after: ClassMap, *, align: bool) -> Iterator[str]:
    """Refuse maps that cannot be compared; yield what a reader must know of those that can."""
    if before.classes != after.classes:
        raise ResultsError(
            f"{before.path} and {after.path} have other classes ({', '.join(before.classes)} against "
            f"{', '.join(after.classes)}); map both with one model"
        )
    if not _same_grid(before.scene_info, after.scene_info):
        if not align:
            raise ResultsError(
                f"{before.path} and {after.path} have different grids ({_grid(before.scene_info)} against "
                f"{_grid(after.scene_info)}); give --align to bring the second to the first by nearest "
                "neighbour, or map both alike (--cell, --warp)"
            )
        yield f"{after.path.name} was brought to the grid of {before.path.name} by nearest neighbour"
    if before.model != after.model:
        yield f"made by different models, {before.model} and {after.model}: some changes may be theirs"


def _same_grid(one: SceneInfo, other: SceneInfo) -> bool:
    same = one.georeference.transform.almost_equals(other.georeference.transform, precision=1e-6)
    shapes = (one.height, one.width) == (other.height, other.width)
    return same and shapes and one.georeference.crs == other.georeference.crs


def _grid(scene_info: SceneInfo) -> str:
    place = scene_info.georeference
    left, _, _, top = place.bounds(scene_info.width, scene_info.height)
    size = f"{scene_info.width} × {scene_info.height} of {abs(place.transform.a):g} m"
    return f"{place.crs.to_string()}, {size} from {left:.10g}, {top:.10g}"


@dataclass
class _Tally:
    """Sums over squares of 640 m; `first` is the map whose grid they lie on."""

    first: ClassMap
    with_confidence: bool
    no_data: int = 0
    unlike: int = 0
    changed_variance: float = 0.0
    pixels: Areas = field(init=False)
    expected: Areas = field(init=False)
    variance: Areas = field(init=False)

    def __post_init__(self) -> None:
        n = len(self.first.classes)
        self.pixels, self.expected, self.variance = (np.zeros(n * n) for _ in range(3))

    @property
    def square(self) -> int:
        """Pixels a side of a square."""
        metres = (self.first.scene_info.pixel_ha * 10_000) ** 0.5
        return max(1, round(_SQUARE_METRES / metres))

    def add(self, before: Classes, after: Classes, confidence: npt.NDArray[np.float64] | None) -> None:
        """Take rows that begin a row of squares: classes and probability (0-1) that both are right."""
        nothing = (before == NO_CLASS) | (after == NO_CLASS)
        self.no_data += int(nothing.sum())
        self.unlike += int((~nothing & (np.maximum(before, after) == OUT_OF_DISTRIBUTION)).sum())
        for top in range(0, len(before), self.square):
            rows = slice(top, top + self.square)
            self._add_squares(before[rows], after[rows], None if confidence is None else confidence[rows])

    def _add_squares(
        self, before: Classes, after: Classes, confidence: npt.NDArray[np.float64] | None
    ) -> None:
        n, width = len(self.first.classes), before.shape[1]
        known = np.maximum(before, after) < n
        squares = -(-width // self.square)
        keys = (np.arange(width) // self.square) * n * n + before.astype(np.intp) * n + after
        counts = np.bincount(keys[known], minlength=squares * n * n).reshape(squares, n * n)
        self.pixels += counts.sum(axis=0)
        if confidence is None:
            return
        right = np.bincount(keys[known], confidence[known], squares * n * n).reshape(squares, n * n)
        self.expected += right.sum(axis=0)
        # Of m pixels that are right together with the mean probability s / m, the variance is s (m - s).
        self.variance += (right * (counts - right)).sum(axis=0)
        moved = ~np.eye(n, dtype=bool).ravel()
        all_right, all_counts = right[:, moved].sum(axis=1), counts[:, moved].sum(axis=1)
        self.changed_variance += float((all_right * (all_counts - all_right)).sum())

    def finish(
        self, before: ClassMap, after: ClassMap, notes: tuple[str, ...], files: tuple[Path, ...]
    ) -> Comparison:
        """Return the sums in hectares."""
        n, ha = len(before.classes), before.scene_info.pixel_ha
        expected, sd, changed_sd = None, None, None
        if self.with_confidence:
            expected = (self.expected * ha).reshape(n, n)
            sd = (np.sqrt(self.variance) * ha).reshape(n, n)
            changed_sd = self.changed_variance**0.5 * ha
        hectares = (self.pixels * ha).reshape(n, n)
        apart = self.no_data * ha, self.unlike * ha
        return Comparison(before, after, hectares, expected, sd, changed_sd, *apart, notes, files)


def _write_changes(before: ClassMap, after: ClassMap, tally: _Tally, folder: Path) -> list[Path]:
    """Write map, side-cars and picture of the changes, counting them; return the files."""
    names = dict.fromkeys((before.scene_info.name, after.scene_info.name))
    place = before.scene_info
    scene_info = SceneInfo("_to_".join(names), place.georeference, place.height, place.width)
    spec = MapSpec(_SUFFIX, ("change",), "uint16", NOT_COMPARED, "MODE")
    tags = {"CLASSES": json.dumps(before.classes), "MODEL_BEFORE": before.model, "MODEL_AFTER": after.model}
    try:
        with closing(MapWriter(folder, scene_info, spec, tags)) as writer:
            for classes_before, classes_after, confidence in _rows(before, after, tally):
                tally.add(classes_before, classes_after, confidence)
                writer.add(_numbers(classes_before, classes_after, len(before.classes))[None])
            (path,) = writer.finish()
    except RasterioError as error:
        raise ResultsError(f"{before.path} or {after.path} cannot be read: {error}") from error
    legend = {UNCHANGED: ("unchanged", _STILL), **_legend(before.classes, tally.pixels)}
    names_file, style = path.with_name(f"{path.name}.aux.xml"), path.with_suffix(".qml")
    names_file.write_text(category_names({n: name for n, (name, _) in legend.items()}), encoding="utf-8")
    style.write_text(qgis_style(legend), encoding="utf-8")
    picture = _draw(path, scene_info, legend, tally)
    return [path, names_file, style, picture]


def _numbers(before: Classes, after: Classes, n: int) -> npt.NDArray[np.uint16]:
    """Return the numbers of a map of changes, uint16 (rows, width), from two maps with `n` classes."""
    numbers = 1 + before.astype(np.uint16) * n + after
    numbers[before == after] = UNCHANGED
    numbers[np.maximum(before, after) >= n] = NOT_COMPARED
    return numbers.astype(np.uint16)


def _legend(classes: tuple[str, ...], pixels: Areas) -> dict[int, tuple[str, Colour]]:
    """Return name and colour, that of the class after, of each change that occurs; the largest first."""
    n, tones = len(classes), colours(classes)
    found = (int(key) for key in np.argsort(-pixels, kind="stable") if pixels[key])
    return {
        1 + key: (f"{classes[key // n]} → {classes[key % n]}", tones[key % n])
        for key in found
        if key // n != key % n
    }


def _rows(
    before: ClassMap, after: ClassMap, tally: _Tally
) -> Iterator[tuple[Classes, Classes, npt.NDArray[np.float64] | None]]:
    """Yield both maps' rows on the grid of `before`, and the probability (0-1) that both are right."""
    height, width = before.scene_info.height, before.scene_info.width
    step = tally.square * max(1, _ROWS // tally.square)
    with ExitStack() as opened:
        maps = [opened.enter_context(_on_grid(m.path, before, NO_CLASS)) for m in (before, after)]
        sure = [
            opened.enter_context(_on_grid(m.probability, before, NO_PROBABILITY))
            for m in (before, after)
            if tally.with_confidence
        ]
        for top in range(0, height, step):
            window = Window(0, top, width, min(step, height - top))
            found = [dataset.read(1, window=window) for dataset in maps]
            steps = [dataset.read(1, window=window) for dataset in sure]
            yield found[0], found[1], _product(steps) if steps else None


def _product(steps: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float64]:
    """Return the product of probabilities in steps; 0 where one is missing."""
    values = [np.where(s == NO_PROBABILITY, 0.0, s / STEPS) for s in steps]
    return np.asarray(values[0] * values[1])


@contextmanager
def _on_grid(path: Path, first: ClassMap, no_data: int) -> Iterator[Any]:
    """Open a map, brought to the grid of `first` by nearest neighbour where it has another."""
    place = first.scene_info.georeference
    with rasterio.open(path) as dataset:
        found = SceneInfo("", Georeference(dataset.crs, dataset.transform), *dataset.shape)
        if _same_grid(found, first.scene_info):
            yield dataset
            return
        grid = {"height": first.scene_info.height, "width": first.scene_info.width}
        no = {"src_nodata": no_data, "nodata": no_data, "resampling": Resampling.nearest}
        with WarpedVRT(dataset, crs=place.crs, transform=place.transform, **grid, **no) as brought:
            yield brought


def _draw(path: Path, scene_info: SceneInfo, legend: dict[int, tuple[str, Colour]], tally: _Tally) -> Path:
    """Draw what changed in the colour of its new class, with the largest changes in the legend."""
    numbers, scale = read_small(path)
    painted = np.full((*numbers.shape, 3), _NONE, np.uint8)
    for number, (_, colour) in legend.items():
        painted[numbers == number] = colour
    ha = scene_info.pixel_ha
    changes = [item for item in legend.items() if item[0] != UNCHANGED]
    rows = [
        _row(colour, name.replace(" → ", " to "), f"{tally.pixels[number - 1] * ha:,.0f} ha")
        for number, (name, colour) in changes[:_TOLD]
    ]
    rows += [_row(_STILL, "unchanged", ""), _row(_NONE, "no data, or unlike the training data", "")]
    more = len(changes) - _TOLD
    page = draw_page(
        *(painted, scale, scene_info, scene_info.name.replace("_to_", " to "), rows),
        f"{more} smaller changes are in the table" if more > 0 else "Colour: the class after",
        legend_width=_LEGEND,
    )
    picture = path.with_suffix(".png")
    page.save(picture, format="PNG", compress_level=9)
    return picture


def _row(colour: Colour, name: str, figure: str) -> LegendRow:
    return np.full((_SWATCH, _SWATCH, 3), colour, np.uint8), name, figure
