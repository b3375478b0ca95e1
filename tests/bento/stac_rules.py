"""What the STAC extensions ask of an item, for validating without a network.

pystac brings the schemas of STAC itself, but fetches those of extensions. Their rules are restated here,
shorter and in our own words, from the published ones
(https://stac-extensions.github.io/<name>/<version>/schema.json), under whose addresses pystac then finds
them. Rules for what our items never hold are left out.
"""

from typing import Any

_ADDRESS = "https://stac-extensions.github.io/{}/schema.json"


def _item(name: str, **parts: Any) -> dict[str, Any]:
    """A schema for items that declare the extension."""
    declared = {"type": "array", "contains": {"const": _ADDRESS.format(name)}}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "required": ["stac_extensions", "type", "properties", "assets"],
        "properties": {"stac_extensions": declared, "type": {"const": "Feature"}, **parts},
    }


def _only(prefix: str, fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An object whose fields with a prefix are all known."""
    others = {f"^(?!{prefix}:)": {}}
    return {
        "type": "object",
        "properties": fields,
        "patternProperties": others,
        "additionalProperties": False,
        **more,
    }


_NUMBERS = {"type": "array", "items": {"type": "number"}}
_PROJECTION = _only(
    "proj",
    {
        "proj:code": {"type": ["string", "null"], "pattern": "^[^:]+:[^:]+$"},
        "proj:wkt2": {"type": ["string", "null"]},
        "proj:bbox": {**_NUMBERS, "minItems": 4, "maxItems": 4},
        "proj:shape": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
        "proj:transform": {**_NUMBERS, "minItems": 6, "maxItems": 9},
    },
)
_CLASSES = {
    "type": "array",
    "minItems": 1,
    "uniqueItems": True,
    "items": {
        "type": "object",
        "required": ["value", "name"],
        "properties": {
            "value": {"type": "integer"},
            "name": {"type": "string", "pattern": "^[0-9A-Za-z-_]+$"},
            "description": {"type": "string"},
            "color_hint": {"type": "string", "pattern": "^[0-9A-F]{6}$"},
        },
    },
}
_CLASSIFICATION = _only("classification", {"classification:classes": _CLASSES})

_PROCESSING = _only("processing", {"processing:lineage": {"type": "string"}}, required=["processing:lineage"])

_TASKS = {"type": "array", "items": {"enum": ["classification", "scene-classification", "segmentation"]}}
_ARRAY = {
    "type": "object",
    "required": ["shape", "dim_order", "data_type"],
    "properties": {
        "shape": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": -1}},
        "dim_order": {
            "type": "array",
            "uniqueItems": True,
            "items": {"type": "string", "pattern": "^[a-z-_]+$"},
        },
        "data_type": {"enum": ["uint8", "uint16", "float32", "float64"]},
    },
}
_INPUT = {
    "type": "object",
    "required": ["name", "input", "bands"],
    "properties": {
        "bands": {"type": "array", "minItems": 1, "items": {"type": "string"}},
        # Bands that are named are a dimension.
        "input": {
            **_ARRAY,
            "properties": {**_ARRAY["properties"], "dim_order": {"contains": {"const": "bands"}}},
        },  # type: ignore[dict-item]
    },
}
_OUTPUT = {
    "type": "object",
    "required": ["name", "tasks", "result"],
    "properties": {"tasks": _TASKS, "result": _ARRAY, "classification:classes": _CLASSES},
}
_MODEL = _only(
    "mlm",
    {
        "mlm:name": {"type": "string", "pattern": r"^[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]$"},
        "mlm:architecture": {"type": "string"},
        "mlm:tasks": _TASKS,
        "mlm:framework": {"type": "string", "minLength": 1},
        "mlm:pretrained": {"type": "boolean"},
        "mlm:pretrained_source": {"type": ["string", "null"]},
        "mlm:input": {"type": "array", "items": _INPUT},
        "mlm:output": {"type": "array", "items": _OUTPUT},
        # Bands that inputs name are described with the item.
        "bands": {"type": "array", "minItems": 1, "items": {"type": "object", "required": ["name"]}},
    },
    required=["mlm:name", "mlm:architecture", "mlm:tasks", "mlm:input", "mlm:output", "bands"],
)
_HAS_MODEL_ROLE = {"properties": {"roles": {"contains": {"const": "mlm:model"}}}, "required": ["roles"]}
_HAS_ARTIFACT = {"required": ["mlm:artifact_type"]}
_MODEL_ASSETS = {
    "type": "object",
    "minProperties": 1,
    "not": {"additionalProperties": {"not": _HAS_MODEL_ROLE}},  # at least one holds the model
    "additionalProperties": {"if": _HAS_MODEL_ROLE, "then": _HAS_ARTIFACT, "else": {"not": _HAS_ARTIFACT}},
}

SCHEMAS = {
    _ADDRESS.format(name): schema
    for name, schema in {
        "projection/v2.0.0": _item(
            "projection/v2.0.0", properties=_PROJECTION, assets={"additionalProperties": _PROJECTION}
        ),
        "classification/v2.0.0": _item(
            "classification/v2.0.0",
            properties=_CLASSIFICATION,
            assets={"additionalProperties": _CLASSIFICATION},
        ),
        "processing/v1.2.0": _item("processing/v1.2.0", properties=_PROCESSING),
        "mlm/v1.5.2": _item("mlm/v1.5.2", properties=_MODEL, assets=_MODEL_ASSETS),
    }.items()
}
