"""The forms of the service's answers, for its description (`tilewise.bento.api.openapi`).

Answers are written as plain dictionaries, which costs less than a model for each tile; the tests hold real ones
against these forms, in both directions.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tilewise.models.model_file import ModelMetadata

Share = Annotated[float, Field(ge=0, le=1)]


class Error(BaseModel):
    """Why something is refused."""

    code: str = Field(description="For programs: see the table of codes.")
    message: str = Field(description="For people: what is wrong, in one line.")
    hint: str = Field(description="The way out; empty where there is none.")


class ErrorBody(BaseModel):
    """The body of every refusal."""

    error: Error


class ModelIdentity(BaseModel):
    """Which model answered."""

    name: str
    version: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Of the model file.")


class Polygon(BaseModel):
    """A footprint on Earth: a GeoJSON polygon in EPSG:4326, longitude first (RFC 7946)."""

    type: Literal["Polygon"]
    coordinates: list[list[tuple[float, float]]]


class MultiPolygon(BaseModel):
    """A footprint that crosses the antimeridian."""

    type: Literal["MultiPolygon"]
    coordinates: list[list[list[tuple[float, float]]]]


Footprint = Polygon | MultiPolygon


class PredictionSet(BaseModel):
    """Classes among which the true one is, for a share of tiles that was promised on tiles like the training data."""

    coverage: Share = Field(description="The share that was asked for.")
    classes: list[str] = Field(description="Likeliest first; with a low coverage it can be empty.")


class Outlier(BaseModel):
    """How unlike the training data a tile is."""

    score: float
    flag: bool = Field(description="Whether the score is above the model's threshold: take the class with a doubt.")


class TileAnswer(BaseModel):
    """The answer to one tile."""

    name: str = Field(description="As it was uploaded; of an array, the tile's position.")
    class_: str = Field(alias="class", description="The likeliest class.")
    probabilities: dict[str, float] = Field(description="Of each class, calibrated; they sum to 1.")
    prediction_set: PredictionSet | None = Field(description="null: the model is not calibrated for any.")
    outlier: Outlier | None = Field(description="null: the model has no threshold.")
    valid_fraction: Share = Field(description="Share of pixels with data in all bands.")
    bands: list[str] = Field(description="Those that were used, in canonical order.")
    level: Literal["L1C", "L2A"] | None = Field(description="null: neither the file nor the request says.")
    footprint: Footprint | None = Field(description="null: the file does not say where it lies.")


class TileRefusal(BaseModel):
    """Why one tile has no answer; its neighbours have theirs."""

    name: str
    error: Error


class Classified(BaseModel):
    """One result for each tile, in order."""

    model: ModelIdentity
    results: list[TileAnswer | TileRefusal]


class Candidate(ModelMetadata):
    """A model that is tried out beside the one that answers."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    mode: Literal["shadow", "canary"]
    share: Share


class ModelCard(ModelMetadata):
    """What the answering model says of itself."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Of the model file.")
    candidate: Candidate | None = Field(default=None, description="Absent where none is tried out.")


class WindowProperties(BaseModel):
    """The answer to one window of a scene; null where too few of its pixels hold data."""

    class_: str | None = Field(alias="class")
    probability: Share | None = Field(description="Of that class.")
    probabilities: dict[str, float] | None
    prediction_set: PredictionSet | None
    outlier: Outlier | None
    valid_fraction: Share
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


class Windows(BaseModel):
    """A classified scene: a GeoJSON FeatureCollection with what it was classified by."""

    type: Literal["FeatureCollection"]
    name: str
    model: ModelIdentity
    bands: list[str]
    level: Literal["L1C", "L2A"] | None
    features: list[WindowFeature]


class TaskLinks(BaseModel):
    """Where a task is told of."""

    self: str
    result: str


class Task(BaseModel):
    """How far a scene is that takes long."""

    id: str
    status: Literal["waiting", "running", "done", "failed"]
    progress: Share = Field(description="Share that is done.")
    windows: int = Field(ge=0)
    ahead: int = Field(ge=0, description="Tasks that are to be worked on before it.")
    created: str = Field(json_schema_extra={"format": "date-time"})
    finished: str | None
    expires: str | None = Field(description="When its result is deleted.")
    error: Error | None = Field(description="Why it failed.")
    links: TaskLinks
    forms: list[str] = Field(description="Media types that its result can be had in.")


class Explanation(BaseModel):
    """What a tile's answer rests on, in numbers."""

    model: ModelIdentity
    name: str
    class_: str = Field(alias="class", description="Which is explained.")
    probability: Share = Field(description="Of that class, for the whole tile.")
    method: Literal["occlusion", "embedding"]
    size: int = Field(ge=1, description="Of a patch, in pixels.")
    stride: int = Field(ge=1, description="Between patches, in pixels.")
    starts: list[int] = Field(description="Where patches begin along a side, in pixels.")
    grid: list[list[float]] = Field(
        description="For each patch that was taken away: how far the class's probability drops (`occlusion`), or the "
        "embedding turns (`embedding`)."
    )
    bands: dict[str, float] = Field(description="The same for each band that was taken away.")


ANSWERS: tuple[type[BaseModel], ...] = (ErrorBody, Classified, ModelCard, Windows, Task, Explanation)
_NOT_TOLD = ("histograms", "histogram_edges")


def components() -> dict[str, Any]:
    """Return the JSON Schemas (2020-12, as OpenAPI 3.1 takes them) of all answers, by name."""
    found: dict[str, Any] = {}
    for answer in ANSWERS:
        schema = answer.model_json_schema(mode="serialization", ref_template="#/components/schemas/{model}")
        found |= schema.pop("$defs", {})
        found[answer.__name__] = schema
    for name in ("ModelCard", "Candidate"):
        card = found[name]
        card["properties"] = {key: value for key, value in card["properties"].items() if key not in _NOT_TOLD}
        card["required"] = [key for key in card["required"] if key not in (*_NOT_TOLD, "candidate")]
    found.pop("ReferenceHistogram", None)
    return {name: _opened(schema) for name, schema in sorted(found.items())}


def _opened(schema: Any) -> Any:
    """Return a schema that lets fields be added (`tilewise.bento.api.replies`), without the titles of pydantic."""
    if isinstance(schema, list):
        return [_opened(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    opened = {key: _opened(value) for key, value in schema.items() if key != "title" or isinstance(value, dict)}
    if opened.get("additionalProperties") is False:
        del opened["additionalProperties"]
    return opened
