"""Render HTML pages of tiles for review: pictures embedded, styles inline, no request to any server.

A page that only shows has no script; the review page has one, which its content security policy allows by its
hash.
"""

import base64
import hashlib
import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from tilewise.datasets.core.pictures import composite, true_colour
from tilewise.datasets.core.tile import Tile

VEGETATION_RED = ("B08", "B04", "B03")
_ZOOM = 3
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_SIGNATURE = '--reviewer YOU --why "…"'
_TEMPLATES = Path(__file__).parent / "templates"
_JINJA = Environment(
    loader=FileSystemLoader(_TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


@dataclass(frozen=True, slots=True)
class SheetTile:
    """One tile on a page: its name, a PNG, lines of text, and how it is decided on.

    Attributes:
        name: the tile's name.
        png: its picture, as `tile_png` makes it.
        lines: text below the picture.
        command: words of a command to type, or
        choices: (value, text) of the buttons on the page itself.
    """

    name: str
    png: bytes
    lines: tuple[str, ...]
    command: tuple[str, ...] = ()
    choices: tuple[tuple[str, str], ...] = ()

    @property
    def base64(self) -> str:
        """The PNG in base64."""
        return base64.b64encode(self.png).decode()

    @property
    def command_line(self) -> str:
        """The command with quotes around hostile words, as a shell takes it."""
        return f"{shlex.join(self.command)} {_SIGNATURE}"


def render_sheet(title: str, advice: str, tiles: Sequence[SheetTile]) -> str:
    """Return a page of tiles as HTML. Names are hostile: they are escaped for HTML and for the shell."""
    page = _JINJA.get_template("contact_sheet.html")
    return page.render(policy=_POLICY, title=title, advice=advice, tiles=tiles)


def render_review(title: str, advice: str, tiles: Sequence[SheetTile], file: str) -> str:
    """Return a page on which tiles are labelled, as HTML; it saves the decisions as a CSV named `file`."""
    script = (_TEMPLATES / "review.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _JINJA.get_template("review.html").render(
        policy=f"{_POLICY}; script-src 'sha256-{digest}'",
        title=title,
        advice=advice,
        tiles=tiles,
        file=file,
        script=Markup(script),  # noqa: S704 - it is our own file
    )


def tile_png(tile: Tile) -> bytes:
    """Return an enlarged PNG of a tile: true colour and, where it has B08, vegetation in red beside it."""
    views = [true_colour(tile)]
    if set(VEGETATION_RED) <= set(tile.bands):
        views.append(composite(tile, VEGETATION_RED))
    picture = Image.fromarray(np.concatenate(views, axis=1))
    large = picture.resize((picture.width * _ZOOM, picture.height * _ZOOM), Image.Resampling.NEAREST)
    with io.BytesIO() as file:
        large.save(file, format="PNG", optimize=True)
        return file.getvalue()
