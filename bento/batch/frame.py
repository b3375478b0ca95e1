"""What results need to know of a scene, apart from its pixels."""

from dataclasses import dataclass

from datasets.tile import Georeference

_SQUARE_METRES_OF_HECTARE = 10_000.0


@dataclass(frozen=True, slots=True)
class Frame:
    """The grid that results lie on, and what is known of where they come from.

    Attributes:
        name: stem of the results' file names.
        place: where the grid lies.
        height, width: pixels of the maps.
        window_place: where the grid lies that windows are counted on; None: the same. It is another where the maps
            have one value for several pixels.
        sources: the files that the scene was read from, as they were named.
        datetime: when it was taken, ISO 8601; None where the files do not say.
        platform: the satellite, e.g. `sentinel-2a`; None where the files do not say.
        level: the processing level; None where nobody says.
    """

    name: str
    place: Georeference
    height: int
    width: int
    sources: tuple[str, ...] = ()
    datetime: str | None = None
    platform: str | None = None
    level: str | None = None
    window_place: Georeference | None = None

    @property
    def pixel_ha(self) -> float:
        """Hectares of one pixel in the grid's own projection; not a number where the grid is in degrees."""
        if not self.place.crs.is_projected:
            return float("nan")
        _, metres = self.place.crs.linear_units_factor
        return abs(self.place.transform.determinant) * metres**2 / _SQUARE_METRES_OF_HECTARE
