"""Whether the offset of ESA's products since baseline 04.00 is still in the numbers, by evidence.

Taken off twice, it makes a third of a scene black and nothing fails. A number below 1,000 can hardly occur
while the offset is in: it means a negative reflectance. So the dark end of the numbers contradicts metadata
that claim an offset which was taken off already. The opposite cannot be seen: bright land without the offset
looks like darker land with it.
"""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from rasterio.errors import RasterioError
from rasterio.windows import Window

from tilewise.datasets.core.errors import RadiometryUnknownError, UnreadableImageError
from tilewise.datasets.core.radiometry import BASELINE_OFFSET, FIRST_OFFSET_BASELINE, ReadOptions
from tilewise.datasets.readers.geotiff import valid_numbers
from tilewise.datasets.scenes.layers import Layer, in_utc
from tilewise.datasets.scenes.rasters import is_remote, name_of, open_raster, scene_gdal

_LOG = logging.getLogger("tilewise")
DARK_BANDS = ("B04", "B03", "B02", "B08")  # of 10 m, best first: red is dark over plants and water
_NORMAL, _TOO_MANY = 0.005, 0.05  # fraction of numbers below 1,000 while the offset is in
_SAMPLES, _SIDE = 5, 64  # squares along each axis, and pixels a side of each
_FIRST_DAY = datetime.fromisoformat("2022-01-25T00:00:00+00:00")
_OLD_COLLECTION = "sentinel-s2-l2a-cogs"  # of Earth Search v0
_COLLECTION_1 = "sentinel-2-c1-l2a"  # of Earth Search v1: ESA's numbers as they are
_FLAGS = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")
_BASELINES = ("s2:processing_baseline", "processing:version", "sentinel:processing_baseline")


def refuse_doubled_offset(name: str, layers: Sequence[Layer], options: ReadOptions) -> None:
    """Check that an offset which metadata claim is still in the numbers; `options.offset` is not checked.

    Raises:
        RadiometryUnknownError: more than a twentieth of the sampled numbers would become negative.
        UnreadableImageError: a server does not answer.
    """
    if options.offset is not None:
        return
    with_offset = [layer for layer in layers if abs(layer.plan.radiometry.offset - BASELINE_OFFSET) < 1]
    below = dark_fraction(with_offset) or 0.0
    if below > _TOO_MANY:
        raise RadiometryUnknownError(
            f"{name}: its metadata say that {-BASELINE_OFFSET:g} has to be taken off, but "
            f"{100 * below:.0f} % of its numbers are smaller: it was taken off already, it seems; choose "
            f"with --offset 0 or --offset {BASELINE_OFFSET:g}"
        )
    if below > _NORMAL:
        _LOG.warning(
            "%s: %.1f %% of its numbers are below the offset of %g that is taken off; if it was taken off "
            "already, give --offset 0",
            *(name, 100 * below, -BASELINE_OFFSET),
        )


def dark_fraction(layers: Sequence[Layer]) -> float | None:
    """Return the fraction (0-1) of the numbers of the darkest 10 m band that are below 1,000.

    Squares all over the raster are looked at. None: the layers have no such band.

    Raises:
        UnreadableImageError: a server does not answer. Squares of a file that cannot be decoded are left out.
    """
    by_band = {band: layer for layer in layers for band in layer.plan.bands}
    band = next((band for band in DARK_BANDS if band in by_band), None)
    if band is None:
        return None
    source, plan = by_band[band].source, by_band[band].plan
    index = plan.indexes[plan.bands.index(band)]
    below = count = 0
    with scene_gdal(remote=is_remote(source)), open_raster(source) as dataset:
        for row in np.linspace(0, max(dataset.height - _SIDE, 0), _SAMPLES, dtype=int).tolist():
            for column in np.linspace(0, max(dataset.width - _SIDE, 0), _SAMPLES, dtype=int).tolist():
                window = Window(column, row, *(min(_SIDE, side) for side in (dataset.width, dataset.height)))
                try:
                    numbers = dataset.read(index, window=window)
                except RasterioError as error:
                    if is_remote(source):
                        raise UnreadableImageError(
                            f"{name_of(source)}: the server does not answer"
                        ) from error
                    continue
                valid = valid_numbers(numbers, plan.no_data)
                below += int((numbers[valid] < -BASELINE_OFFSET).sum())
                count += int(valid.sum())
    return below / max(count, 1)


def is_earth_search(collection: str | None, properties: Mapping[str, Any]) -> bool:
    """Return whether an item is one of Earth Search's Level-2A whose offset may have been taken off.

    Their pipeline took it off, except from the first days of baseline 04.00, and marked items wrongly:
    https://github.com/Element84/earth-search/issues/66 and 71, cirrus-geo/cirrus-earth-search issue 33.
    """
    if collection == _COLLECTION_1:
        return False
    return collection == _OLD_COLLECTION or any(flag in properties for flag in _FLAGS)


def earth_search_offset(
    name: str,
    collection: str | None,
    properties: Mapping[str, Any],
    taken: datetime | None,
    below: float | None,
) -> float:
    """Return the offset that is still in the numbers of an item of Earth Search: always 0, or an error.

    Args:
        name: of the item.
        collection: of the item.
        properties: of the item.
        taken: acquisition time.
        below: fraction of the numbers that are below 1,000, as `dark_fraction` returns it.

    Raises:
        RadiometryUnknownError: the item says that the offset is still in, and its numbers do not contradict.
    """
    if any(properties.get(flag) is True for flag in _FLAGS):
        return 0.0
    baseline = _baseline(properties)
    if baseline is not None and baseline < FIRST_OFFSET_BASELINE:
        return 0.0
    if baseline is None and collection == _OLD_COLLECTION and taken and in_utc(taken) < _FIRST_DAY:
        return 0.0
    if below is not None and below > _TOO_MANY:
        _LOG.warning(
            "%s: its metadata say that the offset was not taken off, but %.0f %% of its numbers are below "
            "%g: taken as done (https://github.com/Element84/earth-search/issues/71)",
            *(name, 100 * below, -BASELINE_OFFSET),
        )
        return 0.0
    raise RadiometryUnknownError(
        f"{name}: Earth Search says that the offset was not taken off, which is often wrong, and its numbers "
        "do not tell; choose with --offset 0 (taken off: most items since February 2022) or --offset "
        f"{BASELINE_OFFSET:g}, or take the item of collection {_COLLECTION_1}"
    )


def _baseline(properties: Mapping[str, Any]) -> float | None:
    for key in _BASELINES:
        try:
            return float(properties[key])
        except (KeyError, TypeError, ValueError):
            continue
    return None
