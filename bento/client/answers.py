"""Results and errors of the service, as Python types.

Fields that a newer service adds are ignored: within one version of the API, fields are only ever added
(`tilewise.bento.api.replies`).
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from tilewise.bento.api_version import API_VERSION, VERSION_HEADER
from tilewise.datasets.core.errors import TilewiseError


class ServiceError(TilewiseError):
    """A request failed: the service refused it, could not be reached, or is not tilewise.

    Attributes:
        code, message, hint: as in the service's errors. The client's own codes: `unreachable`, `timeout`,
            `not_tilewise` (another program answered), `other_version` (of the API), and `tiles` (of
            `raise_for_errors`).
        status: the HTTP status; None where there was no response.
        request_id: the id of the request in the service's logs; None where there is none.
    """

    def __init__(
        self,
        code: str,
        message: str,
        hint: str = "",
        status: int | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.code, self.message, self.hint = code, message, hint
        self.status, self.request_id = status, request_id


@dataclass(frozen=True, slots=True)
class TileError:
    """Why one tile was not classified."""

    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class PredictionSet:
    """Classes, most probable first, that contain the true class with probability `coverage` (0-1)."""

    coverage: float
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outlier:
    """How unlike the training data a tile is; `flag` is set where the score exceeds the model's threshold."""

    score: float
    flag: bool


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """The model that classified a tile."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Result:
    """The classification of one tile, or the reason why there is none.

    Attributes:
        name: the file as it was given; of bytes and arrays, their position, from 0.
        class_name: the most probable class; None on error.
        probabilities: calibrated probability (0-1) of each class.
        prediction_set: None where the model is not calibrated for prediction sets.
        outlier: None where the model has no outlier threshold.
        valid_fraction: fraction (0-1) of pixels with data in all bands; None on error.
        bands: the bands that were used, in canonical order.
        level: `L1C`, `L2A`, or None where it is unknown.
        footprint: GeoJSON geometry in EPSG:4326; None where the file has no georeference.
        model: the model that classified the tile; None on error.
        error: why the tile was not classified, or None.
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
    model: ModelIdentity | None = None
    error: TileError | None = None

    @property
    def probability(self) -> float | None:
        """Probability (0-1) of the most probable class; None on error."""
        return None if self.class_name is None else self.probabilities[self.class_name]


def raise_for_errors(results: Sequence[Result]) -> Sequence[Result]:
    """Return `results` if every tile was classified.

    Raises:
        ServiceError: with code `tiles`: some were not. The message counts them and names the first.
    """
    failed = [result for result in results if result.error]
    if not failed:
        return results
    first = failed[0].error
    assert first  # noqa: S101 - `failed` holds only results with an error
    message = f"{len(failed)} of {len(results)} tiles have no answer, the first is {failed[0].name}: "
    f"{first.message}"
    raise ServiceError("tiles", message, first.hint)


def parse_results(response: httpx.Response, names: Sequence[str]) -> list[Result]:
    """Return the results in a response of `POST /classify`, under the caller's `names`.

    Raises:
        ServiceError: the response is malformed, or does not hold one result for each name.
    """
    content = parse_object(response)
    try:
        model = ModelIdentity(**{key: content["model"][key] for key in ("name", "version", "sha256")})
        return [parse_result(item, name, model) for name, item in zip(names, content["results"], strict=True)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise not_tilewise(response) from error


def parse_result(content: Mapping[str, Any], name: str, model: ModelIdentity) -> Result:
    """Return one result of the service's JSON, as a `Result`.

    Raises:
        KeyError, TypeError, AttributeError: it is malformed.
    """
    if "error" in content:
        return Result(name, error=_parse_error(content["error"]))
    prediction_set, outlier = content.get("prediction_set"), content.get("outlier")
    return Result(
        name=name,
        class_name=content["class"],
        probabilities=dict(content["probabilities"]),
        prediction_set=_parse_prediction_set(prediction_set) if prediction_set else None,
        outlier=Outlier(outlier["score"], outlier["flag"]) if outlier else None,
        valid_fraction=content["valid_fraction"],
        bands=tuple(content["bands"]),
        level=content.get("level"),
        footprint=content.get("footprint"),
        model=model,
    )


def parse_object(response: httpx.Response) -> dict[str, Any]:
    """Return the JSON object in the body of `response`.

    Raises:
        ServiceError: the body is anything else.
    """
    with suppress(ValueError):
        content = response.json()
        if isinstance(content, dict):
            return content
    raise not_tilewise(response)


def check_response(response: httpx.Response) -> httpx.Response:
    """Return `response` if tilewise sent it, in this version of the API, to a request that it accepted.

    Raises:
        ServiceError: it is an error, or not from tilewise.
    """
    if response.status_code >= httpx.codes.MULTIPLE_CHOICES:
        raise _refused(response)
    version = response.headers.get(VERSION_HEADER)
    if version is None:
        raise not_tilewise(response)
    if version != API_VERSION:
        message = f"{response.url} speaks version {version} of the API, this client version {API_VERSION}"
        raise ServiceError(
            "other_version", message, "use the client of the service's release", response.status_code
        )
    return response


def not_tilewise(response: httpx.Response) -> ServiceError:
    """Return the error for a response that tilewise does not send."""
    message = f"{response.url} does not answer as tilewise does"
    return ServiceError("not_tilewise", message, "check the URL", response.status_code, _request_id(response))


def no_response(error: httpx.RequestError) -> ServiceError:
    """Return the error for a request without a response."""
    url = error.request.url
    if isinstance(
        error, httpx.ConnectTimeout | httpx.NetworkError | httpx.RemoteProtocolError | httpx.ProxyError
    ):
        reason = str(error) or type(error).__name__
        message = f"{url} cannot be reached: {reason}"
        return ServiceError("unreachable", message, "check the URL, and that the service is running")
    if isinstance(error, httpx.TimeoutException):
        return ServiceError(
            "timeout", f"{url} did not answer in time", "use a longer timeout, or fewer tiles"
        )
    return ServiceError("not_tilewise", f"{url} does not answer as tilewise does: {error}", "check the URL")


def _parse_prediction_set(content: Mapping[str, Any]) -> PredictionSet:
    return PredictionSet(content["coverage"], tuple(content["classes"]))


def _parse_error(content: Mapping[str, str]) -> TileError:
    return TileError(content["code"], content["message"], content.get("hint", ""))


def _refused(response: httpx.Response) -> ServiceError:
    status, request_id = response.status_code, _request_id(response)
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        error = _parse_error(response.json()["error"])
        return ServiceError(error.code, error.message, error.hint, status, request_id)
    # Not tilewise's JSON: a load balancer's response, or another program's.
    message = f"{response.url} answers {status} {response.reason_phrase}".rstrip()
    hint = "check the URL, and the proxies in front of the service"
    return ServiceError("not_tilewise", message, hint, status, request_id)


def _request_id(response: httpx.Response) -> str | None:
    return response.headers.get("x-request-id")
