"""Read scenes from STAC: an item, an ItemCollection, or a catalog or collection whose links lead to items.

Files are on disk, beside the JSON or anywhere, on an http(s) server that supports ranges, or in a bucket
(s3, gs). JSON from a server never refers to this machine's disk.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from tilewise.datasets.core.bands import BAND_NAMES, find_band
from tilewise.datasets.core.errors import (
    BandsUnknownError,
    RadiometryUnknownError,
    SceneError,
    UnknownBandError,
)
from tilewise.datasets.core.radiometry import Level, ReadOptions
from tilewise.datasets.scenes.band_files import is_mask_name
from tilewise.datasets.scenes.layers import (
    BandFile,
    CloudLayer,
    Parts,
    choose_mask,
    cloud_layer,
    layer_of_band,
)
from tilewise.datasets.scenes.offset import (
    DARK_BANDS,
    dark_fraction,
    earth_search_offset,
    is_earth_search,
    refuse_doubled_offset,
)
from tilewise.datasets.scenes.options import CloudMask, SceneOptions
from tilewise.datasets.scenes.rasters import fetch_text, is_remote, shown

_MAX_ITEMS = 100_000
_MAX_JSON = 256 * 2**20
_PICTURES = {"visual", "overview", "thumbnail"}  # roles of assets for display, in 8 bits
_LINKS: dict[str, tuple[str, ...]] = {  # relations that lead to more items
    "Catalog": ("child", "item", "items"),
    "Collection": ("child", "item", "items"),
    "FeatureCollection": ("next",),
}
# Properties of items that correspond to a file's tags (sentinel-2, processing and Earth Search).
_TAGS = {
    "PROCESSING_BASELINE": ("s2:processing_baseline", "processing:version"),
    "PROCESSING_LEVEL": ("processing:level", "s2:product_type"),
    "PRODUCT_URI": ("s2:product_uri",),
}


@dataclass(frozen=True, slots=True)
class Item:
    """A STAC item.

    Attributes:
        name: its id.
        base: path or URL of its JSON file; relative hrefs start there.
        text: the item itself, as JSON.
    """

    name: str
    base: str
    text: str


def read_items(source: str | Path) -> list[Item]:
    """Return the items in a STAC JSON, and those that its links lead to.

    Raises:
        SceneError: it is not a STAC JSON.
        FetchError: a server does not answer.
    """
    found: list[Item] = []
    waiting, seen = [str(source)], {str(source)}
    while waiting:
        here = waiting.pop(0)
        content = _load(here)
        found.extend(_items_of(content, here))
        if len(found) > _MAX_ITEMS:
            raise SceneError(
                f"{_shown(source)}: more than {_MAX_ITEMS:,} items; name a smaller part of the catalog"
            )
        for link in _links_of(content, here):
            if link not in seen and len(seen) < _MAX_ITEMS:
                seen.add(link)
                waiting.append(link)
    return found


def read_stac(item: Item, options: SceneOptions) -> Parts:
    """Return the parts of the scene that a STAC item describes.

    Raises:
        SceneError: an asset's address is not allowed.
        BandsUnknownError: none of its assets is marked as a band of Sentinel-2.
        RadiometryUnknownError: its metadata lack the radiometry, or its numbers contradict them.
    """
    content = json.loads(item.text)
    properties = mapping_of(content.get("properties"))
    files = _band_files(item, content)
    if not files:
        raise BandsUnknownError(
            f"{item.name}: none of its assets is marked as a band of Sentinel-2, by eo:bands, bands or its "
            "key; name the files themselves, with --bands"
        )
    taken = taken_of(properties)
    reading = _settle_offset(item, content, files, taken, options.read_options)
    layers, level = [], None
    for file in files.values():
        layer, level = layer_of_band(file, item.name, tuple(files), reading)
        layers.append(layer)
    refuse_doubled_offset(item.name, layers, reading)
    clouds = choose_mask(item.name, options.clouds, taken, partial(_clouds, item, content))
    platform = properties.get("platform")
    return Parts(tuple(layers), clouds, level, taken, platform if isinstance(platform, str) else None)


def files_of(item: Item) -> tuple[str | Path, ...]:
    """Return the paths or URLs of the files of an item's bands.

    Raises:
        TilewiseError: as `read_stac` raises.
    """
    content = json.loads(item.text)
    files = _band_files(item, content)
    return tuple(dict.fromkeys(file.source for file in files.values()))


def bands_of(item: Item) -> frozenset[str]:
    """Return the names of the bands of an item's assets, by their metadata."""
    assets = mapping_of(json.loads(item.text).get("assets"))
    files = {key: asset for key, asset in assets.items() if _is_of_bands(asset)}
    return frozenset(band["name"] for key, asset in files.items() for _, band in _bands_of(key, asset))


def _load(source: str) -> dict[str, Any]:
    try:
        if is_remote(source):
            content = json.loads(fetch_text(source))
        else:
            path = Path(source)
            if path.stat().st_size > _MAX_JSON:
                raise SceneError(f"{path.name}: too large for STAC metadata")
            content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise SceneError(f"{_shown(source)}: not valid JSON") from error
    except OSError as error:
        raise SceneError(f"{_shown(source)}: it cannot be read: {error.strerror}") from error
    if not isinstance(content, dict) or content.get("type") not in (
        "Feature",
        "FeatureCollection",
        "Catalog",
        "Collection",
    ):
        raise SceneError(f"{_shown(source)}: not a STAC item, collection or ItemCollection")
    return content


def _items_of(content: dict[str, Any], base: str) -> Iterator[Item]:
    features = content.get("features", []) if content["type"] == "FeatureCollection" else [content]
    for feature in features if isinstance(features, list) else []:
        if (
            isinstance(feature, dict)
            and feature.get("type") == "Feature"
            and isinstance(feature.get("assets"), dict)
        ):
            yield Item(str(feature.get("id") or "item"), base, json.dumps(feature, sort_keys=True))


def _links_of(content: dict[str, Any], base: str) -> Iterator[str]:
    relations = _LINKS.get(content["type"], ())
    links = content.get("links", [])
    for link in links if isinstance(links, list) else []:
        if (
            isinstance(link, dict)
            and link.get("rel") in relations
            and str(link.get("method", "GET")).upper() == "GET"
        ):
            yield str(_resolve(str(link.get("href", "")), base))


def _resolve(href: str, base: str) -> str | Path:
    """Return the path or URL that an href means in a JSON at `base`.

    Raises:
        SceneError: it is neither a path nor a URL of a known kind, or a server refers to this machine's disk.
    """
    scheme = urlsplit(href).scheme
    if is_remote(href):
        return href
    if is_remote(base):
        if scheme:
            raise SceneError(f"{shown(base)}: {scheme}: addresses are not read; only http(s), s3 and gs")
        return urljoin(base, href)
    if scheme == "file":
        return Path(unquote(urlsplit(href).path))
    if scheme and not re.fullmatch(r"[A-Za-z]", scheme):  # one letter is a drive
        raise SceneError(
            f"{Path(base).name}: {scheme}: addresses are not read; only paths, http(s), s3 and gs"
        )
    return Path(base).parent / href


def _settle_offset(
    item: Item,
    content: dict[str, Any],
    files: Mapping[str, BandFile],
    taken: datetime | None,
    options: ReadOptions,
) -> ReadOptions:
    """Return the options with the offset that evidence settles, where the item is of Earth Search."""
    properties, collection = mapping_of(content.get("properties")), content.get("collection")
    if options.offset is not None or not is_earth_search(collection, properties):
        return options
    try:
        offset = earth_search_offset(item.name, collection, properties, taken, None)
    except RadiometryUnknownError:
        offset = earth_search_offset(item.name, collection, properties, taken, _fraction_below(item, files))
    return replace(options, offset=offset)


def _fraction_below(item: Item, files: Mapping[str, BandFile]) -> float | None:
    layers = [
        layer_of_band(file, item.name, tuple(files), ReadOptions(level=Level.L2A, scale=1e-4, offset=0.0))[0]
        for file in files.values()
        if file.band in DARK_BANDS
    ]
    return dark_fraction(layers)


def _band_files(item: Item, content: dict[str, Any]) -> dict[str, BandFile]:
    """Return the file of each band; of a band in several files, the finest GeoTIFF."""
    properties = mapping_of(content.get("properties"))
    found: dict[str, tuple[tuple[bool, float, str], BandFile]] = {}
    for key, asset in mapping_of(content.get("assets")).items():
        if not _is_of_bands(asset):
            continue
        for index, band in _bands_of(key, asset):
            rank = (_is_jp2(asset), _number(asset.get("gsd")) or _number(band.get("gsd")) or 0.0, key)
            name = band["name"]
            if name not in found or rank < found[name][0]:
                found[name] = (rank, _band_file(item, asset, name, index, properties))
    return {name: found[name][1] for name in BAND_NAMES if name in found}


def _is_of_bands(asset: object) -> bool:
    """Return whether an asset may have bands, and is not a picture."""
    return (
        isinstance(asset, dict)
        and bool(asset.get("href"))
        and not _PICTURES & set(_words(asset.get("roles")))
    )


def _bands_of(key: str, asset: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (index, {"name": canonical name, …}) of the Sentinel-2 bands in an asset."""
    listed = asset.get("eo:bands") or asset.get("bands") or []
    bands = [band for band in listed if isinstance(band, dict)] if isinstance(listed, list) else []
    for index, band in enumerate(bands, start=1):
        words = (band.get("name"), band.get("eo:common_name"), band.get("common_name"))
        if name := next((known for word in words if (known := _known(word))), None):
            yield index, {**band, "name": name}
    if not bands and (name := _known(key.removesuffix("-jp2"))):
        yield 1, {"name": name}


def _band_file(
    item: Item, asset: dict[str, Any], band: str, index: int, properties: dict[str, Any]
) -> BandFile:
    listed = asset.get("raster:bands") or asset.get("bands") or []
    raster = mapping_of(listed[index - 1]) if isinstance(listed, list) and len(listed) >= index else {}
    scale = _number(raster.get("scale", raster.get("raster:scale", asset.get("raster:scale"))))
    offset = _number(raster.get("offset", raster.get("raster:offset", asset.get("raster:offset")))) or 0.0
    source = _resolve(str(asset["href"]), item.base)
    if is_remote(source) and _is_jp2(asset):
        raise SceneError(
            f"{item.name}: its files are JPEG 2000 on a server; download them and classify them from disk"
        )
    tags = {tag: value for tag, keys in _TAGS.items() if (value := _first_text(properties, keys))}
    return BandFile(source, band, tags, index, scale, offset, _number(raster.get("nodata")))


def _clouds(item: Item, content: dict[str, Any], mask: CloudMask) -> CloudLayer | None:
    for key, asset in mapping_of(content.get("assets")).items():
        if (
            not isinstance(asset, dict)
            or not asset.get("href")
            or not is_mask_name(key.removesuffix("-jp2"), mask.kind)
        ):
            continue
        source = _resolve(str(asset["href"]), item.base)
        if not (is_remote(source) and _is_jp2(asset)):
            return cloud_layer(source, mask)
    return None


def _known(word: object) -> str | None:
    try:
        return find_band(word).name if isinstance(word, str) else None
    except UnknownBandError:
        return None


def _is_jp2(asset: dict[str, Any]) -> bool:
    return "jp2" in str(asset.get("type", "")) or urlsplit(str(asset["href"])).path.lower().endswith(".jp2")


def taken_of(properties: Mapping[str, Any]) -> datetime | None:
    """Return the acquisition time in the properties of an item; None where it is unknown."""
    try:
        return datetime.fromisoformat(str(properties.get("datetime") or properties.get("start_datetime")))
    except ValueError:
        return None


def _first_text(properties: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    return next((str(properties[key]) for key in keys if isinstance(properties.get(key), str)), None)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def mapping_of(value: object) -> dict[str, Any]:
    """Return a JSON object, or an empty one in place of anything else."""
    return value if isinstance(value, dict) else {}


def _words(value: object) -> list[str]:
    return [word for word in value if isinstance(word, str)] if isinstance(value, list) else []


def _shown(source: str | Path) -> str:
    return shown(str(source)) if is_remote(source) else Path(source).name
