"""Read xarray's DataArrays and Datasets: bands, pixels and place. xarray itself is no dependency."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.crs import CRS
from rasterio.windows import Window

from tilewise.bento.inference.uploads import array_to_dn
from tilewise.datasets.core.bands import LEAVE_OUT, band_of_description, parse_bands
from tilewise.datasets.core.errors import BandsUnknownError, TileShapeError
from tilewise.datasets.core.radiometry import QUANTIFICATION, ReadOptions
from tilewise.datasets.core.tile import Georeference

_BAND_DIMENSIONS = ("band", "bands", "wavelength")
_MASK = "SCL"  # the scene classification, which a scene's clouds are read from
_ROWS = 1024  # that are computed at a time, where they are computed lazily


def is_data_array(item: Any) -> bool:
    """Whether `item` is an xarray.DataArray, by its attributes."""
    return all(hasattr(item, name) for name in ("dims", "coords", "values", "transpose"))


def is_dataset(item: Any) -> bool:
    """Whether `item` is an xarray.Dataset, by its attributes."""
    return all(hasattr(item, name) for name in ("data_vars", "coords", "to_dataarray"))


def in_order(array: Any) -> tuple[Any, str, str, str]:
    """Return a DataArray with the dimensions (…, bands, y, x), and what those are called.

    Raises:
        BandsUnknownError: no dimension is called `band`.
    """
    bands = next((name for name in _BAND_DIMENSIONS if name in array.dims), None)
    if bands is None:
        raise BandsUnknownError(f"a DataArray with the dimensions {array.dims}; one called `band` is needed")
    y, x = (name for name in array.dims[-3:] if name != bands)
    return array.transpose(..., bands, y, x), bands, y, x


def bands_of(array: Any, dimension: str) -> tuple[str, ...]:
    """Return the bands that a DataArray names: by its coordinate, or by rioxarray's `long_name`.

    Raises:
        BandsUnknownError: it names none.
    """
    labels = [str(label) for label in array.coords[dimension].values] if dimension in array.coords else []
    described = array.attrs.get("long_name", ())
    candidates = (labels, list(described) if isinstance(described, tuple | list) else [])
    for texts in candidates:
        names = [band_of_description(text) for text in texts]
        if names and all(names):
            return parse_bands([name for name in names if name])
    raise BandsUnknownError(
        f"the DataArray's coordinate {dimension!r} does not name Sentinel-2 bands; name them with bands="
    )


def georeference_of(array: Any, y: str, x: str) -> Georeference | None:
    """Return the georeference of a DataArray or Dataset, from its coordinates and its CRS, or None."""
    crs = _crs_of(array)
    if crs is None or not {x, y} <= set(array.coords) or min(array.sizes[x], array.sizes[y]) < 2:
        return None
    xs, ys = (np.asarray(array.coords[name].values, np.float64) for name in (x, y))
    step_x, step_y = (xs[-1] - xs[0]) / (len(xs) - 1), (ys[-1] - ys[0]) / (len(ys) - 1)
    transform = rasterio.transform.from_origin(xs[0] - step_x / 2, ys[0] - step_y / 2, step_x, -step_y)
    return Georeference(crs, transform)


def _crs_of(array: Any) -> CRS | None:
    reference = array.coords["spatial_ref"].attrs if "spatial_ref" in array.coords else {}
    for given in (
        getattr(getattr(array, "rio", None), "crs", None),
        reference.get("crs_wkt") or reference.get("spatial_ref"),
        array.attrs.get("crs"),
        int(array.coords["epsg"].values) if "epsg" in array.coords else None,
    ):
        if given:
            return CRS.from_user_input(given)
    return None


def write_scene(scene: Any, options: ReadOptions, folder: Path) -> tuple[Path, ReadOptions]:
    """Write a DataArray (band, y, x), or a Dataset with a variable (y, x) for each band, as a GeoTIFF of DN.

    Lazy arrays are computed band by band, some rows at a time. A variable or band called SCL is written
    as it is, and masks clouds.

    Returns:
        The path of the file in `folder`, and how to read it.

    Raises:
        BandsUnknownError: no band is named.
        TileShapeError: it is no scene, or has no coordinates or CRS.
    """
    layers, y, x = _layers_of_dataset(scene) if is_dataset(scene) else _layers_of_array(scene, options)
    georeference = georeference_of(scene, y, x)
    if georeference is None:
        raise TileShapeError(
            f"{dict(scene.sizes)}; a scene is (band, y, x), or a Dataset of bands (y, x), with coordinates "
            "x, y and a CRS"
        )
    path = folder / f"{getattr(scene, 'name', None) or 'scene'}.tif"
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype="uint16",
        count=len(layers),
        nodata=0,
        tiled=True,
        bigtiff="IF_SAFER",
        height=scene.sizes[y],
        width=scene.sizes[x],
        crs=georeference.crs,
        transform=georeference.transform,
    ) as file:
        for index, (name, layer) in enumerate(layers, start=1):
            for window, numbers in _rows_of(layer, y):
                pixels = _mask_of(numbers) if name == _MASK else array_to_dn(numbers, options)
                file.write(pixels, index, window=window)
        file.descriptions = tuple(name for name, _ in layers)
    return path, ReadOptions(None, options.level, 1 / QUANTIFICATION, 0.0)


def _layers_of_array(array: Any, options: ReadOptions) -> tuple[list[tuple[str, Any]], str, str]:
    ordered, dimension, y, x = in_order(array)
    if ordered.ndim != 3:
        raise TileShapeError(f"a DataArray of {dict(array.sizes)}; a scene is (band, y, x)")
    names = options.bands or bands_of(ordered, dimension)
    layers = [(name, ordered.isel({dimension: place})) for place, name in enumerate(names)]
    return [layer for layer in layers if layer[0] != LEAVE_OUT], y, x


def _layers_of_dataset(dataset: Any) -> tuple[list[tuple[str, Any]], str, str]:
    """Return the variables that are named as bands, and the mask if there is one."""
    variables = {str(name): layer for name, layer in dataset.data_vars.items()}
    named = [(band_of_description(name), layer) for name, layer in variables.items()]
    layers = [(band, layer) for band, layer in named if band]
    if not layers:
        raise BandsUnknownError(
            "no variable of the Dataset is named as a band of Sentinel-2 (b02, red, nir, …); it has "
            f"{', '.join(variables)[:200] or 'none'}"
        )
    parse_bands([band for band, _ in layers])  # refuses a band that is there twice
    y, x = layers[0][1].dims[-2:]
    flat = [name for name, layer in layers if layer.dims != (y, x)]
    if flat:
        raise TileShapeError(f"the variable of {flat[0]} is not ({y}, {x}); choose one date, and one grid")
    masks = [(_MASK, layer) for name, layer in variables.items() if name.upper() == _MASK]
    return [*layers, *masks], y, x


def _mask_of(numbers: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    return np.nan_to_num(numbers).astype(np.uint16)


def _rows_of(layer: Any, y: str) -> Iterator[tuple[Window, Any]]:
    height, width = layer.shape
    for row in range(0, height, _ROWS):
        part = layer.isel({y: slice(row, row + _ROWS)}).values
        yield Window(0, row, width, len(part)), part
