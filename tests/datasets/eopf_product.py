"""A small product in EOPF Zarr: the groups, names and attributes of ESA's sample service, Zarr version 2."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from scene_files import CORNER, CRS, native

from tilewise.datasets.core.bands import BAND_NAMES, BANDS

_OFFSET = 1000  # DN of reflectance 0, since processing baseline 04.00
_AS_REFLECTANCE = {"scale_factor": 0.0001, "add_offset": -_OFFSET / 10_000, "_FillValue": 0}
NAME = "S2B_MSIL2A_20260701T103629_N0512_R008_T32TLQ.zarr"


def write_eopf(path: Path, pixels: npt.NDArray[np.uint16]) -> Path:
    """Write DN (13, height, width) as a Level-2A product at CORNER, whose upper left 640 m are clouded."""
    properties = {"datetime": "2026-07-01T10:36:29.024Z", "proj:code": CRS, "processing:level": "L2A"}
    attributes = {
        "other_metadata": {"horizontal_CRS_code": CRS},
        "stac_discovery": {"properties": properties},
    }
    groups = {"/": xr.Dataset(attrs=attributes)}
    for metres in (10, 20, 60):
        names = [band.name for band in BANDS if band.resolution_m == metres and band.name != "B10"]
        layers = {name.lower(): _in_own_resolution(pixels, name) for name in names}
        height, width = next(iter(layers.values())).shape
        coords = _coordinates(metres, height, width)
        groups[f"/measurements/reflectance/r{metres}m"] = _group(layers, coords, _AS_REFLECTANCE)
        if metres == 20:
            scl = np.full((height, width), 4, np.uint8)
            scl[:32, :32] = 9
            probability = np.where(scl == 9, np.uint8(80), np.uint8(10))
            groups["/conditions/mask/l2a_classification/r20m"] = _group({"scl": scl}, coords)
            groups["/quality/probability/r20m"] = _group({"cld": probability}, coords)
    xr.DataTree.from_dict(groups).to_zarr(path, zarr_format=2)
    return path


def _group(
    layers: Mapping[str, npt.NDArray[Any]],
    coords: Mapping[str, npt.NDArray[np.float64]],
    attributes: Mapping[str, float] | None = None,
) -> xr.Dataset:
    return xr.Dataset({name: (("y", "x"), layer, attributes) for name, layer in layers.items()}, coords)


def _in_own_resolution(pixels: npt.NDArray[np.uint16], band: str) -> npt.NDArray[np.uint16]:
    return native(pixels[BAND_NAMES.index(band)], band)[0] + np.uint16(_OFFSET)


def _coordinates(metres: int, height: int, width: int) -> dict[str, npt.NDArray[np.float64]]:
    west, north = CORNER
    return {
        "x": west + metres * (np.arange(width) + 0.5),
        "y": north - metres * (np.arange(height) + 0.5),
    }
