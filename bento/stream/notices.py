"""From a notice to the one scene that it tells of, all of which lies where notices may lead."""

import hashlib
import json
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from tilewise.bento.batch.run import find
from tilewise.bento.stream.allow_list import Places
from tilewise.datasets.core.console import make_read_options
from tilewise.datasets.core.errors import NoticeError, SceneError, TilewiseError
from tilewise.datasets.core.radiometry import Level, ReadOptions
from tilewise.datasets.scenes import SceneOptions, SceneSource
from tilewise.datasets.scenes.rasters import RASTER_SUFFIXES, fetch_text, is_remote, shown
from tilewise.datasets.scenes.safe import METADATA_NAMES, is_safe
from tilewise.datasets.scenes.search import Kind
from tilewise.datasets.scenes.stac import Item, bands_of, files_of

MAX_BYTES = 256 * 2**10
_LONGEST_ID = 256
_TEXTS, _NUMBERS = ("bands", "level"), ("scale", "offset")
_KEYS = frozenset({"scene", "id", *_TEXTS, *_NUMBERS})
_FORMS = 'send {"scene": PATH or ADDRESS} or a STAC item, by itself or through SNS'


@dataclass(frozen=True, slots=True)
class Notice:
    """A scene that somebody tells of.

    Attributes:
        scene: its path or address; "" where the item itself was sent.
        item: a STAC item that was sent whole; {} where there is none.
        id: the sender's own, which comes back with the result; "" where there is none.
        said: what its files do not say.
    """

    scene: str = ""
    item: dict[str, Any] = field(default_factory=dict)
    id: str = ""
    overrides: ReadOptions = field(default_factory=ReadOptions)

    def fill(self, otherwise: ReadOptions) -> ReadOptions:
        """Return what is said of the scene: by the notice, else by the operator."""
        told = {item.name: getattr(self.overrides, item.name) for item in fields(ReadOptions)}
        return ReadOptions(
            **{name: getattr(otherwise, name) if overrides is None else overrides for name, overrides in told.items()}
        )


def parse_notice(body: str, max_bytes: int = MAX_BYTES) -> Notice:
    """Return what a message says.

    Raises:
        NoticeError: it is too long, no JSON, of no known form, or says what cannot be.
    """
    if len(body.encode(errors="replace")) > max_bytes:
        raise NoticeError(
            f"the message is longer than {max_bytes:,} bytes; send the scene's address instead of its content"
        )
    content = _object(body, "the message")
    if "Type" in content:
        content = _out_of_sns(content)
    if content.get("type") == "Feature":
        return Notice(item=content, id=_text(content, "id")[:_LONGEST_ID])
    if "scene" in content:
        return _of_plain(content)
    raise NoticeError(f"the message names no scene; {_FORMS}")


def _out_of_sns(content: dict[str, Any]) -> dict[str, Any]:
    if content["Type"] != "Notification" or not isinstance(content.get("Message"), str):
        raise NoticeError(f"the message comes from SNS and is no notification; {_FORMS}")
    return _object(content["Message"], "what SNS handed on")


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        content = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise NoticeError(f"{what} is no sound JSON; {_FORMS}") from error
    if not isinstance(content, dict):
        raise NoticeError(f"{what} is no JSON object; {_FORMS}")
    return content


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def _of_plain(content: dict[str, Any]) -> Notice:
    if unknown := sorted(set(content) - _KEYS):
        raise NoticeError(f"the message has the unknown key {unknown[0][:80]!r}; known are {', '.join(sorted(_KEYS))}")
    return Notice(
        scene=_text(content, "scene"), id=_text(content, "id")[:_LONGEST_ID], overrides=_read_options(content)
    )


def _read_options(content: dict[str, Any]) -> ReadOptions:
    bands, level = (_text(content, key) or None for key in _TEXTS)
    scale, offset = (_number(content, key) for key in _NUMBERS)
    if level and level.upper() not in set(Level):
        raise NoticeError(f"level is {' or '.join(Level)}, not {level[:80]!r}")
    try:
        return make_read_options(bands, level, scale, offset)
    except TilewiseError as error:
        raise NoticeError(str(error)) from error


def _text(content: dict[str, Any], key: str) -> str:
    value = content.get(key, "")
    if not isinstance(value, str):
        raise NoticeError(f"{key} is a text, not {json.dumps(value)[:80]}")
    return value


def _number(content: dict[str, Any], key: str) -> float | None:
    value = content.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise NoticeError(f"{key} is a number, not {json.dumps(value)[:80]}")
    try:
        return float(value)
    except OverflowError as error:
        raise NoticeError(f"{key} is too large a number") from error


_MAX_ITEM_BYTES = 4 * 2**20
_JSON_SUFFIXES = (".json", ".geojson")
_LONGEST_NAME = 100


@dataclass(frozen=True, slots=True)
class Told:
    """A scene that a notice tells of.

    Attributes:
        source: what is read.
        place: what it is called in logs and results.
        folder: name of the folder of its results: the same whenever the same scene is told of.
    """

    source: SceneSource
    place: str
    folder: str


def scene_of(notice: Notice, places: Places, options: SceneOptions) -> Told:
    """Return the scene that a notice tells of.

    Raises:
        NoticeError: it leads where it may not, to what is no scene, or to several.
        TilewiseError: what it names is not there, or cannot be read now.
    """
    options = replace(options, read_options=notice.fill(options.read_options))
    if notice.item:
        return _of_item(notice.item, _self_of(notice.item), places, options)
    place = places.admit(notice.scene)
    if isinstance(place, str):
        return _of_item(_load(fetch_text(place), shown(place)), notice.scene, places, options)
    if not place.exists():
        raise SceneError(f"{place}: there is no such file; send the notice when the scene is there")
    if place.suffix.lower() in _JSON_SUFFIXES and place.is_file():
        return _of_item(_load(_read(place), place.name), str(place), places, options)
    return _of_files(place, options)


def _of_files(place: Path, options: SceneOptions) -> Told:
    if not _is_scene(place):
        raise NoticeError(
            f"{place}: no scene; send a GeoTIFF, a SAFE product, a folder of one scene's band files or a STAC item"
        )
    sources = find([place], options)
    if len(sources) != 1:
        raise NoticeError(f"{place}: it holds {len(sources)} scenes; send a notice for each")
    source = replace(sources[0], name=_name(sources[0].name))
    return Told(source, str(place), _folder(source.name, str(place), options))


def _is_scene(place: Path) -> bool:
    """Whether a place may be one scene; a folder with folders is an archive, and would be walked."""
    if place.is_file():
        return place.suffix.lower() in RASTER_SUFFIXES or place.name in METADATA_NAMES
    return place.is_dir() and (is_safe(place) or not any(entry.is_dir() for entry in place.iterdir()))


def _of_item(content: dict[str, Any], base: str, places: Places, options: SceneOptions) -> Told:
    """Return the scene of a STAC item, of which only the assets are left that may be read.

    Raises:
        NoticeError: it is no item, or a band of it may not be read.
    """
    assets = content.get("assets")
    if content.get("type") != "Feature" or not isinstance(assets, dict):
        raise NoticeError("the notice leads to JSON that is no STAC item; send an item, not a catalog or a collection")
    name = _name(str(content.get("id") or "item"))
    admitted, refusal = _admitted(assets, base, places)
    item = Item(name, "item.json", json.dumps({**content, "assets": admitted}, sort_keys=True))
    if lost := bands_of(Item(name, "", json.dumps(content))) - bands_of(item):
        raise NoticeError(f"{name}: {', '.join(sorted(lost))} cannot be had: {refusal}")
    try:
        paths = files_of(item)
    except TilewiseError as error:
        raise NoticeError(str(error)) from error
    identity = f"{content.get('collection') or ''}/{content.get('id')}"
    return Told(SceneSource(name, Kind.STAC, paths, options, item), name, _folder(name, identity, options))


def _admitted(assets: dict[str, Any], base: str, places: Places) -> tuple[dict[str, Any], str]:
    """Return the assets that may be read, with whole addresses, and why the first of the others may not."""
    admitted, refusal = {}, ""
    for key, asset in assets.items():
        if not isinstance(asset, dict) or not isinstance(asset.get("href"), str):
            continue
        try:
            place = places.admit(_whole(asset["href"], base))
        except NoticeError as error:
            refusal = refusal or str(error)
            continue
        admitted[key] = {**asset, "href": str(place)}
    return admitted, refusal


def _whole(href: str, base: str) -> str:
    """Return the path or address that an href means in an item at `base`; as it is, where the item is nowhere.

    Raises:
        NoticeError: it is no sound address.
    """
    try:
        if urlsplit(href).scheme or not base:
            return href
        if base.startswith("s3://"):  # which urljoin does not know
            return urljoin(base.replace("s3", "https", 1), href).replace("https", "s3", 1)
        return urljoin(base, href) if is_remote(base) else str(Path(base).parent / href)
    except ValueError as error:
        raise NoticeError("an asset's href is no sound address") from error


def _self_of(content: dict[str, Any]) -> str:
    """Return where an item says that it lies, or ""."""
    links = content.get("links")
    for link in links if isinstance(links, list) else []:
        if isinstance(link, dict) and link.get("rel") == "self" and isinstance(link.get("href"), str):
            href: str = link["href"]
            return unquote(href.removeprefix("file://")) if href.startswith("file:///") else href
    return ""


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_ITEM_BYTES + 1)
    except OSError as error:
        raise SceneError(f"{path.name}: it cannot be read: {error.strerror}") from error


def _load(text: bytes, name: str) -> dict[str, Any]:
    if len(text) > _MAX_ITEM_BYTES:
        raise NoticeError(f"{name}: longer than {_MAX_ITEM_BYTES // 2**20} MiB, too long for a STAC item")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NoticeError(f"{name}: no sound JSON") from error
    if not isinstance(content, dict):
        raise NoticeError(f"{name}: no STAC item")
    return content


def _name(text: str) -> str:
    """Return a text as the stem of files: no separators, no dots at its beginning, of bounded length."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", text[:_LONGEST_NAME]).lstrip(".") or "scene"


def _folder(name: str, identity: str, options: SceneOptions) -> str:
    """Return the name of the folder of results; scenes that are read in other ways do not share one."""
    digest = hashlib.sha256(repr((identity, options)).encode()).hexdigest()
    return f"{name}-{digest[:12]}"
