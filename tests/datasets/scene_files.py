"""Scenes of every form, made in the test that needs them: stacked, one file per band, SAFE, STAC."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine

from tilewise.datasets.core.bands import BAND_NAMES, BANDS, L2A_BANDS

CRS = "EPSG:32632"
CORNER = (600_000, 5_000_000)
UNSAID: dict[str, str] = {}


def smooth(bands: int, size: int, seed: int = 0) -> npt.NDArray[np.uint16]:
    """Smooth DN (bands, size, size) between 500 and 4500: they bear being resampled."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : size * 1j, 0 : 1 : size * 1j]  # type: ignore[misc]
    waves = [np.sin(3 * x + rng.uniform(0, 6)) + np.cos(4 * y + rng.uniform(0, 6)) for _ in range(bands)]
    return (2500 + 1000 * np.stack(waves)).astype(np.uint16)


def write_band(
    path: Path, pixels: npt.NDArray[Any], pixel_m: float = 10, driver: str = "GTiff", **more: Any
) -> Path:
    """Write one band (height, width) at CORNER."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = pixels.shape[-2:]
    profile: dict[str, Any] = {
        "crs": CRS,
        "transform": Affine(pixel_m, 0, CORNER[0], 0, -pixel_m, CORNER[1]),
        "dtype": pixels.dtype,
    }
    if driver == "JP2OpenJPEG":
        profile |= {"QUALITY": "100", "REVERSIBLE": "YES", "blockxsize": 64, "blockysize": 64}
    profile |= more
    with rasterio.open(path, "w", driver=driver, height=height, width=width, count=1, **profile) as dataset:
        dataset.write(pixels.reshape(1, height, width))
    path.with_name(path.name + ".aux.xml").unlink(missing_ok=True)
    return path


def native(pixels: npt.NDArray[np.uint16], band: str) -> tuple[npt.NDArray[np.uint16], int]:
    """A band (height, width) of 10 m in its own resolution, by means, with that resolution in metres."""
    metres = next(b.resolution_m for b in BANDS if b.name == band)
    step = metres // 10
    height, width = pixels.shape[0] // step, pixels.shape[1] // step
    means = pixels[: height * step, : width * step].reshape(height, step, width, step).mean(axis=(1, 3))
    return means.astype(np.uint16), metres


SAFE_NAME = "S2B_MSIL{level}_20230607T102559_N{baseline}_R108_T32TPR_20230607T134211.SAFE"
_XML = """<?xml version="1.0" encoding="UTF-8"?>
<n1:Product xmlns:n1="https://example.org/{level}"><General_Info><Product_Info>
<PRODUCT_START_TIME>2023-06-07T10:25:59.024Z</PRODUCT_START_TIME><PROCESSING_LEVEL>Level-{level}</PROCESSING_LEVEL>
<PROCESSING_BASELINE>{dotted}</PROCESSING_BASELINE><Datatake><SPACECRAFT_NAME>Sentinel-2B</SPACECRAFT_NAME></Datatake>
<Product_Organisation><Granule_List>{granules}</Granule_List></Product_Organisation></Product_Info>
<Product_Image_Characteristics>{quantification}{offsets}</Product_Image_Characteristics></General_Info></n1:Product>"""


def write_safe(
    folder: Path,
    level: str,
    pixels: npt.NDArray[np.uint16],
    offsets: Mapping[str, int] | None = None,
    *,
    granules: int = 1,
    images: tuple[str, ...] | None = None,
    head: str = "",
) -> Path:
    """Write a SAFE product of `pixels` (13, size, size) DN at 10 m, each band in its own resolution.

    `offsets` are ADD_OFFSETs by band: the files hold DN − offset. `images` replaces the list of image files;
    `head` goes before the XML's root.
    """
    baseline = "0400" if offsets else "0301"
    product = folder / SAFE_NAME.format(level=level, baseline=baseline)
    stem = "T32TPR_20230607T102559"
    inside = Path("GRANULE") / f"L{level}_T32TPR" / "IMG_DATA"
    written = []
    for band in BAND_NAMES if level == "1C" else L2A_BANDS:
        values, metres = native(pixels[BAND_NAMES.index(band)], band)
        name = (
            inside / f"{stem}_{band}"
            if level == "1C"
            else inside / f"R{metres}m" / f"{stem}_{band}_{metres}m"
        )
        stored = (values.astype(int) - (offsets or {}).get(band, 0)).astype(np.uint16)
        write_band(product / f"{name}.jp2", stored, metres, "JP2OpenJPEG")
        written.append(name.as_posix())
    tag, place = ("RADIO", "QUANTIFICATION_VALUE") if level == "1C" else ("BOA", "BOA_QUANTIFICATION_VALUE")
    listed = "".join(f"<IMAGE_FILE>{name}</IMAGE_FILE>" for name in images or written)
    added = [
        f'<{tag}_ADD_OFFSET band_id="{BAND_NAMES.index(b)}">{v}</{tag}_ADD_OFFSET>'
        for b, v in (offsets or {}).items()
    ]
    text = _XML.format(
        level=level,
        dotted=f"{baseline[:2]}.{baseline[2:]}",
        granules="".join(f'<Granule granuleIdentifier="g{n}">{listed}</Granule>' for n in range(granules)),
        quantification=f'<{place} unit="none">10000</{place}>',
        offsets="".join(added),
    )
    first, rest = text.split("\n", 1)
    (product / f"MTD_MSIL{level}.xml").write_text(f"{first}\n{head}{rest}")
    return product


def stac_item(
    assets: Mapping[str, Mapping[str, Any]], name: str = "item", **properties: Any
) -> dict[str, Any]:
    """A STAC item of these assets."""
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "geometry": None,
        "properties": {"datetime": "2023-06-07T10:25:59Z", "platform": "sentinel-2b", **properties},
        "links": [],
        "assets": dict(assets),
    }


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path
