"""A small product in EOPF Zarr: the groups, names and attributes of ESA's sample service, Zarr version 2."""

from pathlib import Path

import numpy as np
import rasterio
import xarray as xr

_METRES = {
    10: ("B02", "B03", "B04", "B08"),
    20: ("B05", "B06", "B07", "B8A", "B11", "B12"),
    60: ("B01", "B09"),
}
_OFFSET = 1000  # DN of reflectance 0, since processing baseline 04.00


def write_eopf(scene: Path, path: Path) -> Path:
    """Write the bands of a GeoTIFF of DN as a Level-2A product, whose upper left 640 m are clouded."""
    with rasterio.open(scene) as dataset:
        pixels = dict(zip(dataset.descriptions, dataset.read(), strict=True))
        corner, epsg = dataset.transform, dataset.crs.to_epsg()
    other = {"horizontal_CRS_code": f"EPSG:{epsg}"}
    item = {"properties": {"proj:code": f"EPSG:{epsg}", "processing:level": "L2A"}}
    groups = {"/": xr.Dataset(attrs={"other_metadata": other, "stac_discovery": item})}
    for metres, bands in _METRES.items():
        step = metres // 10
        layers = {
            name.lower(): (
                ("y", "x"),
                _coarser(pixels[name], step),
                {"scale_factor": 0.0001, "add_offset": -_OFFSET / 10_000, "_FillValue": 0},
            )
            for name in bands
        }
        height, width = next(iter(layers.values()))[1].shape
        coords = _coordinates(corner.c, corner.f, metres, height, width)
        groups[f"/measurements/reflectance/r{metres}m"] = xr.Dataset(layers, coords)
        if metres == 20:
            scl = np.full((height, width), 4, np.uint8)
            scl[:32, :32] = 9
            groups["/conditions/mask/l2a_classification/r20m"] = xr.Dataset(
                {"scl": (("y", "x"), scl)}, coords
            )
    xr.DataTree.from_dict(groups).to_zarr(path, zarr_format=2)
    return path


def _coarser(band: np.ndarray, step: int) -> np.ndarray:
    height, width = (size // step * step for size in band.shape)
    parts = band[:height, :width].reshape(height // step, step, width // step, step)
    return (parts.mean((1, 3)).round() + _OFFSET).astype(np.uint16)


def _coordinates(west: float, north: float, metres: int, height: int, width: int) -> dict[str, np.ndarray]:
    return {
        "x": west + metres * (np.arange(width) + 0.5),
        "y": north - metres * (np.arange(height) + 0.5),
    }
