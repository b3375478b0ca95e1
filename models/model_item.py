"""The STAC item of a model, by which catalogues and other programs find out what it takes and answers.

STAC 1.1.0 (https://github.com/radiantearth/stac-spec) with the extensions MLM 1.5.2 (machine-learning
models) and classification 2.0.0 (https://github.com/stac-extensions).
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from tilewise.datasets.core.files import atomic_write
from tilewise.models.class_colours import colours
from tilewise.models.model_file import FP32, INPUT, INT8, OUTPUTS, ModelMetadata, int8_of, open_model

SUFFIX = ".stac.json"
MLM = "https://stac-extensions.github.io/mlm/v1.5.2/schema.json"
CLASSIFICATION = "https://stac-extensions.github.io/classification/v2.0.0/schema.json"
ANY_TIME = {"start_datetime": "2015-06-23T00:00:00Z", "end_datetime": "2099-12-31T23:59:59Z"}
"""STAC needs a time: where none is known, any since the launch of Sentinel-2A."""
# A model is of no place; MLM wants the extent where it may be used.
_WORLD = (-180.0, -90.0, 180.0, 90.0)
_NAME = r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]"


class Described(Protocol):
    """An opened model file, or an engine that runs one."""

    @property
    def metadata(self) -> ModelMetadata:
        """Of the model."""
        ...

    @property
    def sha256(self) -> str:
        """Of the file."""
        ...


def write_model_item(path: Path) -> Path:
    """Write the item of the model file `path`, and of the INT8 file beside it, as `<name>.stac.json`.

    Returns:
        The path of the item.

    Raises:
        ModelFileError: a file is no model file.
    """
    files = {"model": path, "model_int8": int8_of(path)}
    item = model_item(
        {key: (open_model(file), f"./{file.name}") for key, file in files.items() if file.is_file()}
    )
    target = path.with_suffix(SUFFIX)
    with atomic_write(target) as partial:
        partial.write_text(json.dumps(item, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return target


def model_item(files: Mapping[str, tuple[Described, str]]) -> dict[str, Any]:
    """Return the item of a model.

    Args:
        files: each of its files with a link to it, by the key of its asset; the first describes the model.
    """
    metadata = next(iter(files.values()))[0].metadata
    west, south, east, north = _WORLD
    corners = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    when = {"datetime": metadata.created} if metadata.created else {"datetime": None, **ANY_TIME}
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [MLM, CLASSIFICATION],
        "id": re.sub(r"[^0-9A-Za-z._-]", "-", f"{metadata.name}-{metadata.version}"),
        "geometry": {"type": "Polygon", "coordinates": [corners]},
        "bbox": list(_WORLD),
        "properties": {
            **when,
            "title": f"{metadata.name} {metadata.version}",
            **({"license": metadata.licence} if metadata.licence else {}),
            **mlm_fields(metadata),
            "mlm:pretrained": bool(metadata.ancestry),
            **({"mlm:pretrained_source": metadata.ancestry} if metadata.ancestry else {}),
            "tilewise:metrics": dict(metadata.metrics),
            "tilewise:data_hash": metadata.data_hash,
            "tilewise:synthetic_model": metadata.synthetic,
        },
        "links": [],
        "assets": {key: _asset(file, href) for key, (file, href) in files.items()},
    }


def mlm_fields(metadata: ModelMetadata) -> dict[str, Any]:
    """Return the fields of the MLM extension that describe a model."""
    size = metadata.tile_size
    tiles = {
        "shape": [-1, len(metadata.bands), size, size],
        "dim_order": ["batch", "bands", "height", "width"],
        "data_type": "uint16",
    }
    scores = {"shape": [-1, len(metadata.classes)], "dim_order": ["batch", "class"], "data_type": "float32"}
    return {
        "mlm:name": _plain(f"{metadata.name} {metadata.version}", "model"),
        "mlm:architecture": metadata.network,
        "mlm:tasks": ["classification"],
        "mlm:framework": "ONNX",
        "mlm:input": [{"name": INPUT, "bands": list(metadata.bands), "input": tiles}],
        "mlm:output": [
            {
                "name": OUTPUTS[0],
                "tasks": ["classification"],
                "result": scores,
                "classification:classes": class_list(metadata),
            }
        ],
        "bands": _bands(metadata),
    }


def model_asset(metadata: ModelMetadata, href: str, title: str) -> dict[str, Any]:
    """Return the asset of a model file."""
    return {
        "href": href,
        "title": title,
        "type": "application/octet-stream",
        "roles": ["mlm:model"],
        "mlm:artifact_type": "onnx",
        "bands": _bands(metadata),
    }


def class_list(metadata: ModelMetadata) -> list[dict[str, Any]]:
    """Return the classes as the classification extension lists them: the place in the output, a name."""
    return [
        {
            "value": index,
            "name": re.sub(r"[^0-9A-Za-z_-]", "_", name) or "_",
            "description": name,
            "color_hint": "".join(f"{part:02X}" for part in colour),
        }
        for index, (name, colour) in enumerate(zip(metadata.classes, colours(metadata.classes), strict=True))
    ]


def _asset(file: Described, href: str) -> dict[str, Any]:
    precision = {FP32: "32-bit floats", INT8: "8-bit integers"}[file.metadata.precision]
    return {
        **model_asset(file.metadata, href, f"The model in {precision}"),
        "tilewise:sha256": file.sha256,
    }


def _bands(metadata: ModelMetadata) -> list[dict[str, str]]:
    """Return the model's input bands; MLM wants them in the item, STAC 1.1 then also in one of its assets."""
    return [{"name": band} for band in metadata.bands]


def _plain(text: str, default: str) -> str:
    """Return `text` as the MLM extension wants names: letters, digits, spaces and ._- , a letter first."""
    plain = re.sub(r"[^a-zA-Z0-9_.\- ]", "-", text).strip(" ._-")
    return plain if re.fullmatch(_NAME, plain) else f"{default} {plain or 0}"
