"""The options by which command lines say how scenes are read."""

from collections.abc import Callable
from typing import Any

import click

from datasets.command import make_statement, statement_options, with_options
from datasets.scenes.options import SceneOptions, parse_clouds


def scene_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --bands, --level, --scale, --offset, --clouds, --warp and --quick-fingerprint."""
    options = (
        click.option(
            "--clouds",
            default="none",
            show_default=True,
            help="Pixels that are clouds, and so no data: scl, qa60, probability, probability:40 (percent), "
            "file:{stem}_clouds.tif:40 (from the scene's folder).",
        ),
        click.option(
            "--warp",
            is_flag=True,
            help="Bring scenes in degrees, or far from 10 m, to 10 m in their UTM zone; without it they are refused.",
        ),
        click.option(
            "--quick-fingerprint",
            is_flag=True,
            help="Know files by size, time, head and tail instead of all their bytes.",
        ),
    )
    return statement_options(with_options(command, options))


def make_scene_options(
    *,
    bands: str | None = None,
    level: str | None = None,
    scale: float | None = None,
    offset: float | None = None,
    clouds: str = "none",
    warp: bool = False,
    quick_fingerprint: bool = False,
) -> SceneOptions:
    """Return what was said by the options of `scene_options`.

    Raises:
        UnknownBandError: a band name that Sentinel-2 does not have.
        RadiometryUnknownError: a scale or offset that cannot be.
        SceneError: a cloud mask that is none.
    """
    said = make_statement(bands, level, scale, offset)
    return SceneOptions(said, parse_clouds(clouds), warp, quick_fingerprint)
