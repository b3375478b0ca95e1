"""A page of pictures for review: it holds its pictures, styles itself and asks no server for anything.

A page that only shows has no script; one that takes decisions has one, which the page's policy knows by its hash.
"""

import base64
import hashlib
import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt
from PIL import Image

from tilewise.datasets.core.bands import RGB_BANDS, positions
from tilewise.datasets.core.tile import NO_DATA, Tile

MIN_CONTRAST = 400  # DN: what varies less is not stretched to the full, it would be noise
FOR, AGAINST = (215, 25, 28), (44, 90, 205)
"""Colours of heat: red for what speaks for a class, blue for what speaks against it."""
_COLOUR_LEFT = 0.3
_COVER = 0.75  # of the picture, where the heat is highest

Picture = npt.NDArray[np.uint8]
Heat = npt.NDArray[np.float32]


def true_colour(tile: Tile) -> Picture:
    """Return uint8 (height, width, 3): red, green and blue, or a tile's first bands where it lacks any of them."""
    return composite(tile, RGB_BANDS if set(RGB_BANDS) <= set(tile.bands) else (*tile.bands, *2 * tile.bands[:1])[:3])


def composite(tile: Tile, shown: tuple[str, ...]) -> Picture:
    """Return uint8 (height, width, 3): three bands, stretched from the 2nd to the 98th percentile; no data is black.

    Each band begins at its own darkest, which takes the haze off, and all share one contrast, which keeps the colours.
    """
    bands = tile.pixels[positions(shown)].astype(np.float32)
    ranges = [np.percentile(band[band != NO_DATA], (2, 98)) if band.any() else np.zeros(2) for band in bands]
    contrast = max(MIN_CONTRAST, *(high - low for low, high in ranges))
    darkest = np.array([low for low, _ in ranges])[:, None, None]
    bright = np.clip((bands - darkest) / contrast, 0, 1) * (bands != NO_DATA)
    return np.asarray(np.rint(255 * bright).transpose(1, 2, 0), np.uint8)


def heat_over(tile: Tile, heat: Heat, zoom: int) -> Picture:
    """Return uint8 (zoom · height, zoom · width, 3): `heat` (height, width), -1 to 1, over the tile in true colour."""
    ground = np.kron(_pale(true_colour(tile)), np.ones((zoom, zoom, 1), np.uint8))
    return cover(ground, _enlarge(heat, zoom))


def cover(ground: Picture, heat: Heat) -> Picture:
    """Return `ground` (h, w, 3) under `heat` (h, w), -1 to 1."""
    share = _COVER * np.abs(heat)[..., None]
    colour = np.where(heat[..., None] > 0, np.array(FOR), np.array(AGAINST))
    return np.asarray(np.rint(ground * (1 - share) + colour * share), np.uint8)


def _pale(picture: Picture) -> Picture:
    """Return a picture nearly in grey, so that a red field is not taken for heat."""
    grey = picture.mean(axis=2, keepdims=True)
    return np.asarray(np.rint(grey + _COLOUR_LEFT * (picture - grey)), np.uint8)


def _enlarge(heat: Heat, zoom: int) -> Heat:
    """Return `heat` (h, w) as (zoom · h, zoom · w), by straight lines between the pixels' centres."""
    rows, columns = ((np.arange(length * zoom) + 0.5) / zoom - 0.5 for length in heat.shape)
    across = np.stack([np.interp(columns, np.arange(heat.shape[1]), row) for row in heat])
    down = [np.interp(rows, np.arange(heat.shape[0]), column) for column in across.T]
    return np.stack(down, axis=1).astype(np.float32)


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
fieldset { border: 0; margin: .6rem 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: .3rem }
label span { border: 1px solid var(--line); border-radius: 4px; padding: .15rem .5rem; display: block; cursor: pointer }
fieldset input { position: absolute; opacity: 0 } input:checked + span { background: var(--ink); color: #fff }
input:focus-visible + span { outline: 2px solid #1a73e8; outline-offset: 1px } .decided { border-color: var(--ink) }
form { position: sticky; top: 0; background: #fff; border-bottom: 1px solid var(--line); padding: .7rem 0;
  margin-top: .7rem; display: flex; flex-wrap: wrap; gap: .7rem; align-items: center }
form input, button { font: inherit; padding: .3rem .6rem; border: 1px solid var(--line); border-radius: 4px }
button { background: var(--ink); color: #fff; cursor: pointer }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_SIGNED = '--reviewer YOU --why "…"'


@dataclass(frozen=True, slots=True)
class Card:
    """One tile on the page: its name, a PNG, lines of text, and what decides on it.

    Attributes:
        command: the words of a command to type, or
        choices: (value, text) of what can be chosen on the page itself.
    """

    name: str
    png: bytes
    words: tuple[str, ...]
    command: tuple[str, ...] = ()
    choices: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Form:
    """What a page has on which people decide: HTML of ours below the advice, and the script that does its work."""

    html: str
    script: str


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


def draw_sheet(title: str, advice: str, cards: Sequence[Card], form: Form | None = None) -> str:
    """Return the page as HTML. Names are of files, and so hostile: they are escaped for HTML and for the shell."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(form)}">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f'<p class="faint">{escape(advice)}</p>',
        form.html if form else "",
        "<main>",
        *(_draw(card) for card in cards),
        "</main>",
        f"<script>{form.script}</script>" if form else "",
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _policy(form: Form | None) -> str:
    if form is None:
        return _POLICY
    digest = base64.b64encode(hashlib.sha256(form.script.encode()).digest()).decode()
    return f"{_POLICY}; script-src 'sha256-{digest}'"


def _draw(card: Card) -> str:
    picture = base64.b64encode(card.png).decode()
    words = "".join(f"<p>{escape(line)}</p>" for line in card.words)
    decide = f"<code>{escape(f'{shlex.join(card.command)} {_SIGNED}')}</code>" if card.command else ""
    return (
        f'<figure><img alt="Tile {escape(card.name)}" src="data:image/png;base64,{picture}">'
        f"<figcaption><b>{escape(card.name)}</b>{words}{decide}</figcaption>{_choices(card)}</figure>"
    )


def _choices(card: Card) -> str:
    """Return radio buttons, one group a tile: they work by mouse and by keyboard without a script."""
    name = escape(card.name)
    buttons = "".join(
        f'<label><input type="radio" name="{name}" value="{escape(value)}"><span>{escape(text)}</span></label>'
        for value, text in card.choices
    )
    return f'<fieldset data-tile="{name}" aria-label="Class of {name}">{buttons}</fieldset>' if buttons else ""
