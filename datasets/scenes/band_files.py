"""Read a scene from one GeoTIFF, or from one file per band (`…_B02.tif`, `T29UNU_…_B8A_20m.jp2`).

Files belong to one scene where they are in one folder and have the same name but for the band. Of a band in
several resolutions the finest is read.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rasterio.io import DatasetReader

from tilewise.datasets.core.bands import LEAVE_OUT, find_band
from tilewise.datasets.core.errors import SceneError, TilewiseError, UnknownBandError
from tilewise.datasets.readers.geotiff import plan_reading
from tilewise.datasets.scenes.ground import grid_of
from tilewise.datasets.scenes.layers import (
    BandFile,
    CloudLayer,
    Layer,
    Parts,
    block_of,
    choose_mask,
    cloud_layer,
    in_canonical_order,
    layer_of_band,
)
from tilewise.datasets.scenes.offset import refuse_doubled_offset
from tilewise.datasets.scenes.options import CloudKind, CloudMask, SceneOptions
from tilewise.datasets.scenes.rasters import open_raster

_MASK_NAMES = {
    CloudKind.SCL: ("scl",),
    CloudKind.QA60: ("qa60",),
    CloudKind.PROBABILITY: ("probability", "cloudprobability", "mskcldprb", "cldprb", "cld", "cloud"),
}
_DATE = re.compile(r"(?<!\d)(20\d\d)-?(0[1-9]|1[0-2])-?([0-2]\d|3[01])(?:T(\d\d):?(\d\d):?(\d\d))?(?!\d)")
_PLATFORM = re.compile(r"(?:^|_)S2([A-D])_")
_NAME = re.compile(
    r"^(?P<head>(?:.*?[_\-. ])?)(?P<word>B(?:0?[1-9]|1[0-2]|0?8A)|SCL|QA60|(?:MSK_)?CLDPRB|CLD)"
    r"(?:[_\-.](?P<metres>\d\d)m)?$",
    re.IGNORECASE,
)
_UNKNOWN_METRES = 99  # a name with a resolution goes before one without


@dataclass(frozen=True, slots=True)
class NamedRaster:
    """A file's name, parsed: its scene, its band or mask (`word`), and its resolution in metres."""

    path: Path
    scene: str
    word: str
    metres: int


def read_stacked(path: Path, options: SceneOptions) -> Parts:
    """Return the parts of a scene in one GeoTIFF.

    Raises:
        TilewiseError: it cannot be opened, or its bands, radiometry or georeference are unknown.
    """
    with open_raster(path) as dataset:
        plan = in_canonical_order(plan_reading(dataset, path.name, options.read_options))
        layer = Layer(path, plan, grid_of(dataset, path.name), block_of(dataset))
        refuse_doubled_offset(path.name, [layer], options.read_options)
        taken = date_in(path.stem)
        clouds = choose_mask(path.name, options.clouds, taken, partial(mask_within, path, dataset))
    return Parts((layer,), clouds, plan.radiometry.level, taken, platform_in(path.stem))


def date_in(name: str) -> datetime | None:
    """Return the date, and the time if any, in a name: `2017-09-26`, `20221005T115411`."""
    match = _DATE.search(name)
    if match is None:
        return None
    try:
        return datetime(*(int(part or 0) for part in match.groups()), tzinfo=UTC)  # type: ignore[arg-type, misc]
    except ValueError:  # the 31st of February
        return None


def platform_in(name: str) -> str | None:
    """Return the satellite at the start of a product's name, in STAC's spelling: `sentinel-2a`."""
    match = _PLATFORM.search(name)
    return f"sentinel-2{match.group(1).lower()}" if match else None


def is_mask_name(text: str, kind: CloudKind) -> bool:
    """Return whether a band, file or asset named `text` is a cloud mask of this kind."""
    return re.sub(r"[^a-z0-9]", "", text.lower()) in _MASK_NAMES.get(kind, ())


def mask_within(path: Path, dataset: DatasetReader, mask: CloudMask) -> CloudLayer | None:
    """Return the cloud mask of this kind among the bands of an open GeoTIFF, None where it has none."""
    for index, description in enumerate(dataset.descriptions, start=1):
        if description and is_mask_name(description, mask.kind):
            return CloudLayer(path, (index,), mask, grid_of(dataset, path.name))
    return None


def parse_name(path: Path) -> NamedRaster | None:
    """Parse the name of a file, or return None where it names no band."""
    match = _NAME.match(path.stem)
    if match:
        return NamedRaster(
            path, match["head"].rstrip("_-. "), match["word"].upper(), int(match["metres"] or _UNKNOWN_METRES)
        )
    try:
        return NamedRaster(path, "", find_band(path.stem).name, _UNKNOWN_METRES)  # `blue.tif`
    except UnknownBandError:
        return None


def group_by_scene(paths: Iterable[Path]) -> dict[tuple[Path, str], tuple[Path, ...]]:
    """Return the files of each scene of one file per band, by folder and common name.

    A group of a single band, or whose first file has several bands, is left out: its files are scenes of
    their own.
    """
    groups: dict[tuple[Path, str], list[NamedRaster]] = defaultdict(list)
    for path in paths:
        if named := parse_name(path):
            groups[path.parent, named.scene].append(named)
    return {key: tuple(n.path for n in found) for key, found in groups.items() if _is_one_scene(found)}


def read_band_files(name: str, paths: Sequence[Path], options: SceneOptions) -> Parts:
    """Return the parts of a scene of one file per band.

    Raises:
        TilewiseError: a file cannot be opened, or its radiometry or georeference are unknown.
    """
    if options.read_options.bands and LEAVE_OUT in options.read_options.bands:
        raise SceneError(
            f"{name}: its files name their bands, so {LEAVE_OUT} has no effect; leave --bands out"
        )
    named = [found for path in paths if (found := parse_name(path))]
    files = _finest(named)
    if not files:
        raise SceneError(f"{name}: none of its files is a band of Sentinel-2")
    layers, level = [], None
    for band, path in files.items():
        layer, level = layer_of_band(BandFile(path, band, {}), name, tuple(files), options.read_options)
        layers.append(layer)
    refuse_doubled_offset(name, layers, options.read_options)
    first = next(iter(files.values())).stem
    taken = date_in(first)
    clouds = choose_mask(name, options.clouds, taken, partial(_mask_beside, named))
    return Parts(tuple(layers), clouds, level, taken, platform_in(first))


def _is_one_scene(found: Sequence[NamedRaster]) -> bool:
    bands = [named for named in found if _band_of(named.word)]
    if len({_band_of(named.word) for named in bands}) < 2:
        return False
    try:
        with open_raster(bands[0].path) as dataset:
            return dataset.count == 1
    except TilewiseError:
        return True  # one scene with a broken file, rather than many broken scenes


def _finest(named: Iterable[NamedRaster]) -> Mapping[str, Path]:
    ordered = sorted(named, key=lambda found: (-found.metres, found.path.name))
    return {band: found.path for found in ordered if (band := _band_of(found.word))}


def _band_of(word: str) -> str | None:
    try:
        return find_band(word).name
    except UnknownBandError:
        return None


def _mask_beside(named: Sequence[NamedRaster], mask: CloudMask) -> CloudLayer | None:
    found = [file for file in named if is_mask_name(file.word, mask.kind)]
    return cloud_layer(min(found, key=lambda file: file.metres).path, mask) if found else None
