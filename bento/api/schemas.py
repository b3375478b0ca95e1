"""Parameters and responses of the API as pydantic models, from which FastAPI makes the OpenAPI document.

No request passes through them: the routes read parameters and write responses as plain dictionaries, because
a model for each tile would cost more. The tests hold real responses against these models, in both directions.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tilewise.bento.inference.occlusion import Method
from tilewise.models.model_file import ModelMetadata

Fraction = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Level = Literal["L1C", "L2A"]

# Parameters: fields of a form or of the query, all of them optional.


class ReadParameters(BaseModel):
    """How to read files whose own metadata leave it open."""

    bands: str = Field(
        description="Bands in the file's order, as names (`B04,B03,B02`) or as one of `l1c`, `l2a`, `20m`, "
        "`10m`, `rgb`, `eurosat`, `eurosat-rgb`; `_` or `-` leaves one out. For arrays, and files whose "
        "bands have no names. The last two say level, scale and offset as well.",
        examples=["eurosat"],
    )
    level: Level = Field(description="Processing level, for files that do not state it.")
    scale: float = Field(description="Reflectance per unit of the file's numbers: 0.0001 for DN.")
    offset: float = Field(
        description="Added to the file's numbers before scaling: 0 before processing baseline 04.00, -1000 "
        "since.",
    )


class NamedParameters(ReadParameters):
    """The same for one file, whose name the body does not state."""

    name: str = Field(description="Name of the file in the response.")


class TileParameters(ReadParameters):
    """Parameters of tiles in a form."""

    coverage: float = Field(
        ge=0.5,
        le=1,
        description="Fraction of tiles whose prediction set shall contain the true class; 0.9 by default.",
    )


class EncodedTile(BaseModel):
    """A file in a JSON body."""

    name: str = Field(
        "0",
        description="Name of the file in the response; by default its number, or the last part of its url.",
    )
    content: str | None = Field(
        None,
        description="The bytes of a GeoTIFF, JPEG or PNG, in base64.",
        json_schema_extra={"contentEncoding": "base64"},
    )
    url: str | None = Field(
        None,
        description="In place of the content: where to fetch it from, on a host that the operator names.",
    )


class NamedTileParameters(TileParameters, NamedParameters):
    """Parameters of one tile as the body."""


class SceneParameters(NamedTileParameters):
    """Parameters of a scene."""

    min_valid_fraction: Fraction = Field(
        description="Fraction of valid pixels below which a window is not classified; 0.5 by default."
    )
    stride: int = Field(
        ge=4,
        le=64,
        description="Pixels from one window to the next, 64 by default; below 64 windows overlap and are "
        "blended.",
    )
    clouds: str = Field(
        description="Cloud mask, whose pixels become no data: `scl`, `qa60`, `probability`, `probability:40` "
        "(percent), `pixels` (found in the bands), `none`, or `auto`, the default: the first of `scl`, "
        "`probability` and `qa60` that the scene has, else `pixels`.",
        examples=["none"],
    )
    warp: bool = Field(
        description="Resample a scene in degrees, or far from 10 m, to 10 m in its UTM zone; without it such "
        "a scene is refused."
    )


class ExplainParameters(BaseModel):
    """How to explain the class of a tile."""

    method: Method = Field(
        description="What is compared when a part is occluded: the class's probability, or the embedding.",
    )
    size: int = Field(ge=1, le=64, description="Side of a patch, in pixels.")
    stride: int = Field(ge=1, description="Distance between patches, in pixels.")
    class_: str = Field(alias="class", description="The class to explain; the most probable one by default.")


class PreviewParameters(NamedParameters):
    """Parameters of a picture."""

    view: Literal["true", "false"] = Field(description="True colour, or false colour (near infrared).")
    warp: bool = Field(description="Draw a scene on the grid of its maps where it is resampled.")


# Responses.


class ErrorDetail(BaseModel):
    """Why a request or a tile was refused."""

    code: str = Field(description="For programs: see the table of codes.")
    message: str = Field(description="For people: what is wrong, in one line.")
    hint: str = Field(description="How to fix it; empty where there is no way.")


class ErrorResponse(BaseModel):
    """The body of every error response."""

    error: ErrorDetail


class ModelIdentity(BaseModel):
    """The model that classified."""

    name: str
    version: str
    sha256: Sha256 = Field(description="Of the model file.")


class Polygon(BaseModel):
    """A footprint: a GeoJSON polygon in EPSG:4326, longitude first (RFC 7946)."""

    type: Literal["Polygon"]
    coordinates: list[list[tuple[float, float]]]


class MultiPolygon(BaseModel):
    """A footprint that crosses the antimeridian."""

    type: Literal["MultiPolygon"]
    coordinates: list[list[list[tuple[float, float]]]]


Footprint = Polygon | MultiPolygon


class PredictionSetResult(BaseModel):
    """A set of classes that contains the true one for a promised fraction of tiles like the training data."""

    coverage: Fraction = Field(description="The requested fraction.")
    classes: list[str] = Field(description="Most probable first; empty is possible at a low coverage.")


class OutlierResult(BaseModel):
    """How far a tile is out of the distribution of the training data."""

    score: float
    flag: bool = Field(
        description="Whether the score exceeds the model's threshold: treat the class with caution."
    )


class TileResult(BaseModel):
    """The classification of one tile."""

    name: str = Field(description="As it was uploaded; in an array, the tile's index.")
    class_: str = Field(alias="class", description="The most probable class.")
    probabilities: dict[str, float] = Field(description="Of each class, calibrated; they sum to 1.")
    prediction_set: PredictionSetResult | None = Field(
        description="null: the model is not calibrated for sets."
    )
    outlier: OutlierResult | None = Field(description="null: the model has no threshold.")
    valid_fraction: Fraction = Field(description="Fraction of pixels with data in all bands.")
    bands: list[str] = Field(description="The bands that were used, in canonical order.")
    level: Level | None = Field(description="null: neither the file nor the request states it.")
    footprint: Footprint | None = Field(description="null: the file is not georeferenced.")


class TileError(BaseModel):
    """Why one tile was not classified; the others are."""

    name: str
    error: ErrorDetail


class ClassifyResponse(BaseModel):
    """One result for each tile, in order."""

    model: ModelIdentity
    results: list[TileResult | TileError]


class _ServedModel(ModelMetadata):
    """The metadata of a model file without its reference histograms."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    histograms: tuple[()] = Field((), exclude=True)
    histogram_edges: tuple[()] = Field((), exclude=True)
    self_test: None = Field(None, exclude=True)
    digest: str = Field("", exclude=True)
    sha256: Sha256 = Field(description="Of the model file.")


class CandidateModel(_ServedModel):
    """A second model that is tested on live traffic."""

    mode: Literal["shadow", "canary"] = Field(
        description="`shadow`: classifies a copy of requests, and is compared. `canary`: answers requests."
    )
    fraction: Fraction = Field(description="Fraction of the requests that it gets.")


class ModelResponse(_ServedModel):
    """The metadata of the model that answers."""

    model_config = ConfigDict(json_schema_extra=lambda schema: schema["required"].remove("candidate"))

    candidate: CandidateModel | None = Field(None, description="Absent where no candidate is served.")


class WindowProperties(BaseModel):
    """The classification of one window of a scene; null where too few of its pixels have data."""

    class_: str | None = Field(alias="class")
    probability: Fraction | None = Field(description="Of that class.")
    probabilities: dict[str, float] | None
    prediction_set: PredictionSetResult | None
    outlier: OutlierResult | None
    valid_fraction: Fraction
    row: int = Field(ge=0, description="Of its upper left pixel in the scene.")
    column: int = Field(ge=0)
    height: int = Field(ge=1, description="In pixels.")
    width: int = Field(ge=1)


class WindowFeature(BaseModel):
    """One window of a scene."""

    type: Literal["Feature"]
    id: int
    geometry: Footprint | None
    properties: WindowProperties


class SceneResponse(BaseModel):
    """A classified scene: a GeoJSON FeatureCollection with the model and the bands that were used."""

    type: Literal["FeatureCollection"]
    name: str
    model: ModelIdentity
    bands: list[str]
    level: Level | None
    pixels: dict[str, int] = Field(
        description="Pixels of the class map in each class, in `out_of_distribution` (unlike the training "
        "data: no class is claimed) and in `no_class` (no data, cloud, or skipped)."
    )
    features: list[WindowFeature]


class TaskLinks(BaseModel):
    """Paths of a task."""

    self: str
    result: str


class TaskResponse(BaseModel):
    """The progress of a large scene."""

    id: str
    status: Literal["waiting", "running", "done", "failed"]
    progress: Fraction
    windows: int = Field(ge=0)
    ahead: int = Field(ge=0, description="Tasks before it in the queue.")
    created: str = Field(json_schema_extra={"format": "date-time"})
    finished: str | None
    expires: str | None = Field(description="When its result is deleted.")
    error: ErrorDetail | None = Field(description="Why it failed.")
    links: TaskLinks
    media_types: list[str] = Field(description="Media types in which its result is available.")


class ExplainResponse(BaseModel):
    """How much each part of a tile contributes to its class."""

    model: ModelIdentity
    name: str
    class_: str = Field(alias="class", description="The class that is explained.")
    probability: Fraction = Field(description="Of that class, for the whole tile.")
    method: Literal["occlusion", "embedding"]
    size: int = Field(ge=1, description="Side of a patch, in pixels.")
    stride: int = Field(ge=1, description="Distance between patches, in pixels.")
    starts: list[int] = Field(description="Offsets of the patches along a side, in pixels.")
    grid: list[list[float]] = Field(
        description="For each occluded patch: how far the class's probability drops (`occlusion`), or how "
        "far the embedding turns (`embedding`)."
    )
    bands: dict[str, float] = Field(description="The same for each band that is removed.")


# Examples.

CLASSIFIED: dict[str, Any] = {
    "model": {
        "name": "eurosat",
        "version": "1",
        "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    },
    "results": [
        {
            "name": "tile.tif",
            "class": "Forest",
            "probabilities": {"Forest": 0.91, "Pasture": 0.06, "River": 0.03},
            "prediction_set": {"coverage": 0.9, "classes": ["Forest"]},
            "outlier": {"score": 12.4, "flag": False},
            "valid_fraction": 1.0,
            "bands": ["B02", "B03", "B04", "B08"],
            "level": "L1C",
            "footprint": {
                "type": "Polygon",
                "coordinates": [[[7.0, 46.0], [7.0, 45.994], [7.008, 45.994], [7.008, 46.0], [7.0, 46.0]]],
            },
        },
        {
            "name": "photo.tif",
            "error": {"code": "unreadable_image", "message": "photo.tif: a JPEG, not a GeoTIFF", "hint": ""},
        },
    ],
}
TASK: dict[str, Any] = {
    "id": "TFh0qVx3k1uY4nK2dJ7mWbZr9sLcPq5e",
    "status": "waiting",
    "progress": 0.0,
    "windows": 1024,
    "ahead": 0,
    "created": "2026-01-01T12:00:00.000+00:00",
    "finished": None,
    "expires": None,
    "error": None,
    "links": {
        "self": "/tasks/TFh0qVx3k1uY4nK2dJ7mWbZr9sLcPq5e",
        "result": "/tasks/TFh0qVx3k1uY4nK2dJ7mWbZr9sLcPq5e/result",
    },
    "media_types": ["application/geo+json", "image/tiff", "image/png"],
}
EXAMPLES = {
    "classified": {"summary": "A classified tile and a refused one", "value": CLASSIFIED},
    "task": {"summary": "A task in the queue", "value": TASK},
}


# Parts of an operation of the OpenAPI document that FastAPI cannot derive from an endpoint's signature.

EXAMPLE_URL = "http://localhost:3000"
TIFF = {"schema": {"type": "string", "contentMediaType": "image/tiff"}}
PNG = {"schema": {"type": "string", "contentMediaType": "image/png"}}
JPEG = {"schema": {"type": "string", "contentMediaType": "image/jpeg"}}
ARRAY = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}


def operation(
    *curl: str, parameters: Sequence[dict[str, Any]] = (), body: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """Return the argument `openapi_extra` of a route.

    Args:
        curl: example command lines; `{url}` stands for the service's address.
        parameters: of the query, the headers and the path.
        body: media types of the request body, with their schemas.
        more: further fields of the OpenAPI operation.
    """
    samples = [{"lang": "Shell", "source": line.replace("{url}", EXAMPLE_URL)} for line in curl]
    request = {"requestBody": {"required": True, "content": body}} if body else {}
    return {"parameters": list(parameters), **request, "x-codeSamples": samples, **more}


def query(*models: type[BaseModel]) -> list[dict[str, Any]]:
    """Return the fields of models as parameters of the query."""
    return [_query_parameter(name, schema) for model in models for name, schema in _properties(model).items()]


def form(field: str, model: type[BaseModel], *, many: bool = False) -> dict[str, Any]:
    """Return the schema of a form with a file, or `many`, in `field` and the fields of a model."""
    file = TIFF["schema"]
    files = {"type": "array", "items": file, "minItems": 1} if many else file
    properties = {field: files, **_properties(model)}
    return {"schema": {"type": "object", "required": [field], "properties": properties}}


def encoded(field: str, model: type[BaseModel]) -> dict[str, Any]:
    """Return the schema of a JSON object with files in base64 in `field` and the fields of a model."""
    files = {"type": "array", "items": EncodedTile.model_json_schema(), "minItems": 1}
    return {
        "schema": {"type": "object", "required": [field], "properties": {field: files, **_properties(model)}}
    }


def header(name: str) -> dict[str, Any]:
    """Return a reference to a request header."""
    return {"$ref": f"#/components/parameters/{name}"}


def example(name: str) -> dict[str, Any]:
    """Return a JSON response's content with an example of `EXAMPLES`; FastAPI adds the schema."""
    return {"application/json": {"examples": {name: {"$ref": f"#/components/examples/{name}"}}}}


def open_schema(schema: Any) -> Any:
    """Return a schema that allows further fields, as the API version promises, without pydantic's titles."""
    if isinstance(schema, list):
        return [open_schema(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {
        key: open_schema(value) for key, value in schema.items() if key != "title" or isinstance(value, dict)
    }
    if kept.get("additionalProperties") is False:
        del kept["additionalProperties"]
    return kept


def schema_reference(model: type[BaseModel]) -> dict[str, str]:
    """Return a reference to the schema of a response."""
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schemas (2020-12) of a response and of the models inside it, by name."""
    schema = model.model_json_schema(mode="serialization", ref_template="#/components/schemas/{model}")
    return {**schema.pop("$defs", {}), model.__name__: schema}


def _query_parameter(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    description = schema.pop("description")
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _properties(model: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """Return the JSON schemas of a model's fields, with references resolved."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    fields: dict[str, dict[str, Any]] = open_schema(schema["properties"])
    for field in fields.values():
        reference = field.pop("$ref", "").rpartition("/")[2]
        if reference:
            field["enum"] = definitions[reference]["enum"]
    return fields
