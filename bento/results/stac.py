"""A STAC item for each classified scene, with what catalogues need to find it and programs to read it.

STAC 1.1.0 (https://github.com/radiantearth/stac-spec) with the extensions projection 2.0.0, classification 2.0.0 and
MLM 1.5.0 (https://github.com/stac-extensions). It holds nothing of the time or the machine that made it, so that the
same scene gives the same bytes.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tilewise.bento.inference.blending import NO_CLASS
from tilewise.bento.inference.window_grid import SceneInfo
from tilewise.bento.results.maps import colours
from tilewise.datasets.core.tile import rings_of
from tilewise.models.model_file import INPUT, ModelMetadata

SUFFIX = ".stac.json"
EXTENSIONS = {
    name: f"https://stac-extensions.github.io/{name}/v{version}/schema.json"
    for name, version in (("projection", "2.0.0"), ("classification", "2.0.0"), ("mlm", "1.5.0"))
}
_COG = "image/tiff; application=geotiff; profile=cloud-optimized"
_MEDIA = {".tif": _COG, ".parquet": "application/vnd.apache.parquet", ".geojson": "application/geo+json"}
_MEDIA |= {".fgb": "application/vnd.flatgeobuf", ".png": "image/png", ".xml": "application/xml"}
_TITLES = {
    "classes": "Class of every pixel",
    "confidence": "Probability of every pixel's class (number × 0.004)",
    "outlier": "How unlike the training data every pixel's window is",
    "probabilities": "Probability of every class (number × 0.004)",
    "windows": "Windows with classes and probabilities",
    "polygons": "Areas of one class",
    "quicklook": "Picture of the class map with its legend",
}
# Where nobody says when a scene was taken: at some time since Sentinel-2A flies.
_SOME_TIME = {"start_datetime": "2015-06-23T00:00:00Z", "end_datetime": "2099-12-31T23:59:59Z"}


def write_item(
    path: Path,
    scene_info: SceneInfo,
    metadata: ModelMetadata,
    files: Sequence[Path],
    model: Path,
    sha256: str,
    out: Path,
) -> Path:
    """Write the item of a scene.

    Args:
        path: of the item.
        frame: the scene's grid and origin.
        metadata: of the model.
        files: the scene's results, which will lie beside the item.
        model: the model file.
        sha256: of the model file.
        out: the folder that the results end up in, which the links to scene and model start from.

    Raises:
        OSError: the disk does not take it.
    """
    footprint = scene_info.place.footprint(scene_info.width, scene_info.height)
    item = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": list(EXTENSIONS.values()),
        "id": scene_info.name,
        "geometry": footprint,
        **({"bbox": _bbox(footprint)} if footprint else {}),
        "properties": _properties(scene_info, metadata, sha256),
        "links": [{"rel": "derived_from", "href": _href(source, out)} for source in scene_info.sources],
        "assets": {**_assets(files, scene_info, metadata), "model": _model_asset(metadata, _href(str(model), out))},
    }
    path.write_text(json.dumps(item, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _properties(scene_info: SceneInfo, metadata: ModelMetadata, sha256: str) -> dict[str, Any]:
    when: dict[str, Any] = (
        {"datetime": scene_info.datetime} if scene_info.datetime else {"datetime": None, **_SOME_TIME}
    )
    return {
        **when,
        **({"platform": scene_info.platform} if scene_info.platform else {}),
        "title": f"Land cover of {scene_info.name}",
        **_projection(scene_info),
        **_model(metadata),
        "tilewise:model_sha256": sha256,
        "tilewise:synthetic_model": metadata.synthetic,
    }


def _projection(scene_info: SceneInfo) -> dict[str, Any]:
    authority = scene_info.place.crs.to_authority()
    code = (
        {"proj:code": ":".join(authority)}
        if authority
        else {"proj:code": None, "proj:wkt2": scene_info.place.crs.to_wkt()}
    )
    return {
        **code,
        "proj:shape": [scene_info.height, scene_info.width],
        "proj:transform": list(scene_info.place.transform)[:6],
        "proj:bbox": list(scene_info.place.bounds(scene_info.width, scene_info.height)),
    }


def _model(metadata: ModelMetadata) -> dict[str, Any]:
    """Return the fields of the MLM extension: what made the item."""
    size = metadata.tile_size
    tiles = {"shape": [-1, len(metadata.bands), size, size], "dim_order": ["batch", "bands", "height", "width"]}
    shares = {"shape": [-1, len(metadata.classes)], "dim_order": ["batch", "class"]}
    return {
        "mlm:name": _plain(f"{metadata.name} {metadata.version}", "model"),
        "mlm:architecture": metadata.network,
        "mlm:tasks": ["classification"],
        "mlm:framework": "ONNX",
        "mlm:input": [{"name": INPUT, "bands": list(metadata.bands), "input": {**tiles, "data_type": "uint16"}}],
        "mlm:output": [
            {
                "name": "probabilities",
                "tasks": ["classification"],
                "result": {**shares, "data_type": "float32"},
                "classification:classes": _classes(metadata),
            }
        ],
        "bands": _bands(metadata),
    }


def _bands(metadata: ModelMetadata) -> list[dict[str, str]]:
    """Return what the model takes; MLM wants it with the item, and STAC 1.1 then also with one of its assets."""
    return [{"name": band} for band in metadata.bands]


def _classes(metadata: ModelMetadata) -> list[dict[str, Any]]:
    return [
        {
            "value": index,
            "name": re.sub(r"[^0-9A-Za-z_-]", "_", name) or "_",
            "description": name,
            "color_hint": "".join(f"{part:02X}" for part in colour),
        }
        for index, (name, colour) in enumerate(zip(metadata.classes, colours(metadata.classes), strict=True))
    ]


def _assets(files: Sequence[Path], scene_info: SceneInfo, metadata: ModelMetadata) -> dict[str, Any]:
    assets = {}
    for file in files:
        kind, _, form = file.name.removeprefix(f"{scene_info.name}.").partition(".")
        is_picture = file.suffix == ".png"
        asset: dict[str, Any] = {
            "href": f"./{file.name}",
            "type": _MEDIA[file.suffix],
            "title": _TITLES[kind],
            "roles": ["overview", "thumbnail"] if is_picture else ["metadata"] if file.suffix == ".xml" else ["data"],
        }
        if form == "tif" and kind == "classes":
            asset["classification:classes"] = _classes(metadata)
            asset |= {"nodata": NO_CLASS, "data_type": "uint8"}
        assets[kind if form in ("tif", "png") else f"{kind}_{form.rpartition('.')[2]}"] = asset
    return assets


def _model_asset(metadata: ModelMetadata, href: str) -> dict[str, Any]:
    return {
        "href": href,
        "title": "The model that made this",
        "type": "application/octet-stream",
        "roles": ["mlm:model"],
        "mlm:artifact_type": "onnx",
        "bands": _bands(metadata),
    }


def _bbox(footprint: Mapping[str, Any]) -> list[float]:
    """Return west, south, east, north; across the antimeridian west is the larger (RFC 7946, 5.2)."""
    parts = rings_of(dict(footprint))
    lows, highs = [min(x for x, _ in ring) for ring in parts], [max(x for x, _ in ring) for ring in parts]
    south = min(y for ring in parts for _, y in ring)
    north = max(y for ring in parts for _, y in ring)
    if len(parts) > 1:
        return [max(lows), south, min(highs), north]
    return [lows[0], south, highs[0], north]


def _plain(text: str, otherwise: str) -> str:
    """Return `text` as the extension wants names: letters, digits, spaces and ._- , a letter first."""
    plain = re.sub(r"[^a-zA-Z0-9_.\- ]", "-", text).strip(" ._-")
    return plain if re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]", plain) else f"{otherwise} {plain or 0}"


def _href(place: str, out: Path) -> str:
    """Return a link from `out` to a file; an address stays as it is."""
    if "://" in place:
        return place
    try:
        return Path(os.path.relpath(place, out)).as_posix()
    except ValueError:  # on another drive
        return Path(place).as_posix()
