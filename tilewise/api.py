"""Classify tiles and scenes from Python, without a service; use it as `tilewise.load`."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.crs import CRS

from tilewise.bento.batch import Output, OutputOptions, RunOptions, SceneState, classify_scenes
from tilewise.bento.client import ModelIdentity, Result
from tilewise.bento.client.answers import parse_result
from tilewise.bento.client.exchange import ClassifyOptions, read_file
from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.precision import Precision, pick
from tilewise.bento.inference.uploads import Upload, array_to_dn, classify_uploads
from tilewise.bento.inference.windows import GridOptions
from tilewise.datasets.core.bands import BAND_NAMES, LEAVE_OUT
from tilewise.datasets.core.console import make_read_options
from tilewise.datasets.core.errors import (
    RadiometryUnknownError,
    TileShapeError,
    TilewiseError,
)
from tilewise.datasets.core.radiometry import Level, ReadOptions
from tilewise.datasets.core.tile import TILE_SIZE, Georeference, Tile, canonical_order, place_bands
from tilewise.datasets.scenes import CloudKind, SceneOptions, parse_clouds
from tilewise.models.model_file import ModelMetadata, find_model
from tilewise.xarrays import bands_of, georeference_of, in_order, is_data_array, is_dataset, write_scene

if TYPE_CHECKING:
    import pyarrow as pa
    from affine import Affine

Tiles = Any
"""A tile or several: the path of a GeoTIFF, its bytes, a numpy array, an xarray.DataArray, or a list of
these.

Arrays are (bands, 64, 64) or (n, bands, 64, 64). uint16 without a scale is DN (reflectance × 10 000); other
types need a scale. 0 and NaN are no data.
"""

_COVERAGE = 0.9
_BATCH = 64  # tiles in memory at a time


@dataclass(frozen=True, slots=True)
class SceneResult:
    """A classified scene.

    Attributes:
        name: of the scene; the stem of its result files.
        classes: class names, by their number in the class map.
        class_map: uint8 (height, width) on the scene's grid: the class of each pixel, 254 where it is unlike
            the training data, 255 where there is no answer.
        windows: one row for each classified window: outline (WKB, EPSG:4326), class, probabilities,
            prediction set, outlier score.
        crs, transform: of the class map.
        files: the result files; empty where no `out` was given.
    """

    name: str
    classes: tuple[str, ...]
    class_map: npt.NDArray[np.uint8]
    windows: "pa.Table"
    crs: CRS
    transform: "Affine"
    files: tuple[Path, ...] = ()


class Model:
    """A model file, loaded and ready; several threads may share it."""

    def __init__(self, engine: Engine, precision: Precision) -> None:
        self._engine, self._precision = engine, precision
        self._identity = ModelIdentity(**engine.identity)

    @property
    def path(self) -> Path:
        """The model file."""
        return self._engine.path

    @property
    def metadata(self) -> ModelMetadata:
        """What the model file states of itself: classes, bands, calibration, licence, metrics."""
        return self._engine.metadata

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names."""
        return self.metadata.classes

    def __repr__(self) -> str:
        return f"<tilewise.Model {self.metadata.name} {self.metadata.version}, {self.path}>"

    @overload
    def classify(self, tiles: str | Path | bytes, **options: Unpack[ClassifyOptions]) -> Result: ...
    @overload
    def classify(self, tiles: list[Any], **options: Unpack[ClassifyOptions]) -> list[Result]: ...
    @overload
    def classify(self, tiles: Any, **options: Unpack[ClassifyOptions]) -> Any: ...
    def classify(self, tiles: Tiles, **options: Unpack[ClassifyOptions]) -> Any:
        """Classify tiles of 64 × 64 pixels at about 10 m.

        Args:
            tiles: see `Tiles`.
            bands: names in the order of the file or array, or one of `l1c`, `l2a`, `10m`, `rgb`, `eurosat`.
                Needed for files that do not name their bands, and for arrays of fewer than 13 bands; a
                DataArray names them by its coordinate `band`.
            level: `L1C` or `L2A`, for files that do not state it.
            scale: reflectance per unit: 0.0001 for DN, 1 for reflectance 0-1.
            offset: added to the numbers before scaling: 0 or -1000 in Sentinel-2 products; 0 for arrays.
            coverage: probability (0.5-1) that the prediction set contains the true class; None: 0.9.

        Returns:
            A `Result` for one tile: a path, bytes, or an array of three dimensions. A list of `Result` for
            several, in order; there a tile that cannot be classified has its `error`.

        Raises:
            TilewiseError: a single tile cannot be classified, or the options are wrong.
            OSError: a file cannot be read.
        """
        reading, coverage = _read_options(options), self._coverage(options.get("coverage"))
        named = _iter_tiles(tiles, reading)
        results: list[Result] = []
        while chunk := [Upload(name, content, reading, coverage) for name, content in islice(named, _BATCH)]:
            results += self._classify(chunk)
        if not _is_single(tiles):
            return results
        if results[0].error:
            error = results[0].error
            raise TilewiseError(f"{error.message}; {error.hint}" if error.hint else error.message)
        return results[0]

    def classify_scene(
        self,
        scene: Any,
        out: str | Path | None = None,
        *,
        stride: int = TILE_SIZE,
        warp: bool = False,
        clouds: str = CloudKind.AUTO.value,
        **options: Unpack[ClassifyOptions],
    ) -> SceneResult:
        """Classify a scene window by window, as `tilewise batch` does.

        Args:
            scene: the path of a GeoTIFF, a product (SAFE, EOPF Zarr) or a STAC item; or an xarray.DataArray
                (band, y, x), or an xarray.Dataset with a variable (y, x) for each band, with coordinates and
                a CRS (rioxarray's `spatial_ref`, or `.rio.crs`). A Dataset's variable `scl` masks clouds.
            out: a folder for all of batch inference's result files; None: none are kept.
            stride: pixels from one window to the next; below 64 windows overlap and are blended.
            warp: resample a scene in degrees, or far from 10 m, to 10 m in its UTM zone.
            clouds: whose pixels are no data, as `--clouds` of `tilewise batch`: by the scene's own mask, or
                else as found in its pixels; `none`: all pixels are kept.
            options: bands, level, scale, offset and coverage as in `classify`; floats of a DataArray or
                Dataset need a scale.

        Raises:
            TilewiseError: the scene cannot be read or classified.
        """
        reading, coverage = _read_options(options), self._coverage(options.get("coverage"))
        with tempfile.TemporaryDirectory(prefix="tilewise-") as folder:
            path: Any = scene
            if is_data_array(scene) or is_dataset(scene):
                path, reading = write_scene(scene, reading, Path(folder))
            target = Path(out) if out is not None else Path(folder) / "results"
            kinds = OutputOptions().kinds if out is not None else (Output.CLASSES, Output.WINDOWS)
            run = RunOptions(
                reading=SceneOptions(reading, parse_clouds(clouds), warp),
                grid=GridOptions(stride),
                outputs=OutputOptions(kinds, coverage=coverage),
                precision=self._precision,
            )
            outcomes = list(classify_scenes(path, target, model=self.path, options=run))
            if len(outcomes) != 1:
                raise TilewiseError(f"{scene}: {len(outcomes)} scenes; name one, or use tilewise.bento.batch")
            if outcomes[0].state is SceneState.FAILED:
                raise TilewiseError(outcomes[0].error or f"{scene}: the scene cannot be classified")
            names = tuple(target / file.name for file in outcomes[0].files) if out is not None else ()
            return _read_scene_result(target, outcomes[0].name, self.classes, names)

    def _coverage(self, requested: float | None) -> float:
        sets = self.metadata.prediction_sets
        highest = max(sets.thresholds) if sets else 1.0
        if requested is None:
            return min(_COVERAGE, highest)
        if not 0.5 <= requested <= highest:
            raise TilewiseError(
                f"a coverage of {requested:g}; this model is calibrated for 0.5 to {highest:g}"
            )
        return requested

    def _classify(self, uploads: Sequence[Upload]) -> list[Result]:
        contents = classify_uploads(self._engine, uploads)
        return [
            parse_result(item, upload.name, self._identity)
            for upload, item in zip(uploads, contents, strict=True)
        ]


def load(model: str | Path | None = None, *, precision: str = "auto") -> Model:
    """Load a model file.

    Args:
        model: the path of an ONNX file that tilewise exported; None: the newest one in `artifacts/`, or else
            the one that ships with the package.
        precision: `fp32`: the file itself; `int8`: the INT8 file beside it; `auto`: INT8 where it is faster
            here.

    Raises:
        ModelFileError: there is no such file, or it is not one of tilewise's.
    """
    chosen = Precision(precision)
    return Model(Engine(pick(find_model(model), chosen)), chosen)


def _read_options(options: ClassifyOptions) -> ReadOptions:
    bands, level = options.get("bands"), options.get("level")
    if level and level.upper() not in list(Level):
        raise RadiometryUnknownError(f"the level is L1C or L2A, not {level!r}")
    names = bands if isinstance(bands, str | None) else ",".join(bands)
    return make_read_options(names, level, options.get("scale"), options.get("offset"))


def _is_single(tiles: Tiles) -> bool:
    if isinstance(tiles, str | Path | bytes):
        return True
    return (isinstance(tiles, np.ndarray) or is_data_array(tiles)) and tiles.ndim == 3


def _iter_tiles(tiles: Tiles, options: ReadOptions) -> Iterator[tuple[str, bytes | Tile]]:
    """Yield each tile's name, and a file's bytes or an array's tile."""
    single = isinstance(tiles, str | Path | bytes | np.ndarray) or is_data_array(tiles)
    position = 0
    for item in [tiles] if single else _checked(tiles):
        if isinstance(item, str | Path):
            yield str(item), read_file(Path(item))
            position += 1
        elif isinstance(item, bytes):
            yield str(position), item
            position += 1
        else:
            for tile in _tiles_of_array(item, options, position):
                yield tile.name, tile
                position += 1


def _checked(tiles: Tiles) -> Iterable[Any]:
    if not isinstance(tiles, Iterable):
        raise TileShapeError(f"{type(tiles).__name__} is neither a path nor an array nor a list of them")
    return tiles


def _tiles_of_array(item: Any, options: ReadOptions, position: int) -> Iterator[Tile]:
    """Yield the tiles of an array (bands, 64, 64) or (n, bands, 64, 64)."""
    values, bands, georeference = _open_array(item, options.bands)
    if values.ndim not in (3, 4) or values.shape[-3:] != (len(bands), TILE_SIZE, TILE_SIZE):
        raise TileShapeError(
            f"an array of {values.shape}; (n, {len(bands)}, {TILE_SIZE}, {TILE_SIZE}) or ({len(bands)}, "
            f"{TILE_SIZE}, "
            f"{TILE_SIZE}) is needed; name the bands of others with bands="
        )
    present, chosen = _known_bands(bands)
    for number, numbers in enumerate(values if values.ndim == 4 else values[None]):
        pixels = place_bands(array_to_dn(numbers[chosen], options), present)
        yield Tile(str(position + number), pixels, canonical_order(present), options.level, georeference)


def _known_bands(bands: Sequence[str]) -> tuple[tuple[str, ...], list[int]]:
    """Return the bands that are not left out, and their positions."""
    chosen = [index for index, name in enumerate(bands) if name != LEAVE_OUT]
    return tuple(bands[index] for index in chosen), chosen


def _open_array(
    item: Any, bands: tuple[str, ...] | None
) -> tuple[npt.NDArray[Any], tuple[str, ...], Georeference | None]:
    """Return an array's numbers (…, bands, height, width), its bands, and its georeference if it has one."""
    if not is_data_array(item):
        if not isinstance(item, np.ndarray):
            raise TileShapeError(f"{type(item).__name__} is neither a path nor an array nor a list of them")
        return item, bands or BAND_NAMES, None
    ordered, dimension, y, x = in_order(item)
    return ordered.values, bands or bands_of(ordered, dimension), georeference_of(ordered, y, x)


def _read_scene_result(
    folder: Path, name: str, classes: tuple[str, ...], files: tuple[Path, ...]
) -> SceneResult:
    import pyarrow.parquet as pq

    with rasterio.open(folder / f"{name}.classes.tif") as dataset:
        class_map, crs, transform = dataset.read(1), dataset.crs, dataset.transform
    return SceneResult(
        name, classes, class_map, pq.read_table(folder / f"{name}.windows.parquet"), crs, transform, files
    )
