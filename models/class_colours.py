"""Colours of classes, on maps and in legends."""

from collections.abc import Sequence

Colour = tuple[int, int, int]
"""Red, green and blue, 0-255."""

KNOWN: dict[str, Colour] = {
    "AnnualCrop": (240, 205, 80),
    "Forest": (30, 100, 50),
    "HerbaceousVegetation": (140, 190, 90),
    "Highway": (70, 70, 80),
    "Industrial": (160, 60, 150),
    "Pasture": (90, 160, 60),
    "PermanentCrop": (205, 120, 50),
    "Residential": (215, 60, 60),
    "River": (80, 160, 220),
    "SeaLake": (25, 70, 160),
}
# Paul Tol's "muted" scheme (https://personal.sron.nl/~pault/), for classes of other data sets.
FURTHER: tuple[Colour, ...] = (
    (51, 34, 136),
    (136, 204, 238),
    (68, 170, 153),
    (17, 119, 51),
    (153, 153, 51),
    (221, 204, 119),
    (204, 102, 119),
    (136, 34, 85),
    (170, 68, 153),
)


def colours(classes: Sequence[str]) -> list[Colour]:
    """Return a colour for each class, in order."""
    return [KNOWN.get(name, FURTHER[index % len(FURTHER)]) for index, name in enumerate(classes)]
