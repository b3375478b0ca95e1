"""A scene in one GeoTIFF whose bands have names, or are named by the user; masks may stand among them."""

import re
from datetime import UTC, datetime
from pathlib import Path

from rasterio.io import DatasetReader

from datasets.errors import SceneError
from datasets.geotiff import plan_reading
from datasets.scenes.ground import grid_of
from datasets.scenes.layers import CloudLayer, Layer, Parts, block_of, in_canonical_order
from datasets.scenes.options import CloudKind, CloudMask, SceneOptions
from datasets.scenes.rasters import open_raster

_MASK_NAMES = {
    CloudKind.SCL: ("scl",),
    CloudKind.QA60: ("qa60",),
    CloudKind.PROBABILITY: ("probability", "cloudprobability", "mskcldprb", "cldprb", "cld", "cloud"),
}
_DATE = re.compile(r"(?<!\d)(20\d\d)-?(0[1-9]|1[0-2])-?([0-2]\d|3[01])(?:T(\d\d):?(\d\d):?(\d\d))?(?!\d)")
_PLATFORM = re.compile(r"(?:^|_)S2([A-D])_")


def read_stacked(path: Path, options: SceneOptions) -> Parts:
    """Return the parts of a scene in one GeoTIFF.

    Raises:
        SentileError: it cannot be opened, or does not say its bands, its radiometry or its place.
    """
    with open_raster(path) as dataset:
        plan = in_canonical_order(plan_reading(dataset, path.name, options.said))
        layer = Layer(path, plan, grid_of(dataset, path.name), block_of(dataset))
        clouds = _mask_within(path, dataset, options.clouds)
    return Parts((layer,), clouds, plan.radiometry.level, date_in(path.stem), platform_in(path.stem))


def date_in(name: str) -> datetime | None:
    """Return the date, and the time where there is one, that a name holds: `2017-09-26`, `20221005T115411`."""
    match = _DATE.search(name)
    if match is None:
        return None
    try:
        return datetime(*(int(part or 0) for part in match.groups()), tzinfo=UTC)  # type: ignore[arg-type, misc]
    except ValueError:  # the 31st of February
        return None


def platform_in(name: str) -> str | None:
    """Return the satellite that a product's name begins with, as STAC writes it: `sentinel-2a`."""
    match = _PLATFORM.search(name)
    return f"sentinel-2{match.group(1).lower()}" if match else None


def is_mask_name(text: str, kind: CloudKind) -> bool:
    """Say whether a band, file or asset called `text` is a cloud mask of this kind."""
    return re.sub(r"[^a-z0-9]", "", text.lower()) in _MASK_NAMES.get(kind, ())


def _mask_within(path: Path, dataset: DatasetReader, mask: CloudMask | None) -> CloudLayer | None:
    if mask is None or mask.kind is CloudKind.FILE:
        return None
    for index, description in enumerate(dataset.descriptions, start=1):
        if description and is_mask_name(description, mask.kind):
            return CloudLayer(path, (index,), mask, grid_of(dataset, path.name))
    raise no_mask(path.name, mask)


def no_mask(name: str, mask: CloudMask) -> SceneError:
    """Return the error of a scene without the cloud mask that was asked for."""
    return SceneError(
        f"{name}: it has no {mask.kind.value.upper()} to tell its clouds by; name a mask of your own "
        "(--clouds file:{stem}_clouds.tif), or leave --clouds out"
    )
