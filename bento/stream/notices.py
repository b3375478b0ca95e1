"""Notices: parse messages about new scenes, and find the scene of each within the allow-list."""

import hashlib
import json
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from tilewise.bento.batch.run import find
from tilewise.bento.stream.allow_list import AllowList
from tilewise.datasets.core.console import make_read_options
from tilewise.datasets.core.errors import NoticeError, SceneError, TilewiseError
from tilewise.datasets.core.radiometry import Level, ReadOptions
from tilewise.datasets.scenes import SceneOptions, SceneSource
from tilewise.datasets.scenes.rasters import RASTER_SUFFIXES, fetch_text, is_remote, shown
from tilewise.datasets.scenes.safe import METADATA_NAMES
from tilewise.datasets.scenes.search import Kind, is_product
from tilewise.datasets.scenes.stac import Item, bands_of, files_of

MAX_BYTES = 256 * 2**10
_MAX_ID = 256
_TEXTS, _NUMBERS = ("bands", "level"), ("scale", "offset")
_KEYS = frozenset({"scene", "id", *_TEXTS, *_NUMBERS})
_FORMS = 'send {"scene": PATH or ADDRESS} or a STAC item, by itself or through SNS'


@dataclass(frozen=True, slots=True)
class Notice:
    """A message about a scene.

    Attributes:
        scene: path or address of the scene; "" if the message holds a STAC item instead.
        item: that STAC item; {} if there is none.
        id: given by the sender and repeated in the result; "" if there is none.
        overrides: bands and radiometry that the scene's files do not state.
    """

    scene: str = ""
    item: dict[str, Any] = field(default_factory=dict)
    id: str = ""
    overrides: ReadOptions = field(default_factory=ReadOptions)

    def fill(self, defaults: ReadOptions) -> ReadOptions:
        """Return the read options of the notice, completed by those of the operator."""
        given = {item.name: getattr(self.overrides, item.name) for item in fields(ReadOptions)}
        return replace(defaults, **{name: value for name, value in given.items() if value is not None})


def parse_notice(body: str, max_bytes: int = MAX_BYTES) -> Notice:
    """Parse the body of a message: a plain notice or a STAC item, sent directly or through SNS.

    Raises:
        NoticeError: it is too long, not JSON, of an unknown form, or has an invalid value.
    """
    if len(body.encode(errors="replace")) > max_bytes:
        raise NoticeError(
            f"the message is longer than {max_bytes:,} bytes; send the scene's address instead of its content"
        )
    content = _object(body, "the message")
    if "Type" in content:
        content = _unwrap_sns(content)
    if content.get("type") == "Feature":
        return Notice(item=content, id=_text(content, "id")[:_MAX_ID])
    if "scene" in content:
        return _parse_plain(content)
    raise NoticeError(f"the message names no scene; {_FORMS}")


def _unwrap_sns(content: dict[str, Any]) -> dict[str, Any]:
    if content["Type"] != "Notification" or not isinstance(content.get("Message"), str):
        raise NoticeError(f"the message comes from SNS and is not a notification; {_FORMS}")
    return _object(content["Message"], "the message inside SNS's")


def _object(text: str, subject: str) -> dict[str, Any]:
    try:
        content = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise NoticeError(f"{subject} is not valid JSON; {_FORMS}") from error
    if not isinstance(content, dict):
        raise NoticeError(f"{subject} is not a JSON object; {_FORMS}")
    return content


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _parse_plain(content: dict[str, Any]) -> Notice:
    if unknown := sorted(set(content) - _KEYS):
        raise NoticeError(
            f"the message has the unknown key {unknown[0][:80]!r}; known are {', '.join(sorted(_KEYS))}"
        )
    return Notice(
        scene=_text(content, "scene"), id=_text(content, "id")[:_MAX_ID], overrides=_read_options(content)
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


# The scene of a notice.

_MAX_ITEM_BYTES = 4 * 2**20
_JSON_SUFFIXES = (".json", ".geojson")
_MAX_NAME = 100


@dataclass(frozen=True, slots=True)
class SceneJob:
    """The scene of a notice, ready to be classified.

    Attributes:
        source: the files to read.
        location: path, address or ID of the scene, for logs and results.
        folder: name of the folder of its results: the same for every notice of the same scene.
    """

    source: SceneSource
    location: str
    folder: str


def scene_of(notice: Notice, allowed: AllowList, options: SceneOptions) -> SceneJob:
    """Find the scene of a notice.

    Raises:
        NoticeError: it is not allowed, not a scene, or several scenes.
        TilewiseError: it is missing, or cannot be read now.
    """
    options = replace(options, read_options=notice.fill(options.read_options))
    if notice.item:
        return _job_of_item(notice.item, _self_href(notice.item), allowed, options)
    location = allowed.resolve(notice.scene)
    if isinstance(location, str):
        item = _load(fetch_text(location), shown(location))
        return _job_of_item(item, notice.scene, allowed, options)
    if not location.exists():
        raise SceneError(f"{location}: there is no such file; send the notice when the scene is there")
    if location.suffix.lower() in _JSON_SUFFIXES and location.is_file():
        return _job_of_item(_load(_read(location), location.name), str(location), allowed, options)
    return _job_of_files(location, options)


def _job_of_files(path: Path, options: SceneOptions) -> SceneJob:
    if not _is_scene(path):
        raise NoticeError(
            f"{path}: not a scene; send a GeoTIFF, a product (SAFE, EOPF Zarr), a folder of one scene's band "
            f"files, or a STAC item"
        )
    sources = find([path], options)
    if len(sources) != 1:
        raise NoticeError(f"{path}: it holds {len(sources)} scenes; send a notice for each")
    source = replace(sources[0], name=_safe_name(sources[0].name))
    return SceneJob(source, str(path), _folder_name(source.name, str(path), options))


def _is_scene(path: Path) -> bool:
    """Return whether a path may be one scene; a folder of folders is an archive, which must not be walked."""
    if path.is_file():
        return path.suffix.lower() in RASTER_SUFFIXES or path.name in METADATA_NAMES
    return path.is_dir() and (is_product(path) or not any(entry.is_dir() for entry in path.iterdir()))


def _job_of_item(content: dict[str, Any], base: str, allowed: AllowList, options: SceneOptions) -> SceneJob:
    """Return the scene of a STAC item, reduced to the assets that are allowed.

    Raises:
        NoticeError: it is not an item, or one of its bands is not allowed.
    """
    assets = content.get("assets")
    if content.get("type") != "Feature" or not isinstance(assets, dict):
        raise NoticeError(
            "the notice leads to JSON that is not a STAC item; send an item, not a catalog or a collection"
        )
    name = _safe_name(str(content.get("id") or "item"))
    kept, refusal = _allowed_assets(assets, base, allowed)
    item = Item(name, "item.json", json.dumps({**content, "assets": kept}, sort_keys=True))
    if missing := bands_of(Item(name, "", json.dumps(content))) - bands_of(item):
        raise NoticeError(f"{name}: {', '.join(sorted(missing))} cannot be read: {refusal}")
    try:
        paths = files_of(item)
    except TilewiseError as error:
        raise NoticeError(str(error)) from error
    identity = f"{content.get('collection') or ''}/{content.get('id')}"
    return SceneJob(
        SceneSource(name, Kind.STAC, paths, options, item), name, _folder_name(name, identity, options)
    )


def _allowed_assets(assets: dict[str, Any], base: str, allowed: AllowList) -> tuple[dict[str, Any], str]:
    """Return the allowed assets with absolute addresses, and why the first of the others is refused."""
    kept, refusal = {}, ""
    for key, asset in assets.items():
        if not isinstance(asset, dict) or not isinstance(asset.get("href"), str):
            continue
        try:
            location = allowed.resolve(_absolute(asset["href"], base))
        except NoticeError as error:
            refusal = refusal or str(error)
            continue
        kept[key] = {**asset, "href": str(location)}
    return kept, refusal


def _absolute(href: str, base: str) -> str:
    """Resolve an href in an item at `base`; if the item has no location, return the href unchanged.

    Raises:
        NoticeError: it is not a valid address.
    """
    try:
        if urlsplit(href).scheme or not base:
            return href
        if base.startswith("s3://"):  # a scheme that urljoin does not know
            return urljoin(base.replace("s3", "https", 1), href).replace("https", "s3", 1)
        return urljoin(base, href) if is_remote(base) else str(Path(base).parent / href)
    except ValueError as error:
        raise NoticeError("an asset's href is not a valid address") from error


def _self_href(content: dict[str, Any]) -> str:
    """Return the location in an item's `self` link, or ""."""
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
        raise NoticeError(f"{name}: not valid JSON") from error
    if not isinstance(content, dict):
        raise NoticeError(f"{name}: not a STAC item")
    return content


def _safe_name(text: str) -> str:
    """Return a text made safe as the stem of file names: no separators, no leading dots, bounded length."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", text[:_MAX_NAME]).lstrip(".") or "scene"


def _folder_name(name: str, identity: str, options: SceneOptions) -> str:
    """Return the name of the folder of results, which differs if the same scene is read by other options."""
    digest = hashlib.sha256(repr((identity, options)).encode()).hexdigest()
    return f"{name}-{digest[:12]}"
