"""Debian's own GDAL as a second opinion on where pixels lie; tests skip where it is not installed."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio

needs_gdal = pytest.mark.skipif(
    shutil.which("gdalwarp") is None, reason="gdalwarp is not installed (apt-get install gdal-bin)"
)


def gdal(*arguments: object, text: str | None = None) -> str:
    """Run a program of GDAL; return what it prints."""
    done = subprocess.run(
        [str(argument) for argument in arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def warped(source: Path, like: Any, kernel: str) -> npt.NDArray[Any]:
    """Return `gdalwarp`'s (bands, height, width) of a raster on the grid of an open scene, exactly."""
    target = source.with_name(f"{source.stem}.warped")
    left, top = like.georeference.transform.c, like.georeference.transform.f
    right, bottom = like.georeference.transform @ (like.width, like.height)
    extent = ("-te", left, bottom, right, top, "-ts", like.width, like.height)
    crs = ("-t_srs", f"EPSG:{like.georeference.crs.to_epsg()}")
    gdal(
        "gdalwarp", "-q", "-overwrite", "-of", "GTiff", "-et", 0, "-r", kernel, *crs, *extent, source, target
    )
    with rasterio.open(target) as dataset:
        return np.asarray(dataset.read())


def values_at(raster: Path, points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the values of a raster's first band at points of longitude and latitude, by gdallocationinfo."""
    lines = "\n".join(f"{x:.9f} {y:.9f}" for x, y in points)
    printed = gdal("gdallocationinfo", "-valonly", "-wgs84", "-b", 1, raster, text=lines + "\n")
    return [int(float(line)) for line in printed.split()]
