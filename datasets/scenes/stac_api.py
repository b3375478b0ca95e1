"""Search a STAC API for Sentinel-2 items: by area, dates and cloud cover, with pystac-client."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from shapely.errors import ShapelyError
from shapely.geometry import shape

from tilewise.datasets.core.errors import FetchError, NoTilesError, SceneError
from tilewise.datasets.scenes.area import Area
from tilewise.datasets.scenes.rasters import shown
from tilewise.datasets.scenes.stac import Item

DEFAULT_COLLECTION = "sentinel-2-l2a"  # its name at Earth Search, the Planetary Computer and Copernicus
_TIMEOUT_S = 60.0
_PAGE = 100  # items asked for at a time
_CLOUDS = "eo:cloud_cover"
_OPEN = ".."


@dataclass(frozen=True, slots=True)
class StacSearch:
    """What is searched for.

    Attributes:
        url: of the API's landing page.
        dates: `A/B`, both included, e.g. `2024-06-01/2024-08-31`; `..` for an open end.
        max_cloud: items with a larger cloud cover in percent, or of an unknown one, are left out; None: any.
        collections: names of the collections.
        limit: number of items at most, those that the API names first; None: all.
    """

    url: str
    dates: str
    max_cloud: float | None = None
    collections: tuple[str, ...] = (DEFAULT_COLLECTION,)
    limit: int | None = None

    def __post_init__(self) -> None:
        """Check the dates.

        Raises:
            SceneError: they are not `A/B`, or A is later than B.
        """
        try:
            first, last = (None if d == _OPEN else datetime.fromisoformat(d) for d in self.dates.split("/"))
            valid = not (first and last and first.replace(tzinfo=UTC) > last.replace(tzinfo=UTC))
        except ValueError:
            valid = False
        if not valid:
            raise SceneError(
                f"dates {self.dates}: A/B is needed, A not after B, e.g. 2024-06-01/2024-08-31 or "
                "2024-06-01/.."
            )

    def find(self, area: Area) -> list[Item]:
        """Return the items that touch an area, in the API's order.

        Raises:
            FetchError: the API does not answer, or answers with an error.
            SceneError: pystac-client is not installed.
            NoTilesError: there is no such item.
        """
        found = list(islice(self._wanted(area), self.limit))
        if not found:
            raise NoTilesError(
                f"{shown(self.url)}: no item of {', '.join(self.collections)} at {area.name} of {self.dates}"
                + (f" with at most {self.max_cloud:g} % of clouds" if self.max_cloud is not None else "")
                + "; choose other dates, or another --collection"
            )
        return found

    def _wanted(self, area: Area) -> Iterator[Item]:
        outline = area.in_degrees()
        for content in self._search(list(outline.bounds)):
            try:
                touches = shape(content["geometry"]).intersects(outline)
            except (KeyError, TypeError, AttributeError, ValueError, ShapelyError):
                touches = True  # its outline is not told; its rasters will tell
            if touches and self._is_clear(content.get("properties")):
                yield Item(
                    str(content.get("id")), _address(content, self.url), json.dumps(content, sort_keys=True)
                )

    def _search(self, bbox: list[float]) -> Iterator[dict[str, Any]]:
        """Yield the items that the API finds, page by page."""
        try:
            from pystac_client import Client
            from pystac_client.exceptions import APIError
            from requests import RequestException
        except ImportError as error:
            raise SceneError("--stac needs pystac-client; pip install 'tilewise[stac]'") from error
        try:
            client = Client.open(self.url, timeout=_TIMEOUT_S)
            by_clouds = self.max_cloud is not None and client.conforms_to("QUERY")
            search = client.search(
                collections=list(self.collections),
                bbox=bbox,
                datetime=self.dates,
                query={_CLOUDS: {"lte": self.max_cloud}} if by_clouds else None,
                limit=_PAGE,
            )
            yield from search.items_as_dicts()
        except (APIError, RequestException) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise FetchError(
                f"{shown(self.url)}: the STAC API does not answer as it should: {first}"
            ) from error

    def _is_clear(self, properties: Any) -> bool:
        """Return whether an item has few enough clouds; not every API can be asked for that."""
        if self.max_cloud is None:
            return True
        cover = properties.get(_CLOUDS) if isinstance(properties, dict) else None
        return isinstance(cover, int | float) and cover <= self.max_cloud


def _address(content: dict[str, Any], default: str) -> str:
    """Return the URL of an item, from which its relative addresses start."""
    links = content.get("links")
    own = [link for link in links or [] if isinstance(link, dict) and link.get("rel") == "self"]
    address = str(own[0].get("href")) if own else default
    return address if address.startswith(("http://", "https://")) else default
