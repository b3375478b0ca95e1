"""A page of pictures for review: it holds its pictures, styles itself and asks no server for anything."""

import base64
import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image

from datasets.pictures import composite, true_colour
from datasets.tile import Tile

VEGETATION_RED = ("B08", "B04", "B03")
_ZOOM = 3

_STYLE = """
:root { color-scheme: light; --ink: #1e2428; --faint: #66727a; --line: #dde3e6; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem } p { margin: 0 } .faint { color: var(--faint); max-width: 50rem }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 1rem; margin-top: 1.5rem }
figure { margin: 0; border: 1px solid var(--line); border-radius: 4px; padding: .7rem }
img { max-width: 100%; display: block; image-rendering: pixelated } figcaption { overflow-wrap: anywhere }
b { display: block; margin-top: .5rem } code { font-size: .8rem; display: block; margin-top: .4rem }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_SIGNED = '--reviewer YOU --why "…"'


@dataclass(frozen=True, slots=True)
class Card:
    """One tile on the page: its name, a PNG, lines of text, and the words of the command that decides on it."""

    name: str
    png: bytes
    words: tuple[str, ...]
    command: tuple[str, ...]


def picture_of(tile: Tile) -> bytes:
    """Return a PNG of a tile, enlarged: in true colour and, where it has B08, with vegetation in red beside it."""
    views = [true_colour(tile)]
    if set(VEGETATION_RED) <= set(tile.bands):
        views.append(composite(tile, VEGETATION_RED))
    picture = Image.fromarray(np.concatenate(views, axis=1))
    large = picture.resize((picture.width * _ZOOM, picture.height * _ZOOM), Image.Resampling.NEAREST)
    with io.BytesIO() as file:
        large.save(file, format="PNG", optimize=True)
        return file.getvalue()


def draw_sheet(title: str, advice: str, cards: Sequence[Card]) -> str:
    """Return the page as HTML. Names are of files, and so hostile: they are escaped for HTML and for the shell."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f'<p class="faint">{escape(advice)}</p>',
        "<main>",
        *(_draw(card) for card in cards),
        "</main></body></html>\n",
    ]
    return "\n".join(parts)


def _draw(card: Card) -> str:
    picture = base64.b64encode(card.png).decode()
    words = "".join(f"<p>{escape(line)}</p>" for line in card.words)
    command = escape(f"{shlex.join(card.command)} {_SIGNED}")
    return (
        f'<figure><img alt="Tile {escape(card.name)}" src="data:image/png;base64,{picture}">'
        f"<figcaption><b>{escape(card.name)}</b>{words}<code>{command}</code></figcaption></figure>"
    )
