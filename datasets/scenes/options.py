"""How scenes are read: cloud masks, resampling, file settings, and the command-line options for them."""

from dataclasses import dataclass, field
from enum import StrEnum

import click

from tilewise.datasets.core.console import READ_OPTIONS, make_read_options, option_group
from tilewise.datasets.core.errors import SceneError
from tilewise.datasets.core.radiometry import ReadOptions
from tilewise.datasets.scenes.area import Area


class CloudKind(StrEnum):
    """Kind of a cloud mask."""

    AUTO = "auto"
    SCL = "scl"
    QA60 = "qa60"
    PROBABILITY = "probability"
    FILE = "file"
    PIXELS = "pixels"


@dataclass(frozen=True, slots=True)
class CloudMask:
    """The mask of pixels that are clouds, and so no data.

    Attributes:
        kind: AUTO: the first of SCL, probability and QA60 that the scene has, else PIXELS. SCL: the scene
            classification of Level-2A: its classes 3 (cloud shadow), 8, 9 (cloud) and 10
            (thin cirrus). QA60 of Google's catalogue: bits 10 and 11, or MSK_CLASSI of Level-1C products.
            PROBABILITY: a probability in percent that comes with the scene. FILE: a file of one's own beside
            it. PIXELS: clouds are found in the pixels themselves (`tilewise.datasets.scenes.clouds`).
        percent: probabilities from here up are clouds (0-100).
        pattern: of FILE: the file's path from the scene's folder; `{stem}` stands for the scene's file stem.
    """

    kind: CloudKind = CloudKind.AUTO
    percent: float = 50.0
    pattern: str = ""


@dataclass(frozen=True, slots=True)
class SceneOptions:
    """How scenes are read.

    Attributes:
        read_options: bands and radiometry that files do not declare.
        clouds: which pixels are clouds, and so no data; None: all are kept.
        warp: bring scenes that are in degrees, or not near 10 m, to 10 m in their UTM zone; else they are
            refused.
        quick_fingerprint: know a local file by its size, time, head and tail, and not by all its bytes.
        area: where scenes are read and classified; None: everywhere.
    """

    read_options: ReadOptions = field(default_factory=ReadOptions)
    clouds: CloudMask | None = field(default_factory=CloudMask)
    warp: bool = False
    quick_fingerprint: bool = False
    area: Area | None = None


def parse_clouds(text: str) -> CloudMask | None:
    """Parse `auto`, `none`, `scl`, `qa60`, `probability:40`, `pixels` or `file:{stem}_clouds.tif:40`.

    Raises:
        SceneError: it is none of these, or the percentage is not a number from 0 to 100.
    """
    kind, _, rest = text.strip().partition(":")
    if kind.lower() == "none" and not rest:
        return None
    try:
        known = CloudKind(kind.lower())
    except ValueError:
        raise _invalid(text) from None
    if known is CloudKind.FILE:
        pattern, _, tail = rest.rpartition(":")
        pattern, tail = (pattern, tail) if pattern and _is_number(tail) else (rest, "")
        if not pattern:
            raise _invalid(text)
        return CloudMask(known, _percent(tail, text), pattern)
    if rest and known is not CloudKind.PROBABILITY:
        raise _invalid(text)
    return CloudMask(known, _percent(rest, text))


def _percent(text: str, whole: str) -> float:
    if not text:
        return CloudMask(CloudKind.PROBABILITY).percent
    if not _is_number(text) or not 0 <= float(text) <= 100:
        raise _invalid(whole)
    return float(text)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()


def _invalid(text: str) -> SceneError:
    return SceneError(
        f"{text!r} is not a cloud mask; use auto, none, scl, qa60, probability, probability:40 (percent), "
        "pixels or file:{stem}_clouds.tif:40"
    )


def make_scene_options(
    *,
    bands: str | None = None,
    level: str | None = None,
    scale: float | None = None,
    offset: float | None = None,
    clouds: str = CloudKind.AUTO.value,
    warp: bool = False,
    quick_fingerprint: bool = False,
) -> SceneOptions:
    """Return the options that command-line options state.

    Raises:
        UnknownBandError: a band name that Sentinel-2 does not have.
        RadiometryUnknownError: an impossible scale or offset.
        SceneError: `clouds` is not a cloud mask.
    """
    overrides = make_read_options(bands, level, scale, offset)
    return SceneOptions(overrides, parse_clouds(clouds), warp, quick_fingerprint)


SCENE_OPTIONS = (
    *READ_OPTIONS,
    click.option(
        "--clouds",
        "clouds",
        default=CloudKind.AUTO.value,
        show_default=True,
        help="Cloud mask, whose pixels become no data: scl, qa60, probability, probability:40 (percent), "
        "file:{stem}_clouds.tif:40 (from the scene's folder), pixels (found in the bands), none. auto: the "
        "first of scl, probability and qa60 that the scene has, else pixels.",
    ),
    click.option(
        "--warp",
        "warp",
        is_flag=True,
        help="Resample scenes in degrees, or far from 10 m, to 10 m in their UTM zone; without it they are "
        "refused.",
    ),
    click.option(
        "--quick-fingerprint",
        "quick_fingerprint",
        is_flag=True,
        help="Identify files by size, time, head and tail instead of all their bytes.",
    ),
)
scene_options = option_group("reading", make_scene_options, SCENE_OPTIONS)
"""Add the options of `SCENE_OPTIONS`, as one argument `reading` of type SceneOptions."""
