"""A scene as one file per band in a folder: `…_B02.tif`, `T29UNU_20221005T115411_B8A_20m.jp2`, `blue.tif`.

Files belong to one scene where they stand in one folder and are called alike but for the band. Of a band in several
resolutions the finest is read.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.bands import LEAVE_OUT, find_band
from datasets.errors import SceneError, SentileError, UnknownBandError
from datasets.scenes.layers import BandFile, CloudLayer, Parts, cloud_layer, layer_of_band
from datasets.scenes.options import CloudKind, CloudMask, SceneOptions
from datasets.scenes.rasters import open_raster
from datasets.scenes.stacked import date_in, is_mask_name, no_mask, platform_in

_NAME = re.compile(
    r"^(?P<head>(?:.*?[_\-. ])?)(?P<word>B(?:0?[1-9]|1[0-2]|0?8A)|SCL|QA60|(?:MSK_)?CLDPRB|CLD)"
    r"(?:[_\-.](?P<metres>\d\d)m)?$",
    re.IGNORECASE,
)
_UNSAID = 99  # metres: a name that says its resolution goes before one that does not


@dataclass(frozen=True, slots=True)
class NamedRaster:
    """What a file's name says: which scene it belongs to, which band or mask it is, and its resolution in metres."""

    path: Path
    scene: str
    word: str
    metres: int


def parse_name(path: Path) -> NamedRaster | None:
    """Return what the name of a file says, or None where it names no band."""
    match = _NAME.match(path.stem)
    if match:
        return NamedRaster(path, match["head"].rstrip("_-. "), match["word"].upper(), int(match["metres"] or _UNSAID))
    try:
        return NamedRaster(path, "", find_band(path.stem).name, _UNSAID)  # `blue.tif`
    except UnknownBandError:
        return None


def group_by_scene(paths: Iterable[Path]) -> dict[tuple[Path, str], tuple[Path, ...]]:
    """Return the files of each scene of one file per band, by folder and common name.

    A group of one band is none, nor is one whose first file has more than one band: those are scenes by themselves.
    """
    groups: dict[tuple[Path, str], list[NamedRaster]] = defaultdict(list)
    for path in paths:
        if named := parse_name(path):
            groups[path.parent, named.scene].append(named)
    return {key: tuple(n.path for n in found) for key, found in groups.items() if _is_one_scene(found)}


def read_band_files(name: str, paths: Sequence[Path], options: SceneOptions) -> Parts:
    """Return the parts of a scene of one file per band.

    Raises:
        SentileError: a file cannot be opened, or nobody says its radiometry or place.
    """
    if options.said.bands and LEAVE_OUT in options.said.bands:
        raise SceneError(f"{name}: its files name their bands, so {LEAVE_OUT} leaves none out; leave --bands out")
    named = [found for path in paths if (found := parse_name(path))]
    files = _finest(named)
    if not files:
        raise SceneError(f"{name}: none of its files is a band of Sentinel-2")
    layers, level = [], None
    for band, path in files.items():
        layer, level = layer_of_band(BandFile(path, band, {}), name, tuple(files), options.said)
        layers.append(layer)
    first = next(iter(files.values())).stem
    clouds = _mask_beside(name, named, options.clouds)
    return Parts(tuple(layers), clouds, level, date_in(first), platform_in(first))


def _is_one_scene(found: Sequence[NamedRaster]) -> bool:
    bands = [named for named in found if _band_of(named.word)]
    if len({_band_of(named.word) for named in bands}) < 2:
        return False
    try:
        with open_raster(bands[0].path) as dataset:
            return dataset.count == 1
    except SentileError:
        return True  # one scene with a broken file, rather than many broken scenes


def _finest(named: Iterable[NamedRaster]) -> Mapping[str, Path]:
    ordered = sorted(named, key=lambda found: (-found.metres, found.path.name))
    return {band: found.path for found in ordered if (band := _band_of(found.word))}


def _band_of(word: str) -> str | None:
    try:
        return find_band(word).name
    except UnknownBandError:
        return None


def _mask_beside(name: str, named: Sequence[NamedRaster], mask: CloudMask | None) -> CloudLayer | None:
    if mask is None or mask.kind is CloudKind.FILE:
        return None
    found = [file for file in named if is_mask_name(file.word, mask.kind)]
    if not found:
        raise no_mask(name, mask)
    return cloud_layer(min(found, key=lambda file: file.metres).path, mask)
