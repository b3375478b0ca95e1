"""Read a scene from a SAFE product of ESA: Level-1C or Level-2A, a folder or a zip, of one granule.

The numbers become reflectance by the product's own metadata (MTD_MSIL1C.xml, MTD_MSIL2A.xml): quantification
and, band by band, RADIO_ADD_OFFSET or BOA_ADD_OFFSET (Sentinel-2 Products Specification Document, 15.0,
tables of Product_Image_Characteristics). The metadata are not trusted: XML without entities or DTD, and only
files inside the product.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

from tilewise.datasets.core.bands import BAND_NAMES, find_band
from tilewise.datasets.core.errors import RadiometryUnknownError, SceneError, UnreadableImageError
from tilewise.datasets.core.radiometry import Level, ReadOptions
from tilewise.datasets.scenes.band_files import platform_in
from tilewise.datasets.scenes.layers import (
    BandFile,
    CloudLayer,
    Layer,
    Parts,
    choose_mask,
    cloud_layer,
    layer_of_band,
)
from tilewise.datasets.scenes.options import CloudKind, CloudMask, SceneOptions
from tilewise.datasets.scenes.products import METADATA_NAMES, Product, open_product

_MAX_XML = 32 * 2**20
_IMAGE = re.compile(r"_(B(?:0[1-9]|1[0-2]|8A)|SCL)(?:_(\d\d)m)?$")
_NATIVE = 10  # metres: of Level-1C files, whose names have no resolution and which are one for each band
_MASKS = {  # further cloud masks of a product, best first, and their raster bands
    CloudKind.PROBABILITY: (("MSK_CLDPRB_20m.jp2", (1,)), ("MSK_CLDPRB_60m.jp2", (1,))),
    CloudKind.QA60: (("MSK_CLASSI_B00.jp2", (1, 2)),),  # opaque cloud and cirrus, since baseline 04.00
}


@dataclass(frozen=True, slots=True)
class _Image:
    """An existing image file of a product."""

    source: Path | str
    band: str
    metres: int


def is_safe(folder: Path) -> bool:
    """Return whether a folder is a SAFE product, or has the metadata of one."""
    return folder.suffix.upper() == ".SAFE" or any((folder / name).is_file() for name in METADATA_NAMES)


def read_safe(path: Path, options: SceneOptions) -> Parts:
    """Return the parts of a SAFE product in a folder or in a zip archive.

    Raises:
        SceneError: its metadata are missing, or list several granules, or no image file exists.
        UnreadableImageError: the metadata are not valid XML, or a file cannot be opened.
        RadiometryUnknownError: the radiometry is neither in the metadata nor given.
    """
    product = open_product(path)
    root = _metadata(product)
    images = list(_images(root, product))
    finest = {image.band: image for image in sorted(images, key=lambda image: -image.metres)}
    bands = tuple(band for band in BAND_NAMES if band in finest)
    if not bands:
        raise SceneError(
            f"{product.name}: none of the image files that its metadata name exists; download it again"
        )
    layers, level = [], None
    for band in bands:
        file = BandFile(finest[band].source, band, _tags(root, band))
        layer, level = _layer(file, product.name, bands, options.read_options)
        layers.append(layer)
    taken = _start(root)
    clouds = choose_mask(product.name, options.clouds, taken, partial(_clouds, product, images))
    return Parts(tuple(layers), clouds, level, taken, _platform(root, product.name))


def _layer(file: BandFile, name: str, bands: tuple[str, ...], options: ReadOptions) -> tuple[Layer, Level]:
    """Return the layer of a band, by the product's own metadata; `options` fill gaps."""
    try:
        return layer_of_band(file, name, bands, ReadOptions())
    except RadiometryUnknownError:
        return layer_of_band(file, name, bands, options)


def _metadata(product: Product) -> Element:
    name = next((name for name in METADATA_NAMES if product.source(name)), None)
    content = product.read(name, _MAX_XML) if name else None
    if name is None or content is None:
        raise SceneError(
            f"{product.name}: {' or '.join(METADATA_NAMES)} is missing; download the product again"
        )
    if len(content) > _MAX_XML:
        raise UnreadableImageError(f"{product.name}: {name} is larger than any product's metadata")
    try:
        root: Element = fromstring(content, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise UnreadableImageError(
            f"{product.name}: {name} is not valid XML; download the product again"
        ) from error
    if len([granule for granule in root.iter("Granule") if granule.get("granuleIdentifier")]) > 1:
        raise SceneError(
            f"{product.name}: a product of several granules, as before 2016; classify them one by one"
        )
    return root


def _images(root: Element, product: Product) -> Iterator[_Image]:
    """Yield the image files that the metadata name, and that exist inside the product."""
    for element in root.iter("IMAGE_FILE"):
        text = (element.text or "").strip()
        match = _IMAGE.search(text)
        source = product.source(f"{text}.jp2") if match else None
        if match and source is not None:
            word = match[1]
            yield _Image(source, word if word == "SCL" else find_band(word).name, int(match[2] or _NATIVE))


def _tags(root: Element, band: str) -> dict[str, str]:
    """Return the product's metadata on the radiometry of a band, by the names of raster tags."""
    names = ("PROCESSING_LEVEL", "PROCESSING_BASELINE", "PRODUCT_URI", "PRODUCT_TYPE")
    values = {
        name: _text(root, name) for name in (*names, "QUANTIFICATION_VALUE", "BOA_QUANTIFICATION_VALUE")
    }
    for name in ("RADIO_ADD_OFFSET", "BOA_ADD_OFFSET"):
        of_band = [e.text for e in root.iter(name) if e.get("band_id") == str(BAND_NAMES.index(band))]
        values[name] = of_band[0] if of_band else None
    return {name: value for name, value in values.items() if value}


def _text(root: Element, name: str) -> str | None:
    found = next(root.iter(name), None)
    return found.text.strip() if found is not None and found.text else None


def _start(root: Element) -> datetime | None:
    try:
        return datetime.fromisoformat(_text(root, "PRODUCT_START_TIME") or "")
    except ValueError:
        return None


def _platform(root: Element, name: str) -> str | None:
    spacecraft = _text(root, "SPACECRAFT_NAME")
    return (
        spacecraft.lower()
        if spacecraft and re.fullmatch(r"Sentinel-2[A-D]", spacecraft)
        else platform_in(name)
    )


def _clouds(product: Product, images: list[_Image], mask: CloudMask) -> CloudLayer | None:
    if mask.kind is CloudKind.SCL:
        found = min((image for image in images if image.band == "SCL"), key=lambda i: i.metres, default=None)
        if found:
            return cloud_layer(found.source, mask)
    for name, indexes in _MASKS.get(mask.kind, ()):
        source = next(map(product.source, product.find(f"GRANULE/*/QI_DATA/{name}")), None)
        if source:
            return cloud_layer(source, mask, indexes, flags=mask.kind is CloudKind.QA60)
    return None
