"""The service's answers as a client's types, and its errors as one exception.

Fields that a newer service adds are left out, as the API's version promises (`tilewise.bento.api.replies`).
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from tilewise.bento.api_version import API_VERSION, VERSION_HEADER
from tilewise.datasets.core.errors import TilewiseError


class ServiceError(TilewiseError):
    """The service refused, could not be reached, or is none of ours.

    Attributes:
        code, message, hint: as in the service's errors. The client's own codes: `unreachable`, `timeout`, `not_tilewise`
            (what answered is another program), `other_version` (of the API), and `tiles` (of `raise_for_errors`).
        status: the HTTP status; None where there was no answer.
        request_id: by which the service's operator finds the request in the logs; None where there is none.
    """

    def __init__(
        self, code: str, message: str, hint: str = "", status: int | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.code, self.message, self.hint = code, message, hint
        self.status, self.request_id = status, request_id


@dataclass(frozen=True, slots=True)
class TileError:
    """Why one tile has no answer."""

    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class PredictionSet:
    """Classes, likeliest first, among which the true one is with probability `coverage` (0-1)."""

    coverage: float
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outlier:
    """How unlike the training data a tile is; `flag` where the score is above the model's threshold."""

    score: float
    flag: bool


@dataclass(frozen=True, slots=True)
class Model:
    """Which model answered."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to one tile, or its error.

    Attributes:
        name: the file as it was given; of bytes and arrays, their position, from 0.
        class_name: the likeliest class; None where there is an error.
        probabilities: of each class (0-1), calibrated.
        prediction_set: None where the model is not calibrated for any.
        outlier: None where the model has no threshold.
        valid_fraction: share (0-1) of pixels with data in all bands; None where there is an error.
        bands: those that were used, in canonical order.
        level: `L1C`, `L2A`, or None where nobody said.
        footprint: GeoJSON in EPSG:4326; None where the file does not say where it lies.
        model: which answered; None where there is an error.
        error: why there is no answer, or None.
    """

    name: str
    class_name: str | None = None
    probabilities: dict[str, float] = field(default_factory=dict)
    prediction_set: PredictionSet | None = None
    outlier: Outlier | None = None
    valid_fraction: float | None = None
    bands: tuple[str, ...] = ()
    level: str | None = None
    footprint: dict[str, Any] | None = None
    model: Model | None = None
    error: TileError | None = None

    @property
    def probability(self) -> float | None:
        """Of the likeliest class (0-1); None where there is an error."""
        return None if self.class_name is None else self.probabilities[self.class_name]


def raise_for_errors(results: Sequence[Result]) -> Sequence[Result]:
    """Return `results` if every tile has an answer.

    Raises:
        ServiceError: with code `tiles`: some have none. It names the first and counts them.
    """
    failed = [result for result in results if result.error]
    if not failed:
        return results
    first = failed[0].error
    assert first  # noqa: S101 - chosen by it
    message = f"{len(failed)} of {len(results)} tiles have no answer, the first is {failed[0].name}: {first.message}"
    raise ServiceError("tiles", message, first.hint)


def parse_results(response: httpx.Response, names: Sequence[str]) -> list[Result]:
    """Return the results in an answer of `POST /classify`, under the names that the caller knows them by.

    Raises:
        ServiceError: the answer is of another form, or does not hold one result for each name.
    """
    content = content_of(response)
    try:
        model = _model(content["model"])
        return [_result(overrides, name, model) for name, overrides in zip(names, content["results"], strict=True)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise not_tilewise(response) from error


def content_of(response: httpx.Response) -> dict[str, Any]:
    """Return the JSON object that `response` holds.

    Raises:
        ServiceError: it holds none.
    """
    with suppress(ValueError):
        content = response.json()
        if isinstance(content, dict):
            return content
    raise not_tilewise(response)


def accept(heard: httpx.Response | httpx.RequestError) -> httpx.Response:
    """Return what was heard if it is an answer of ours to a request that was granted.

    Raises:
        ServiceError: it is a refusal, nothing at all, or something else.
    """
    if isinstance(heard, httpx.RequestError):
        raise _silence(heard)
    if heard.status_code >= httpx.codes.MULTIPLE_CHOICES:
        raise _refusal(heard)
    version = heard.headers.get(VERSION_HEADER)
    if version is None:
        raise not_tilewise(heard)
    if version != API_VERSION:
        message = f"{heard.url} speaks version {version} of the API, this client version {API_VERSION}"
        raise ServiceError("other_version", message, "use the client of the service's release", heard.status_code)
    return heard


def not_tilewise(response: httpx.Response) -> ServiceError:
    """Return the error of an answer that tilewise does not give."""
    message = f"{response.url} does not answer as tilewise does"
    return ServiceError("not_tilewise", message, "check the URL", response.status_code, _request_id(response))


def _result(overrides: dict[str, Any], name: str, model: Model) -> Result:
    if "error" in overrides:
        return Result(name, error=_tile_error(overrides["error"]))
    chosen, outlier = overrides.get("prediction_set"), overrides.get("outlier")
    return Result(
        name=name,
        class_name=overrides["class"],
        probabilities=dict(overrides["probabilities"]),
        prediction_set=PredictionSet(chosen["coverage"], tuple(chosen["classes"])) if chosen else None,
        outlier=Outlier(outlier["score"], outlier["flag"]) if outlier else None,
        valid_fraction=overrides["valid_fraction"],
        bands=tuple(overrides["bands"]),
        level=overrides.get("level"),
        footprint=overrides.get("footprint"),
        model=model,
    )


def _model(overrides: dict[str, str]) -> Model:
    return Model(overrides["name"], overrides["version"], overrides["sha256"])


def _tile_error(overrides: dict[str, str]) -> TileError:
    return TileError(overrides["code"], overrides["message"], overrides.get("hint", ""))


def _refusal(response: httpx.Response) -> ServiceError:
    status, request_id = response.status_code, _request_id(response)
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        error = _tile_error(response.json()["error"])
        return ServiceError(error.code, error.message, error.hint, status, request_id)
    # Not in our form: a balancer's answer, or another program's.
    message = f"{response.url} answers {status} {response.reason_phrase}".rstrip()
    return ServiceError(
        "not_tilewise", message, "check the URL, and what stands before the service", status, request_id
    )


def _silence(error: httpx.RequestError) -> ServiceError:
    url = error.request.url
    if isinstance(error, httpx.ConnectTimeout | httpx.NetworkError | httpx.RemoteProtocolError | httpx.ProxyError):
        reason = str(error) or type(error).__name__
        return ServiceError("unreachable", f"{url} cannot be reached: {reason}", "check the URL, and that it is served")
    if isinstance(error, httpx.TimeoutException):
        return ServiceError("timeout", f"{url} did not answer in time", "give it a longer timeout, or fewer tiles")
    return ServiceError("not_tilewise", f"{url} does not answer as tilewise does: {error}", "check the URL")


def _request_id(response: httpx.Response) -> str | None:
    return response.headers.get("x-request-id")
