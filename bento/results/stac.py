"""A STAC item for each classified scene, so that catalogues find it and programs can read it.

STAC 1.1.0 (https://github.com/radiantearth/stac-spec) with the extensions projection 2.0.0, classification
2.0.0, MLM 1.5.2 and processing 1.2.0 (https://github.com/stac-extensions). The item names neither the time
nor the machine that made it: the same scene gives the same bytes.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shapely.geometry import shape

from tilewise.bento.inference.blending import NO_CLASS, OUT_OF_DISTRIBUTION
from tilewise.bento.inference.window_grid import SceneInfo
from tilewise.bento.results.maps import UNLIKE, UNLIKE_COLOUR
from tilewise.models.model_file import ModelMetadata
from tilewise.models.model_item import ANY_TIME, CLASSIFICATION, MLM, class_list, mlm_fields, model_asset

EXTENSIONS = (
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    CLASSIFICATION,
    MLM,
    "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
)
_COG = "image/tiff; application=geotiff; profile=cloud-optimized"
_MEDIA = {".tif": _COG, ".parquet": "application/vnd.apache.parquet", ".geojson": "application/geo+json"}
_MEDIA |= {
    ".fgb": "application/vnd.flatgeobuf",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".xml": "application/xml",
}
_MEDIA |= {".gpkg": "application/geopackage+sqlite3", ".qml": "application/xml"}
_TITLES = {
    "classes": "Class of every pixel",
    "probability": "Probability of every pixel's class (number × 0.004)",
    "outlier": "Outlier score of every pixel's window: larger for windows unlike the training data",
    "probabilities": "Probability of every class (number × 0.004)",
    "windows": "Windows with classes and probabilities",
    "polygons": "Areas of one class",
    "quicklook": "Picture of the class map with its legend",
    "truecolour": "Picture of the scene in true colour",
}
_UNLIKE_CLASS = {
    "value": OUT_OF_DISTRIBUTION,
    "name": UNLIKE,
    "description": "Unlike the training data: no class is claimed",
    "color_hint": "{:02X}{:02X}{:02X}".format(*UNLIKE_COLOUR),
}


def write_item(
    path: Path,
    scene_info: SceneInfo,
    metadata: ModelMetadata,
    files: Sequence[Path],
    model: Path,
    sha256: str,
    out: Path,
    *,
    min_area: float = 0.0,
    smooth: float = 0.0,
) -> Path:
    """Write the item of a scene.

    Args:
        path: of the item.
        scene_info: the scene's grid and origin.
        metadata: of the model.
        files: the scene's results, which end up beside the item.
        model: the model file.
        sha256: of the model file.
        out: the folder that the results end up in, which the links to scene and model start from.
        min_area: hectares below which patches of the class map were merged into their neighbours.
        smooth: metres a side of the squares whose majority each pixel of the class map took.

    Raises:
        OSError: the disk does not take it.
    """
    footprint = scene_info.georeference.footprint(scene_info.width, scene_info.height)
    item = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": list(EXTENSIONS),
        "id": scene_info.name,
        "geometry": footprint,
        **({"bbox": _bbox(footprint)} if footprint else {}),
        "properties": {
            **_properties(scene_info, metadata, sha256),
            "processing:lineage": _lineage(scene_info, min_area, smooth),
            **({"tilewise:min_area_ha": min_area} if min_area else {}),
        },
        "links": [{"rel": "derived_from", "href": _href(source, out)} for source in scene_info.sources],
        "assets": {
            **_assets(files, scene_info, metadata),
            "model": model_asset(metadata, _href(str(model), out), "The model that made this"),
        },
    }
    path.write_text(json.dumps(item, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _properties(scene_info: SceneInfo, metadata: ModelMetadata, sha256: str) -> dict[str, Any]:
    return {
        **_times(scene_info.datetime),
        **({"platform": scene_info.platform} if scene_info.platform else {}),
        "title": f"Land cover of {scene_info.name}",
        **_projection(scene_info),
        **mlm_fields(metadata),
        "tilewise:model_sha256": sha256,
        "tilewise:synthetic_model": metadata.synthetic,
        "tilewise:cloud_mask": scene_info.clouds,
    }


def _times(when: str | None) -> dict[str, Any]:
    if when is None:
        return {"datetime": None, **ANY_TIME}
    first, _, last = when.partition("/")
    return {"datetime": None, "start_datetime": first, "end_datetime": last} if last else {"datetime": first}


def _lineage(scene_info: SceneInfo, min_area: float, smooth: float) -> str:
    """Return how pixels became classes, step by step."""
    steps = [scene_info.lineage or "Classified in windows"]
    if smooth:
        steps.append(f"smoothed by the majority in squares of {smooth:g} m, weighted by probability")
    if min_area:
        steps.append(f"patches of less than {min_area:g} ha merged into their largest neighbour")
    return "; ".join(steps)


def _projection(scene_info: SceneInfo) -> dict[str, Any]:
    authority = scene_info.georeference.crs.to_authority()
    code = (
        {"proj:code": ":".join(authority)}
        if authority
        else {"proj:code": None, "proj:wkt2": scene_info.georeference.crs.to_wkt()}
    )
    return {
        **code,
        "proj:shape": [scene_info.height, scene_info.width],
        "proj:transform": list(scene_info.georeference.transform)[:6],
        "proj:bbox": list(scene_info.georeference.bounds(scene_info.width, scene_info.height)),
    }


def _assets(files: Sequence[Path], scene_info: SceneInfo, metadata: ModelMetadata) -> dict[str, Any]:
    assets = {}
    for file in files:
        kind, _, form = file.name.removeprefix(f"{scene_info.name}.").partition(".")
        is_picture = file.suffix in (".png", ".jpg")
        asset: dict[str, Any] = {
            "href": f"./{file.name}",
            "type": _MEDIA[file.suffix],
            "title": _TITLES[kind],
            "roles": ["overview", "thumbnail"]
            if is_picture
            else ["metadata"]
            if file.suffix in (".xml", ".qml")
            else ["data"],
        }
        if form == "tif" and kind == "classes":
            asset["classification:classes"] = [*class_list(metadata), _UNLIKE_CLASS]
            asset |= {"nodata": NO_CLASS, "data_type": "uint8"}
        assets[kind if form in ("tif", "png", "jpg") else f"{kind}_{form.rpartition('.')[2]}"] = asset
    return assets


def _bbox(footprint: Mapping[str, Any]) -> list[float]:
    """Return west, south, east, north; across the antimeridian west is the larger (RFC 7946, 5.2)."""
    parts = list(getattr(shape(footprint), "geoms", [shape(footprint)]))
    bounds = [part.bounds for part in parts]
    west, south, east, north = zip(*bounds, strict=True)
    if len(parts) > 1:
        return [max(west), min(south), min(east), max(north)]
    return list(bounds[0])


def _href(path: str, out: Path) -> str:
    """Return a relative link from `out` to a file; a URL stays as it is."""
    if "://" in path:
        return path
    try:
        return Path(os.path.relpath(path, out)).as_posix()
    except ValueError:  # on another drive
        return Path(path).as_posix()
